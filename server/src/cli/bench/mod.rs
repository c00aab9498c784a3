//! `elanus bench`: loads and drives any server that speaks the Milvus API, and this node's indexes
//! without a server. What it measures is printed as JSON, a line each.
//!
//! Vectors, truths and masks come from a directory of arrays (`data`); `make bench-data` makes one.

mod data;
mod index;
mod load;
mod process;
mod search;
mod wire;

use std::io::Write;

use anyhow::Result;
use clap::{Args as ClapArgs, Subcommand};
use serde_json::Value;

/// Measure a server that speaks the Milvus API, or an index without a server.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Load(load::Args),
    Search(search::Args),
    Index(index::Args),
}

/// Runs one of the commands.
pub(crate) fn run(args: Args) -> Result<()> {
    match args.command {
        Command::Load(args) => load::run(&args),
        Command::Search(args) => search::run(&args),
        Command::Index(args) => index::run(&args),
    }
}

/// Prints a result at once: a driver may be waiting for it.
fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// The value below which a share of `sorted` lies.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = (sorted.len().saturating_sub(1) as f64 * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

/// Rounded to so many places, so that a line stays readable.
fn round(number: f64, places: i32) -> f64 {
    let scale = 10f64.powi(places);
    (number * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let sorted: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(percentile(&sorted, 0.5), 50.0);
        assert_eq!(percentile(&sorted, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}

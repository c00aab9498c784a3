//! The command line: one file per command.

mod bench;
mod eval;
mod models;
mod offline;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// A Milvus-compatible vector database node with its models inside.
#[derive(Debug, Parser)]
#[command(name = "elanus", version, about, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node.
    Serve(Box<serve::Args>),
    /// Turn texts into vectors.
    Embed(models::Embed),
    /// Score documents against a question.
    Rerank(models::Rerank),
    /// Measure how well models find what people judged relevant.
    Eval(Box<eval::Args>),
    /// Show the tokens of texts.
    Tokenize(models::Tokenize),
    /// Look after installed models.
    #[command(subcommand)]
    Model(models::Model),
    Verify(offline::VerifyArgs),
    Repair(offline::RepairArgs),
    Inspect(offline::InspectArgs),
    Bench(bench::Args),
    /// Print the version.
    Version,
}

/// Runs the command that the process was started with. Errors go to standard error, with exit
/// code 2 where a code of 1 is an answer.
pub(crate) fn run() -> ExitCode {
    let done = |()| ExitCode::SUCCESS;
    let (outcome, failed) = match Cli::parse().command {
        Command::Serve(args) => (serve::run(*args).map(done), 1),
        Command::Verify(args) => (offline::verify(&args), 2),
        Command::Repair(args) => (offline::repair(&args), 2),
        Command::Inspect(args) => (offline::inspect(&args), 2),
        Command::Embed(args) => (models::embed(args).map(done), 1),
        Command::Rerank(args) => (models::rerank(args).map(done), 1),
        Command::Eval(args) => (eval::eval(*args).map(done), 1),
        Command::Tokenize(args) => (models::tokenize(args).map(done), 1),
        Command::Model(command) => (models::model(command).map(done), 1),
        Command::Bench(args) => (bench::run(args).map(done), 1),
        Command::Version => (print_version().map(done), 1),
    };
    outcome.unwrap_or_else(|error| {
        use std::io::Write;
        // Nothing is left to tell if standard error is gone.
        let _ = writeln!(std::io::stderr(), "elanus: {error:#}");
        failed.into()
    })
}

/// The environment of the process; names and values that are not UTF-8 cannot be a setting's.
fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn print_version() -> anyhow::Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout(), "elanus {}", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}

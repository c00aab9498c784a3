//! The command line: one file per command.

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
    /// Print the version.
    Version,
}

/// Runs the command that the process was started with. Errors go to standard error, exit code 1.
pub(crate) fn run() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(args) => serve::run(*args),
        Command::Version => print_version(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write;
            // Nothing is left to tell if standard error is gone.
            let _ = writeln!(std::io::stderr(), "elanus: {error:#}");
            ExitCode::FAILURE
        }
    }
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

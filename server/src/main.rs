//! The `elanus` binary: reads the command line and runs one command.

#![deny(unsafe_code)]

mod cli;
mod heap;

use std::process::ExitCode;

fn main() -> ExitCode {
    heap::set_up();
    cli::run()
}

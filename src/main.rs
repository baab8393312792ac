//! The `thalweg` binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use thalweg::cli::Cli;

fn main() -> ExitCode {
    thalweg::cli::run(Cli::parse())
}

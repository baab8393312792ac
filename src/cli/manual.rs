//! `thalweg completions` and `thalweg manual`: what shells and `man` read.

use std::{io::stdout, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Print what a shell needs to complete commands and options.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg completions bash > /etc/bash_completion.d/thalweg
  thalweg completions zsh > \"${fpath[1]}/_thalweg\"")]
pub struct Completions {
    /// Which shell
    shell: Shell,
}

/// Write the manual pages, one for each command.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  thalweg manual /usr/local/share/man/man1")]
pub struct Manual {
    /// The folder, which is made if it is not there
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl Completions {
    pub(super) fn run(self) -> ExitCode {
        clap_complete::generate(self.shell, &mut Cli::command(), "thalweg", &mut stdout());
        ExitCode::SUCCESS
    }
}

impl Manual {
    pub(super) fn run(self) -> Result<ExitCode> {
        let folder = &self.folder;
        let failed = || format!("the manual pages cannot be written to {}", folder.display());
        std::fs::create_dir_all(folder).with_context(failed)?;
        clap_mangen::generate_to(Cli::command(), folder).with_context(failed)?;
        Ok(ExitCode::SUCCESS)
    }
}

//! `thalweg check`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Args;

use super::{Output, load, output};
use crate::config::{Pipeline, check};

/// Check a pipeline file without running it.
///
/// Exit codes: 0 the file is right; 2 it is not.
#[derive(Debug, Args)]
pub struct Check {
    /// The pipeline file
    #[arg(value_name = "FILE", required_unless_present = "schema")]
    file: Option<PathBuf>,
    /// Print the JSON Schema of pipeline files, for editors
    #[arg(long)]
    schema: bool,
    #[command(flatten)]
    output: Output,
}

impl Check {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Some(file) = self.file.filter(|_| !self.schema) else {
            output::line(&serde_json::to_string_pretty(&Pipeline::schema())?)?;
            return Ok(ExitCode::SUCCESS);
        };
        let result = load(&file);
        let name = file.display().to_string();
        let check = check::Check::new(&name, &result);
        self.output.print(&check.to_json(), |_| check.to_text())?;
        Ok(if check.passed() { ExitCode::SUCCESS } else { ExitCode::from(2) })
    }
}

//! `thalweg doctor`.

mod connect;
mod data;
mod machine;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{FOUND_WRONG, Output, PipelineFile};

/// Look for what is wrong with this machine or a pipeline.
///
/// Changes nothing (but see `--connect`), and works beside a running daemon.
///
/// Exit codes: 0 no problem, perhaps warnings; 3 a problem.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg doctor
  thalweg doctor -p pipelines/quickstart.toml --json
  thalweg doctor -p pipelines/quickstart.toml --connect")]
pub struct Doctor {
    /// Ask the servers that the pipeline names, too; puts a small object into
    /// the object store and removes it again
    #[arg(long)]
    connect: bool,
    #[command(flatten)]
    pipeline: PipelineFile,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warning,
    Problem,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    /// What to do about it.
    advice: Option<String>,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warning, found: found.into(), advice: Some(advice.into()) }
    }

    fn problem(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Problem, found: found.into(), advice: Some(advice.into()) }
    }
}

impl Doctor {
    pub(super) fn run(self) -> Result<ExitCode> {
        let mut checks = Vec::new();
        match self.pipeline.load() {
            Ok(pipeline) => {
                checks.push(Check::ok("pipeline file", self.pipeline.pipeline.display().to_string()));
                checks.extend(machine::of_pipeline(&pipeline));
                checks.extend(super::block_on(async { Ok(data::check(&pipeline).await) })?);
                if self.connect {
                    checks.extend(super::block_on(async { Ok(connect::check(&pipeline).await) })?);
                }
            }
            Err(error) => {
                checks.push(Check::problem(
                    "pipeline file",
                    error.to_string(),
                    "mend it; `thalweg check` tells more",
                ));
            }
        }
        checks.extend(machine::always());
        self.output.print(&checks, |checks| text(checks))?;
        let problem = checks.iter().any(|check| check.verdict == Verdict::Problem);
        Ok(if problem { ExitCode::from(FOUND_WRONG) } else { ExitCode::SUCCESS })
    }
}

fn text(checks: &[Check]) -> String {
    let mut text = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => "ok     ",
            Verdict::Warning => "warning",
            Verdict::Problem => "PROBLEM",
        };
        text += &format!("{verdict}  {}: {}\n", check.name, check.found);
        if let Some(advice) = &check.advice {
            text += &format!("         {advice}\n");
        }
    }
    let count = |verdict| checks.iter().filter(|check| check.verdict == verdict).count();
    text + &format!("{} problems, {} warnings\n", count(Verdict::Problem), count(Verdict::Warning))
}

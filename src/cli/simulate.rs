//! `thalweg simulate`.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{
    Output,
    daemon::Daemon,
    output::{count, facts},
};
use crate::pipeline::estimate::{Estimate, Plan};

/// Have a running daemon say what work would cost before it is done: tokens,
/// money and time.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg simulate ingest 1000000
  thalweg simulate replay --from 1200
  thalweg simulate re_embed --json")]
pub struct Simulate {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
#[command(rename_all = "snake_case")]
enum What {
    /// New records come in
    Ingest {
        /// How many
        #[arg(value_name = "N")]
        records: u64,
    },
    /// Offsets are derived again
    Replay {
        /// The first; the stream's start if left out
        #[arg(long, value_name = "OFFSET")]
        from: Option<u64>,
        /// The one after the last; the stream's end if left out
        #[arg(long, value_name = "OFFSET")]
        to: Option<u64>,
    },
    /// Every stored chunk gets a vector of another model
    ReEmbed,
}

impl Simulate {
    pub(super) fn run(self) -> Result<ExitCode> {
        let plan = match self.what {
            What::Ingest { records } => Plan::Ingest { records },
            What::Replay { from, to } => Plan::Replay { from, to },
            What::ReEmbed => Plan::ReEmbed,
        };
        let estimate: Estimate = super::block_on(self.daemon.post("/api/v1/simulate", &plan))?;
        self.output.print(&estimate, text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn text(estimate: &Estimate) -> String {
    let known = |value: Option<String>| value.unwrap_or_else(|| "not known".to_owned());
    let mut lines = vec![
        ("records", count(estimate.records)),
        ("chunks", known(estimate.chunks.map(count))),
        ("tokens", known(estimate.tokens.map(count))),
        ("cost", known(estimate.cost.map(|cost| format!("{cost:.2}")))),
        ("seconds", known(estimate.seconds.map(|seconds| format!("{seconds:.1}")))),
    ];
    lines.extend(estimate.days_of_quota.map(|days| ("days of quota", format!("{days:.1}"))));
    lines.extend(estimate.basis.iter().map(|basis| ("basis", basis.clone())));
    facts(&lines)
}

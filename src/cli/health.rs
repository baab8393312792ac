//! `thalweg health`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{FOUND_WRONG, Output, daemon::Daemon};
use crate::api::{Live, Readiness};

/// Ask a running daemon whether it takes records and finds them.
///
/// Needs no key; without one only the components that are amiss are named.
///
/// Exit codes: 0 it does, perhaps with something amiss that keeps nobody from
/// sending; 1 no daemon answers; 3 it does not.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg health
  thalweg health --live --url http://127.0.0.1:7400")]
pub struct Health {
    /// Only whether the process runs
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    output: Output,
}

impl Health {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            if self.live {
                let live: Live = self.daemon.get("/health/live").await?;
                self.output.print(&live, |live| live.status.clone())?;
                return Ok(ExitCode::SUCCESS);
            }
            let said = self.daemon.look("/health/ready").await?;
            if said.is_unavailable()
                && let Ok(readiness) = said.read::<Readiness>()
            {
                self.output.print(&readiness, text)?;
                return Ok(ExitCode::from(FOUND_WRONG));
            }
            self.output.print(&said.fine()?, text)?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn text(readiness: &Readiness) -> String {
    let reasons = readiness.reasons.iter().map(|reason| format!("  {reason}\n"));
    let damage = readiness.damage.iter().map(|damage| {
        let (first, next) = (damage.first_offset, damage.next_offset);
        format!("  damaged: offsets {first}..{next}, of {}; see `thalweg segments repair`\n", damage.file)
    });
    format!("{}\n{}", readiness.status, reasons.chain(damage).collect::<String>())
}

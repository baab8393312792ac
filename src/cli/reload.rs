//! `thalweg reload`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::{Output, daemon::Daemon, output::facts};
use crate::reload::Reloaded;

/// Have a running daemon take its pipeline file anew.
///
/// The daemon reads the file that it was started with, checks it whole, opens
/// what is new beside what runs, and changes over; if anything fails it goes on
/// as before, and says why. Sources without a difference notice nothing. So
/// does SIGHUP, whose outcome is in the daemon's log.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg reload --dry-run
  thalweg reload --url https://memory.example.org --key \"$(cat admin.key)\"")]
pub struct Reload {
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    output: Output,
}

impl Reload {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async move {
            let how = json!({"dry_run": self.dry_run});
            let reloaded: Reloaded = self.daemon.post("/api/v1/reload", &how).await?;
            self.output.print(&reloaded, |reloaded| text(reloaded, self.dry_run))?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn text(reloaded: &Reloaded, dry_run: bool) -> String {
    if reloaded.changed.is_empty() {
        return "nothing is different\n".into();
    }
    let Reloaded { changed, sources_opened, sources_closed, sources_changed, .. } = reloaded;
    let mut lines = vec![(if dry_run { "would change" } else { "changed" }, changed.join(", "))];
    for (what, names) in [
        ("sources opened", sources_opened),
        ("sources closed", sources_closed),
        ("sources changed", sources_changed),
    ] {
        if !names.is_empty() {
            lines.push((what, names.join(", ")));
        }
    }
    facts(&lines)
}

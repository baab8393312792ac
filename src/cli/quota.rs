//! `thalweg quota`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::{
    Output,
    daemon::Daemon,
    output::{count, facts, table, time},
};
use crate::{
    api::{Providers, Quota as Limits},
    breaker::Circuit,
};

/// Show what embedding may cost a running daemon today and what it has cost,
/// and with --providers how its services do.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg quota
  thalweg quota --providers --json")]
pub struct Quota {
    /// Show the services that compute vectors too
    #[arg(long)]
    providers: bool,
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    output: Output,
}

impl Quota {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            if self.providers {
                let providers: Providers = self.daemon.get("/health/providers").await?;
                self.output.print(&providers, providers_text)?;
            } else {
                let limits: Limits = self.daemon.get("/api/v1/embedding/quota").await?;
                self.output.print(&limits, text)?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn text(limits: &Limits) -> String {
    if limits.kinds.is_empty() {
        return "embedding costs nothing here\n".to_owned();
    }
    let or_dash = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), count);
    let mut cells = vec![["counted", "spent", "quota", "left", "state"].map(str::to_owned).to_vec()];
    cells.extend(limits.kinds.iter().map(|kind| {
        vec![
            kind.unit.name().to_owned(),
            count(kind.current_count),
            or_dash(kind.daily_quota),
            or_dash(kind.remaining),
            if kind.exceeded { "exceeded" } else { "within" }.to_owned(),
        ]
    }));
    format!("{}a new day begins at {}\n", table(&cells), limits.reset_at)
}

fn providers_text(providers: &Providers) -> String {
    let mut lines = vec![
        ("status", providers.status.clone()),
        ("deferred", count(providers.deferred)),
        ("without a vector", format!("{:.1} %", providers.fallback_fraction * 100.0)),
    ];
    lines.extend(providers.trouble.iter().map(|trouble| ("trouble", trouble.clone())));
    let mut shown = facts(&lines);
    if !providers.providers.is_empty() {
        let mut cells = vec![["service", "state", "asked again", "last failure"].map(str::to_owned).to_vec()];
        cells.extend(providers.providers.iter().map(|endpoint| {
            let circuit = match endpoint.circuit {
                Circuit::Closed => "in use",
                Circuit::HalfOpen => "being tried",
                Circuit::Open => "left alone",
            };
            let failure = endpoint.last_failure.as_ref();
            vec![
                endpoint.name.clone(),
                circuit.to_owned(),
                endpoint.retry_at.map(time).unwrap_or_default(),
                failure
                    .map(|last| format!("{} {}: {}", time(last.at), last.class, last.reason))
                    .unwrap_or_default(),
            ]
        }));
        shown += &format!("\n{}", table(&cells));
    }
    format!("{shown}\n{}", text(&providers.quota))
}

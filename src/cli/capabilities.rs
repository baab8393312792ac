//! `thalweg capabilities`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::{
    Output,
    daemon::Daemon,
    output::{facts, table},
};
use crate::{api::Capabilities as Offered, units::ByteSize};

/// Show what a running daemon can be asked for, and what of it with this key.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg capabilities
  thalweg capabilities --json | jq '.operations[] | select(.allowed | not)'
  thalweg capabilities --openapi > openapi.json")]
pub struct Capabilities {
    /// Print the OpenAPI document of all operations instead
    #[arg(long)]
    openapi: bool,
    #[command(flatten)]
    daemon: Daemon,
    #[command(flatten)]
    output: Output,
}

impl Capabilities {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            if self.openapi {
                let document: Value = self.daemon.get("/api/v1/openapi.json").await?;
                Output { json: true }.print(&document, Value::to_string)?;
            } else {
                let offered: Offered = self.daemon.get("/api/v1/capabilities").await?;
                self.output.print(&offered, text)?;
            }
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn text(offered: &Offered) -> String {
    let who = &offered.principal;
    let shown = facts(&[
        ("version", offered.version.clone()),
        ("pipeline", format!("{}  stream {}", offered.pipeline, offered.stream)),
        ("records over HTTP", if offered.ingest { "taken" } else { "not taken" }.to_owned()),
        ("space", offered.space.clone()),
        ("search", offered.search_modes.join(", ")),
        ("longest body", ByteSize(offered.max_body_bytes).to_string()),
        ("you", who.id.clone()),
        ("tenant", who.tenant.clone().unwrap_or_else(|| "all of them".to_owned())),
        ("roles", who.roles.join(", ")),
        ("rate tier", who.rate_tier.name().to_owned()),
    ]);
    let heading = ["operation", "", "right", "allowed", "what"];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    cells.extend(offered.operations.iter().map(|operation| {
        vec![
            operation.method.clone(),
            operation.path.clone(),
            operation.right.clone(),
            if operation.allowed { "yes" } else { "no" }.to_owned(),
            operation.summary.clone().unwrap_or_default(),
        ]
    }));
    format!("{shown}\n{}", table(&cells))
}

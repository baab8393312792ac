//! `thalweg artifacts`.

mod check;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    FOUND_WRONG, Output, PipelineFile,
    meter::Meter,
    offline,
    output::{count, short, table, time},
};
use crate::{
    artifact::{Artifacts as Registry, Verified},
    store::ArtifactRow,
    units::ByteSize,
    workbench::open_artifacts,
};

/// List, check, verify or fetch artifacts of the object store.
///
/// An artifact is an immutable object named by its SHA-256: a sealed segment,
/// a dictionary, a corpus pack, a report, a model's description. Digests may be cut short where they stay unique.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg artifacts list
  thalweg artifacts check
  thalweg artifacts verify --json
  thalweg artifacts fetch 3f2a91 segment.seg.zst")]
pub struct Artifacts {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    pipeline: PipelineFile,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List every artifact, oldest first
    List,
    /// Compare objects with the registry by name and size, both ways; exit
    /// code 3 if something is missing, of another size, or known to nobody
    Check(check::Check),
    /// Compare every byte with the digest; exit code 3 if something is
    /// missing, altered, or known to nobody
    Verify {
        /// Only these; without any, objects that no row names are looked for too
        #[arg(value_name = "DIGEST")]
        digests: Vec<String>,
    },
    /// Copy the object of an artifact into a file, if it is intact
    Fetch {
        /// Which
        #[arg(value_name = "DIGEST")]
        digest: String,
        /// The file, which is replaced if it is there
        #[arg(value_name = "OUT")]
        out: PathBuf,
    },
}

#[derive(Debug, Serialize)]
struct Row {
    digest: String,
    kind: String,
    name: String,
    bytes: u64,
    location: String,
    created_ms: i64,
    meta: serde_json::Value,
}

impl From<ArtifactRow> for Row {
    fn from(row: ArtifactRow) -> Self {
        Self {
            digest: row.digest,
            kind: row.kind,
            name: row.name,
            bytes: row.bytes,
            location: row.location,
            created_ms: row.created_ms,
            meta: serde_json::from_str(&row.meta).unwrap_or_default(),
        }
    }
}

#[derive(Debug, Serialize)]
struct Found {
    digest: String,
    kind: String,
    name: String,
    location: String,
    #[serde(flatten)]
    state: Verified,
}

/// What verifying found.
#[derive(Debug, Serialize)]
struct Verification {
    artifacts: Vec<Found>,
    /// Objects that no row names.
    orphans: Vec<String>,
}

impl Artifacts {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        super::block_on(async {
            let store = offline::store(&pipeline).await?;
            let artifacts = open_artifacts(&pipeline, &store)?;
            let code = match self.what {
                What::List => {
                    let rows: Vec<Row> = artifacts.list().await?.into_iter().map(Row::from).collect();
                    self.output.print(&rows, |rows| list_text(rows))?;
                    ExitCode::SUCCESS
                }
                What::Check(check) => check.run(&pipeline, &artifacts, self.output).await?,
                What::Verify { digests } => {
                    let found = verify(&artifacts, &digests).await?;
                    self.output.print(&found, Verification::text)?;
                    if found.is_fine() { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) }
                }
                What::Fetch { digest, out } => {
                    let row = artifacts.find(&digest).await?;
                    match artifacts.verify(&row).await? {
                        Verified::Intact => artifacts.fetch(&row, &out).await?,
                        Verified::Missing => {
                            bail!("the object of {} is missing: {}", row.digest, row.location)
                        }
                        Verified::Altered { found } => {
                            bail!("the object of {} is altered: its SHA-256 is {found}", row.digest)
                        }
                    }
                    let row = Row::from(row);
                    let text =
                        |row: &Row| format!("{}  {}  {}\n", row.digest, ByteSize(row.bytes), out.display());
                    self.output.print(&row, text)?;
                    ExitCode::SUCCESS
                }
            };
            store.close().await;
            Ok(code)
        })
    }
}

async fn verify(artifacts: &Registry, digests: &[String]) -> Result<Verification> {
    let mut rows = Vec::new();
    for digest in digests {
        rows.push(artifacts.find(digest).await?);
    }
    let all = digests.is_empty();
    if all {
        rows = artifacts.list().await?;
    }
    let mut meter = Meter::new(Some(rows.len() as u64));
    let mut found = Vec::new();
    for row in rows {
        let state = artifacts.verify(&row).await?;
        found.push(Found {
            digest: row.digest,
            kind: row.kind,
            name: row.name,
            location: row.location,
            state,
        });
        meter.at(found.len() as u64, "");
    }
    let orphans = if all { artifacts.orphans().await? } else { Vec::new() };
    Ok(Verification { artifacts: found, orphans })
}

impl Verification {
    fn is_fine(&self) -> bool {
        self.orphans.is_empty() && self.artifacts.iter().all(|found| found.state == Verified::Intact)
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for found in &self.artifacts {
            let (state, more) = match &found.state {
                Verified::Intact => ("intact ", String::new()),
                Verified::Missing => ("MISSING", String::new()),
                Verified::Altered { found } => ("ALTERED", format!("  has SHA-256 {}", short(found))),
            };
            text += &format!(
                "{state}  {}  {}  {}  {}{more}\n",
                short(&found.digest),
                found.kind,
                found.name,
                found.location
            );
        }
        for orphan in &self.orphans {
            text += &format!("ORPHAN   {orphan}: no row names it; a put may be under way\n");
        }
        text + &format!("{} artifacts, {} orphans\n", self.artifacts.len(), self.orphans.len())
    }
}

fn list_text(rows: &[Row]) -> String {
    let mut cells = vec![["digest", "kind", "name", "size", "bytes", "created"].map(str::to_owned).to_vec()];
    cells.extend(rows.iter().map(|row| {
        vec![
            short(&row.digest).to_owned(),
            row.kind.clone(),
            row.name.clone(),
            ByteSize(row.bytes).to_string(),
            count(row.bytes),
            time(row.created_ms),
        ]
    }));
    table(&cells)
}

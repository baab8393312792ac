//! `thalweg artifacts`.

mod check;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde::Serialize;

use super::{
    FOUND_WRONG, Output,
    daemon::Daemon,
    meter::Meter,
    offline,
    output::{count, facts, short, table, time},
    place::{Found, Place, PlaceError},
};
use crate::{
    api::Artifact,
    artifact::{Artifacts as Registry, Verified},
    config::Pipeline,
    units::ByteSize,
    workbench::open_artifacts,
};

/// List, show, check, verify or fetch artifacts of the object store.
///
/// An artifact is an immutable object named by its SHA-256: a sealed segment,
/// a dictionary, a corpus pack, a report, a model's description. Digests may be cut short where they stay unique,
/// but for a daemon that is asked with --url, which has `list` and `show`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg artifacts list
  thalweg artifacts list --url https://memory.example.org --json
  thalweg artifacts check
  thalweg artifacts verify --json
  thalweg artifacts fetch 3f2a91 segment.seg.zst")]
pub struct Artifacts {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List every artifact, oldest first
    List,
    /// Show what is known of an artifact
    Show {
        /// Which
        #[arg(value_name = "DIGEST")]
        digest: String,
    },
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
struct Examined {
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
    artifacts: Vec<Examined>,
    /// Objects that no row names.
    orphans: Vec<String>,
}

impl Artifacts {
    pub(super) fn run(self) -> Result<ExitCode> {
        super::block_on(async {
            match self.place.find()? {
                Found::There(daemon) => self.there(&daemon).await,
                Found::Here(pipeline) => {
                    let store = offline::store(&pipeline).await?;
                    let artifacts = open_artifacts(&pipeline, &store)?;
                    let code = self.here(&pipeline, &artifacts).await;
                    store.close().await;
                    code
                }
            }
        })
    }

    async fn there(self, daemon: &Daemon) -> Result<ExitCode> {
        let command = match self.what {
            What::List => {
                let list = daemon.list::<Artifact>("/api/v1/artifacts", &[], None, usize::MAX).await?;
                print_list(list.items, self.output)?;
                return Ok(ExitCode::SUCCESS);
            }
            What::Show { digest } => {
                if digest.len() != 64 || !digest.chars().all(|c| c.is_ascii_hexdigit()) {
                    bail!(
                        "a daemon is asked for an artifact by all 64 digits of its digest, not by `{digest}`"
                    );
                }
                let artifact = daemon.get(&format!("/api/v1/artifacts/{digest}")).await?;
                self.output.print(&artifact, show_text)?;
                return Ok(ExitCode::SUCCESS);
            }
            What::Check(_) => "artifacts check",
            What::Verify { .. } => "artifacts verify",
            What::Fetch { .. } => "artifacts fetch",
        };
        Err(PlaceError::OnlyHere { command }.into())
    }

    async fn here(self, pipeline: &Pipeline, artifacts: &Registry) -> Result<ExitCode> {
        match self.what {
            What::List => {
                print_list(artifacts.list().await?.into_iter().map(Artifact::from).collect(), self.output)?;
            }
            What::Show { digest } => {
                let artifact = artifacts.find(&digest).await?.into();
                self.output.print(&artifact, show_text)?;
            }
            What::Check(check) => return check.run(pipeline, artifacts, self.output).await,
            What::Verify { digests } => {
                let found = verify(artifacts, &digests).await?;
                self.output.print(&found, Verification::text)?;
                return Ok(if found.is_fine() { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) });
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
                let text =
                    |row: &Artifact| format!("{}  {}  {}\n", row.digest, ByteSize(row.bytes), out.display());
                self.output.print(&Artifact::from(row), text)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Prints artifacts, oldest first.
fn print_list(mut artifacts: Vec<Artifact>, output: Output) -> Result<()> {
    artifacts.sort_by(|a, b| (a.created_ms, &a.digest).cmp(&(b.created_ms, &b.digest)));
    Ok(output.print(&artifacts, |artifacts| list_text(artifacts))?)
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
        found.push(Examined {
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

fn list_text(rows: &[Artifact]) -> String {
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

fn show_text(artifact: &Artifact) -> String {
    facts(&[
        ("digest", artifact.digest.clone()),
        ("kind", artifact.kind.clone()),
        ("name", artifact.name.clone()),
        ("bytes", count(artifact.bytes)),
        ("location", artifact.location.clone()),
        ("created", time(artifact.created_ms)),
        ("meta", artifact.meta.to_string()),
    ])
}

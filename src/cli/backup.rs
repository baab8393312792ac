//! `thalweg backup`.

use std::{ops::Range, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Args;

use super::{
    Output, PipelineFile, offline,
    output::{count, facts},
};
use crate::{
    clock,
    config::Pipeline,
    pipeline::backup::{Backup as Copy, Manifest},
    store::Engine,
    units::ByteSize,
    workbench::open_artifacts,
};

/// Copy the database and its registry into one folder, with the counts and
/// digests that prove a restore.
///
/// Works beside a running daemon and keeps nobody from writing. PostgreSQL is
/// copied by `pg_dump`, from `PATH` or the folder in THALWEG_PG_BIN. The log is
/// not copied: what is sealed is an object, what is not is of the log alone.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg backup -p pipelines/team.toml --to /backups/$(date +%F)
  thalweg segments seal && thalweg backup --objects --to /mnt/usb/thalweg")]
pub struct Backup {
    #[command(flatten)]
    pipeline: PipelineFile,
    /// The folder to write; it must not be there. Until everything is in it
    /// and durable, its name ends in `.partial`
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    /// Copy the objects of the registry, too: sealed segments, dictionaries
    /// and whatever else is in the object store
    #[arg(long)]
    objects: bool,
    #[command(flatten)]
    postgres: PostgresPrograms,
    #[command(flatten)]
    output: Output,
}

/// Where PostgreSQL's own programs are.
#[derive(Debug, Args)]
pub(super) struct PostgresPrograms {
    /// Folder of `pg_dump` and `pg_restore`
    #[arg(long, value_name = "DIR", env = "THALWEG_PG_BIN")]
    pub pg_bin: Option<PathBuf>,
}

impl Backup {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        let manifest = super::block_on(self.write(&pipeline))?;
        self.output.print(&manifest, |manifest| self.text(manifest))?;
        Ok(ExitCode::SUCCESS)
    }

    async fn write(&self, pipeline: &Pipeline) -> Result<Manifest> {
        let store = offline::store(pipeline).await?;
        let artifacts = match self.objects {
            true => Some(open_artifacts(pipeline, &store)?),
            false => None,
        };
        let backup = Copy {
            store: &store,
            pipeline: &pipeline.name,
            stream: &pipeline.stream,
            pg_bin: self.postgres.pg_bin.as_deref(),
            objects: artifacts.as_ref(),
        };
        let manifest = backup.write(&self.to, || offline::log_range(pipeline), clock::system_ms()).await?;
        store.close().await;
        Ok(manifest)
    }

    fn text(&self, manifest: &Manifest) -> String {
        let bytes = manifest.files.iter().map(|file| file.bytes).sum();
        let rows = manifest.tables.iter().map(|table| table.rows).sum();
        let engine = match manifest.engine {
            Engine::Sqlite => "SQLite",
            Engine::Postgres => "PostgreSQL",
        };
        let objects = match manifest.objects {
            true => format!("{} copied", count(manifest.artifacts.len() as u64)),
            false => format!("{} stay where they are", count(manifest.artifacts.len() as u64)),
        };
        let beyond = match &manifest.log {
            Some(Range { end, .. }) => format!(
                "; the log ended at {}, {} offsets are in the log only",
                count(*end),
                count(end.saturating_sub(manifest.next_offset))
            ),
            None => "; the log is not in this data_dir".into(),
        };
        facts(&[
            ("backup", self.to.display().to_string()),
            ("files", format!("{} of {}", count(manifest.files.len() as u64), ByteSize(bytes))),
            ("database", format!("{engine}, {} tables, {} rows", manifest.tables.len(), count(rows))),
            ("objects", objects),
            ("reaches", format!("offset {}{beyond}", count(manifest.next_offset))),
        ])
    }
}

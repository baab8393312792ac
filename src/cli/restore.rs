//! `thalweg restore`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use super::{
    FOUND_WRONG, Output, PipelineFile,
    backup::PostgresPrograms,
    offline,
    output::{count, facts, short, table, time},
};
use crate::{
    clock,
    config::Pipeline,
    pipeline::backup::{Compared, Manifest, compare},
    store::{Damage, DamageKind, Engine, Store, TableDigest, probe},
    workbench::{open_artifacts, open_store},
};

/// Put a backup where no store is, and prove it: every table is counted and
/// digested again, and compared with what was written down.
///
/// Nothing is touched before every file of the backup has the SHA-256 that it
/// was written with. SQLite's file is put into `data_dir`, PostgreSQL's schema
/// into the database at `store.url`; either must not be there. Objects that
/// the backup holds are put back where they are missing.
///
/// Exit codes: 0 restored and proved; 1 failed; 2 the pipeline file is wrong; 3
/// what is there now is not what was backed up.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg restore -p pipelines/team.toml --from /backups/2026-07-01
  thalweg restore --from /backups/2026-07-01 --verify-only")]
pub struct Restore {
    #[command(flatten)]
    pipeline: PipelineFile,
    /// The folder that `thalweg backup` wrote
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// Only verify the backup; restore nothing
    #[arg(long)]
    verify_only: bool,
    #[command(flatten)]
    postgres: PostgresPrograms,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Serialize)]
struct Restored {
    pipeline: String,
    stream: String,
    created_ms: i64,
    engine: Engine,
    next_offset: u64,
    /// Whether a store was written, or the backup only verified.
    restored: bool,
    /// Objects of the backup, which are all in the object store now.
    objects: usize,
    /// Empty where nothing but the files could be compared.
    tables: Vec<Compared>,
    proved: bool,
}

impl Restore {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        let restored = super::block_on(self.restore(&pipeline))?;
        self.output.print(&restored, text)?;
        Ok(if restored.proved { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) })
    }

    async fn restore(&self, pipeline: &Pipeline) -> Result<Restored> {
        let manifest = Manifest::verified(&self.from).await?;
        let tables = match self.verify_only {
            true => self.content(&manifest).await?,
            false => {
                fits(&manifest, pipeline).await?;
                Some(self.load(&manifest, pipeline).await?)
            }
        };
        let tables = tables.map(|tables| compare(&manifest.tables, &tables)).unwrap_or_default();
        let proved = tables.iter().all(|table| table.same);
        let mut objects = 0;
        if proved && !self.verify_only {
            let store = open_store(pipeline).await?;
            let artifacts = open_artifacts(pipeline, &store)?;
            objects = manifest.put_objects(&self.from, &artifacts, clock::system_ms()).await?;
            remember_what_was_in_flight(&manifest, pipeline, &store).await?;
            store.close().await;
        }
        let Manifest { pipeline, stream, created_ms, engine, next_offset, .. } = manifest;
        let restored = !self.verify_only;
        Ok(Restored { pipeline, stream, created_ms, engine, next_offset, restored, objects, tables, proved })
    }

    async fn content(&self, manifest: &Manifest) -> Result<Option<Vec<TableDigest>>> {
        let copy = self.from.join(&manifest.database);
        Ok(Store::content_of_copy(&copy, self.postgres.pg_bin.as_deref(), manifest.engine).await?)
    }

    async fn load(&self, manifest: &Manifest, pipeline: &Pipeline) -> Result<Vec<TableDigest>> {
        let copy = self.from.join(&manifest.database);
        let path = pipeline.in_data_dir(pipeline.store.path.as_ref());
        let to = (path.as_path(), &pipeline.store);
        Ok(Store::restore(&copy, self.postgres.pg_bin.as_deref(), to).await?)
    }
}

/// Whether the backup is of this pipeline, and its database of this kind.
async fn fits(manifest: &Manifest, pipeline: &Pipeline) -> Result<()> {
    ensure!(
        (&manifest.pipeline, &manifest.stream) == (&pipeline.name, &pipeline.stream),
        "the backup is of pipeline `{}` and stream `{}`, the pipeline file of `{}` and `{}`",
        manifest.pipeline,
        manifest.stream,
        pipeline.name,
        pipeline.stream
    );
    let (engine, is_set) = match &pipeline.store.url {
        Some(_) => (Engine::Postgres, "sets"),
        None => (Engine::Sqlite, "does not set"),
    };
    ensure!(
        manifest.engine == engine,
        "the backup is of another database than the pipeline file names, which {is_set} store.url"
    );
    if let Some(url) = pipeline.store.url.as_ref().filter(|_| manifest.needs_pgvector) {
        let database = probe(url.reveal(), clock::system_ms()).await?;
        ensure!(
            database.pgvector.is_some(),
            "the backup has vectors of pgvector, and {} is without it: `CREATE EXTENSION vector` there, as a \
             superuser",
            database.database
        );
    }
    Ok(())
}

/// Where the log is gone, the offsets that were given when the backup was made
/// and had no rows yet are gone with it. Known as missing, they are given to
/// nobody else; `segments repair` may still find them in the object store.
async fn remember_what_was_in_flight(manifest: &Manifest, pipeline: &Pipeline, store: &Store) -> Result<()> {
    let first_offset = manifest.next_offset;
    let Some(next_offset) = manifest.log.as_ref().map(|log| log.end).filter(|end| *end > first_offset) else {
        return Ok(());
    };
    if offline::log_folder(pipeline).path().is_dir() {
        return Ok(());
    }
    let missing = Damage {
        file: format!("{first_offset:020}.log"),
        kind: DamageKind::Missing,
        first_offset,
        next_offset,
        detail: "in the log when the backup was made that was restored".into(),
        found_ms: clock::system_ms(),
        settled_ms: None,
    };
    Ok(store.put_damage(&pipeline.stream, &[missing]).await?)
}

fn text(restored: &Restored) -> String {
    let digest = |side: &Option<TableDigest>| match side {
        Some(table) => [count(table.rows), short(&table.digest).to_owned()],
        None => ["-".into(), "not there".into()],
    };
    let mut rows = vec![["table", "rows", "digest", "counted", "digested", ""].map(str::to_owned).to_vec()];
    rows.extend(restored.tables.iter().map(|table| {
        let verdict = if table.same { "same" } else { "DIFFERENT" };
        let [rows, expected] = digest(&table.backed_up);
        let [counted, digested] = digest(&table.restored);
        vec![table.table.clone(), rows, expected, counted, digested, verdict.to_owned()]
    }));
    let mut text = facts(&[
        ("pipeline", format!("{}  stream {}", restored.pipeline, restored.stream)),
        ("backup of", time(restored.created_ms)),
        ("reaches", format!("offset {}", count(restored.next_offset))),
    ]);
    if !restored.tables.is_empty() {
        text += &format!("\n{}", table(&rows));
    }
    text + "\n" + verdict(restored)
}

fn verdict(restored: &Restored) -> &'static str {
    match (restored.restored, restored.proved, restored.engine) {
        (true, true, Engine::Sqlite) => {
            "restored and proved. `thalweg segments repair` gets sealed segments that are not beside the log \
             out of the object store; then start the daemon"
        }
        (true, true, Engine::Postgres) => {
            "restored and proved. `thalweg segments repair` gets sealed segments that are not beside the log \
             out of the object store; then start the daemon, with --take-over if this is a new data_dir"
        }
        (true, false, _) => {
            "NOT PROVED: what is there now is not what was backed up. Start no daemon on it; remove it, look at \
             the disk, and restore again"
        }
        (false, true, Engine::Sqlite) => "every file and every table is as it was backed up",
        (false, true, Engine::Postgres) => {
            "every file is as it was backed up, and pg_restore can read the dump; only a restore counts its rows"
        }
        (false, false, _) => "NOT PROVED: the database in the backup is not the one that was digested",
    }
}

//! What each kind of job does, and where it goes on after a crash.
//!
//! | kind | after a crash |
//! |---|---|
//! | `replay` | goes on where it last said how far it is; what came after that is derived again, and counted once |
//! | `re_embed` | goes on: chunks that have their vector are not asked for |
//! | `pack` | from the beginning, unless the pack is whole: then it is put and registered |
//! | `train_dictionary` | from the beginning |
//! | `retention` | goes on: what is gone is not due any more |
//! | `audit`, `orphan_check` | from the beginning |
//! | `backup` | from the beginning, unless it is whole: then it is proved and taken |
//! | `maintain` | from the beginning |

mod replay;

use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Worker, meter::Told};
use crate::{
    artifact::ArtifactError,
    embed::EmbedError,
    jobs::work::{self, Work},
    pipeline::{
        audit::Audited,
        backup::{Backup, BackupError, Manifest},
        dictionaries::{DictionariesError, trial::Training},
        frames::FramesError,
        inventory::Inventory,
        pack::{PackError, Packer, Period},
        replay::ReplayError,
        retention::{Keeper, RetentionError},
        shadow::FillError,
    },
    store::{JobRow, StoreError},
    workbench::dictionaries_of,
};

/// Findings of one kind that a result names.
const NAMED: usize = 20;

/// Why a job could not be done.
#[derive(Debug, thiserror::Error)]
pub(super) enum PerformError {
    /// It cannot be done as it was asked for.
    #[error("{reason}")]
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store or registry refused.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A replay stopped.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// A space could not be filled.
    #[error(transparent)]
    Fill(#[from] FillError),
    /// There is no pack.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// There is no dictionary, nor a verdict.
    #[error(transparent)]
    Dictionaries(#[from] DictionariesError),
    /// Retention stopped.
    #[error(transparent)]
    Retention(#[from] RetentionError),
    /// There is no backup.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The folder of the backups cannot be made.
    #[error("{}: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What the job is to do cannot be read, or its result not be written.
    #[error("this version does not understand the job: {0}")]
    Json(#[from] serde_json::Error),
}

impl PerformError {
    /// Whether it may go better later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error)
            | Self::Replay(ReplayError::Store(error))
            | Self::Fill(FillError::Store(error))
            | Self::Pack(PackError::Store(error))
            | Self::Retention(RetentionError::Store(error))
            | Self::Backup(BackupError::Store(error)) => error.is_transient(),
            Self::Artifact(error)
            | Self::Pack(PackError::Artifact(error))
            | Self::Dictionaries(DictionariesError::Artifact(error))
            | Self::Retention(RetentionError::Artifact(error))
            | Self::Backup(BackupError::Artifact(error)) => error.is_away(),
            Self::Replay(ReplayError::Embed(error)) | Self::Fill(FillError::Embed(error)) => matches!(
                error,
                EmbedError::Rate { .. } | EmbedError::Quota { .. } | EmbedError::Transient { .. }
            ),
            Self::Pack(PackError::Moved { .. } | PackError::Busy { .. }) => true,
            Self::Replay(ReplayError::Log(FramesError::Reader(_))) => true,
            _ => false,
        }
    }
}

/// Does `work`, and says what came of it.
pub(super) async fn perform(
    worker: &Worker,
    row: &JobRow,
    work: &Work,
    told: &Told,
) -> Result<Value, PerformError> {
    match work {
        Work::Replay(replay) => as_json(&replay::run(worker, row, replay, told).await?),
        Work::ReEmbed(_) => re_embed(worker, told).await,
        Work::Pack(pack) => worker.pack(pack, told).await,
        Work::TrainDictionary(train) => worker.train(train).await,
        Work::Retention(retention) => worker.retain(retention).await,
        Work::Audit(_) => worker.audit().await,
        Work::OrphanCheck(_) => worker.check_orphans().await,
        Work::Backup(backup) => worker.back_up(row, backup, told).await,
        Work::Maintain(maintain) => worker.maintain(maintain, told).await,
    }
}

fn as_json(result: &impl Serialize) -> Result<Value, PerformError> {
    Ok(serde_json::to_value(result)?)
}

fn refused(reason: impl Into<String>) -> PerformError {
    PerformError::Refused { reason: reason.into() }
}

async fn re_embed(worker: &Worker, told: &Told) -> Result<Value, PerformError> {
    let live = worker.bench.serving.now().await?.space_key;
    let other = worker.shadows.iter().find(|shadow| shadow.served.space_key != live);
    let other = other.ok_or_else(|| {
        refused("there is one embedding space; name the model to change to in [migrate] of the pipeline file")
    })?;
    as_json(&other.fill(told.clone()).await?)
}

impl Worker {
    async fn pack(&self, pack: &work::Pack, told: &Told) -> Result<Value, PerformError> {
        let bench = &self.bench;
        let (store, artifacts) = (bench.store.clone(), bench.artifacts.clone());
        let packer =
            Packer::new(&bench.pipeline, self.archive.log.clone(), store, artifacts, self.cpu.clone());
        let period = Period { since_ms: pack.since_ms, until_ms: pack.until_ms };
        as_json(&packer.pack(period, (self.clock)(), told.clone()).await?)
    }

    async fn train(&self, train: &work::TrainDictionary) -> Result<Value, PerformError> {
        let dictionaries = dictionaries_of(&self.bench.pipeline, &self.bench.artifacts);
        let log = &self.archive.log;
        // Nothing is sealed, or taken away, meanwhile.
        let _turn = self.archive.turn.lock().await;
        if let Some(wanted) = train.if_new_segments
            && !dictionaries.due(log, wanted.max(1)).await?
        {
            let skipped = format!("fewer than {wanted} segments were sealed since the last training");
            return Ok(json!({ "skipped": skipped }));
        }
        as_json(&dictionaries.train(log, Training::default(), &self.cpu, (self.clock)()).await?)
    }

    async fn retain(&self, retention: &work::Retention) -> Result<Value, PerformError> {
        let pipeline = &self.bench.pipeline;
        if !pipeline.retention.is_set() {
            return Err(refused("[retention] sets no age, so everything is kept for ever"));
        }
        let keeper = Keeper::new(pipeline, self.bench.store.clone(), self.clock.clone());
        as_json(&match retention.dry_run {
            true => keeper.due().await?,
            false => keeper.apply_and_tell(&self.archive, &self.progress).await?,
        })
    }

    async fn audit(&self) -> Result<Value, PerformError> {
        let (pipeline, log) = (&self.bench.pipeline, &self.archive.log);
        let names = (pipeline.name.as_str(), pipeline.stream.as_str());
        let counted = self.bench.store.counted(names.0, names.1).await?;
        let counted = counted.ok_or_else(|| refused("the pipeline has derived nothing yet"))?;
        let audited = Audited::new(names, &counted, Some(log.start_offset()..log.end_offset()));
        match audited.wrong {
            0 => self.progress.well("audit"),
            wrong => {
                tracing::error!(wrong, "the audit found what does not add up; see `thalweg audit`");
                let what = format!("{wrong} counts do not add up; `thalweg audit` names them");
                self.progress.trouble("audit", what);
            }
        }
        as_json(&audited)
    }

    async fn check_orphans(&self) -> Result<Value, PerformError> {
        let inventory = Inventory {
            artifacts: self.bench.artifacts.clone(),
            grace: self.bench.pipeline.artifacts.grace.0,
            progress: self.progress.clone(),
            clock: self.clock.clone(),
        };
        let mut report = inventory.take().await?;
        report.missing.first.truncate(NAMED);
        report.resized.first.truncate(NAMED);
        report.orphans.first.truncate(NAMED);
        report.segments.first.truncate(NAMED);
        as_json(&report)
    }

    async fn back_up(&self, row: &JobRow, backup: &work::Backup, told: &Told) -> Result<Value, PerformError> {
        let bench = &self.bench;
        let pipeline = &bench.pipeline;
        let folder = pipeline.in_data_dir(backup.to.as_deref().unwrap_or("backups").as_ref());
        std::fs::create_dir_all(&folder)
            .map_err(|source| PerformError::Folder { path: folder.clone(), source })?;
        // Of the time it was asked for, so that one which was whole before a
        // crash is found.
        let asked = jiff::Timestamp::from_millisecond(row.asked_ms).unwrap_or_default();
        let to =
            folder.join(format!("{}-{}-{}", pipeline.name, asked.strftime("%Y%m%dT%H%M%SZ"), row.job_id));
        let manifest = match to.is_dir() {
            true => {
                told.note("proving the backup that was whole before");
                Manifest::verified(&to).await?
            }
            false => {
                told.note("copying");
                // What a crash of this very job left.
                let partial = to.with_extension("partial");
                if partial.is_dir() {
                    std::fs::remove_dir_all(&partial)
                        .map_err(|source| PerformError::Folder { path: partial, source })?;
                }
                let of = Backup {
                    store: &bench.store,
                    pipeline: &pipeline.name,
                    stream: &pipeline.stream,
                    pg_bin: self.pg_bin.as_deref(),
                    objects: backup.objects.then_some(&bench.artifacts),
                };
                let log = &self.archive.log;
                of.write(&to, || Some(log.start_offset()..log.end_offset()), (self.clock)()).await?
            }
        };
        Ok(json!({
            "to": to,
            "files": manifest.files.len(),
            "bytes": manifest.files.iter().map(|file| file.bytes).sum::<u64>(),
            "rows": manifest.tables.iter().map(|table| table.rows).sum::<u64>(),
            "next_offset": manifest.next_offset,
        }))
    }

    async fn maintain(&self, maintain: &work::Maintain, told: &Told) -> Result<Value, PerformError> {
        let store = &self.bench.store;
        let before = store.database_bytes().await?;
        told.note("indexes");
        let indexes = store.maintain((self.clock)()).await?;
        told.note("statistics and free space");
        store.tidy(maintain.vacuum).await?;
        Ok(json!({"indexes_built": indexes, "bytes_before": before, "bytes": store.database_bytes().await?}))
    }
}

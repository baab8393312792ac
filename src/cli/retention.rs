//! `thalweg retention`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::{
    Output, PipelineFile, offline,
    output::{count, time},
};
use crate::{
    clock,
    config::Pipeline,
    log::OpenError,
    pipeline::{
        ownership,
        retention::{Due, DueArtifact, Keeper},
    },
    store::Store,
    workbench::{archive_of, open_artifacts, open_log_of},
};

/// Take away what is older than `[retention]` says, but for what is pinned.
///
/// Records leave the index; segments and packs go whole, with file and object.
/// A running daemon does this by itself, every hour or as a `[[schedule]]` says.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg retention --dry-run
  thalweg retention --json")]
pub struct Retention {
    #[command(flatten)]
    pipeline: PipelineFile,
    /// Only say what would go; works beside a running daemon
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

impl Retention {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        super::block_on(self.apply(pipeline))
    }

    async fn apply(self, pipeline: Pipeline) -> Result<ExitCode> {
        if !pipeline.retention.is_set() {
            bail!(
                "[retention] sets no age, so everything is kept for ever; docs/pipeline-file.md has the keys"
            );
        }
        let store = offline::store(&pipeline).await?;
        let keeper = Keeper::new(&pipeline, store.clone(), clock::system());
        let due = match self.dry_run {
            true => keeper.due().await.map_err(Into::into),
            false => take_away(&keeper, &pipeline, &store).await,
        };
        store.close().await;
        self.output.print(&due?, |due| text(due, self.dry_run))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn take_away(keeper: &Keeper, pipeline: &Pipeline, store: &Store) -> Result<Due> {
    ownership::claim(&pipeline.data_dir, store, &pipeline.stream, false, clock::system_ms()).await?;
    let (log, damage) = match open_log_of(pipeline, store, clock::system()).await {
        Err(error) if matches!(error.downcast_ref(), Some(OpenError::Locked { .. })) => {
            bail!("{error}; a running daemon does this by itself, --dry-run says what");
        }
        opened => opened?,
    };
    let artifacts = open_artifacts(pipeline, store)?;
    let archive = archive_of(&log, pipeline, store, &artifacts, &damage, clock::system())?;
    let done = keeper.apply(&archive).await;
    drop(archive);
    tokio::task::spawn_blocking(move || log.shut_down()).await?;
    Ok(done?)
}

fn text(due: &Due, dry_run: bool) -> String {
    if due.is_nothing() {
        return "nothing is older than it is to be kept\n".into();
    }
    let mut text =
        format!("RECORDS       {}\nDEAD LETTERS  {}\n", count(due.records), count(due.dead_letters));
    let line = |kind: &str, one: &DueArtifact| format!("{kind}  {}  {}\n", one.name, time(one.time_ms));
    text.extend(due.segments.iter().map(|one| line("SEGMENT", one)));
    text.extend(due.packs.iter().map(|one| line("PACK   ", one)));
    text + if dry_run { "nothing was changed; without --dry-run this goes\n" } else { "" }
}

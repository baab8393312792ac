//! `thalweg segments seal`.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Result, bail};
use serde::Serialize;

use crate::{
    cli::{
        FOUND_WRONG, Output, offline,
        output::{count, short},
    },
    clock,
    config::Pipeline,
    log::{Log, OpenError},
    pipeline::damage::DamageRegister,
    store::{SegmentRow, Store},
    units::ByteSize,
    workbench::{archive_of, open_artifacts, open_log_of},
};

#[derive(Debug, Serialize)]
struct Sealed {
    base_offset: u64,
    end_offset: u64,
    records: u64,
    plain_bytes: u64,
    object_bytes: u64,
    content_digest: String,
    object_digest: String,
    file: String,
}

impl From<SegmentRow> for Sealed {
    fn from(row: SegmentRow) -> Self {
        Self {
            base_offset: row.base_offset,
            end_offset: row.end_offset,
            records: row.records,
            plain_bytes: row.plain_bytes,
            object_bytes: row.object_bytes,
            content_digest: row.content_digest,
            object_digest: row.object_digest,
            file: row.file,
        }
    }
}

pub(super) async fn seal(pipeline: Pipeline, output: Output) -> Result<ExitCode> {
    let store = offline::store(&pipeline).await?;
    let before: Vec<u64> =
        store.segments(&pipeline.stream).await?.iter().map(|row| row.base_offset).collect();
    let (log, damage) = match open_log_of(&pipeline, &store, clock::system()).await {
        Err(error) if matches!(error.downcast_ref(), Some(OpenError::Locked { .. })) => {
            bail!("{error}; a running daemon seals by itself, stop it to seal what is active now");
        }
        opened => opened?,
    };
    let done = archive(&log, &pipeline, &store, &damage).await;
    let ended = tokio::task::spawn_blocking(move || log.shut_down());
    done?;
    ended.await?;
    let mut sealed = store.segments(&pipeline.stream).await?;
    sealed.retain(|row| !before.contains(&row.base_offset));
    store.close().await;
    let sealed: Vec<Sealed> = sealed.into_iter().map(Sealed::from).collect();
    output.print(&sealed, |sealed| text(sealed))?;
    let damage = damage.open_damage();
    for damage in &damage {
        eprintln!("{damage}");
    }
    Ok(if damage.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) })
}

async fn archive(log: &Log, pipeline: &Pipeline, store: &Store, damage: &Arc<DamageRegister>) -> Result<()> {
    log.writer().close_segment().await?;
    let artifacts = open_artifacts(pipeline, store)?;
    archive_of(log, pipeline, store, &artifacts, damage, clock::system())?.archive_closed().await?;
    Ok(())
}

fn text(sealed: &[Sealed]) -> String {
    if sealed.is_empty() {
        return "nothing to seal: the active segment is empty and everything else is archived\n".into();
    }
    let lines = sealed.iter().map(|segment| {
        format!(
            "sealed  offsets {}..{}  {} records  {} as {}  content {}  {}\n",
            segment.base_offset,
            segment.end_offset,
            count(segment.records),
            ByteSize(segment.plain_bytes),
            ByteSize(segment.object_bytes),
            short(&segment.content_digest),
            segment.file
        )
    });
    lines.collect()
}

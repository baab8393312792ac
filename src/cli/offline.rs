//! A pipeline's data without its daemon, or beside it.

use std::ops::Range;

use anyhow::{Result, bail};

use crate::{
    clock,
    config::Pipeline,
    log::{Directory, LogReader, Recovery},
    pipeline::survey::{Remembered, survey},
    store::{Damage, Store},
    workbench::{log_root, open_store, remembered},
};

/// The store of `pipeline`, if it was ever made. Nothing is created.
pub async fn find_store(pipeline: &Pipeline) -> Result<Option<Store>> {
    let path = pipeline.in_data_dir(pipeline.store.path.as_ref());
    if !Store::exists(&path, &pipeline.store).await? {
        return Ok(None);
    }
    open_store(pipeline).await.map(Some)
}

/// The store of `pipeline`, which must be there.
pub async fn store(pipeline: &Pipeline) -> Result<Store> {
    match find_store(pipeline).await? {
        Some(store) => Ok(store),
        None => bail!(
            "there is no store at {}: pipeline `{}` never ran with this data_dir ({})",
            match &pipeline.store.url {
                Some(_) => "store.url".into(),
                None => pipeline.in_data_dir(pipeline.store.path.as_ref()).display().to_string(),
            },
            pipeline.name,
            pipeline.data_dir.display()
        ),
    }
}

/// Everything that is damaged in the log or was ever lost of it, in the order
/// of offsets: what is remembered, and what is seen now.
pub async fn damage(
    pipeline: &Pipeline,
    log: &LogReader,
    recovery: &Recovery,
    store: Option<&Store>,
) -> Result<Vec<Damage>> {
    let remembered = match store {
        Some(store) => remembered(pipeline, store).await?,
        None => Remembered::default(),
    };
    let folder = log_folder(pipeline);
    let mut damage = survey(log, folder.path(), recovery, &remembered, clock::system_ms())?;
    damage.extend(remembered.damage);
    damage.sort_by_key(|damage| (damage.first_offset, damage.next_offset));
    Ok(damage)
}

/// Folder of the stream of `pipeline`.
pub fn log_folder(pipeline: &Pipeline) -> Directory {
    Directory::of_stream(&log_root(pipeline), &pipeline.stream)
}

/// The offsets that the log of `pipeline` has; none if it is not here or
/// cannot be opened.
pub fn log_range(pipeline: &Pipeline) -> Option<Range<u64>> {
    let (log, _) = log(pipeline).ok()?;
    Some(log.start_offset()..log.end_offset())
}

/// The log of `pipeline` as it stands on disk.
pub fn log(pipeline: &Pipeline) -> Result<(LogReader, Recovery)> {
    let folder = log_folder(pipeline);
    if !folder.path().is_dir() {
        bail!("there is no log at {}: pipeline `{}` never ran there", folder.path().display(), pipeline.name);
    }
    Ok(LogReader::open(&log_root(pipeline), &pipeline.stream)?)
}

//! Corpus packs: the documents of a period as one artifact.
//!
//! A pack holds the records of tier `doc` that were indexed or wait for their
//! vectors, as they were sent and in the order of their offsets: not those
//! that were rejected, were duplicates, became dead letters or are erased. What
//! it is made of stands in [`format`]; what belongs to it, in [`Meta`].
//!
//! Without a time to begin at, a pack goes on where the last one that did so
//! ended, so packs made one after the other have neither gap nor overlap. A pack
//! of a time that was asked for never makes a gap in them.

pub mod format;
mod pending;
mod pick;
mod without;

use std::{
    collections::HashSet,
    io::{self, Write},
    ops::Range,
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

pub use without::Without;

use self::{
    format::Writer,
    pending::{Pending, Slot},
    pick::Picked,
};
use super::{
    frames::{FrameRun, Frames, FramesError},
    meter::Meter,
};
use crate::{
    artifact::{ArtifactError, Artifacts, Description, hex},
    config::Pipeline,
    dataflow::Cpu,
    log::{LogReader, Segment},
    record::Defaults,
    store::{ArtifactRow, OutcomeKind, Store, StoreError},
};

/// Kind of the artifacts that are packs.
pub const KIND: &str = "pack";
/// Ending of their names.
pub const EXTENSION: &str = "msgpack.zst";

/// Why there is no pack.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The pipeline has not derived anything.
    #[error("pipeline `{pipeline}` has derived nothing yet; `thalweg run` does that")]
    NothingDerived {
        /// The pipeline.
        pipeline: String,
    },
    /// Somebody else packs the same data.
    #[error("another pack is being made in {folder}; try again when it is done", folder = folder.display())]
    Busy {
        /// Where packs are written first.
        folder: PathBuf,
    },
    /// The pack could not be written.
    #[error("the pack cannot be written in {folder}: {source}", folder = folder.display())]
    Write {
        /// Where packs are written first.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A daemon took a segment away that was being read. An opened log of its
    /// own knows where the segment is now.
    #[error("segments of stream `{stream}` were sealed while they were packed; try again")]
    Moved {
        /// The stream.
        stream: String,
    },
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] FramesError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store or registry refused.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

/// Which time, by append, in milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period {
    /// From the first frame appended then or later; where the last pack ended
    /// if left out.
    pub since_ms: Option<i64>,
    /// Up to the first frame appended then or later; all that is derived if
    /// left out.
    pub until_ms: Option<i64>,
}

/// What the registry knows of a pack: the `meta` of its row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The stream.
    pub stream: String,
    /// The first offset of the period.
    pub first_offset: u64,
    /// The offset after the last of the period.
    pub next_offset: u64,
    /// When the first of its documents was appended, in milliseconds since the
    /// Unix epoch.
    pub first_append_ms: i64,
    /// When the last of them was.
    pub last_append_ms: i64,
    /// Number of documents.
    pub documents: u64,
    /// Number of tenants whose documents these are.
    pub tenants: u64,
    /// Offsets of the period that the log no longer holds.
    pub lost: u64,
    /// Bytes of its frames, prefixes included.
    pub plain_bytes: u64,
    /// SHA-256 of its frames, in hex.
    pub content_digest: String,
    /// Whether it begins where another pack ended, and the next one may go on
    /// from here.
    pub continues: bool,
    /// Version of the engine that wrote it.
    pub thalweg: String,
}

impl Meta {
    /// The pack's name for people: times of its documents, their number, and
    /// the beginning of the object's digest.
    fn name(&self, digest: &str) -> String {
        let time = |ms| {
            let time = jiff::Timestamp::from_millisecond(ms).unwrap_or_default();
            time.strftime("%Y%m%dT%H%M%SZ").to_string()
        };
        let (first, last) = (time(self.first_append_ms), time(self.last_append_ms));
        let digest = digest.get(..12).unwrap_or(digest);
        format!("corpus-{first}-{last}-{}docs-{digest}.{EXTENSION}", self.documents)
    }
}

/// A pack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pack {
    /// For people.
    pub name: String,
    /// SHA-256 of its object, in hex.
    pub digest: String,
    /// Size of its object.
    pub bytes: u64,
    /// Whether the same pack was registered before.
    pub known: bool,
    /// What belongs to it.
    pub meta: Meta,
}

/// What came of packing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// Offsets of the period.
    pub offsets: Range<u64>,
    /// The pack, if there were documents.
    pub pack: Option<Pack>,
    /// Name of the pack that an earlier run had written and that is registered
    /// now.
    pub finished: Option<String>,
}

/// Packs one stream.
pub struct Packer {
    /// Reads the stream.
    pub log: LogReader,
    /// What became of its records, for `pipeline`.
    pub store: Store,
    /// Where packs go.
    pub artifacts: Artifacts,
    /// The pipeline whose outcomes count.
    pub pipeline: String,
    /// What records are that do not say it themselves.
    pub defaults: Defaults,
    /// Zstandard level.
    pub level: i32,
    /// A local folder of the packer's own, where a pack is written first.
    pub folder: PathBuf,
    /// Where documents are picked and compressed.
    pub cpu: Cpu,
}

impl Packer {
    /// Packs the stream of `pipeline`, read by `log`, on `cpu`.
    pub fn new(pipeline: &Pipeline, log: LogReader, store: Store, artifacts: Artifacts, cpu: Cpu) -> Self {
        Self {
            log,
            store,
            artifacts,
            pipeline: pipeline.name.clone(),
            defaults: pipeline.defaults.clone(),
            level: pipeline.segment.level,
            folder: pipeline.data_dir.join("packs"),
            cpu,
        }
    }

    /// Makes, puts and registers the pack of `period`. `told` hears how many
    /// frames were read, and of how many, after each run of them.
    ///
    /// # Errors
    /// See [`PackError`]. What was written is used by the next call.
    pub async fn pack(&self, period: Period, now_ms: i64, told: impl Meter) -> Result<Outcome, PackError> {
        let slot = Slot::take(&self.folder)
            .map_err(|source| self.unwritten(source))?
            .ok_or_else(|| PackError::Busy { folder: self.folder.clone() })?;
        let left = slot.pending().map_err(|source| self.unwritten(source))?;
        if let Some(left) = &left {
            self.keep(&slot, left, now_ms).await?;
        }
        let file = slot.create().map_err(|source| self.unwritten(source))?;
        let (offsets, pack) = self.write(period, file, told).await?;
        match &pack {
            Some(pack) => {
                let Pack { name, digest, meta, .. } = pack.clone();
                let pending = Pending { digest, name, meta };
                slot.publish(&pending).map_err(|source| self.unwritten(source))?;
                self.keep(&slot, &pending, now_ms).await?;
            }
            None => slot.clear().map_err(|source| self.unwritten(source))?,
        }
        Ok(Outcome { offsets, pack, finished: left.map(|left| left.name) })
    }

    /// Says what [`Self::pack`] would do. Writes nothing.
    ///
    /// # Errors
    /// See [`PackError`].
    pub async fn plan(&self, period: Period, told: impl Meter) -> Result<Outcome, PackError> {
        let (offsets, pack) = self.write(period, io::sink(), told).await?;
        Ok(Outcome { offsets, pack, finished: None })
    }

    fn unwritten(&self, source: io::Error) -> PackError {
        PackError::Write { folder: self.folder.clone(), source }
    }

    async fn keep(&self, slot: &Slot, pack: &Pending, now_ms: i64) -> Result<(), PackError> {
        let meta = serde_json::to_value(&pack.meta).map_err(|e| self.unwritten(e.into()))?;
        let what = Description { kind: KIND, name: pack.name.clone(), extension: EXTENSION, meta, now_ms };
        self.artifacts.put_file(&slot.path(), &pack.digest, what).await?;
        slot.clear().map_err(|source| self.unwritten(source))
    }

    /// Writes the pack of `period` into `to`, and says which offsets that are.
    async fn write<W: Write + Send + 'static>(
        &self,
        period: Period,
        to: W,
        mut told: impl Meter,
    ) -> Result<(Range<u64>, Option<Pack>), PackError> {
        let registered = self.artifacts.list().await?;
        let offsets = self.bounds(period, &registered).await?;
        let total = offsets.end - offsets.start;
        let writer = Writer::new(to, self.level).map_err(|source| self.unwritten(source))?;
        let mut picked = Picked::new(writer, period, self.defaults.clone(), offsets.clone());
        let mut frames = Frames::new(self.log.clone(), offsets.clone());
        let mut read = 0;
        while !picked.over
            && let Some(run) = frames.next().await?
        {
            read += run.frames.len() as u64 + run.lost;
            let left_out = self.left_out(&run).await?;
            let taken = self.cpu.run(move || picked.take(run, &left_out).map(|()| picked)).await;
            picked = taken.map_err(|source| self.unwritten(source))?;
            told.at(read, total).await;
        }
        let stream = self.log.stream().to_owned();
        if picked.lost() > 0 && has_moved(&self.log) {
            return Err(PackError::Moved { stream });
        }
        let (offsets, made) = picked.finish(stream).map_err(|source| self.unwritten(source))?;
        let pack = made.map(|(meta, written)| {
            let digest = hex(&written.object_digest);
            let known = registered.iter().any(|row| row.digest == digest);
            Pack { name: meta.name(&digest), digest, bytes: written.object_bytes, known, meta }
        });
        Ok((offsets, pack))
    }

    /// The offsets within which the period lies.
    async fn bounds(&self, period: Period, registered: &[ArtifactRow]) -> Result<Range<u64>, PackError> {
        let checkpoint = self.store.counts(&self.pipeline, self.log.stream()).await?;
        let checkpoint =
            checkpoint.ok_or_else(|| PackError::NothingDerived { pipeline: self.pipeline.clone() })?;
        let there = self.log.start_offset().max(checkpoint.start_offset);
        let start = match period.since_ms {
            Some(since) => there.max(first_since(&self.log, since)),
            None => last_end(registered, self.log.stream(), there),
        };
        Ok(start.min(checkpoint.next_offset)..checkpoint.next_offset)
    }

    /// The offsets of a run that are not indexed, and do not wait to be.
    async fn left_out(&self, run: &FrameRun) -> Result<HashSet<u64>, PackError> {
        let (from, to) = run.bounds();
        let outcomes = self.store.outcomes(&self.pipeline, self.log.stream(), from, to).await?;
        let left_out = outcomes.into_iter().filter(|outcome| outcome.kind != OutcomeKind::Deferred);
        Ok(left_out.map(|outcome| outcome.offset).collect())
    }
}

/// Where the packs of `stream` end that go on from each other, the first of
/// them at `start`. One of a time that was asked for counts if it reaches from
/// before that end beyond it.
fn last_end(registered: &[ArtifactRow], stream: &str, start: u64) -> u64 {
    let packs = registered.iter().filter(|row| row.kind == KIND);
    let metas = packs.filter_map(|row| serde_json::from_str::<Meta>(&row.meta).ok());
    let mut metas: Vec<Meta> = metas.filter(|meta| meta.stream == stream).collect();
    metas.sort_unstable_by_key(|meta| meta.first_offset);
    let went_on = metas.iter().filter(|meta| meta.continues).map(|meta| meta.next_offset).max();
    metas.iter().fold(went_on.unwrap_or(start), |end, meta| match meta.first_offset <= end {
        true => end.max(meta.next_offset),
        false => end,
    })
}

/// An offset before which nothing was appended at `since_ms` or later: what is
/// in a segment was appended before that was sealed.
fn first_since(log: &LogReader, since_ms: i64) -> u64 {
    let reaches = |segment: &Segment| match segment {
        Segment::Raw(_) => true,
        Segment::Sealed(sealed) => sealed.info().sealed_at_ms >= since_ms,
    };
    log.segments()
        .into_iter()
        .find(|(_, segment)| reaches(segment))
        .map_or(log.end_offset(), |(base, _)| base)
}

/// Whether a file of the log was recycled since it was opened, so that what
/// this reader misses may lie in a sealed one.
fn has_moved(log: &LogReader) -> bool {
    let gone = |segment| matches!(segment, Segment::Raw(raw) if !raw.path().exists());
    log.segments().into_values().any(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pack_is_named_by_time_count_and_digest() {
        let meta = Meta {
            first_append_ms: 1_795_240_800_999,
            last_append_ms: 1_795_262_400_000,
            documents: 1_234,
            ..Meta::default()
        };
        let name = "corpus-20261121T060000Z-20261121T120000Z-1234docs-abcdef012345.msgpack.zst";
        assert_eq!(meta.name("abcdef0123456789"), name);
    }

    #[test]
    fn the_next_pack_goes_on_from_those_that_went_on() {
        let row = |kind: &str, stream: &str, (first_offset, next_offset), continues| {
            let meta =
                Meta { stream: stream.into(), first_offset, next_offset, continues, ..Meta::default() };
            ArtifactRow {
                digest: String::new(),
                kind: kind.into(),
                name: String::new(),
                bytes: 0,
                location: String::new(),
                created_ms: 0,
                meta: serde_json::to_string(&meta).unwrap(),
            }
        };
        let mut rows = vec![row("segment", "main", (0, 7), true), row("pack", "main", (60, 90), false)];
        assert_eq!(last_end(&rows, "main", 4), 4, "what was asked for leaves no gap before it");
        assert_eq!(last_end(&rows, "main", 60), 90);
        rows.extend([row("pack", "main", (20, 30), true), row("pack", "main", (5, 20), true)]);
        assert_eq!(last_end(&rows, "main", 0), 30);
        assert_eq!(last_end(&rows, "other", 0), 0);
        rows.push(row("pack", "main", (25, 40), false));
        assert_eq!(last_end(&rows, "main", 0), 40, "the same documents need not be packed twice");
    }
}

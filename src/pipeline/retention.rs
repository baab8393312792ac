//! Retention: what is older than it is to be kept is taken away, but for what
//! is pinned.
//!
//! Records leave the index and count as rejected, for the reason `expired`;
//! their frames stay in the log as long as segments are kept. Segments go
//! whole, with file, object and rows of catalog and registry; that their
//! offsets are gone is remembered, so nobody takes it for damage. A segment
//! stays as long as anything in it is pinned or not derived yet, and the
//! newest pack stays, because the next one goes on from it.

use std::{collections::BTreeMap, io, ops::Range, path::PathBuf};

use serde::Serialize;

use super::{archive::Archive, pack, progress::Progress};
use crate::{
    artifact::ArtifactError,
    clock::Clock,
    config::{Pipeline, Retention},
    durable,
    store::{Damage, DamageKind, DeadLetter, Forgetting, PinnedRecords, SegmentRow, Store, StoreError},
    units::Period,
};

/// Why retention stopped. What was done stays; it goes on at the next run.
#[derive(Debug, thiserror::Error)]
pub enum RetentionError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store or registry refused.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What is older than it is to be kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Due {
    /// Records in the index.
    pub records: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Sealed segments.
    pub segments: Vec<DueArtifact>,
    /// Corpus packs.
    pub packs: Vec<DueArtifact>,
}

/// An artifact that is older than it is to be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DueArtifact {
    /// What people know it by.
    pub name: String,
    /// SHA-256 of its object, in hex; none of a segment that is not kept yet.
    pub digest: Option<String>,
    /// Its age counts from here, in milliseconds since the Unix epoch.
    pub time_ms: i64,
    /// Offsets of a segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Range<u64>>,
}

impl Due {
    /// Whether nothing is.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Records taken away by one transaction, and rows read at once.
const PAGE: u32 = 1_000;

/// Keeps one stream as long as its pipeline says.
#[derive(Clone)]
pub struct Keeper {
    pipeline: String,
    stream: String,
    /// Whether the pipeline derives: what it has not read yet stays.
    derives: bool,
    store: Store,
    settings: Retention,
    clock: Clock,
}

impl Keeper {
    /// Of the stream of `pipeline`.
    pub fn new(pipeline: &Pipeline, store: Store, clock: Clock) -> Self {
        Self {
            pipeline: pipeline.name.clone(),
            stream: pipeline.stream.clone(),
            derives: pipeline.derive.enabled,
            store,
            settings: pipeline.retention.clone(),
            clock,
        }
    }

    /// As [`Self::apply`], beside a daemon that shows its counters in
    /// `progress`.
    ///
    /// # Errors
    /// See [`RetentionError`].
    pub async fn apply_and_tell(
        &self,
        archive: &Archive,
        progress: &Progress,
    ) -> Result<Due, RetentionError> {
        let done = self.apply(archive).await?;
        if done.records > 0 {
            progress.ask(&self.store, &self.pipeline, &self.stream).await?;
        }
        if !done.is_nothing() {
            let (segments, packs) = (done.segments.len(), done.packs.len());
            let (records, dead_letters) = (done.records, done.dead_letters);
            tracing::info!(stream = self.stream, records, dead_letters, segments, packs, "taken away by age");
        }
        Ok(done)
    }

    fn pinned(&self) -> PinnedRecords {
        let pins = &self.settings.pins;
        PinnedRecords { tenants: pins.tenants.clone(), batches: pins.batches.clone() }
    }

    /// The time before which things of this age are due.
    fn before(&self, age: Option<Period>) -> Option<i64> {
        let age = i64::try_from(age?.0.as_millis()).unwrap_or(i64::MAX);
        Some((self.clock)().saturating_sub(age))
    }

    /// What is due. Changes nothing.
    ///
    /// # Errors
    /// See [`RetentionError`].
    pub async fn due(&self) -> Result<Due, RetentionError> {
        let records = match self.before(self.settings.records) {
            Some(before) => {
                self.store.expired(&self.stream, before, &self.pinned(), u32::MAX).await?.len() as u64
            }
            None => 0,
        };
        let (mut dead_letters, mut after) = (0, 0);
        while let Some((last, ids)) = self.old_letters(after).await? {
            dead_letters += ids.len() as u64;
            after = last;
        }
        let segments = self.old_segments().await?.iter().map(due_segment).collect();
        Ok(Due { records, dead_letters, segments, packs: self.old_packs().await? })
    }

    /// Takes away what is due, and says what it was.
    ///
    /// # Errors
    /// See [`RetentionError`].
    pub async fn apply(&self, archive: &Archive) -> Result<Due, RetentionError> {
        let mut done = Due { records: self.forget_records().await?, ..Due::default() };
        let mut after = 0;
        while let Some((last, ids)) = self.old_letters(after).await? {
            done.dead_letters += self.store.remove_dead_letters(&ids).await?;
            after = last;
        }
        // Nothing is sealed, or trained on, meanwhile.
        let turn = archive.turn.lock().await;
        for row in self.old_segments().await? {
            self.remove(&row, archive).await?;
            done.segments.push(due_segment(&row));
        }
        drop(turn);
        done.packs = self.old_packs().await?;
        let packs: Vec<String> = done.packs.iter().filter_map(|pack| pack.digest.clone()).collect();
        self.store.doom(&packs, None, (self.clock)()).await?;
        archive.artifacts.delete_doomed((self.clock)()).await?;
        Ok(done)
    }

    async fn forget_records(&self) -> Result<u64, RetentionError> {
        let Some(before) = self.before(self.settings.records) else { return Ok(0) };
        let (pinned, mut gone) = (self.pinned(), 0);
        loop {
            let offsets = self.store.expired(&self.stream, before, &pinned, PAGE).await?;
            if offsets.is_empty() {
                break;
            }
            gone += self.store.forget(&self.stream, &offsets, Forgetting::Expired).await?.records;
        }
        if gone > 0 {
            self.store.drop_stale_claims(&self.stream).await?;
        }
        Ok(gone)
    }

    /// The ids of the old ones among the dead letters after `after`, a page of
    /// them, and the last id of that page; none if there are no more.
    async fn old_letters(&self, after: i64) -> Result<Option<(i64, Vec<i64>)>, RetentionError> {
        let Some(before) = self.before(self.settings.dead_letters) else { return Ok(None) };
        let page = self.store.dead_letter_heads(&self.pipeline, None, after, PAGE).await?;
        let is_old = |one: &&DeadLetter| one.letter.at_ms < before;
        let old = page.iter().map(|head| &head.letter).filter(is_old).map(|one| one.id).collect();
        Ok(page.last().map(|last| (last.letter.id, old)))
    }

    /// Segments that are old, derived, and hold nothing that is pinned.
    async fn old_segments(&self) -> Result<Vec<SegmentRow>, RetentionError> {
        let Some(before) = self.before(self.settings.segments) else { return Ok(Vec::new()) };
        let derived = match self.derives {
            true => {
                self.store.counts(&self.pipeline, &self.stream).await?.map_or(0, |counts| counts.next_offset)
            }
            false => u64::MAX,
        };
        let (pins, pinned, mut old) = (&self.settings.pins, self.pinned(), Vec::new());
        for row in self.store.segments(&self.stream).await? {
            let is_pinned = row.artifact.as_ref().is_some_and(|digest| pins.holds(digest));
            if row.last_time_ms >= before || row.end_offset > derived || is_pinned {
                continue;
            }
            let offsets = row.base_offset..row.end_offset;
            if !self.store.holds_pinned(&self.stream, offsets, &pinned).await? {
                old.push(row);
            }
        }
        Ok(old)
    }

    async fn old_packs(&self) -> Result<Vec<DueArtifact>, RetentionError> {
        let Some(before) = self.before(self.settings.packs) else { return Ok(Vec::new()) };
        let of_stream = |meta: &str| {
            let meta: pack::Meta = serde_json::from_str(meta).ok()?;
            (meta.stream == self.stream).then_some(meta.next_offset)
        };
        let mut packs: BTreeMap<(u64, String), DueArtifact> = BTreeMap::new();
        for row in self.store.artifacts().await?.into_iter().filter(|row| row.kind == pack::KIND) {
            if let Some(end) = of_stream(&row.meta) {
                let (digest, time_ms) = (row.digest, row.created_ms);
                let due =
                    DueArtifact { name: row.name, digest: Some(digest.clone()), time_ms, offsets: None };
                packs.insert((end, digest), due);
            }
        }
        packs.pop_last();
        let is_old = |pack: &DueArtifact| {
            pack.time_ms < before
                && !pack.digest.as_ref().is_some_and(|digest| self.settings.pins.holds(digest))
        };
        Ok(packs.into_values().filter(is_old).collect())
    }

    /// Takes a segment away: its offsets are known to be gone before the file
    /// is, and the catalog forgets it last, so the next run finds what this one
    /// has left.
    async fn remove(&self, row: &SegmentRow, archive: &Archive) -> Result<(), RetentionError> {
        let name = format!("{:020}.seg.zst", row.base_offset);
        let now = (self.clock)();
        let gone = Damage {
            file: name.clone(),
            kind: DamageKind::Expired,
            first_offset: row.base_offset,
            next_offset: row.end_offset,
            detail: "older than segments are kept".into(),
            found_ms: now,
            settled_ms: Some(now),
        };
        let known = self.store.damage(&self.stream).await?;
        if !known.iter().any(|one| one.kind == gone.kind && one.first_offset == gone.first_offset) {
            self.store.put_damage(&self.stream, &[gone]).await?;
        }
        archive.sealer.forget(row.base_offset);
        let path = archive.folder.join(name);
        let at = |source| RetentionError::Io { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(error)),
            _ => {}
        }
        durable::sync_dir(&archive.folder).map_err(at)?;
        let digests: Vec<String> = row.artifact.iter().cloned().collect();
        self.store.doom(&digests, None, now).await?;
        Ok(self.store.remove_segment(&self.stream, row.base_offset).await?)
    }
}

fn due_segment(row: &SegmentRow) -> DueArtifact {
    DueArtifact {
        name: format!("{}/{:020}", row.stream, row.base_offset),
        digest: row.artifact.clone(),
        time_ms: row.last_time_ms,
        offsets: Some(row.base_offset..row.end_offset),
    }
}

//! Archiving: each closed segment is sealed, kept as an artifact, and entered
//! in the catalog.
//!
//! Every step is safe to repeat. A crash between two of them leaves a raw
//! segment (sealed again), a sealed one that the catalog lacks (kept and
//! entered at the next start), or an object without a row (put again, which
//! finds it there).
//!
//! A sealed segment takes the place of the raw one at once, so an object store
//! that is away holds up no sealing, costs no more disk, and an upload that was
//! interrupted finds the same bytes again.

use std::{
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;

use super::{
    catalog,
    damage::DamageRegister,
    dictionaries::{Dictionaries, DictionariesError, trial::Training},
    progress::Progress,
    survey::relative,
};
use crate::{
    artifact::{ArtifactError, Artifacts, hex},
    clock::Clock,
    dataflow::Cpu,
    dictionary::{Dictionary, Library, LoadError, Verdict},
    frame::{FrameBatch, PREFIX_BYTES},
    log::{LogReader, RawFile, Sealer, Segment},
    metrics,
    record::RecordRef,
    segment::{self, DictionaryUse, SealError, Sealed, SegmentHeader, SegmentInfo},
    store::{Damage, DamageKind, Store, StoreError},
    webhooks::Outbox,
};

/// Why a segment could not be archived. The raw segment stays until it is.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Sealing failed.
    #[error("segment {base} could not be sealed: {source}")]
    Seal {
        /// Its first offset.
        base: u64,
        /// Why.
        source: SealError,
    },
    /// The adopted dictionary cannot be had.
    #[error(
        "segment {base} cannot be sealed: {source}; or seal without a dictionary: set `dictionary = \"off\"` in `[segment]`"
    )]
    Dictionary {
        /// Its first offset.
        base: u64,
        /// Why.
        source: LoadError,
    },
    /// The sealed file could not be read back.
    #[error("segment {base} was sealed but cannot be read back: {source}")]
    ReadBack {
        /// Its first offset.
        base: u64,
        /// Why.
        source: segment::ReadError,
    },
    /// The file system refused.
    #[error("segment {base}: {source}")]
    Io {
        /// Its first offset.
        base: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// The object store or registry refused.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The catalog refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArchiveError {
    /// Whether the object store does not answer; then asking it for the next
    /// segment is in vain.
    fn is_away(&self) -> bool {
        matches!(self, Self::Artifact(error) if error.is_away())
    }
}

/// Why archiving failed the last time; said once, however often it is tried.
struct Trouble {
    is_away: bool,
    what: String,
}

impl Trouble {
    /// A server that goes away is refused, reset or silent by turns.
    fn is_same(&self, other: &Self) -> bool {
        (self.is_away && other.is_away) || self.what == other.what
    }
}

/// Archives the closed segments of one stream.
#[derive(Clone)]
pub struct Archive {
    /// Reads the stream.
    pub log: LogReader,
    /// Puts sealed segments in the place of raw ones.
    pub sealer: Sealer,
    /// The stream's folder.
    pub folder: PathBuf,
    /// How segments are sealed.
    pub settings: segment::Settings,
    /// Where segments are kept.
    pub artifacts: Artifacts,
    /// The catalog.
    pub store: Store,
    /// Where damage is reported.
    pub damage: Arc<DamageRegister>,
    /// What time it is.
    pub clock: Clock,
    /// Seals in the background: nobody waits for it, and a producer that
    /// waits for an acknowledgement goes first.
    pub cpu: Cpu,
    /// Who is told of it.
    pub outbox: Outbox,
    /// Held by whoever changes what is sealed, and by what computes for them:
    /// that goes on when they are broken off.
    pub turn: Arc<Mutex<()>>,
}

/// A turn that is taken; over when all clones are dropped.
pub(super) type Turn = Arc<OwnedMutexGuard<()>>;

/// First wait after a failure; doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Archive {
    /// Archives segments as they are closed, until told to stop. A failure is
    /// shown and tried again; nothing is lost meanwhile, only disk space.
    pub async fn run(self, progress: Arc<Progress>, stop: CancellationToken) -> Result<(), ArchiveError> {
        let mut durable = self.log.durable();
        let mut wait = FIRST_WAIT;
        let mut trouble: Option<Trouble> = None;
        loop {
            let active = durable.borrow_and_update().active_base;
            let result = self.archive_closed().await;
            metrics::archive_failing(result.is_err());
            let waited = match result {
                Ok(_) => {
                    if trouble.take().is_some() {
                        tracing::info!(stream = self.log.stream(), "archiving goes on");
                    }
                    progress.well("archive");
                    wait = FIRST_WAIT;
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = self.train_if_due() => {}
                    }
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        changed = durable.wait_for(|d| d.active_base != active) => changed.is_ok(),
                    }
                }
                Err(error) => {
                    let now = Trouble { is_away: error.is_away(), what: error.to_string() };
                    progress.trouble("archive", now.what.clone());
                    if trouble.as_ref().is_some_and(|before| before.is_same(&now)) {
                        tracing::debug!(%error, stream = self.log.stream(), "archiving fails still");
                    } else {
                        tracing::error!(%error, stream = self.log.stream(), "archiving failed; it is tried again");
                    }
                    trouble = Some(now);
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (2 * wait).min(LONGEST_WAIT);
                    true
                }
            };
            if !waited {
                return Ok(());
            }
        }
    }

    /// Waits until nobody else changes what is sealed.
    pub(super) async fn take_turn(&self) -> Turn {
        Arc::new(self.turn.clone().lock_owned().await)
    }

    /// Archives whatever is closed now, and enters sealed segments that the
    /// catalog lacks. Returns how many segments it worked on.
    pub async fn archive_closed(&self) -> Result<usize, ArchiveError> {
        let turn = self.take_turn().await;
        // One that cannot be entered or sealed now holds up no other.
        let (mut done, mut failed) = match self.enter_sealed().await {
            Ok(entered) => (entered, None),
            Err(error) => (0, Some(error)),
        };
        for raw in self.log.closed() {
            let entered = match self.seal(raw, &turn).await {
                // Kept and entered when the object store is back.
                Ok(Some(_)) if failed.as_ref().is_some_and(ArchiveError::is_away) => Ok(()),
                Ok(Some((info, path, digest))) => self.enter(&info, &path, &digest).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error),
            };
            match entered {
                Ok(()) => done += 1,
                Err(error) => failed = Some(failed.unwrap_or(error)),
            }
        }
        failed.map_or(Ok(done), Err)
    }

    /// Trains a dictionary if enough segments were sealed since the last time.
    /// Nobody waits for one, so a failure is shown and tried again after the
    /// next segment.
    async fn train_if_due(&self) {
        match self.train().await {
            Ok(None) => {}
            Ok(Some((digest, adopted))) => {
                tracing::info!(stream = self.log.stream(), digest, adopted, "dictionary trained");
            }
            Err(error) => {
                tracing::error!(%error, stream = self.log.stream(), "training a dictionary failed");
            }
        }
    }

    /// The best dictionary's digest, and whether it was adopted; `None` if
    /// nothing was due.
    async fn train(&self) -> Result<Option<(String, bool)>, DictionariesError> {
        let _turn = self.turn.lock().await;
        let dictionaries = Dictionaries {
            stream: self.log.stream().to_owned(),
            library: Library::of_segments(&self.folder),
            settings: self.settings.clone(),
            artifacts: self.artifacts.clone(),
        };
        if !dictionaries.due(&self.log, self.settings.train_after_segments).await? {
            return Ok(None);
        }
        let trial = dictionaries.train(&self.log, Training::default(), &self.cpu, (self.clock)()).await?;
        Ok(Some((trial.best.digest, trial.verdict == Verdict::Adopted)))
    }

    /// Seals what can be proven of `raw`, and gives the sealed segment, its
    /// file and its digest. One that is damaged is set aside and reported, also
    /// if nothing of it can be proven: trying again would find the same.
    async fn seal(
        &self,
        raw: Arc<RawFile>,
        turn: &Turn,
    ) -> Result<Option<(SegmentInfo, PathBuf, String)>, ArchiveError> {
        let base = raw.base_offset();
        let started = std::time::Instant::now();
        let header = SegmentHeader {
            stream: self.log.stream().to_owned(),
            segment_id: *raw.id(),
            sealed_at_ms: (self.clock)(),
        };
        let next = self.log.segments().range(base + 1..).next().map_or(base, |(next, _)| *next);
        let next = raw.end_of_its_own(next);
        let (settings, folder, from) = (self.settings.clone(), self.folder.clone(), raw.clone());
        let turn = turn.clone();
        let seal = move || -> Result<_, LoadError> {
            let _turn = turn;
            let dictionary = match settings.dictionary {
                DictionaryUse::Off => None,
                DictionaryUse::Adopted => Library::of_segments(&folder).adopted()?,
            };
            Ok(seal_provable(&from, next, header, &settings, dictionary.as_deref(), &folder))
        };
        let sealed = self.cpu.run(seal).await;
        let (sealed, gaps) = sealed.map_err(|source| ArchiveError::Dictionary { base, source })?;
        let gaps = self.damage.unsettled(gaps);
        let sealed = match sealed {
            Ok(sealed) => Some(sealed),
            Err(SealError::Empty) => None,
            Err(source) => return Err(ArchiveError::Seal { base, source }),
        };
        let reader = match &sealed {
            Some(sealed) => Some(
                segment::Reader::open(&sealed.path)
                    .map_err(|source| ArchiveError::ReadBack { base, source })?,
            ),
            None => None,
        };
        let info = reader.as_ref().map(|reader| reader.info().clone());
        match reader {
            Some(reader) if gaps.is_empty() => self.sealer.replace(raw, reader),
            reader => self.set_aside(&raw, reader, gaps).await,
        }
        .map_err(|source| ArchiveError::Io { base, source })?;
        let Some((sealed, info)) = sealed.zip(info) else { return Ok(None) };
        metrics::segment_sealed(started.elapsed(), sealed.plain_bytes, sealed.object_bytes);
        tracing::info!(
            stream = sealed.stream,
            base_offset = sealed.base_offset,
            end_offset = sealed.end_offset,
            plain_bytes = sealed.plain_bytes,
            object_bytes = sealed.object_bytes,
            content_digest = hex(&sealed.content_digest),
            "segment sealed"
        );
        Ok(Some((info, sealed.path, hex(&sealed.object_digest))))
    }

    async fn set_aside(
        &self,
        raw: &RawFile,
        sealed: Option<segment::Reader>,
        gaps: Vec<Range<u64>>,
    ) -> std::io::Result<()> {
        let to = self.sealer.set_aside(raw, sealed)?;
        let file = relative(&to, &self.folder);
        let lost = |gap| {
            self.damage.damage(file.clone(), DamageKind::Batches, gap, "set aside when it was to be sealed")
        };
        self.damage.report(gaps.into_iter().map(lost).collect()).await;
        Ok(())
    }

    /// Enters the sealed segments that the catalog lacks: those of a crash
    /// between sealing and entering. What is damaged is not entered.
    async fn enter_sealed(&self) -> Result<usize, ArchiveError> {
        let mut entered = 0;
        for (base, segment) in self.log.segments() {
            let Segment::Sealed(reader) = segment else { continue };
            let known = self.store.segment_at(self.log.stream(), base).await?;
            if known.is_some_and(|row| row.base_offset == base && row.artifact.is_some()) {
                continue;
            }
            let path = self.folder.join(format!("{base:020}.seg.zst"));
            let name = relative(&path, &self.folder);
            if self.damage.open_damage().iter().any(|d| d.file == name && d.kind != DamageKind::Gap) {
                continue;
            }
            let file = path.clone();
            let report = tokio::task::spawn_blocking(move || segment::verify(&file, None))
                .await
                .map_err(|e| ArchiveError::Io { base, source: std::io::Error::other(e) })?
                .map_err(|source| ArchiveError::ReadBack { base, source })?;
            if report.is_intact() {
                self.enter(reader.info(), &path, &hex(&report.object_digest)).await?;
                entered += 1;
            } else {
                self.damage.report(of_sealed(&self.damage, &name, base, &report)).await;
            }
        }
        Ok(entered)
    }

    async fn enter(&self, info: &SegmentInfo, path: &Path, object_digest: &str) -> Result<(), ArchiveError> {
        let what = catalog::description(info, (self.clock)());
        self.artifacts.put_file(path, object_digest, what).await?;
        let row = catalog::row(info, path, object_digest);
        let told = self.outbox.deliveries(&catalog::sealed(&row, (self.clock)()));
        Ok(self.store.put_segment(&row, &told).await?)
    }
}

/// Seals the batches of `raw` that are whole, and says which offsets up to
/// `next`, where the next segment begins, are in none of them. The file is
/// named after the first offset it holds.
fn seal_provable(
    raw: &RawFile,
    next: u64,
    header: SegmentHeader,
    settings: &segment::Settings,
    dictionary: Option<&Dictionary>,
    folder: &Path,
) -> (Result<Sealed, SealError>, Vec<Range<u64>>) {
    let mut found = Stretch { next: raw.base_offset(), gaps: Vec::new() };
    let first = raw.batches().map_while(Result::ok).find(is_whole);
    let base = first.map_or(raw.base_offset(), |batch| batch.base_offset);
    let path = folder.join(format!("{base:020}.seg.zst"));
    let whole = raw.batches().filter(|batch| batch.as_ref().map_or(true, |batch| found.takes(batch)));
    let sealed = segment::seal_with(whole, header, settings, dictionary, time_of, &path);
    found.end(next);
    (sealed, found.gaps)
}

/// Offsets as they are read, and those that were passed over.
struct Stretch {
    next: u64,
    gaps: Vec<Range<u64>>,
}

impl Stretch {
    /// Whether the batch can follow what was read; if so it was.
    fn takes(&mut self, batch: &FrameBatch) -> bool {
        let takes = batch.base_offset >= self.next && is_whole(batch);
        if takes {
            self.end(batch.base_offset);
            self.next = batch.end_offset();
        }
        takes
    }

    fn end(&mut self, at: u64) {
        if at > self.next {
            self.gaps.push(self.next..at);
            self.next = at;
        }
    }
}

/// Whether the batch holds exactly the frames it claims. Proven batches do,
/// unless whoever wrote them erred; sealing them would fail for ever.
pub(super) fn is_whole(batch: &FrameBatch) -> bool {
    let payloads = batch.payloads().map(|(_, payload)| payload.len() + PREFIX_BYTES);
    let (mut frames, mut bytes) = (0, 0);
    for length in payloads {
        frames += 1;
        bytes += length;
    }
    frames == batch.count && bytes == batch.bytes.len()
}

/// What verifying the sealed segment `file`, which begins at `base`, found.
pub(super) fn of_sealed(
    register: &DamageRegister,
    file: &str,
    base: u64,
    report: &segment::VerifyReport,
) -> Vec<Damage> {
    let one = |damage: &segment::Damage| {
        let (kind, offsets) = match damage {
            segment::Damage::Block { offsets: Some(offsets), records_lost: Some(1..), .. } => {
                (DamageKind::Block, offsets.clone())
            }
            segment::Damage::Index { .. } => (DamageKind::Index, base..base),
            _ => (DamageKind::Altered, base..base),
        };
        register.damage(file.to_owned(), kind, offsets, damage.to_string())
    };
    report.damage.iter().map(one).collect()
}

/// The record's own time, for the block index.
pub(super) fn time_of(payload: &[u8]) -> Option<i64> {
    RecordRef::parse(payload).ok()?.ts_ms
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::frame::put_frame;

    fn batch(base_offset: u64, count: u32) -> FrameBatch {
        let mut bytes = BytesMut::new();
        (0..count).for_each(|_| put_frame(&mut bytes, b"x"));
        FrameBatch { base_offset, append_time_ms: 0, count, bytes: bytes.freeze() }
    }

    #[test]
    fn what_no_batch_holds_is_a_gap_also_at_both_ends() {
        let mut stretch = Stretch { next: 5, gaps: Vec::new() };
        assert!(stretch.takes(&batch(7, 2)));
        assert!(stretch.takes(&batch(9, 1)));
        assert!(stretch.takes(&batch(20, 1)));
        stretch.end(25);
        assert_eq!(stretch.gaps, [5..7, 10..20, 21..25]);
    }

    #[test]
    fn a_batch_that_goes_back_or_is_not_whole_is_passed_over() {
        let mut stretch = Stretch { next: 5, gaps: Vec::new() };
        assert!(!stretch.takes(&batch(4, 2)));
        assert!(!stretch.takes(&FrameBatch { count: 3, ..batch(5, 2) }));
        let cut = FrameBatch { bytes: batch(5, 2).bytes.slice(..9), ..batch(5, 2) };
        assert!(!stretch.takes(&cut));
        stretch.end(5);
        assert!(stretch.gaps.is_empty() && stretch.takes(&batch(5, 2)));
    }
}

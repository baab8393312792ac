//! Erasing a tenant, or one session of theirs, from everything that a stream
//! has left behind.
//!
//! ```text
//! ask     written down in the store, with every stream it concerns
//! until   the active segment is closed; what comes later is not meant
//! seal    what is closed, so that all of it lies in sealed segments
//! rows    rows, vectors, keywords, shared cache: nobody finds it from here on
//! log     frames are emptied and segments sealed anew; dictionaries go that
//!         were trained on them; packs are written without them
//! rest    dead letters, quarantine, spare files, objects
//! close   the names are forgotten and the database is scrubbed
//! ```
//!
//! An emptied frame is a frame without payload: offsets stay as they are, and
//! the emptied ones count as rejected, for the reason `erased`.
//!
//! Every step finds what it has to do by looking, and does nothing where it
//! was done before. So an erasure that is broken off goes on from the
//! beginning, at the next start of whoever has the log.

mod matcher;
mod report;
mod segments;

use std::{collections::BTreeMap, fs, io, path::PathBuf, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use self::matcher::Matcher;
pub use report::{Renewed, Report};

use super::{
    archive::{Archive, ArchiveError},
    pack::{PackError, Packer},
    progress::Progress,
};
use crate::{
    artifact::ArtifactError,
    config::Pipeline,
    dictionary::LoadError,
    embed::{SharedVectors, ShelfError},
    frame::FrameBatch,
    log::{AppendError, Cursor, LogReader, LogWriter, ReadError},
    record::Defaults,
    redis::Redis,
    segment::{self, SealError},
    store::{DeadLetter, Erasure, Forgetting, StoreError, Subject},
};

/// Why an erasure stopped. It goes on where it is run again.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// There is damage that may hide what is to be erased.
    #[error(
        "stream `{stream}` has damage that may hide what is to be erased; `thalweg segments repair` saves what can be proven, then erase"
    )]
    Damaged {
        /// The stream.
        stream: String,
    },
    /// The log refused.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The log cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A sealed segment cannot be read.
    #[error(transparent)]
    Segment(#[from] segment::ReadError),
    /// What is closed cannot be sealed, or kept.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A segment cannot be sealed anew.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A dictionary beside the log cannot be read.
    #[error(transparent)]
    Dictionary(#[from] LoadError),
    /// The object store or the registry refused.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A corpus pack cannot be written anew.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The shared cache is away.
    #[error("{0}; the erasure waits for it, or for the entries' time to live")]
    Cache(#[from] ShelfError),
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was told to stop.
    #[error("the erasure was told to stop")]
    Stopped,
    /// Work on another thread panicked.
    #[error("a step of the erasure broke off: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// Records taken away by one transaction.
const PAGE: u32 = 1_000;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// How often it is looked for something to erase.
const EVERY: Duration = Duration::from_secs(5);
/// The longest wait after failures.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Erases from one stream.
pub struct Eraser {
    /// Seals, and knows the stream's segments, objects and catalog.
    archive: Archive,
    writer: LogWriter,
    /// Knows the stream's corpus packs.
    packer: Packer,
    /// Where vectors are shared, and for how long.
    shared: Option<(Redis, Duration)>,
    /// How far derivation is, where it is going on meanwhile.
    derived: Option<Arc<Progress>>,
    /// Asked between two steps: a step that is begun is ended, for it may
    /// publish files.
    stop: CancellationToken,
}

impl Eraser {
    /// Of the stream of `pipeline`, whose segments `archive` knows; `redis` is
    /// what other daemons share with this one.
    pub fn new(pipeline: &Pipeline, writer: LogWriter, archive: Archive, redis: Option<Redis>) -> Self {
        let (log, store) = (archive.log.clone(), archive.store.clone());
        let packer = Packer::new(pipeline, log, store, archive.artifacts.clone(), archive.cpu.clone());
        let ttl = pipeline.redis.as_ref().map(|settings| settings.cache_ttl.0);
        Self {
            archive,
            writer,
            packer,
            shared: redis.zip(ttl),
            derived: None,
            stop: CancellationToken::new(),
        }
    }

    /// The same, while derivation goes on and tells `progress` how far it is.
    #[must_use]
    pub fn beside(self, progress: Arc<Progress>) -> Self {
        Self { derived: Some(progress), ..self }
    }

    /// Erases whatever is asked for, until told to stop. A failure is shown
    /// and tried again.
    pub async fn run(mut self, progress: Arc<Progress>, stop: CancellationToken) -> anyhow::Result<()> {
        self.stop = stop.clone();
        let mut wait = EVERY;
        loop {
            match self.erase_all().await {
                Ok(_) => {
                    progress.well("erasure");
                    wait = EVERY;
                }
                Err(EraseError::Stopped) => return Ok(()),
                Err(error) => {
                    tracing::error!(%error, stream = self.stream(), "an erasure failed; it is tried again");
                    progress.trouble("erasure", error.to_string());
                    wait = (2 * wait).min(LONGEST_WAIT);
                }
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn go_on(&self) -> Result<(), EraseError> {
        if self.stop.is_cancelled() { Err(EraseError::Stopped) } else { Ok(()) }
    }

    fn stream(&self) -> &str {
        self.archive.log.stream()
    }

    /// Does this stream's part of everything that is asked for, oldest first,
    /// and what is left when all streams have done theirs. Returns the reports.
    ///
    /// # Errors
    /// See [`EraseError`].
    pub async fn erase_all(&self) -> Result<Vec<Report>, EraseError> {
        let mut reports = Vec::new();
        for erasure in self.archive.store.erasures(true).await? {
            if let (Some(subject), Some(_)) = (&erasure.subject, erasure.open_part(self.stream())) {
                reports.push(self.erase(&erasure, subject).await?);
            }
        }
        for erasure in self.archive.store.erasures(true).await? {
            if erasure.is_everywhere() {
                let store = &self.archive.store;
                store.forget_subject(erasure.erasure_id).await?;
                store.scrub().await?;
                store.close_erasure(erasure.erasure_id, (self.archive.clock)()).await?;
                tracing::info!(erasure = erasure.erasure_id, "an erasure is done");
            }
        }
        Ok(reports)
    }

    async fn erase(&self, erasure: &Erasure, subject: &Subject) -> Result<Report, EraseError> {
        let (store, stream) = (&self.archive.store, self.stream());
        let until = self.until(erasure).await?;
        let before = erasure.open_part(stream).and_then(|part| part.report.as_deref());
        let mut report: Report = before.and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default();
        (report.stream, report.until_offset) = (stream.to_owned(), until);
        let matcher = Matcher::new(subject, &self.packer.defaults);
        let mut work = Work { eraser: self, erasure_id: erasure.erasure_id, until, matcher, report };
        work.forget_rows(subject).await?;
        self.archive.archive_closed().await?;
        if !self.archive.damage.open_damage().is_empty() {
            return Err(EraseError::Damaged { stream: stream.to_owned() });
        }
        {
            // Nothing else is sealed, or trained, meanwhile.
            let turn = self.archive.take_turn().await;
            work.rewrite_segments(&turn).await?;
        }
        work.rewrite_packs().await?;
        work.remove_dead_letters().await?;
        work.empty_quarantine()?;
        // What was closed meanwhile may have stale ends as well.
        self.archive.archive_closed().await?;
        let spares = |source| EraseError::Io { path: self.archive.folder.clone(), source };
        self.archive.sealer.discard_spares().map_err(spares)?;
        self.writer.scrub().await?;
        // What a replay put back meanwhile.
        work.forget_rows(subject).await?;
        store.drop_stale_claims(stream).await?;
        if subject.session.is_none() {
            store.drop_empty_tenant(&subject.tenant).await?;
        }
        let objects = self.archive.artifacts.delete_doomed((self.archive.clock)()).await?;
        work.report.objects.extend(objects);
        work.note(Some((self.archive.clock)())).await?;
        if let Some(progress) = &self.derived {
            progress.ask(store, &self.packer.pipeline, stream).await?;
        }
        Ok(work.report)
    }

    /// Up to which offset an erasure goes: to the end of the log as it first
    /// was when this was asked. Everything before it is closed, and derived if
    /// it is derived here.
    async fn until(&self, erasure: &Erasure) -> Result<u64, EraseError> {
        let known = erasure.open_part(self.stream()).and_then(|part| part.until_offset);
        let active_base = self.archive.log.durable().borrow().active_base;
        let until = match known {
            Some(until) if until <= active_base => until,
            // Not closed yet, or opened again with what was not.
            _ => {
                let end = self.writer.close_segment().await?;
                self.archive.store.begin_erasure(erasure.erasure_id, self.stream(), end).await?;
                known.unwrap_or(end)
            }
        };
        if let Some(progress) = &self.derived {
            while progress.next_offset() < until {
                self.go_on()?;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        Ok(until)
    }
}

/// How many frames of a subject each segment of `log` holds, by the segment's
/// first offset. Reads all of it; not for a tokio thread.
///
/// # Errors
/// If a stretch of the log cannot be read.
pub fn look(
    log: &LogReader,
    subject: &Subject,
    defaults: &Defaults,
) -> Result<BTreeMap<u64, u64>, ReadError> {
    let matcher = Matcher::new(subject, defaults);
    let bases: Vec<u64> = log.segments().into_keys().collect();
    let (mut found, mut cursor) = (BTreeMap::new(), Cursor::at(0));
    loop {
        let batches = log.read(&mut cursor, READ_BYTES)?;
        if batches.is_empty() {
            return Ok(found);
        }
        let payloads = batches.iter().flat_map(FrameBatch::payloads);
        for (offset, _) in payloads.filter(|(_, payload)| matcher.takes(payload)) {
            let base = bases.iter().rfind(|base| **base <= offset).copied().unwrap_or_default();
            *found.entry(base).or_default() += 1;
        }
    }
}

/// One erasure under way.
struct Work<'a> {
    eraser: &'a Eraser,
    erasure_id: i64,
    until: u64,
    matcher: Matcher,
    report: Report,
}

impl Work<'_> {
    /// Writes down what was done so far.
    async fn note(&self, done_ms: Option<i64>) -> Result<(), EraseError> {
        let report = serde_json::to_string(&self.report).unwrap_or_default();
        let store = &self.eraser.archive.store;
        Ok(store.note_erasure(self.erasure_id, self.eraser.stream(), &report, done_ms).await?)
    }

    /// Takes away the rows that the store itself knows to be the subject's.
    async fn forget_rows(&mut self, subject: &Subject) -> Result<(), EraseError> {
        let (store, stream) = (&self.eraser.archive.store, self.eraser.stream());
        loop {
            let offsets = store.holdings(subject, stream, self.until, PAGE).await?;
            if offsets.is_empty() {
                return Ok(());
            }
            self.eraser.go_on()?;
            self.forget(&offsets).await?;
            self.note(None).await?;
        }
    }

    /// Takes these offsets out of cache and store.
    async fn forget(&mut self, offsets: &[u64]) -> Result<(), EraseError> {
        let (store, stream) = (&self.eraser.archive.store, self.eraser.stream());
        for page in offsets.chunks(PAGE as usize) {
            // First, for the rows say what to look for.
            if let Some((redis, ttl)) = &self.eraser.shared {
                let digests = store.text_digests(stream, page).await?;
                for space in store.spaces().await? {
                    let vectors = SharedVectors::new(redis.clone(), &space.space, *ttl);
                    self.report.cached += vectors.forget(&digests).await?;
                }
            }
            let gone = store.forget(stream, page, Forgetting::Erased).await?;
            self.report.records += gone.records;
            self.report.chunks += gone.chunks;
        }
        Ok(())
    }

    /// Writes corpus packs again without the subject's documents.
    async fn rewrite_packs(&mut self) -> Result<(), EraseError> {
        let matcher = self.matcher.clone();
        // A pack does not say its documents' offsets, so a later one of the
        // subject's goes as well; it can be packed again.
        let goes = move |payload: &[u8]| matcher.takes(payload);
        let done = self.eraser.packer.leave_out(goes, (self.eraser.archive.clock)()).await?;
        self.report.packs.extend(done.into_iter().map(|pack| Renewed {
            name: pack.name,
            frames: pack.removed,
            before: Some(pack.before),
            after: pack.after,
        }));
        self.note(None).await
    }

    /// Removes the dead letters that hold, or name, the subject. Those of
    /// frames in the log went with their offsets.
    async fn remove_dead_letters(&mut self) -> Result<(), EraseError> {
        let (store, pipeline) = (&self.eraser.archive.store, &self.eraser.packer.pipeline);
        let (explicit, mut after) = (self.matcher.explicit(), 0);
        loop {
            let page = store.dead_letters(None, after, PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            // Whose it is by default is known of one's own pipeline only.
            let takes = |one: &&DeadLetter| match (&one.letter.payload, one.letter.pipeline == *pipeline) {
                (Some(payload), true) => self.matcher.takes(payload),
                (Some(payload), false) => explicit.takes(payload),
                (None, _) => false,
            };
            let ids: Vec<i64> = page.iter().filter(takes).map(|one| one.id).collect();
            self.report.dead_letters += store.remove_dead_letters(&ids).await?;
        }
    }

    /// Removes files that were set aside. Their frames were saved by a repair,
    /// or are lost: no damage is open.
    fn empty_quarantine(&mut self) -> Result<(), EraseError> {
        let folder = self.eraser.archive.folder.join("quarantine");
        let at = |path: &PathBuf| {
            let path = path.clone();
            move |source| EraseError::Io { path, source }
        };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(at(&folder))?,
        };
        for entry in entries {
            let path = entry.map_err(at(&folder))?.path();
            fs::remove_file(&path).map_err(at(&path))?;
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            self.report.quarantine.push(format!("quarantine/{name}"));
        }
        crate::durable::sync_dir(&folder).map_err(at(&folder))
    }
}

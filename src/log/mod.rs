//! The log: one stream's frames, durable before they are acknowledged.
//!
//! # Files
//! A stream has a folder. Offsets in names are decimal, 20 digits.
//!
//! | file | what |
//! |---|---|
//! | `LOCK` | locked by the one process that writes |
//! | `OFFSET.log` | raw segment that starts at OFFSET; the highest is *active*, the others are closed and wait to be sealed |
//! | `OFFSET.seg.zst` | sealed segment ([`crate::segment`]); replaces the raw one |
//! | `spare.N` | zeroed or recycled files for the next segments |
//! | `quarantine/` | files that were damaged, as they were found |
//!
//! # A raw segment file
//! Pre-allocated and written in place; integers big-endian.
//!
//! ```text
//! file   = header(512 bytes) batch* rest
//! header = "THALWEGL" version:u16 id:[16] base_offset:u64 created_ms:i64 crc32c:u32 zeros
//! batch  = "TwB1" crc32c:u32 base_offset:u64 append_time_ms:i64 frames:u32 length:u32
//!          table_length:u32 zero:u32
//!          table frame*                             (length bytes; frames exactly as sent)
//! ```
//!
//! The version is 2. Files of version 1, which had no tables and a zero in
//! their place, are read and not written to any more.
//!
//! The table says how far the producers are whose frames, or refused frames,
//! the batch brings: `producers.rs` has its layout. So a frame and its number
//! are durable together or not at all. A file that is taken into use while
//! producers are known begins with a batch of no frames and the table of all,
//! so the last file alone tells where each producer is.
//!
//! A batch's CRC-32C covers the segment's random `id` and everything after the
//! CRC, so bytes of an earlier life of the file never parse. `rest` is zeros
//! or such bytes.
//!
//! # Promises
//! - One batch is one write and one fsync; the next is written only after the
//!   fsync returned. So a proven batch proves that all before it were durable,
//!   and a gap before it is damage, never a torn write.
//! - An append is answered after the fsync. A failed fsync ends the writer.
//! - Recovery continues after the last proven batch. What follows it was never
//!   acknowledged. Damage before it is reported ([`Damage`]) and skipped;
//!   nothing is cut.
//! - A segment is begun when everything before it is durable. So only the last
//!   one is scanned when the log is opened; the others end where the next one
//!   begins, and damage in them is found, and reported, when they are read.
//! - Offsets are never reused.

mod directory;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod group;
mod io;
mod producers;
mod raw;
mod reader;
mod recovery;
mod salvage;
mod settings;
#[cfg(test)]
mod sim;
mod spare;
mod sums;
mod walk;
mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::Sender;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};

pub use directory::{Directory, segment_name, streams};
pub use format::SegmentId;
pub use producers::{Claim, MAX_NAME_BYTES, Position, ProducerError};
pub use raw::{Damage, RawFile, Scan};
pub use reader::{Cursor, LogReader, ReadError};
pub use recovery::{OpenError, Recovery};
pub use salvage::{Proof, Salvage, Salvaged, salvage};
pub use settings::{Ack, Settings};
pub use writer::DrawId;

use crate::{clock::Clock, segment};
use group::{Append, Item, Open};
use io::Io;
use spare::{Filler, Spares};
use writer::{Request, Writer};

/// Where an append went. Durable when given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of its first frame that is new.
    pub offset: u64,
    /// Number of its new frames; their offsets are consecutive.
    pub count: u32,
    /// Numbers at its front that had been taken before.
    pub duplicates: u32,
}

/// Why frames were not appended. None of them is in the log, except that after
/// [`AppendError::Failed`] it may turn out to have them when it is opened again.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// No room on the disk. The log is sound; free some space and send again.
    #[error("the log cannot grow: {reason}; free disk space, then send again")]
    Full {
        /// What the system said.
        reason: String,
    },
    /// The log can no longer promise durability. Restart after the disk is
    /// looked at.
    #[error(
        "{what} of {path} failed: {reason}; the log accepts nothing more until the disk is checked and the daemon restarted"
    )]
    Failed {
        /// The call that failed.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// The log is shutting down; send again to its successor.
    #[error("the log is closed; send again when the daemon is back")]
    Closed,
    /// The producer's numbers cannot be taken.
    #[error(transparent)]
    Producer(#[from] ProducerError),
}

impl AppendError {
    fn full(error: &std::io::Error) -> Self {
        Self::Full { reason: error.to_string() }
    }

    fn failed(what: &'static str, path: &Path, error: &std::io::Error) -> Self {
        Self::Failed { what, path: path.to_owned(), reason: error.to_string() }
    }

    /// The stable code of the wire protocol (`docs/protocol.md`).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Full { .. } => "log_full",
            Self::Failed { .. } => "log_failed",
            Self::Closed => "closing",
            Self::Producer(error) => error.code(),
        }
    }
}

/// How far the log is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// The offset after the last durable frame.
    pub end_offset: u64,
    /// When it was appended, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Where the active segment starts.
    pub active_base: u64,
}

/// One segment as the log knows it.
#[derive(Clone, Debug)]
pub enum Segment {
    /// Active or closed.
    Raw(Arc<RawFile>),
    /// Sealed.
    Sealed(Arc<segment::Reader>),
}

/// What the writer and the readers of a stream share.
#[derive(Debug)]
pub(crate) struct Shared {
    stream: String,
    durable: watch::Sender<Durable>,
    segments: RwLock<BTreeMap<u64, Segment>>,
    failed: OnceLock<AppendError>,
    full: RwLock<Option<AppendError>>,
    /// When the group under way was begun.
    writing_since: Mutex<Option<Instant>>,
    /// Damage of segments that are no raw ones any more, or never were.
    damage: Mutex<Vec<Damage>>,
}

impl Shared {
    fn publish(&self, end_offset: u64, at_ms: i64) {
        self.durable.send_modify(|d| *d = Durable { end_offset, at_ms, ..*d });
    }

    fn open_segment(&self, raw: Arc<RawFile>) {
        let active_base = raw.base_offset();
        self.insert(active_base, Segment::Raw(raw));
        self.durable.send_modify(|d| d.active_base = active_base);
    }

    fn insert(&self, base: u64, segment: Segment) -> Option<Segment> {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).insert(base, segment)
    }

    fn remove(&self, base: u64) {
        self.segments.write().unwrap_or_else(PoisonError::into_inner).remove(&base);
    }

    /// Remembers the damage of a raw segment that is about to go.
    fn keep_damage(&self, raw: &RawFile) {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).extend(raw.damage());
    }

    fn writing_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.writing_since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_failed(&self, error: AppendError) {
        let _ = self.failed.set(error);
    }

    /// Says that the log has room (`None`) or why not; whether that is news.
    fn set_full(&self, why: Option<AppendError>) -> bool {
        let mut full = self.full.write().unwrap_or_else(PoisonError::into_inner);
        let news = full.is_some() != why.is_some();
        *full = why;
        news
    }

    fn full(&self) -> Option<AppendError> {
        self.full.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the log has taken and not answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes in the queue, those that are being written among them.
    pub bytes: u64,
    /// Bytes that it has room for.
    pub most_bytes: u64,
    /// For how long the group that is being written was under way.
    pub writing_for: Option<Duration>,
}

/// The writing end of a stream. Cheap to clone; the writer ends when the last
/// clone is dropped.
#[derive(Clone, Debug)]
pub struct LogWriter {
    requests: Sender<Request>,
    room: Arc<Semaphore>,
    /// Permits of `room` while nothing waits.
    units: usize,
    shared: Arc<Shared>,
    ack: Ack,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Item(_) => "Item",
            Self::Close(_) => "Close",
            Self::Scrub(_) => "Scrub",
        })
    }
}

/// Room in the writer's queue for one append.
#[derive(Debug)]
pub struct Reservation {
    writer: LogWriter,
    room: OwnedSemaphorePermit,
}

/// An append under way. Resolves once it is durable or refused.
#[derive(Debug)]
pub struct Pending(oneshot::Receiver<Result<Appended, AppendError>>);

impl Pending {
    /// Waits for the answer. Dropping the future does not undo the append.
    pub async fn answer(self) -> Result<Appended, AppendError> {
        self.0.await.unwrap_or(Err(AppendError::Closed))
    }
}

/// Bytes that one permit of the queue stands for.
const ROOM_UNIT_BYTES: usize = 1 << 10;

impl LogWriter {
    /// Waits until the queue has room for `bytes`: this is how a slow disk
    /// holds back the sources.
    pub async fn reserve(&self, bytes: usize) -> Result<Reservation, AppendError> {
        let units = u32::try_from(bytes / ROOM_UNIT_BYTES + 1).unwrap_or(u32::MAX);
        let room = self.room.clone().acquire_many_owned(units).await.map_err(|_| AppendError::Closed)?;
        Ok(Reservation { writer: self.clone(), room })
    }

    /// Appends `count` whole frames and waits until they are durable.
    pub async fn append(&self, frames: Bytes, count: u32) -> Result<Appended, AppendError> {
        self.reserve(frames.len()).await?.append(frames, count).answer().await
    }

    /// Opens an epoch of a producer that numbers its frames, or the one after
    /// its latest, and waits until that is durable; from then on appends in
    /// its earlier epochs are refused. `sequence` is the number that it means
    /// to go on with.
    pub async fn open_producer(
        &self,
        producer: Arc<str>,
        epoch: Option<u64>,
        sequence: Option<u64>,
    ) -> Result<Position, AppendError> {
        let (reply, answer) = oneshot::channel();
        let open = Item::Open(Open { producer, epoch, sequence, reply });
        self.requests.send(Request::Item(open)).map_err(|_| AppendError::Closed)?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Closes the active segment if it holds anything. Returns the end offset.
    pub async fn close_segment(&self) -> Result<u64, AppendError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Close(reply)).map_err(|_| AppendError::Closed)?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Has whatever an earlier segment left in the active file overwritten.
    /// Takes about as long as writing a segment, and appends wait meanwhile.
    pub async fn scrub(&self) -> Result<(), AppendError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Scrub(reply)).map_err(|_| AppendError::Closed)?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// What is taken and not answered at the moment.
    pub fn backlog(&self) -> Backlog {
        let bytes = |units: usize| (units * ROOM_UNIT_BYTES) as u64;
        Backlog {
            bytes: bytes(self.units.saturating_sub(self.room.available_permits())),
            most_bytes: bytes(self.units),
            writing_for: self.shared.writing_since().map(|since| since.elapsed()),
        }
    }

    /// Name of the stream.
    pub fn stream(&self) -> &str {
        &self.shared.stream
    }

    /// What an answered append means.
    pub fn ack(&self) -> Ack {
        self.ack
    }
}

impl Reservation {
    /// Hands `count` whole frames to the writer, of about as many bytes as
    /// were reserved.
    pub fn append(self, frames: Bytes, count: u32) -> Pending {
        self.append_claimed(frames, count, None)
    }

    /// As [`Reservation::append`], of frames whose numbers are claimed: only
    /// those are appended whose number was not taken before. A claim without
    /// frames takes the numbers of frames that were refused.
    pub fn append_claimed(self, frames: Bytes, count: u32, claim: Option<Claim>) -> Pending {
        let (reply, answer) = oneshot::channel();
        let append = Append { frames, count, claim, reply, room: self.room };
        // If the writer is gone the reply is dropped with the request, and
        // the pending append resolves to `Closed`.
        let _ = self.writer.requests.send(Request::Item(Item::Append(append)));
        Pending(answer)
    }
}

/// A recovered log whose writer has no thread yet.
struct Ready {
    writer: Writer,
    handle: LogWriter,
    lock: directory::Lock,
    report: Recovery,
}

impl Ready {
    fn open(
        io: Arc<dyn Io>,
        root: &Path,
        stream: &str,
        settings: &Settings,
        clock: Clock,
        mut draw_id: DrawId,
        known: u64,
    ) -> Result<Self, OpenError> {
        let directory = Directory::within(io, root, stream);
        let lock = directory
            .lock()
            .map_err(|source| OpenError::Io { path: directory.path().to_owned(), source })?
            .ok_or_else(|| OpenError::Locked { path: directory.path().to_owned() })?;
        let spares = Arc::new(Spares::new(directory.clone(), settings.segment_bytes.0));
        let recovered = recovery::recover(&directory, settings, &spares, &clock, &mut draw_id, known)?;
        let shared = recovered.share(stream);
        // An erasure may have been the last thing that an earlier process did.
        spares.use_none_up_to(recovered.active.base_offset());
        let (requests, received) = crossbeam_channel::unbounded();
        let writer = Writer {
            shared: shared.clone(),
            settings: settings.clone(),
            spares,
            filler: None,
            spare_asked: false,
            clock,
            draw_id,
            position: recovered.active.proven(),
            active: recovered.active,
            next_offset: recovered.end_offset,
            first_append_ms: recovered.first_append_ms,
            producers: recovered.producers,
            table: Vec::new(),
            unsynced_since: None,
            requests: received,
            waiting: VecDeque::new(),
        };
        let units = settings.queue_bytes.as_usize() / ROOM_UNIT_BYTES + 2;
        let room = Arc::new(Semaphore::new(units));
        let handle = LogWriter { requests, room, units, shared, ack: settings.ack };
        Ok(Self { writer, handle, lock, report: recovered.report })
    }
}

/// A stream's log, opened for writing.
#[derive(Debug)]
pub struct Log {
    writer: LogWriter,
    thread: JoinHandle<()>,
    spares: Arc<Spares>,
    lock: directory::Lock,
}

impl Log {
    /// Opens the log of `stream` under `root`, recovers it, and starts its
    /// writer.
    pub fn open(
        root: &Path,
        stream: &str,
        settings: &Settings,
        clock: Clock,
        draw_id: DrawId,
    ) -> Result<(Self, Recovery), OpenError> {
        Self::open_after(root, stream, settings, clock, draw_id, 0)
    }

    /// As [`Log::open`], for a stream of which everything before `known` is
    /// known to have been durable once. Where the files have lost the end of
    /// that, it is reported as damage and its offsets are not given again.
    pub fn open_after(
        root: &Path,
        stream: &str,
        settings: &Settings,
        clock: Clock,
        draw_id: DrawId,
        known: u64,
    ) -> Result<(Self, Recovery), OpenError> {
        let ready = Ready::open(io::system(), root, stream, settings, clock, draw_id, known)?;
        let Ready { mut writer, handle, lock, report } = ready;
        let failed = |source| OpenError::Io { path: root.join(stream), source };
        let spares = writer.spares.clone();
        writer.filler = Some(Filler::start(spares.clone()).map_err(failed)?);
        let thread = std::thread::Builder::new()
            .name("log-writer".into())
            .spawn({
                let span = tracing::Span::current();
                move || span.in_scope(|| writer.run())
            })
            .map_err(failed)?;
        Ok((Self { writer: handle, thread, spares, lock }, report))
    }

    /// A handle to append with.
    pub fn writer(&self) -> LogWriter {
        self.writer.clone()
    }

    /// A handle to read with.
    pub fn reader(&self) -> LogReader {
        LogReader::new(self.writer.shared.clone())
    }

    /// The closed segments that wait to be sealed, oldest first.
    pub fn closed(&self) -> Vec<Arc<RawFile>> {
        self.reader().closed()
    }

    /// A handle that puts sealed segments in the place of raw ones.
    pub fn sealer(&self) -> Sealer {
        Sealer { shared: self.writer.shared.clone(), spares: self.spares.clone() }
    }

    /// Waits until everything handed to the writer is durable and ends it.
    /// Every other [`LogWriter`] must have been dropped, or this waits for it.
    pub fn shut_down(self) {
        let Self { writer, thread, spares, lock } = self;
        drop(writer);
        if thread.join().is_err() {
            tracing::error!("the log writer panicked");
        }
        drop(spares);
        drop(lock);
    }
}

/// Puts sealed segments in the place of raw ones.
#[derive(Clone, Debug)]
pub struct Sealer {
    shared: Arc<Shared>,
    spares: Arc<Spares>,
}

impl Sealer {
    /// From now on readers take `sealed` for what `raw` held; `raw` is
    /// recycled, or put aside if it was damaged. `sealed` must be durable.
    pub fn replace(&self, raw: Arc<RawFile>, sealed: segment::Reader) -> std::io::Result<()> {
        self.shared.keep_damage(&raw);
        let replaced = self.shared.insert(raw.base_offset(), Segment::Sealed(Arc::new(sealed)));
        drop(replaced);
        self.spares.recycle(raw)
    }

    /// From now on readers take `sealed` for the sealed segment of the same
    /// base. It must be durable.
    pub fn renew(&self, sealed: segment::Reader) {
        self.shared.insert(sealed.info().base_offset, Segment::Sealed(Arc::new(sealed)));
    }

    /// Removes the files that are kept for the next segments, and uses none
    /// again that is in use now: what earlier segments left in them was sealed
    /// since, or erased.
    pub fn discard_spares(&self) -> std::io::Result<()> {
        self.spares.discard()?;
        self.spares.use_none_up_to(self.shared.durable.borrow().active_base);
        Ok(())
    }

    /// Readers no longer find the segment that begins at `base`. Its file is
    /// the caller's to remove.
    pub fn forget(&self, base: u64) {
        self.shared.remove(base);
    }

    /// As [`Self::replace`] for a segment that is damaged: its file is put
    /// aside. `sealed` is what could be proven of it, if anything could.
    /// Returns where the file is.
    pub fn set_aside(&self, raw: &RawFile, sealed: Option<segment::Reader>) -> std::io::Result<PathBuf> {
        self.shared.keep_damage(raw);
        // What could be proven may begin later than the file did.
        let base = sealed.map(|sealed| {
            let base = sealed.info().base_offset;
            self.shared.insert(base, Segment::Sealed(Arc::new(sealed)));
            base
        });
        if base != Some(raw.base_offset()) {
            self.shared.remove(raw.base_offset());
        }
        self.spares.put_aside(raw.path())
    }
}

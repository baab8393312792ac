//! The one thread that writes a stream.
//!
//! Group commit has no timer: while one fsync is in flight the next appends
//! gather in the queue, and all that gathered is written and synced together.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    ops::ControlFlow,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::sync::oneshot;

use super::{
    AppendError, Shared,
    format::{BATCH_HEADER_BYTES, FILE_HEADER_BYTES, FileHeader, batch_header},
    group::{Group, Item},
    io::write_all_at,
    producers::Producers,
    raw::RawFile,
    recovery::first_batch,
    settings::{Ack, Settings},
    spare::{Filler, Spares, TakeError},
};
use crate::{clock::Clock, metrics};

/// What the writer is asked.
pub(super) enum Request {
    /// Make this durable.
    Item(Item),
    /// Close the active segment now if it holds anything; answers with the
    /// end offset.
    Close(oneshot::Sender<Result<u64, AppendError>>),
    /// Overwrite whatever files of earlier segments still hold.
    Scrub(oneshot::Sender<Result<(), AppendError>>),
}

/// Draws the identity of a new segment.
pub type DrawId = Box<dyn FnMut() -> [u8; 16] + Send>;

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub settings: Settings,
    pub spares: Arc<Spares>,
    /// Makes spares ahead of their use; without it the writer makes each when
    /// it needs it.
    pub filler: Option<Filler>,
    /// Whether it was asked for the next one.
    pub spare_asked: bool,
    pub clock: Clock,
    pub draw_id: DrawId,
    pub active: Arc<RawFile>,
    pub position: u64,
    pub next_offset: u64,
    pub first_append_ms: Option<i64>,
    pub producers: Producers,
    /// The table of the batch that is being written.
    pub table: Vec<u8>,
    /// When the first batch was written that is not synced, where frames are
    /// acknowledged before that.
    pub unsynced_since: Option<i64>,
    pub requests: Receiver<Request>,
    /// Taken from `requests` and not served yet.
    pub waiting: VecDeque<Request>,
}

/// What headers take of a segment that holds a table and one more batch.
const HEADERS_BYTES: usize = FILE_HEADER_BYTES + 2 * BATCH_HEADER_BYTES;

/// How long frames may stay in memory only, where that is what is
/// acknowledged.
const SYNC_WITHIN: Duration = Duration::from_secs(1);

/// How often a full log tries to go on.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A spare is prepared when a segment is full to one part of so many, which
/// leaves far longer than zeroing takes ...
const SPARE_AT: u64 = 8;
/// ... or when it has reached one part of so many of its age.
const SPARE_AT_AGE: u32 = 2;

/// How long to wait when nothing is due.
const IDLE: Duration = Duration::from_secs(3_600);

impl Writer {
    /// Serves until every handle is dropped, or until an fsync fails: what
    /// the disk then holds is unknown, so nothing is acknowledged any more.
    pub fn run(mut self) {
        // The segment that was gone on with may be nearly full.
        self.prepare_spare();
        let ended = loop {
            if let ControlFlow::Break(ended) = self.step(self.until_due().min(self.until_spare())) {
                break ended;
            }
            self.prepare_spare();
        };
        if let Err(error) = ended {
            self.refuse_all(&error);
        }
    }

    /// Serves the next request and whatever fits into its group, after waiting
    /// for one for at most `patience`. Breaks when there will be no other, or
    /// when it can serve none any more.
    pub fn step(&mut self, patience: Duration) -> ControlFlow<Result<(), AppendError>> {
        let request = match self.waiting.pop_front() {
            Some(request) => Ok(request),
            None => self.requests.recv_timeout(patience.min(self.until_sync())),
        };
        let done = match request {
            Ok(Request::Close(reply)) => {
                let closed = self.close();
                let _ = reply.send(closed.clone().map(|()| self.next_offset));
                closed
            }
            Ok(Request::Scrub(reply)) => {
                let scrubbed = self.scrub();
                let _ = reply.send(scrubbed.clone());
                scrubbed
            }
            Ok(Request::Item(first)) => {
                let (items, most_bytes) = self.gather(first);
                *self.shared.writing_since() = Some(Instant::now());
                let done = self.commit(items, most_bytes);
                *self.shared.writing_since() = None;
                done
            }
            Err(RecvTimeoutError::Timeout) => self.close_if_due(),
            Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(self.sync()),
        };
        let synced = if self.until_sync().is_zero() { self.sync() } else { Ok(()) };
        let done = synced.and(done);
        match done {
            Err(error @ AppendError::Failed { .. }) => {
                tracing::error!(%error, "the log writer stops");
                self.shared.set_failed(error.clone());
                ControlFlow::Break(Err(error))
            }
            // What went wrong was said where it was found; the log is sound.
            _ => ControlFlow::Continue(()),
        }
    }

    /// Has a file made ready for the next segment, once it is likely to be
    /// wanted: zeroing one takes more than a short run has to do otherwise.
    fn prepare_spare(&mut self) {
        let is_far = self.position >= self.active.capacity() / SPARE_AT;
        if self.spare_asked || !(is_far || self.until_spare().is_zero()) {
            return;
        }
        self.spare_asked = true;
        if let Some(filler) = &self.filler {
            filler.wake();
        }
    }

    /// Time until the active segment is old enough for the next one to be
    /// prepared.
    fn until_spare(&self) -> Duration {
        match self.first_append_ms {
            Some(first) if !self.spare_asked => {
                let age = u64::try_from((self.clock)() - first).unwrap_or(0);
                (self.settings.segment_age.0 / SPARE_AT_AGE).saturating_sub(Duration::from_millis(age))
            }
            _ => IDLE,
        }
    }

    /// Time until the active segment is old enough to be closed.
    fn until_due(&self) -> Duration {
        let Some(first) = self.first_append_ms else { return IDLE };
        if self.shared.full().is_some() {
            return TRY_AGAIN;
        }
        let age = u64::try_from((self.clock)() - first).unwrap_or(0);
        self.settings.segment_age.0.saturating_sub(Duration::from_millis(age)).min(IDLE)
    }

    /// Time until what is in memory only is to be synced.
    fn until_sync(&self) -> Duration {
        let Some(since) = self.unsynced_since else { return IDLE };
        // At once, should the clock have been set back.
        let age = u64::try_from((self.clock)() - since).map_or(SYNC_WITHIN, Duration::from_millis);
        SYNC_WITHIN.saturating_sub(age)
    }

    /// Makes durable what was acknowledged before it was.
    fn sync(&mut self) -> Result<(), AppendError> {
        if self.unsynced_since.take().is_some() { self.sync_data() } else { Ok(()) }
    }

    fn sync_data(&self) -> Result<(), AppendError> {
        let started = Instant::now();
        self.active.file.sync_data().map_err(|e| AppendError::failed("fsync", self.active.path(), &e))?;
        metrics::log_fsync(started.elapsed());
        Ok(())
    }

    /// Closes a segment that is old enough. In a full log any: that there is
    /// room again has to be found out without an append, or nobody who asks
    /// first would ever send one.
    fn close_if_due(&mut self) -> Result<(), AppendError> {
        if self.shared.full().is_some() || self.until_due().is_zero() { self.close() } else { Ok(()) }
    }

    /// Takes what else is waiting, up to the size of a group. Gives what it
    /// took and how many bytes of a batch that is at most.
    fn gather(&mut self, first: Item) -> (Vec<Item>, usize) {
        let segment = usize::try_from(self.active.capacity()).unwrap_or(usize::MAX);
        let room = segment.saturating_sub(HEADERS_BYTES + self.producers.table_bytes());
        let most = self.settings.group_bytes.as_usize().min(room);
        let mut bytes = first.bytes();
        let mut items = vec![first];
        while bytes < most {
            match self.requests.try_recv() {
                Ok(Request::Item(next)) if bytes + next.bytes() <= most => {
                    bytes += next.bytes();
                    items.push(next);
                }
                Ok(other) => {
                    self.waiting.push_back(other);
                    break;
                }
                Err(_) => break,
            }
        }
        (items, bytes)
    }

    /// Decides what of `items` is new, writes and syncs that, then answers
    /// them.
    fn commit(&mut self, items: Vec<Item>, most_bytes: usize) -> Result<(), AppendError> {
        // Before anything is decided: the next segment begins with what is
        // settled.
        if self.position + (BATCH_HEADER_BYTES + most_bytes) as u64 > self.active.capacity()
            && let Err(error) = self.open_next()
        {
            items.into_iter().for_each(|item| item.refuse(&error));
            return Err(error);
        }
        let group = Group::decide(items, &mut self.producers);
        self.table.clear();
        self.producers.put_changes(&mut self.table);
        if group.count() == 0 && self.table.is_empty() {
            group.answer(self.next_offset);
            return Ok(());
        }
        match self.write(&group) {
            Ok(now) => {
                self.settle(group, now);
                Ok(())
            }
            Err(error) => {
                self.producers.undo();
                group.refuse(&error);
                Err(error)
            }
        }
    }

    /// Writes `group` as one batch and, as the settings say, syncs it. Gives its time.
    fn write(&mut self, group: &Group) -> Result<i64, AppendError> {
        let (frames, now) = (group.frames(), (self.clock)());
        let header =
            batch_header(self.active.id(), self.next_offset, now, group.count(), &self.table, frames);
        let mut slices: Vec<IoSlice<'_>> = [&header[..], &self.table]
            .into_iter()
            .chain(frames.iter().map(AsRef::as_ref))
            .map(IoSlice::new)
            .collect();
        write_all_at(&*self.active.file, &mut slices, self.position).map_err(|e| match e.kind() {
            io::ErrorKind::StorageFull => self.full(&e),
            _ => AppendError::failed("write", self.active.path(), &e),
        })?;
        match self.settings.ack {
            Ack::Disk => self.sync_data()?,
            Ack::Memory => drop(self.unsynced_since.get_or_insert(now)),
        }
        let bytes: usize = frames.iter().map(Bytes::len).sum();
        metrics::log_group(group.len(), bytes);
        self.position += (BATCH_HEADER_BYTES + self.table.len() + bytes) as u64;
        Ok(now)
    }

    /// Makes what is durable now visible and answers it.
    fn settle(&mut self, group: Group, now: i64) {
        self.not_full();
        self.producers.settle();
        self.producers.keep(self.settings.producers_kept());
        self.active.set_proven(self.position);
        let base = self.next_offset;
        if group.count() > 0 {
            self.first_append_ms.get_or_insert(now);
            self.next_offset += u64::from(group.count());
            self.shared.publish(self.next_offset, now);
        }
        group.answer(base);
    }

    /// Closes the active segment, if it holds anything, and opens the next.
    fn close(&mut self) -> Result<(), AppendError> {
        if self.first_append_ms.is_none() { Ok(()) } else { self.open_next() }
    }

    /// Opens the next segment. In the place of one that is full of tables
    /// only, which it begins with the sum of.
    fn open_next(&mut self) -> Result<(), AppendError> {
        // A segment is begun when everything before it is durable.
        self.sync()?;
        let header = FileHeader::new((self.draw_id)(), self.next_offset, (self.clock)());
        let first = first_batch(&header, &self.producers);
        let next = self.spares.take(header, &first).map_err(|error| match error {
            TakeError::NotTaken(e) => self.full(&e),
            TakeError::InDoubt { path, source } => AppendError::failed("fsync of the folder", &path, &source),
        })?;
        self.not_full();
        self.active.close(self.next_offset);
        self.active = Arc::new(next);
        self.position = self.active.proven();
        self.first_append_ms = None;
        self.shared.open_segment(self.active.clone());
        self.spare_asked = false;
        Ok(())
    }

    /// Overwrites what the active file holds beyond its end: it may have been
    /// in use before. Appends wait meanwhile, about as long as a segment is
    /// written.
    fn scrub(&mut self) -> Result<(), AppendError> {
        let failed = |e: io::Error| match e.kind() {
            // Of a file system that never writes in place.
            io::ErrorKind::StorageFull => AppendError::full(&e),
            _ => AppendError::failed("overwriting", self.active.path(), &e),
        };
        Spares::overwrite(&*self.active.file, self.position).map_err(failed)?;
        Ok(())
    }

    /// Says, once, that the log cannot grow.
    fn full(&self, cause: &io::Error) -> AppendError {
        let error = AppendError::full(cause);
        if self.shared.set_full(Some(error.clone())) {
            tracing::error!(%error, "appends are refused");
        }
        error
    }

    fn not_full(&self) {
        if self.shared.set_full(None) {
            tracing::info!("the log has room again");
        }
    }

    /// Refuses what waits and whatever is still sent. Returns when every
    /// handle is dropped.
    fn refuse_all(&mut self, error: &AppendError) {
        let rest = self.waiting.drain(..).chain(self.requests.iter());
        rest.for_each(|request| match request {
            Request::Item(item) => item.refuse(error),
            Request::Close(reply) => drop(reply.send(Err(error.clone()))),
            Request::Scrub(reply) => drop(reply.send(Err(error.clone()))),
        });
    }
}

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
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    AppendError, Appended, Shared,
    format::{BATCH_HEADER_BYTES, FILE_HEADER_BYTES, FileHeader, batch_header},
    io::write_all_at,
    raw::RawFile,
    settings::Settings,
    spare::{Filler, Spares},
};
use crate::{clock::Clock, metrics};

/// What the writer is asked.
pub(super) enum Request {
    /// Make these frames durable.
    Append(Append),
    /// Close the active segment now if it holds anything; answers with the
    /// end offset.
    Close(oneshot::Sender<Result<u64, AppendError>>),
}

/// Frames on their way in.
pub(super) struct Append {
    pub frames: Bytes,
    pub count: u32,
    pub reply: oneshot::Sender<Result<Appended, AppendError>>,
    /// Room in the queue, given back when the append is answered.
    pub room: OwnedSemaphorePermit,
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
    pub clock: Clock,
    pub draw_id: DrawId,
    pub active: Arc<RawFile>,
    pub position: u64,
    pub next_offset: u64,
    pub first_append_ms: Option<i64>,
    pub requests: Receiver<Request>,
    /// Taken from `requests` and not served yet.
    pub waiting: VecDeque<Request>,
}

/// What headers take of a segment that holds one batch.
const HEADERS_BYTES: usize = FILE_HEADER_BYTES + BATCH_HEADER_BYTES;

/// How often a full log tries to go on.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// How long to wait when nothing is due.
const IDLE: Duration = Duration::from_secs(3_600);

impl Writer {
    /// Serves until every handle is dropped, or until an fsync fails: what
    /// the disk then holds is unknown, so nothing is acknowledged any more.
    pub fn run(mut self) {
        self.prepare_spare();
        let ended = loop {
            if let ControlFlow::Break(ended) = self.step(self.until_due()) {
                break ended;
            }
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
            None => self.requests.recv_timeout(patience),
        };
        match request {
            Ok(Request::Close(reply)) => {
                let closed = self.close().map(|()| self.next_offset);
                let _ = reply.send(closed);
            }
            Ok(Request::Append(first)) => {
                let group = self.gather(first);
                if let Err(error) = self.commit(group) {
                    tracing::error!(%error, "the log writer stops");
                    self.shared.set_failed(error.clone());
                    return ControlFlow::Break(Err(error));
                }
            }
            Err(RecvTimeoutError::Timeout) => self.close_if_due(),
            Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(Ok(())),
        }
        ControlFlow::Continue(())
    }

    fn prepare_spare(&self) {
        if let Some(filler) = &self.filler {
            filler.wake();
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

    /// Closes a segment that is old enough. In a full log any: that there is
    /// room again has to be found out without an append, or nobody who asks
    /// first would ever send one.
    fn close_if_due(&mut self) {
        if self.shared.full().is_some() || self.until_due().is_zero() {
            // What went wrong is said where it is found, and tried again.
            let _ = self.close();
        }
    }

    /// Takes what else is waiting, up to the size of a group.
    fn gather(&mut self, first: Append) -> Vec<Append> {
        let segment = usize::try_from(self.active.capacity()).unwrap_or(usize::MAX);
        let most = self.settings.group_bytes.as_usize().min(segment.saturating_sub(HEADERS_BYTES));
        let mut bytes = first.frames.len();
        let mut group = vec![first];
        while bytes < most {
            match self.requests.try_recv() {
                Ok(Request::Append(next)) if bytes + next.frames.len() <= most => {
                    bytes += next.frames.len();
                    group.push(next);
                }
                Ok(other) => {
                    self.waiting.push_back(other);
                    break;
                }
                Err(_) => break,
            }
        }
        group
    }

    /// Writes and syncs `group`, then answers it. Refusals that leave the log
    /// sound are answered here; an error means the log can't go on.
    fn commit(&mut self, group: Vec<Append>) -> Result<(), AppendError> {
        let bytes: usize = group.iter().map(|a| a.frames.len()).sum();
        if self.position + (BATCH_HEADER_BYTES + bytes) as u64 > self.active.capacity()
            && let Err(error) = self.close()
        {
            answer_all(group, &error);
            return Ok(());
        }
        let count = group.iter().map(|a| a.count).sum();
        let now = (self.clock)();
        let pieces: Vec<Bytes> = group.iter().map(|a| a.frames.clone()).collect();
        let header = batch_header(self.active.id(), self.next_offset, now, count, &pieces);
        match self.write(&header, &pieces) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                answer_all(group, &self.full(&e));
                return Ok(());
            }
            Err(e) => {
                let error = AppendError::failed("write", self.active.path(), &e);
                answer_all(group, &error);
                return Err(error);
            }
        }
        let started = Instant::now();
        if let Err(e) = self.active.file.sync_data() {
            let error = AppendError::failed("fsync", self.active.path(), &e);
            answer_all(group, &error);
            return Err(error);
        }
        metrics::log_group(started.elapsed(), group.len(), bytes);
        self.not_full();
        self.position += (BATCH_HEADER_BYTES + bytes) as u64;
        self.first_append_ms.get_or_insert(now);
        self.publish(group, now);
        Ok(())
    }

    fn publish(&mut self, group: Vec<Append>, now: i64) {
        let base = self.next_offset;
        self.next_offset += group.iter().map(|a| u64::from(a.count)).sum::<u64>();
        self.active.set_proven(self.position);
        self.shared.publish(self.next_offset, now);
        let mut offset = base;
        for append in group {
            let _ = append.reply.send(Ok(Appended { offset, count: append.count }));
            offset += u64::from(append.count);
            drop(append.room);
        }
    }

    fn write(&self, header: &[u8], pieces: &[Bytes]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> =
            std::iter::once(header).chain(pieces.iter().map(AsRef::as_ref)).map(IoSlice::new).collect();
        write_all_at(&*self.active.file, &mut slices, self.position)
    }

    /// Closes the active segment, if it holds anything, and opens the next.
    fn close(&mut self) -> Result<(), AppendError> {
        if self.first_append_ms.is_none() {
            return Ok(());
        }
        let header =
            FileHeader { id: (self.draw_id)(), base_offset: self.next_offset, created_ms: (self.clock)() };
        let next = self.spares.take(header).map_err(|e| self.full(&e))?;
        self.not_full();
        self.active = Arc::new(next);
        self.position = self.active.proven();
        self.first_append_ms = None;
        self.shared.open_segment(self.active.clone());
        self.prepare_spare();
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
            Request::Append(append) => answer_all(vec![append], error),
            Request::Close(reply) => drop(reply.send(Err(error.clone()))),
        });
    }
}

fn answer_all(group: Vec<Append>, error: &AppendError) {
    for append in group {
        let _ = append.reply.send(Err(error.clone()));
    }
}

//! The way in: what every source hands its bytes to.
//!
//! Good frames go to the log; a bad one becomes a dead letter and is answered
//! with what is wrong with it. Nothing is acknowledged before it is durable,
//! and a refusal is given only after its dead letter is stored.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    admit::{Piece, admit},
    progress::Progress,
};
use crate::{
    clock::Clock,
    frame::Unit,
    log::{AppendError, Appended, LogWriter, Pending},
    metrics,
    store::{NewDeadLetter, Store},
    units::ByteSize,
};

/// Where frames come from, for dead letters and messages.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The source's name.
    pub source: String,
    /// The peer's address or the file's path.
    pub peer: Option<String>,
}

/// One frame that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Which frame of the connection, file or request, from 0.
    pub frame: u64,
    /// Where it begins there, in bytes.
    pub byte: u64,
    /// The stable code (`docs/protocol.md`).
    pub code: &'static str,
    /// What is wrong and what would be right.
    pub message: String,
    /// Whether nothing after it was taken either.
    pub fatal: bool,
    /// Whether it is kept as a dead letter.
    #[serde(skip)]
    pub kept: bool,
}

/// What became of a stretch of frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// They are durable, at consecutive offsets.
    Taken {
        /// Offset of the first.
        offset: u64,
        /// How many.
        count: u32,
    },
    /// They were not taken.
    Refused(Refusal),
}

/// A stretch of frames under way.
#[derive(Debug)]
pub struct Submitted {
    first_frame: u64,
    first_byte: u64,
    frames: u32,
    state: State,
}

impl Submitted {
    /// How many frames it holds.
    pub fn frames(&self) -> u64 {
        self.frames.into()
    }

    /// Number of the frame after the stretch.
    pub fn end_frame(&self) -> u64 {
        self.first_frame + u64::from(self.frames)
    }
}

#[derive(Debug)]
enum State {
    /// With the frames, which may have to be sent to the log again.
    Pending(Pending, Bytes),
    Refused(Refusal),
}

/// How long a patient source waits before it asks a full log again.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way into one pipeline.
#[derive(Clone)]
pub struct Ingest {
    inner: Arc<Inner>,
    log: LogWriter,
}

struct Inner {
    pipeline: String,
    store: Store,
    progress: Arc<Progress>,
    clock: Clock,
    max_frame: ByteSize,
    closing: CancellationToken,
}

impl Ingest {
    /// Into `log`, with dead letters kept in `store`. Sources stop taking
    /// bytes when `closing` is cancelled.
    pub fn new(
        pipeline: &str,
        log: LogWriter,
        store: Store,
        progress: Arc<Progress>,
        clock: Clock,
        max_frame: ByteSize,
        closing: CancellationToken,
    ) -> Self {
        let inner = Inner { pipeline: pipeline.to_owned(), store, progress, clock, max_frame, closing };
        Self { inner: Arc::new(inner), log }
    }

    /// Largest payload that is taken.
    pub fn max_frame(&self) -> ByteSize {
        self.inner.max_frame
    }

    /// Cancelled when no more bytes should be taken.
    pub fn closing(&self) -> &CancellationToken {
        &self.inner.closing
    }

    /// The stream that frames go to.
    pub fn stream(&self) -> &str {
        self.log.stream()
    }

    /// Hands in what a decoder found next. `frame` is the number of its first
    /// frame. Waits while the log's queue is full.
    pub async fn submit(&self, origin: &Origin, frame: u64, unit: Unit) -> VecDeque<Submitted> {
        match unit {
            // Proving a run of at most a megabyte takes less than handing it
            // to another thread would.
            Unit::Run { at, bytes, .. } => self.submit_run(origin, frame, at, &bytes).await,
            Unit::Oversized { at, claimed, head } => {
                let message = format!(
                    "the frame claims {claimed} bytes, over the cap of {}; its payload was skipped",
                    self.inner.max_frame
                );
                [self.refuse(origin, (frame, at), "oversized", message, false, head).await].into()
            }
            Unit::Truncated { at, wanted, bytes } => {
                let wanted = wanted.map_or_else(|| "more".to_owned(), |n| n.to_string());
                let message =
                    format!("the input ended inside a frame: {} bytes of {wanted} arrived", bytes.len());
                [self.refuse(origin, (frame, at), "truncated", message, true, bytes).await].into()
            }
        }
    }

    async fn submit_run(&self, origin: &Origin, frame: u64, at: u64, run: &Bytes) -> VecDeque<Submitted> {
        let (mut submitted, mut next_frame, mut next_byte) = (VecDeque::new(), frame, at);
        for piece in admit(run) {
            let one = match piece {
                Piece::Good { frames, count } => {
                    let size = frames.len() as u64;
                    let one = self.append(frames, count, next_frame, next_byte).await;
                    next_frame += u64::from(count);
                    next_byte += size;
                    one
                }
                Piece::Bad { index, at: within, fault, payload } => {
                    let place = (frame + u64::from(index), at + within as u64);
                    next_frame = place.0 + 1;
                    next_byte = place.1 + 4 + payload.len() as u64;
                    self.refuse(origin, place, fault.code(), fault.to_string(), false, payload).await
                }
            };
            submitted.push_back(one);
        }
        submitted
    }

    async fn append(&self, frames: Bytes, count: u32, first_frame: u64, first_byte: u64) -> Submitted {
        let state = match self.log.reserve(frames.len()).await {
            Ok(reservation) => State::Pending(reservation.append(frames.clone(), count), frames),
            Err(error) => State::Refused(refusal_of(&error, first_frame, first_byte)),
        };
        Submitted { first_frame, first_byte, frames: count, state }
    }

    /// Keeps a dead letter for one frame and makes its refusal.
    pub async fn refuse(
        &self,
        origin: &Origin,
        (frame, byte): (u64, u64),
        code: &'static str,
        message: String,
        fatal: bool,
        payload: Bytes,
    ) -> Submitted {
        metrics::ingest_rejected(code);
        self.inner.progress.refused(code);
        let letter = NewDeadLetter {
            at_ms: (self.inner.clock)(),
            pipeline: self.inner.pipeline.clone(),
            source: origin.source.clone(),
            peer: origin.peer.clone(),
            frame_index: Some(frame),
            byte_offset: Some(byte),
            code: code.to_owned(),
            message: message.clone(),
            payload: Some(payload.to_vec()),
            ..NewDeadLetter::default()
        };
        let refusal = match self.inner.store.add_dead_letter(&letter).await {
            Ok(_) => Refusal { frame, byte, code, message, fatal, kept: true },
            Err(error) => {
                tracing::error!(%error, source = origin.source, frame, byte, code, "a dead letter could not be kept");
                let message = format!("{message}; it could not be kept as a dead letter either: {error}");
                Refusal { frame, byte, code, message, fatal, kept: false }
            }
        };
        Submitted { first_frame: frame, first_byte: byte, frames: 1, state: State::Refused(refusal) }
    }

    /// Waits until a stretch is durable or refused.
    pub async fn settle(&self, submitted: Submitted) -> Answer {
        let Submitted { first_frame, first_byte, state, .. } = submitted;
        match state {
            State::Refused(refusal) => Answer::Refused(refusal),
            State::Pending(pending, _) => match pending.answer().await {
                Ok(appended) => taken(appended),
                Err(error) => Answer::Refused(refusal_of(&error, first_frame, first_byte)),
            },
        }
    }

    /// As [`Ingest::settle`], for sources that nobody would send again: while
    /// the log is full the stretch is appended anew, until the pipeline
    /// closes. Stretches submitted after it may get into the log before it.
    pub async fn settle_patiently(&self, submitted: Submitted) -> Answer {
        let Submitted { first_frame, first_byte, frames: count, state } = submitted;
        let (mut pending, frames) = match state {
            State::Refused(refusal) => return Answer::Refused(refusal),
            State::Pending(pending, frames) => (pending, frames),
        };
        loop {
            let error = match pending.answer().await {
                Ok(appended) => return taken(appended),
                Err(error) => error,
            };
            let refused = Answer::Refused(refusal_of(&error, first_frame, first_byte));
            if !matches!(error, AppendError::Full { .. }) {
                return refused;
            }
            tokio::select! {
                () = self.inner.closing.cancelled() => return refused,
                () = tokio::time::sleep(PATIENCE) => {}
            }
            pending = match self.log.reserve(frames.len()).await {
                Ok(reservation) => reservation.append(frames.clone(), count),
                Err(error) => return Answer::Refused(refusal_of(&error, first_frame, first_byte)),
            };
        }
    }
}

fn taken(appended: Appended) -> Answer {
    metrics::ingest_processed(u64::from(appended.count));
    Answer::Taken { offset: appended.offset, count: appended.count }
}

/// A log that takes nothing refuses everything that follows too.
fn refusal_of(error: &AppendError, frame: u64, byte: u64) -> Refusal {
    Refusal { frame, byte, code: error.code(), message: error.to_string(), fatal: true, kept: false }
}

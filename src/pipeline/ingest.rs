//! The way in: what every source hands its bytes to.
//!
//! Good frames go to the log; a bad one becomes a dead letter and is answered
//! with what is wrong with it. Nothing is acknowledged before it is durable,
//! and a refusal is given only after its dead letter is stored.
//!
//! A producer that numbers its frames has each number taken once. That of a
//! refused frame is taken too, after its dead letter is stored, so that what
//! comes again is known whether it was good or not.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{
    admit::{Piece, admit},
    progress::Progress,
    shown::may_show_credential,
};
use crate::{
    clock::Clock,
    frame::Unit,
    log::{Ack, AppendError, Appended, Backlog, Claim, LogWriter, Pending},
    metrics,
    msgpack::{Scalar, put_amended},
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
    /// The only tenant whose frames may come from there: frames that name none
    /// are theirs, frames of others are refused. `None`: any tenant's.
    pub tenant: Option<Arc<str>>,
}

/// One frame that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
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
    /// They are durable, those that were not before at consecutive offsets.
    Taken {
        /// Offset of the first that was not in the log before.
        offset: u64,
        /// How many were not.
        count: u32,
        /// How many were, all before those.
        duplicates: u32,
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

    /// Whether nothing after it was handed in.
    pub fn is_fatal(&self) -> bool {
        matches!(&self.state, State::Refused(refusal) if refusal.fatal)
    }

    fn without_room(place: (u64, u64)) -> Self {
        Self::ended(place, "overloaded", "the log has no room at the moment; send it again from here on")
    }

    /// Of a request that has no refusal left.
    pub fn too_many_refused(place: (u64, u64)) -> Self {
        let message =
            "too much of this request was refused; mend the producer, and send it again from here on";
        Self::ended(place, "too_many_errors", message)
    }

    fn ended((frame, byte): (u64, u64), code: &'static str, message: &str) -> Self {
        let refusal = Refusal { frame, byte, code, message: message.to_owned(), fatal: true, kept: false };
        Self { first_frame: frame, first_byte: byte, frames: 1, state: State::Refused(refusal) }
    }

    /// Number of the frame after the stretch.
    pub fn end_frame(&self) -> u64 {
        self.first_frame + u64::from(self.frames)
    }
}

#[derive(Debug)]
enum State {
    /// With the frames, if they may have to be sent to the log again.
    Pending(Pending, Option<Bytes>),
    /// A frame that is refused once the log has taken its number.
    Numbered(Pending, Refusal),
    Refused(Refusal),
}

/// Whose frames a connection brings, numbered one by one.
#[derive(Clone, Debug)]
pub struct Producer {
    name: Arc<str>,
    epoch: u64,
    /// Number of the connection's first frame.
    first: u64,
    /// Numbers below it were taken before the connection began.
    known: u64,
}

impl Producer {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The epoch it writes in.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The next number that it has not had taken, when the connection began.
    pub fn expected(&self) -> u64 {
        self.known
    }

    /// The numbers of `count` frames from frame `frame` of the connection on.
    fn claim(&self, frame: u64, count: u32) -> Claim {
        Claim { producer: self.name.clone(), epoch: self.epoch, first: self.first + frame, count }
    }
}

/// Who hands frames in, and how.
#[derive(Clone, Copy)]
struct Sender<'a> {
    origin: &'a Origin,
    producer: Option<&'a Producer>,
    /// Whether nobody would send again what a full log does not take.
    keep: bool,
    /// How long each stretch waits for room in the log; `None`: as long as it
    /// takes.
    room: Option<Duration>,
}

/// What a request may ask of the way in: it is answered once, as a whole, so
/// it must come to an end.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// How long it waits for room in the log, each time.
    pub room: Duration,
    /// Refusals that are left to it: each is a dead letter and a line of the
    /// answer.
    pub refusals: u32,
}

impl Bounds {
    /// Takes one refusal; false if none is left.
    pub fn take(&mut self) -> bool {
        let left = self.refusals.checked_sub(1);
        self.refusals = left.unwrap_or(0);
        left.is_some()
    }
}

/// The code of a frame that names another tenant than its sender's.
pub const TENANT_FORBIDDEN: &str = "tenant_forbidden";

/// How long a patient source waits before it asks a full log again.
const PATIENCE: Duration = Duration::from_secs(1);

/// The way into one pipeline.
#[derive(Clone)]
pub struct Ingest {
    inner: Arc<Inner>,
    log: LogWriter,
    closing: CancellationToken,
}

struct Inner {
    pipeline: String,
    store: Store,
    progress: Arc<Progress>,
    clock: Clock,
    max_frame: ByteSize,
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
        let inner = Inner { pipeline: pipeline.to_owned(), store, progress, clock, max_frame };
        Self { inner: Arc::new(inner), log, closing }
    }

    /// The same, for a source that ends when `closing` is cancelled.
    pub fn until(&self, closing: CancellationToken) -> Self {
        Self { closing, ..self.clone() }
    }

    /// Largest payload that is taken.
    pub fn max_frame(&self) -> ByteSize {
        self.inner.max_frame
    }

    /// Cancelled when no more bytes should be taken.
    pub fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// What an answer says about frames that are taken.
    pub fn ack(&self) -> Ack {
        self.log.ack()
    }

    /// What the log has taken and not answered at the moment.
    pub fn backlog(&self) -> Backlog {
        self.log.backlog()
    }

    /// The stream that frames go to.
    pub fn stream(&self) -> &str {
        self.log.stream()
    }

    /// Opens a producer's epoch, a new one if none is given, for a connection
    /// whose first frame has the number `sequence`, or else the next that is
    /// expected.
    ///
    /// # Errors
    /// A refusal of the whole connection: the epoch has ended, the number is
    /// too high, or the log cannot note it.
    pub async fn open_producer(
        &self,
        name: Arc<str>,
        epoch: Option<u64>,
        sequence: Option<u64>,
    ) -> Result<Producer, Refusal> {
        let opened = self.log.open_producer(name.clone(), epoch, sequence).await;
        let at = opened.map_err(|error| refusal_of(&error, 0, 0))?;
        Ok(Producer { name, epoch: at.epoch, first: sequence.unwrap_or(at.next), known: at.next })
    }

    /// Hands in what a decoder found next. `frame` is the number of its first
    /// frame. Waits while the log's queue is full.
    pub async fn submit(&self, origin: &Origin, frame: u64, unit: Unit) -> VecDeque<Submitted> {
        self.hand_in(Sender { origin, producer: None, keep: true, room: None }, frame, unit).await
    }

    /// As [`Ingest::submit`], of a request. A refusal that is `fatal` is the
    /// last one: what follows it was not handed in.
    pub async fn submit_within(
        &self,
        origin: &Origin,
        frame: u64,
        unit: Unit,
        bounds: &mut Bounds,
    ) -> VecDeque<Submitted> {
        let sender = Sender { origin, producer: None, keep: false, room: Some(bounds.room) };
        match unit {
            Unit::Run { at, bytes, .. } => self.hand_in_run(sender, frame, at, &bytes, Some(bounds)).await,
            other => self.hand_in(sender, frame, other).await,
        }
    }

    /// As [`Ingest::submit`], of a connection whose peer sends again what was
    /// not taken; each frame at most once if it has a `producer`.
    pub async fn submit_once(
        &self,
        origin: &Origin,
        producer: Option<&Producer>,
        frame: u64,
        unit: Unit,
    ) -> VecDeque<Submitted> {
        self.hand_in(Sender { origin, producer, keep: false, room: None }, frame, unit).await
    }

    async fn hand_in(&self, sender: Sender<'_>, frame: u64, unit: Unit) -> VecDeque<Submitted> {
        match unit {
            // Proving a run of at most a megabyte takes less than handing it
            // to another thread would.
            Unit::Run { at, bytes, .. } => self.hand_in_run(sender, frame, at, &bytes, None).await,
            Unit::Oversized { at, claimed, head } => {
                let message = format!(
                    "the frame claims {claimed} bytes, over the cap of {}; its payload was skipped",
                    self.inner.max_frame
                );
                [self.refuse_from(sender, (frame, at), "oversized", message, head).await].into()
            }
            Unit::Truncated { at, wanted, bytes } => {
                let wanted = wanted.map_or_else(|| "more".to_owned(), |n| n.to_string());
                let message =
                    format!("the input ended inside a frame: {} bytes of {wanted} arrived", bytes.len());
                [self.cut_off(sender, (frame, at), message, bytes).await].into()
            }
        }
    }

    async fn hand_in_run(
        &self,
        sender: Sender<'_>,
        frame: u64,
        at: u64,
        run: &Bytes,
        mut bounds: Option<&mut Bounds>,
    ) -> VecDeque<Submitted> {
        let (mut submitted, mut next_frame, mut next_byte) = (VecDeque::new(), frame, at);
        let tenant = sender.origin.tenant.as_deref();
        for piece in admit(run, tenant, self.inner.max_frame.as_usize()) {
            let one = match piece {
                Piece::Good { frames, count, bytes } => {
                    let one = self.append(sender, frames, count, (next_frame, next_byte)).await;
                    next_frame += u64::from(count);
                    next_byte += bytes as u64;
                    one
                }
                Piece::Bad { index, at: within, reason, payload } => {
                    let place = (frame + u64::from(index), at + within as u64);
                    next_frame = place.0 + 1;
                    next_byte = place.1 + 4 + payload.len() as u64;
                    if let Some(bounds) = &mut bounds
                        && !bounds.take()
                    {
                        submitted.push_back(Submitted::too_many_refused(place));
                        break;
                    }
                    self.refuse_from(sender, place, reason.code(), reason.to_string(), payload).await
                }
            };
            let last = bounds.is_some() && one.is_fatal();
            submitted.push_back(one);
            if last {
                break;
            }
        }
        submitted
    }

    async fn append(
        &self,
        sender: Sender<'_>,
        frames: Bytes,
        count: u32,
        (frame, byte): (u64, u64),
    ) -> Submitted {
        let claim = sender.producer.map(|producer| producer.claim(frame, count));
        let reserving = self.log.reserve(frames.len());
        let reserved = match sender.room {
            None => reserving.await,
            Some(room) => match tokio::time::timeout(room, reserving).await {
                Ok(reserved) => reserved,
                Err(_) => return Submitted::without_room((frame, byte)),
            },
        };
        let state = match reserved {
            Ok(reservation) => {
                let kept = sender.keep.then(|| frames.clone());
                State::Pending(reservation.append_claimed(frames, count, claim), kept)
            }
            Err(error) => State::Refused(refusal_of(&error, frame, byte)),
        };
        Submitted { first_frame: frame, first_byte: byte, frames: count, state }
    }

    /// Refuses one frame and, if it has a number, has that taken: what comes
    /// after it is not out of sequence, and it is not told anew if it comes
    /// again.
    async fn refuse_from(
        &self,
        sender: Sender<'_>,
        place: (u64, u64),
        code: &'static str,
        message: String,
        payload: Bytes,
    ) -> Submitted {
        let Some(producer) = sender.producer else {
            return self.refuse(sender.origin, place, code, message, false, payload).await;
        };
        let (frame, byte) = place;
        let refusal = if producer.first + frame < producer.known {
            Refusal { frame, byte, code, message, fatal: false, kept: true }
        } else {
            self.bury(sender.origin, place, code, message, false, payload).await
        };
        let state = match self.log.reserve(0).await {
            Ok(reservation) => {
                let claim = Some(producer.claim(frame, 1));
                State::Numbered(reservation.append_claimed(Bytes::new(), 0, claim), refusal)
            }
            Err(error) => State::Refused(refusal_of(&error, frame, byte)),
        };
        Submitted { first_frame: frame, first_byte: byte, frames: 1, state }
    }

    /// Refuses a frame that has no end, and with it the rest of the
    /// connection. That of a numbered producer comes again as a whole: it
    /// keeps its number and leaves nothing behind.
    async fn cut_off(
        &self,
        sender: Sender<'_>,
        (frame, byte): (u64, u64),
        message: String,
        bytes: Bytes,
    ) -> Submitted {
        if sender.producer.is_none() {
            return self.refuse(sender.origin, (frame, byte), "truncated", message, true, bytes).await;
        }
        let refusal = Refusal { frame, byte, code: "truncated", message, fatal: true, kept: false };
        Submitted { first_frame: frame, first_byte: byte, frames: 1, state: State::Refused(refusal) }
    }

    /// Refuses a frame that was begun on a connection and did not end in time.
    pub async fn late(
        &self,
        origin: &Origin,
        producer: Option<&Producer>,
        place: (u64, u64),
        bytes: Bytes,
    ) -> Submitted {
        let message = format!("the frame did not end in time: {} bytes of it arrived", bytes.len());
        self.cut_off(Sender { origin, producer, keep: false, room: None }, place, message, bytes).await
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
        let refusal = self.bury(origin, (frame, byte), code, message, fatal, payload).await;
        Submitted { first_frame: frame, first_byte: byte, frames: 1, state: State::Refused(refusal) }
    }

    async fn bury(
        &self,
        origin: &Origin,
        (frame, byte): (u64, u64),
        code: &'static str,
        message: String,
        fatal: bool,
        payload: Bytes,
    ) -> Refusal {
        metrics::ingest_rejected(code);
        self.inner.progress.refused(code);
        let is_cut = matches!(code, "truncated" | "oversized");
        let payload = (!may_show_credential(&payload, is_cut)).then(|| {
            // Sent again by whoever it is, it is its sender's tenant's.
            let tenant = origin.tenant.as_deref().filter(|_| code != TENANT_FORBIDDEN);
            let amended = tenant.and_then(|tenant| {
                let mut amended = BytesMut::new();
                put_amended(&mut amended, &payload, &[("tenant", Scalar::Str(tenant))])?;
                Some(amended.to_vec())
            });
            amended.unwrap_or_else(|| payload.to_vec())
        });
        let letter = NewDeadLetter {
            at_ms: (self.inner.clock)(),
            pipeline: self.inner.pipeline.clone(),
            source: origin.source.clone(),
            peer: origin.peer.clone(),
            frame_index: Some(frame),
            byte_offset: Some(byte),
            code: code.to_owned(),
            message: message.clone(),
            payload,
            ..NewDeadLetter::default()
        };
        match self.inner.store.add_dead_letter(&letter).await {
            Ok(_) => Refusal { frame, byte, code, message, fatal, kept: true },
            Err(error) => {
                tracing::error!(%error, source = origin.source, frame, byte, code, "a dead letter could not be kept");
                let message = format!("{message}; it could not be kept as a dead letter either");
                Refusal { frame, byte, code, message, fatal, kept: false }
            }
        }
    }

    /// Waits until a stretch is durable or refused.
    pub async fn settle(&self, submitted: Submitted) -> Answer {
        let Submitted { first_frame, first_byte, state, .. } = submitted;
        match state {
            State::Refused(refusal) => Answer::Refused(refusal),
            State::Numbered(pending, refusal) => match pending.answer().await {
                Ok(_) => Answer::Refused(refusal),
                Err(error) => Answer::Refused(refusal_of(&error, first_frame, first_byte)),
            },
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
            State::Pending(pending, Some(frames)) => (pending, frames),
            state => return self.settle(Submitted { first_frame, first_byte, frames: count, state }).await,
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
                () = self.closing.cancelled() => return refused,
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
    let Appended { offset, count, duplicates } = appended;
    metrics::ingest_processed(count.into());
    if duplicates > 0 {
        metrics::ingest_duplicates(duplicates.into());
    }
    Answer::Taken { offset, count, duplicates }
}

/// A log that takes nothing refuses everything that follows too.
fn refusal_of(error: &AppendError, frame: u64, byte: u64) -> Refusal {
    let message = match error {
        // Where the log lies is nothing to producers; the daemon's log says it.
        AppendError::Failed { .. } => {
            "the log's disk failed; it accepts nothing more until the disk is checked and the daemon restarted"
                .to_owned()
        }
        _ => error.to_string(),
    };
    Refusal { frame, byte, code: error.code(), message, fatal: true, kept: false }
}

//! One connection: frames in, answers out, in order.
//!
//! Two halves run side by side, joined by a bounded queue of answers under
//! way: so a client may send ahead of its acks, and one that does not read its
//! acks is not read from any more.

use std::{io, pin::pin, sync::Arc, task::Poll, time::Duration};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{self, error::TryRecvError},
    },
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    entrance::Entrance,
    guard::Guard,
    hello::{BadHello, Hello, name_within},
    intake::{Arrived, Intake, SMALL_BYTES},
    wire::{Level, Reply},
};
use crate::{
    access::NotAdmitted,
    frame::{PREFIX_BYTES, Payloads, Unit},
    identity::{Credential, Unauthenticated},
    log::MAX_NAME_BYTES,
    metrics,
    pipeline::{Answer, Ingest, Origin, Producer, Refusal, Submitted},
    units::ByteSize,
};

/// Stretches of frames that may wait for their answer on one connection.
const ANSWERS_UNDER_WAY: usize = 64;
/// Answers are written when nothing else is ready, or when they are this many
/// bytes.
const WRITE_BYTES: usize = 16 << 10;
/// How long a client has to close after the server did.
pub(super) const LINGER: Duration = Duration::from_secs(2);
/// How long a client may take to say who it is, where it has to.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

enum Outgoing {
    /// With the bytes in flight that are free again once it is answered.
    Submitted(Submitted, Option<OwnedSemaphorePermit>),
    /// Ready to be written; whether it is the last.
    Reply(Reply, bool),
}

/// Serves one connection until the client ends it, a fatal error, or closing.
pub async fn serve<R, W>(read: R, write: W, origin: Origin, entrance: &Entrance) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Entrance { ingest, sessions, access } = entrance;
    let (queue, queued) = mpsc::channel(ANSWERS_UNDER_WAY);
    let settings = sessions.settings();
    let guard = Guard::new(access.clone(), origin.peer.clone());
    // Who has not said who they are shall not make us hold large frames.
    let max_frame = match guard.asks() {
        true => ingest.max_frame().min(ByteSize(SMALL_BYTES as u64)),
        false => ingest.max_frame(),
    };
    let intake = Intake::new(read, max_frame, settings.frame_timeout.0, sessions.large_frames().clone());
    let receiver = Receiver {
        origin,
        ingest,
        guard,
        queue,
        in_flight: InFlight::new(settings.in_flight_bytes),
        producer: None,
        frame: 0,
    };
    let (rest, answered) = tokio::join!(receiver.run(intake), Answers::new(write, ingest).run(queued));
    answered?;
    linger(rest?).await;
    Ok(())
}

/// Tells a connection that it is not served, and ends it.
pub async fn turn_away<R, W>(read: R, mut write: W, reply: &Reply) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    reply.put(&mut out);
    timeout(LINGER, write.write_all_buf(&mut out)).await??;
    write.shutdown().await?;
    linger(read).await;
    Ok(())
}

/// Reads what the client still sends, for a while: closing with bytes unread
/// would reset the connection and could take the last answers with it.
async fn linger(mut read: impl AsyncRead + Unpin) {
    let mut sink = [0; 4 << 10];
    let _ = timeout(LINGER, async { while read.read(&mut sink).await.is_ok_and(|n| n > 0) {} }).await;
}

/// Bounds the bytes of one connection that are on their way to the disk.
struct InFlight {
    room: Arc<Semaphore>,
    units: u32,
}

impl InFlight {
    const UNIT_BYTES: usize = 1 << 10;

    fn new(most: ByteSize) -> Self {
        let units = u32::try_from(most.as_usize() / Self::UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        let permits = usize::try_from(units).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(permits)), units }
    }

    async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(Self::UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units);
        self.room.clone().acquire_many_owned(units).await.ok()
    }
}

/// The half that reads frames and submits them.
struct Receiver<'a> {
    origin: Origin,
    ingest: &'a Ingest,
    guard: Guard,
    queue: mpsc::Sender<Outgoing>,
    in_flight: InFlight,
    producer: Option<Producer>,
    /// Number of the next frame.
    frame: u64,
}

/// The other half has ended, so nothing can be answered any more.
struct Unanswerable;

impl Receiver<'_> {
    /// Reads until the input ends, or nothing more is wanted. Gives the
    /// reading half back.
    async fn run<R: AsyncRead + Unpin>(mut self, mut intake: Intake<R>) -> io::Result<R> {
        let mut first = true;
        loop {
            let arrived = tokio::select! {
                biased;
                () = self.ingest.closing().cancelled() => {
                    let _ = self.queue.send(Outgoing::Reply(closing("the source is closing"), false)).await;
                    break;
                }
                () = self.queue.closed() => break,
                () = sleep(HELLO_TIMEOUT), if first && self.guard.asks() => {
                    self.turn_away(0, &Unauthenticated::MissingCredentials.into()).await;
                    break;
                }
                arrived = intake.next() => arrived?,
            };
            let taken = match arrived {
                None => break,
                Some(Arrived::Late { at, .. }) if first && self.guard.asks() => {
                    self.turn_away(at, &Unauthenticated::MissingCredentials.into()).await;
                    break;
                }
                Some(Arrived::Late { at, bytes }) => {
                    let late =
                        self.ingest.late(&self.origin, self.producer.as_ref(), (self.frame, at), bytes).await;
                    let _ = self.queue.send(Outgoing::Submitted(late, None)).await;
                    break;
                }
                Some(Arrived::Unit(mut unit, _large)) => {
                    let goes_on = match std::mem::take(&mut first) {
                        true => self.greet(&mut unit).await,
                        false => self.look_again(&unit).await,
                    };
                    if !goes_on {
                        break;
                    }
                    intake.set_max_frame(self.ingest.max_frame());
                    self.submit(unit).await
                }
            };
            if taken.is_err() {
                break;
            }
        }
        Ok(intake.into_inner())
    }

    /// Answers a hello at the front of the first `unit` and takes it off;
    /// whether the connection goes on.
    async fn greet(&mut self, unit: &mut Unit) -> bool {
        let first = match unit {
            Unit::Run { bytes, .. } => Payloads(bytes.clone()).next(),
            Unit::Oversized { .. } | Unit::Truncated { .. } => None,
        };
        let hello = first.as_ref().and_then(|payload| Hello::parse(payload));
        let key = hello.as_ref().and_then(|hello| hello.as_ref().ok()?.key.clone());
        if let Err(refused) = self.enter(key).await {
            self.turn_away(0, &refused).await;
            return false;
        }
        let (Some(payload), Some(hello)) = (first, hello) else { return true };
        let reply = match self.open(hello).await {
            Ok(welcome) => Outgoing::Reply(welcome, false),
            Err(refusal) => Outgoing::Reply(refusal.into(), true),
        };
        if let Unit::Run { at, count, bytes } = unit {
            let hello_bytes = PREFIX_BYTES + payload.len();
            bytes.advance(hello_bytes);
            *at += hello_bytes as u64;
            *count -= 1;
        }
        let goes_on = !matches!(reply, Outgoing::Reply(_, true));
        self.queue.send(reply).await.is_ok() && goes_on
    }

    /// Begins as `hello` says.
    async fn open(&mut self, hello: Result<Hello, BadHello>) -> Result<Reply, Refusal> {
        let bad = |message: String| Refusal {
            frame: 0,
            byte: 0,
            code: "bad_hello",
            message,
            fatal: true,
            kept: false,
        };
        let hello = hello.map_err(|error| bad(error.to_string()))?;
        let Some(name) = hello.producer else {
            return Ok(Reply::Welcome { producer: None, epoch: None, sequence: None });
        };
        let within = name_within(self.origin.tenant.as_deref(), &name).ok_or_else(|| {
            bad(format!("`producer` is too long: with its tenant it has over {MAX_NAME_BYTES} bytes"))
        })?;
        let producer = self.ingest.open_producer(within, hello.epoch, hello.sequence).await?;
        let (epoch, sequence) = (Some(producer.epoch()), Some(producer.expected()));
        self.producer = Some(producer);
        Ok(Reply::Welcome { producer: Some(name.to_string()), epoch, sequence })
    }

    async fn enter(&mut self, key: Option<Credential>) -> Result<(), NotAdmitted> {
        self.origin.tenant = self.guard.enter(key).await?.tenant;
        Ok(())
    }

    /// Whether whoever sends may still do so, before the frames of `unit` are
    /// taken: keys are revoked and tokens expire while connections are open.
    async fn look_again(&mut self, unit: &Unit) -> bool {
        let (Unit::Run { at, .. } | Unit::Oversized { at, .. } | Unit::Truncated { at, .. }) = unit;
        match self.guard.look_again().await {
            Ok(true) => true,
            Ok(false) => {
                let _ = self
                    .queue
                    .send(Outgoing::Reply(closing("whose frames these are has changed"), true))
                    .await;
                false
            }
            Err(refused) => {
                self.turn_away(*at, &refused).await;
                false
            }
        }
    }

    /// Tells the client why nothing more of it is taken.
    async fn turn_away(&self, byte: u64, refused: &NotAdmitted) {
        metrics::connection_refused(refused.code());
        let (code, message) = (refused.code(), refused.to_string());
        let refusal = Refusal { frame: self.frame, byte, code, message, fatal: true, kept: false };
        let _ = self.queue.send(Outgoing::Reply(refusal.into(), true)).await;
    }

    async fn submit(&mut self, unit: Unit) -> Result<(), Unanswerable> {
        let (frames, bytes) = match &unit {
            Unit::Run { count, bytes, .. } => (u64::from(*count), bytes.len()),
            Unit::Oversized { head, .. } => (1, head.len()),
            Unit::Truncated { bytes, .. } => (1, bytes.len()),
        };
        let mut room = self.in_flight.room(bytes).await;
        let mut submitted =
            self.ingest.submit_once(&self.origin, self.producer.as_ref(), self.frame, unit).await;
        self.frame += frames;
        while let Some(one) = submitted.pop_front() {
            // Answered in order, so with the last all are.
            let room = if submitted.is_empty() { room.take() } else { None };
            self.queue.send(Outgoing::Submitted(one, room)).await.map_err(|_| Unanswerable)?;
        }
        Ok(())
    }
}

/// Tells a client to connect again, and why.
fn closing(why: &str) -> Reply {
    let reason = format!("{why}; connect again and send what was not acknowledged");
    Reply::Closing { reason, retry_after_ms: 1_000 }
}

/// The half that writes answers, in the order of the frames.
struct Answers<'a, W> {
    write: W,
    ingest: &'a Ingest,
    out: BytesMut,
    /// Frames taken one after the other, as (offset, count), that one ack can
    /// stand for.
    taken: Option<(u64, u64)>,
}

impl<'a, W: AsyncWrite + Unpin> Answers<'a, W> {
    fn new(write: W, ingest: &'a Ingest) -> Self {
        Self { write, ingest, out: BytesMut::new(), taken: None }
    }

    /// Writes until there are no more, or one is fatal. Whenever it has to
    /// wait, everything that is ready is written first.
    async fn run(mut self, mut queued: mpsc::Receiver<Outgoing>) -> io::Result<()> {
        loop {
            let outgoing = match queued.try_recv() {
                Ok(outgoing) => outgoing,
                Err(TryRecvError::Disconnected) => break,
                Err(TryRecvError::Empty) => {
                    self.write_out().await?;
                    match queued.recv().await {
                        Some(outgoing) => outgoing,
                        None => break,
                    }
                }
            };
            let last = match outgoing {
                Outgoing::Reply(reply, last) => {
                    self.put(&reply);
                    last
                }
                Outgoing::Submitted(submitted, _room) => {
                    let answer = self.settle(submitted).await?;
                    self.put_answer(answer)
                }
            };
            if last {
                break;
            }
            if self.out.len() >= WRITE_BYTES {
                self.write_out().await?;
            }
        }
        self.write_out().await?;
        self.write.shutdown().await
    }

    async fn settle(&mut self, submitted: Submitted) -> io::Result<Answer> {
        let ingest = self.ingest;
        let mut settled = pin!(ingest.settle(submitted));
        let ready = std::future::poll_fn(|context| Poll::Ready(settled.as_mut().poll(context))).await;
        match ready {
            Poll::Ready(answer) => Ok(answer),
            // What is ready so far must not wait for a slow disk.
            Poll::Pending => {
                self.write_out().await?;
                Ok(settled.await)
            }
        }
    }

    /// Appends one answer; whether it ends the connection.
    fn put_answer(&mut self, answer: Answer) -> bool {
        match answer {
            Answer::Taken { offset, count, duplicates } => {
                if duplicates > 0 {
                    let (level, stream) = (self.level(), self.ingest.stream().to_owned());
                    let count = duplicates.into();
                    self.put(&Reply::Ack { level, stream, offset: None, count, duplicate: true });
                }
                match &mut self.taken {
                    _ if count == 0 => {}
                    Some((first, taken)) if *first + *taken == offset => *taken += u64::from(count),
                    _ => {
                        self.put_ack();
                        self.taken = Some((offset, count.into()));
                    }
                }
                false
            }
            Answer::Refused(refusal) => {
                let fatal = refusal.fatal;
                self.put(&refusal.into());
                fatal
            }
        }
    }

    fn level(&self) -> Level {
        self.ingest.ack().into()
    }

    fn put(&mut self, reply: &Reply) {
        self.put_ack();
        reply.put(&mut self.out);
    }

    /// Appends the ack of what was taken so far.
    fn put_ack(&mut self) {
        if let Some((offset, count)) = self.taken.take() {
            let (level, stream) = (self.level(), self.ingest.stream().to_owned());
            Reply::Ack { level, stream, offset: Some(offset), count, duplicate: false }.put(&mut self.out);
        }
    }

    async fn write_out(&mut self) -> io::Result<()> {
        self.put_ack();
        if self.out.is_empty() {
            return Ok(());
        }
        write_out(&mut self.write, &mut self.out, self.ingest.closing()).await?;
        self.write.flush().await
    }
}

/// Writes what is in `out`. Once the pipeline closes, a client has
/// [`LINGER`] to take it: one that does not read must not hold up the stop.
pub(super) async fn write_out<W: AsyncWrite + Unpin>(
    write: &mut W,
    out: &mut BytesMut,
    closing: &CancellationToken,
) -> io::Result<()> {
    tokio::select! {
        done = write.write_all_buf(out) => done,
        () = async { closing.cancelled().await; sleep(LINGER).await } => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its answers"))
        }
    }
}

#[cfg(test)]
mod tests;

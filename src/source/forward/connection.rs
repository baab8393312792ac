//! One connection: let the client in, take its messages, acknowledge them.
//!
//! Two halves run side by side as they do for frames
//! ([`crate::source::socket`]): one reads ahead, the other waits for the disk
//! and answers, and the bounded queue between them holds back a client that
//! does not read its acks.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};

use super::{
    event::Run,
    handshake::{self, MAX_PING_BYTES, Nonce, Secret},
    message::{Chunk, Message, Request},
    stream::{HEAD_BYTES, Splitter},
    unpack::{Refused, Step, Terms, Unpack},
};
use crate::{
    dataflow::Cpu,
    frame::Unit,
    metrics,
    pipeline::{Answer, Ingest, Origin, Submitted},
    source::connection::{LINGER, write_out},
};

/// Runs of frames and acks that may wait for the disk on one connection.
const ANSWERS_UNDER_WAY: usize = 16;
/// How long a client may take to show that it has the key.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// What the connections of a source share.
pub(super) struct Shared {
    pub(super) ingest: Ingest,
    pub(super) cpu: Cpu,
    pub(super) terms: Terms,
    /// Most bytes of a message on the wire.
    pub(super) max_message: usize,
    pub(super) secret: Option<Secret>,
}

/// In the order of the events.
enum Outgoing {
    Submitted(Submitted),
    /// Everything before it belongs to this chunk or to earlier ones.
    Ack(Chunk),
}

/// The half that answers has ended; nothing more is to be read.
struct Gone;

/// Serves one connection until the client ends it, a fault, or closing.
/// `nonce` is for this connection alone.
pub(super) async fn serve<R, W>(
    mut read: R,
    mut write: W,
    origin: &Origin,
    nonce: Nonce,
    shared: &Arc<Shared>,
) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut stream = Splitter::default();
    if let Some(secret) = &shared.secret {
        let entering = enter(&mut read, &mut write, &mut stream, &nonce, secret);
        let entry = tokio::select! {
            () = shared.ingest.closing().cancelled() => return Ok(()),
            entry = timeout(HANDSHAKE_TIMEOUT, entering) => entry.unwrap_or(Ok(Entry::Denied("timeout")))?,
        };
        if let Entry::Left = entry {
            return Ok(());
        }
        if let Entry::Denied(reason) = entry {
            metrics::connection_refused(reason);
            tracing::warn!(source = origin.source, peer = origin.peer, reason, "a client was not let in");
            return linger(read).await;
        }
    }
    let (queue, queued) = mpsc::channel(ANSWERS_UNDER_WAY);
    let intake =
        Intake { origin, shared, queue, run: Run::default(), first: (0, 0), frames: 0, acks: Vec::new() };
    let (received, answered) =
        tokio::join!(receive(&mut read, stream, intake), answer(write, origin, &shared.ingest, queued));
    answered?;
    received?;
    linger(read).await
}

/// Closing with bytes unread would reset the connection and could take the
/// last answers with it.
async fn linger<R: AsyncRead + Unpin>(mut read: R) -> io::Result<()> {
    let mut sink = [0; 4 << 10];
    let _ = timeout(LINGER, async { while read.read(&mut sink).await.is_ok_and(|n| n > 0) {} }).await;
    Ok(())
}

/// How a handshake ended.
enum Entry {
    LetIn,
    /// Not let in, for that reason.
    Denied(&'static str),
    /// The client only looked whether there is a server, as Fluentd does every
    /// second.
    Left,
}

/// The handshake.
async fn enter<R, W>(
    read: &mut R,
    write: &mut W,
    stream: &mut Splitter,
    nonce: &Nonce,
    secret: &Secret,
) -> io::Result<Entry>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut out = BytesMut::new();
    handshake::put_helo(&mut out, nonce);
    write.write_all_buf(&mut out).await?;
    write.flush().await?;
    let ping = loop {
        match stream.next(MAX_PING_BYTES) {
            Ok(Some((_, ping))) => break ping,
            Ok(None) if stream.fill(read).await? == 0 => return Ok(Entry::Left),
            Ok(None) => {}
            // Answered as any other thing that is no PING.
            Err(_) => break Bytes::new(),
        }
    };
    let judged = handshake::answer(&mut out, &ping, nonce, secret);
    write.write_all_buf(&mut out).await?;
    write.flush().await?;
    if judged.is_err() {
        write.shutdown().await?;
    }
    Ok(judged.map_or_else(|denied| Entry::Denied(denied.reason()), |()| Entry::LetIn))
}

/// Reads messages and hands their events in until the input ends.
async fn receive<R: AsyncRead + Unpin>(
    read: &mut R,
    mut stream: Splitter,
    mut intake: Intake<'_>,
) -> io::Result<()> {
    let closing = intake.shared.ingest.closing().clone();
    let max_message = intake.shared.max_message;
    loop {
        let fault = match stream.next(max_message) {
            Ok(Some((at, raw))) => match Request::read(&raw) {
                Ok(Request::Heartbeat) => continue,
                Ok(Request::Message(message)) => match intake.take(message, at).await {
                    Ok(()) => continue,
                    Err(Gone) => return Ok(()),
                },
                Err(bad) => {
                    let head = raw.slice(..raw.len().min(HEAD_BYTES));
                    (at, Refused { code: "bad_message", message: bad.to_string(), payload: head })
                }
            },
            Ok(None) => {
                if intake.flush().await.is_err() {
                    return Ok(());
                }
                let filled = tokio::select! {
                    biased;
                    () = closing.cancelled() => return Ok(()),
                    () = intake.queue.closed() => return Ok(()),
                    filled = stream.fill(read) => filled?,
                };
                match stream.end() {
                    Err(cut) if filled == 0 => (stream.position(), stream.refused(&cut)),
                    _ if filled == 0 => return Ok(()),
                    _ => continue,
                }
            }
            Err(fault) => (stream.position(), stream.refused(&fault)),
        };
        let (at, refused) = fault;
        tracing::info!(
            source = intake.origin.source,
            peer = intake.origin.peer,
            code = refused.code,
            "{}",
            refused.message
        );
        let _ = intake.refuse(at, refused, true).await;
        return Ok(());
    }
}

/// Gathers events into runs of frames, across messages, and hands them in.
struct Intake<'a> {
    origin: &'a Origin,
    shared: &'a Arc<Shared>,
    queue: mpsc::Sender<Outgoing>,
    run: Run,
    /// Number of the run's first frame, and where its message begins.
    first: (u64, u64),
    /// Events taken so far.
    frames: u64,
    /// Chunks whose last events are in the run.
    acks: Vec<Chunk>,
}

impl Intake<'_> {
    /// Takes the events of a message that begins at byte `at`.
    async fn take(&mut self, mut message: Message, at: u64) -> Result<(), Gone> {
        let chunk = message.chunk.take();
        let mut unpack = Unpack::new(message, &self.shared.terms);
        loop {
            if self.run.count == 0 {
                self.first = (self.frames, at);
            }
            let before = self.run.count;
            let step;
            (unpack, step) = self.step(unpack).await;
            self.frames += u64::from(self.run.count - before);
            match step {
                Step::Full => self.flush().await?,
                Step::Unfit(frame) => {
                    self.flush().await?;
                    self.submit((self.frames, at), 1, frame).await?;
                    self.frames += 1;
                }
                Step::Refused(refused) => self.refuse(at, refused, false).await?,
                Step::End => break,
            }
        }
        self.acks.extend(chunk);
        Ok(())
    }

    /// The next step; on a thread that computes if something is to be
    /// inflated. A run of plain events is made in about a millisecond, less
    /// than handing it over would gain.
    async fn step(&mut self, mut unpack: Unpack) -> (Unpack, Step) {
        if !unpack.is_packed() {
            let step = unpack.fill(&self.shared.terms, &mut self.run);
            return (unpack, step);
        }
        let (shared, mut run) = (self.shared.clone(), std::mem::take(&mut self.run));
        let step;
        (unpack, run, step) = self
            .shared
            .cpu
            .run(move || {
                let step = unpack.fill(&shared.terms, &mut run);
                (unpack, run, step)
            })
            .await;
        self.run = run;
        (unpack, step)
    }

    /// Hands in the run, then the acks that were waiting for it.
    async fn flush(&mut self) -> Result<(), Gone> {
        if self.run.count > 0 {
            let (frames, count) = self.run.take();
            self.submit(self.first, count, frames).await?;
        }
        for chunk in std::mem::take(&mut self.acks) {
            self.send(Outgoing::Ack(chunk)).await?;
        }
        Ok(())
    }

    async fn submit(&self, (frame, at): (u64, u64), count: u32, bytes: Bytes) -> Result<(), Gone> {
        let unit = Unit::Run { at, count, bytes };
        for submitted in self.shared.ingest.submit(self.origin, frame, unit).await {
            self.send(Outgoing::Submitted(submitted)).await?;
        }
        Ok(())
    }

    /// Keeps a dead letter for something of the message at byte `at`.
    async fn refuse(&mut self, at: u64, refused: Refused, fatal: bool) -> Result<(), Gone> {
        self.flush().await?;
        let Refused { code, message, payload } = refused;
        let place = (self.frames, at);
        self.frames += 1;
        let ingest = &self.shared.ingest;
        let submitted = ingest.refuse(self.origin, place, code, message, fatal, payload).await;
        self.send(Outgoing::Submitted(submitted)).await
    }

    async fn send(&self, outgoing: Outgoing) -> Result<(), Gone> {
        self.queue.send(outgoing).await.map_err(|_| Gone)
    }
}

/// Waits for the disk and writes acks until there are no more, or an event
/// is neither stored nor kept: then its chunk is not acknowledged, and the
/// closed connection tells the client to send it again.
async fn answer<W: AsyncWrite + Unpin>(
    mut write: W,
    origin: &Origin,
    ingest: &Ingest,
    mut queued: mpsc::Receiver<Outgoing>,
) -> io::Result<()> {
    let mut out = BytesMut::new();
    loop {
        if queued.is_empty() && !out.is_empty() {
            write_out(&mut write, &mut out, ingest.closing()).await?;
            write.flush().await?;
        }
        match queued.recv().await {
            None => break,
            Some(Outgoing::Ack(chunk)) => chunk.put_ack(&mut out),
            Some(Outgoing::Submitted(submitted)) => {
                // Acks that are due must not wait for a slow disk.
                write_out(&mut write, &mut out, ingest.closing()).await?;
                match ingest.settle(submitted).await {
                    Answer::Refused(refusal) if refusal.fatal || !refusal.kept => {
                        let code = refusal.code;
                        tracing::info!(source = origin.source, peer = origin.peer, code, "connection closed");
                        break;
                    }
                    Answer::Taken { .. } | Answer::Refused(_) => {}
                }
            }
        }
    }
    drop(queued);
    write_out(&mut write, &mut out, ingest.closing()).await?;
    write.shutdown().await
}

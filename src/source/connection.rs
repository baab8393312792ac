//! One connection: frames in, answers out, in order.
//!
//! Two halves run side by side, joined by a bounded queue of answers under
//! way: so a client may send ahead of its acks, and one that does not read its
//! acks is not read from any more.

use std::{collections::VecDeque, io, time::Duration};

use bytes::BytesMut;
use futures::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_util::{codec::FramedRead, sync::CancellationToken};

use super::wire::{Level, Reply};
use crate::{
    frame::{FrameCodec, Unit},
    pipeline::{Answer, Ingest, Origin, Submitted},
};

/// Bytes that one read asks for.
const READ_BYTES: usize = 64 << 10;
/// Stretches of frames that may wait for their answer on one connection.
const ANSWERS_UNDER_WAY: usize = 64;
/// How long a client has to close after the server did.
pub(super) const LINGER: Duration = Duration::from_secs(2);

enum Outgoing {
    Submitted(Submitted),
    Closing,
}

/// Serves one connection until the client ends it, a fatal error, or closing.
pub async fn serve<R, W>(read: R, write: W, origin: Origin, ingest: Ingest) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (queue, queued) = mpsc::channel(ANSWERS_UNDER_WAY);
    let (rest, answered) =
        tokio::join!(receive(read, &origin, &ingest, queue), answer(write, &ingest, queued));
    answered?;
    // Closing with bytes unread would reset the connection and could take
    // the last answers with it.
    let mut rest = rest?;
    let mut sink = [0; 4 << 10];
    let _ = timeout(LINGER, async { while rest.read(&mut sink).await.is_ok_and(|n| n > 0) {} }).await;
    Ok(())
}

/// Reads frames and submits them until the input ends. Gives the reading half
/// back.
async fn receive<R: AsyncRead + Unpin>(
    read: R,
    origin: &Origin,
    ingest: &Ingest,
    queue: mpsc::Sender<Outgoing>,
) -> io::Result<R> {
    let mut units = FramedRead::with_capacity(read, FrameCodec::new(ingest.max_frame()), READ_BYTES);
    let mut frame = 0;
    loop {
        let unit = tokio::select! {
            biased;
            () = ingest.closing().cancelled() => {
                let _ = queue.send(Outgoing::Closing).await;
                break;
            }
            () = queue.closed() => break,
            unit = units.next() => unit,
        };
        let Some(unit) = unit else { break };
        let unit = unit?;
        let frames = match &unit {
            Unit::Run { count, .. } => u64::from(*count),
            _ => 1,
        };
        for submitted in ingest.submit(origin, frame, unit).await {
            if queue.send(Outgoing::Submitted(submitted)).await.is_err() {
                return Ok(units.into_inner());
            }
        }
        frame += frames;
    }
    Ok(units.into_inner())
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

/// Writes answers in the order of the frames until there are no more, or one
/// is fatal.
async fn answer<W: AsyncWrite + Unpin>(
    mut write: W,
    ingest: &Ingest,
    mut queued: mpsc::Receiver<Outgoing>,
) -> io::Result<()> {
    let mut out = BytesMut::new();
    let mut ready = VecDeque::new();
    'answers: loop {
        if ready.is_empty() && !out.is_empty() && queued.is_empty() {
            write_out(&mut write, &mut out, ingest.closing()).await?;
            write.flush().await?;
        }
        let Some(outgoing) = queued.recv().await else { break };
        ready.push_back(outgoing);
        while let Some(outgoing) = ready.pop_front() {
            match outgoing {
                Outgoing::Closing => closing(&mut out),
                Outgoing::Submitted(submitted) => {
                    // What is ready so far must not wait for a slow disk.
                    if !out.is_empty() && queued.is_empty() {
                        write_out(&mut write, &mut out, ingest.closing()).await?;
                    }
                    if put_answer(&mut out, ingest, ingest.settle(submitted).await) {
                        break 'answers;
                    }
                }
            }
        }
    }
    write_out(&mut write, &mut out, ingest.closing()).await?;
    write.shutdown().await
}

/// Appends one answer; whether it ends the connection.
fn put_answer(out: &mut BytesMut, ingest: &Ingest, answer: Answer) -> bool {
    match answer {
        Answer::Taken { offset, count } => {
            let stream = ingest.stream().to_owned();
            Reply::Ack { level: Level::Disk, stream, offset, count: count.into() }.put(out);
            false
        }
        Answer::Refused(refusal) => {
            let fatal = refusal.fatal;
            Reply::from(refusal).put(out);
            fatal
        }
    }
}

fn closing(out: &mut BytesMut) {
    let reason = "the daemon is shutting down; send what was not acknowledged again".to_owned();
    Reply::Closing { reason, retry_after_ms: 1_000 }.put(out);
}

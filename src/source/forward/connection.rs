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
    handshake::{self, MAX_PING_BYTES, Nonce, Secret},
    intake::{Gone, Intake, Outgoing, Shared},
    message::Request,
    stream::{HEAD_BYTES, Splitter},
    unpack::Refused,
};
use crate::{
    access::Visit,
    metrics,
    pipeline::{Answer, Ingest, Origin},
    source::connection::{LINGER, write_out},
};

/// Runs of frames and acks that may wait for the disk on one connection.
const ANSWERS_UNDER_WAY: usize = 16;
/// How long a client may take to show that it has the key.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

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
            let visit = Visit { act: "events.forward", peer: origin.peer.clone(), request_id: None };
            shared.access.turned_away(reason, &visit);
            tracing::warn!(source = origin.source, peer = origin.peer, reason, "a client was not let in");
            return linger(read).await;
        }
    }
    let (queue, queued) = mpsc::channel(ANSWERS_UNDER_WAY);
    let intake = Intake::new(origin, shared, queue);
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
    let closing = intake.closing().clone();
    loop {
        let refused = match stream.next(intake.max_message()) {
            Ok(Some((at, raw))) => match Request::read(&raw) {
                Ok(Request::Heartbeat) => continue,
                Ok(Request::Message(message)) => match intake.take(message, at).await {
                    Ok(()) => continue,
                    Err(Gone) => return Ok(()),
                },
                Err(bad) => {
                    let head = raw.slice(..raw.len().min(HEAD_BYTES));
                    Refused { code: "bad_message", message: bad.to_string(), payload: head }
                }
            },
            Ok(None) => {
                if intake.flush().await.is_err() {
                    return Ok(());
                }
                let filled = tokio::select! {
                    biased;
                    () = closing.cancelled() => return Ok(()),
                    () = intake.gone() => return Ok(()),
                    filled = stream.fill(read) => filled?,
                };
                match stream.end() {
                    _ if filled > 0 => continue,
                    Ok(()) => return Ok(()),
                    Err(cut) => stream.refused(&cut),
                }
            }
            Err(fault) => stream.refused(&fault),
        };
        return intake.refuse_rest(stream.started(), refused).await;
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

//! A producer's end of the wire protocol (`docs/protocol.md`): what `thalweg
//! send`, the benches and the tests use.
//!
//! Frames are written ahead of their answers up to a bound in frames and in
//! bytes. When the connection breaks or the server closes, the client connects
//! again and writes what has no answer once more. As a named producer its
//! frames are numbered, and none gets into the log twice; without a name those
//! may, and deduplication recognises them. A refused frame is never sent again.

mod report;
mod target;
mod window;

use std::{
    io,
    time::{Duration, Instant},
};

use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{sleep, sleep_until},
};
use tokio_util::codec::FramedRead;

pub use self::{
    report::{Acked, Refused, Report, Tally},
    target::Target,
    window::Frames,
};

use self::window::Window;
use super::{
    hello::VERSION,
    wire::{self, Reply},
};
use crate::{
    frame::{FrameCodec, Payloads, Unit},
    secret::Secret,
    units::ByteSize,
};

/// Who sends: the first frame handed in has the number 0 in the epoch, the
/// others follow. The same frames sent again under the same name and epoch are
/// known to the server, whichever process sends them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Producer {
    /// Its name.
    pub name: String,
    /// Its epoch; those before it are ended.
    pub epoch: u64,
}

/// How a client sends.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Frames that may wait for their answer.
    pub window_frames: u64,
    /// Bytes that may wait for their answer; one frame may be longer.
    pub window_bytes: usize,
    /// Frames a second at most. Latency then counts from when a frame was
    /// due, so that a stall of the server is not hidden by the client's wait.
    pub rate: Option<f64>,
    /// Attempts to connect again after a connection that broke or was refused,
    /// without an answer in between.
    pub retries: u32,
    /// Whose frames they are; without it they are not numbered.
    pub producer: Option<Producer>,
    /// An API key or a token, for servers that ask who sends.
    pub key: Option<Secret>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window_frames: 16_384,
            window_bytes: 8 << 20,
            rate: None,
            retries: 5,
            producer: None,
            key: None,
        }
    }
}

/// Why a client gave up. What was not acknowledged may be in the log or not.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection lasted.
    #[error("{target}: {source}; gave up after {attempts} attempts")]
    Connection {
        /// The server.
        target: Target,
        /// Attempts in a row that brought no answer.
        attempts: u32,
        /// What ended the last one.
        source: io::Error,
    },
    /// The server takes nothing more of this producer, or of this key.
    #[error("{target} refuses who sends: {code}: {message}")]
    Refused {
        /// The server.
        target: Target,
        /// The stable code.
        code: String,
        /// What is wrong.
        message: String,
    },
    /// The server does not keep to the protocol.
    #[error("{target} does not speak the wire protocol: {reason}")]
    Protocol {
        /// The server.
        target: Target,
        /// What it did.
        reason: String,
    },
}

/// Writes this much at once, so that frames of one ack were written closely
/// together.
const PIECE_BYTES: usize = 64 << 10;
/// A paced client hands over frames this often, or one by one.
const PACE: Duration = Duration::from_millis(5);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Answers are small; anything longer is none.
const MAX_ANSWER: ByteSize = ByteSize::mib(1);

/// A client of one server.
#[derive(Clone, Debug)]
pub struct Client {
    target: Target,
    settings: Settings,
}

impl Client {
    /// Nothing is connected before [`Self::send`].
    pub fn new(target: Target, settings: Settings) -> Self {
        Self { target, settings }
    }

    /// Sends everything that comes from `input` until it ends, and waits for
    /// the answer to each frame. `tally` tells how it stands, also after an
    /// error.
    ///
    /// # Errors
    /// If connections break more often than the settings allow, or the server
    /// breaks the protocol. Refused frames are no error.
    pub async fn send(&self, input: mpsc::Receiver<Frames>, tally: &Tally) -> Result<(), ClientError> {
        let mut sending = Sending {
            settings: &self.settings,
            tally,
            input: Some(input),
            unread: Frames::default(),
            window: Window::default(),
            started: None,
        };
        let mut failed = 0;
        loop {
            let before = tally.look().answered();
            let ended = match self.target.connect().await {
                Ok((read, write)) => sending.serve(read, write).await,
                Err(error) => Ended::Broken(error),
            };
            if tally.look().answered() > before {
                failed = 0;
            }
            let least_wait = match ended {
                Ended::Done => return Ok(()),
                Ended::Wrong(reason) => {
                    return Err(ClientError::Protocol { target: self.target.clone(), reason });
                }
                Ended::Refused { code, message } => {
                    return Err(ClientError::Refused { target: self.target.clone(), code, message });
                }
                Ended::Closing(wait) => wait,
                Ended::Broken(source) if failed >= self.settings.retries => {
                    let target = self.target.clone();
                    return Err(ClientError::Connection { target, attempts: failed + 1, source });
                }
                Ended::Broken(_) => Duration::ZERO,
            };
            sleep(wait_after(failed).max(least_wait)).await;
            failed += 1;
            let mut report = tally.look();
            report.resent += sending.window.rewind();
            report.reconnects += 1;
        }
    }
}

/// The wait after the `failed`-th attempt in a row that brought nothing.
fn wait_after(failed: u32) -> Duration {
    FIRST_WAIT.saturating_mul(1 << failed.min(10)).min(LONGEST_WAIT)
}

/// How a connection ended.
#[derive(Debug)]
enum Ended {
    /// Everything is answered.
    Done,
    /// The server goes; it can be tried again after this long.
    Closing(Duration),
    /// It can be tried again.
    Broken(io::Error),
    /// Trying again is no use: this producer may not send.
    Refused { code: String, message: String },
    /// Trying again is no use: the answers make no sense.
    Wrong(String),
}

struct Sending<'a> {
    settings: &'a Settings,
    tally: &'a Tally,
    /// `None` once it has ended.
    input: Option<mpsc::Receiver<Frames>>,
    /// Came from the input and is not in the window yet.
    unread: Frames,
    window: Window,
    /// When the first frame was due.
    started: Option<Instant>,
}

/// One connection's state.
#[derive(Default)]
struct Connection {
    /// Frames answered on it.
    cursor: u64,
    /// The least offset that the next ack may have.
    next_offset: u64,
    /// Set when no more may be written: the server's wish to be left alone for
    /// so long.
    closing: Option<Duration>,
    /// What is left of the piece that is being written.
    outgoing: Bytes,
    /// Whether the writing half is ended.
    shut: bool,
}

impl Sending<'_> {
    async fn serve<R, W>(&mut self, read: R, mut write: W) -> Ended
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let mut answers = FramedRead::new(read, FrameCodec::new(MAX_ANSWER));
        let mut at = Connection { outgoing: self.hello(), ..Connection::default() };
        loop {
            if at.outgoing.is_empty() && at.closing.is_none() {
                at.outgoing = self.next_piece();
            }
            let finished = self.input.is_none() && self.unread.count == 0;
            let writing = at.closing.is_none() && !at.shut && (finished || !at.outgoing.is_empty());
            tokio::select! {
                biased;
                unit = answers.next() => match unit {
                    Some(Ok(Unit::Run { bytes, .. })) => {
                        if let Err(ended) = self.take_answers(&mut at, bytes) {
                            return ended;
                        }
                    }
                    None => return self.hung_up(&at, finished),
                    Some(Ok(Unit::Truncated { .. })) => return Ended::Broken(io::ErrorKind::UnexpectedEof.into()),
                    Some(Ok(Unit::Oversized { claimed, .. })) => {
                        return Ended::Wrong(format!("it sent an answer of {claimed} bytes"));
                    }
                    Some(Err(error)) => return Ended::Broken(error),
                },
                written = put(&mut write, &at.outgoing), if writing => match written {
                    Ok(0) => at.shut = true,
                    Ok(n) => at.outgoing.advance(n),
                    // The server may have said why it hung up: go on reading.
                    Err(_) => at.closing = Some(Duration::ZERO),
                },
                () = self.fill(), if !finished && at.outgoing.is_empty() && self.has_room() => {}
            }
        }
    }

    /// What a connection begins with: who sends, and the number of the first
    /// frame that has no answer.
    fn hello(&self) -> Bytes {
        let Settings { producer, key, .. } = self.settings;
        if producer.is_none() && key.is_none() {
            return Bytes::new();
        }
        let mut hello = BytesMut::new();
        wire::Hello {
            thalweg: VERSION,
            producer: producer.as_ref().map(|producer| producer.name.clone()),
            epoch: producer.as_ref().map(|producer| producer.epoch),
            sequence: producer.as_ref().map(|_| self.tally.look().answered()),
            key: key.as_ref().map(|key| key.reveal().to_owned()),
        }
        .put(&mut hello);
        hello.freeze()
    }

    fn hung_up(&self, at: &Connection, finished: bool) -> Ended {
        match at.closing {
            _ if finished && self.window.frames() == 0 => Ended::Done,
            Some(wait) if !wait.is_zero() => Ended::Closing(wait),
            _ => Ended::Broken(io::Error::new(
                io::ErrorKind::ConnectionReset,
                "the server closed the connection before everything was answered",
            )),
        }
    }

    fn has_room(&self) -> bool {
        self.window.frames() < self.settings.window_frames && self.window.bytes() < self.settings.window_bytes
    }

    /// The next bytes to write, if there are any that are due.
    fn next_piece(&mut self) -> Bytes {
        if let Some(again) = self.window.write_next() {
            return again;
        }
        if self.unread.count == 0 || !self.has_room() || self.due() > Instant::now() {
            return Bytes::new();
        }
        let (room, since) = match self.settings.rate {
            None => (self.settings.window_frames - self.window.frames(), Instant::now()),
            Some(rate) => (paced_frames(rate), self.due()),
        };
        let bytes = PIECE_BYTES.min(self.settings.window_bytes - self.window.bytes());
        let piece = self.unread.take_front(room, bytes);
        if piece.count == 0 {
            // Not whole frames, which is the caller's mistake.
            self.unread = Frames::default();
            return Bytes::new();
        }
        let mut report = self.tally.look();
        report.sent += piece.count;
        report.bytes += piece.bytes.len() as u64;
        drop(report);
        self.window.push(piece, since);
        self.window.write_next().unwrap_or_default()
    }

    /// When the next new frame may be written.
    fn due(&mut self) -> Instant {
        let started = *self.started.get_or_insert_with(Instant::now);
        #[expect(clippy::cast_precision_loss, reason = "a count of frames is far below 2^52")]
        let sent = self.tally.look().sent as f64;
        self.settings.rate.map_or(started, |rate| started + Duration::from_secs_f64(sent / rate))
    }

    /// Waits for input, or until the frames at hand are due.
    async fn fill(&mut self) {
        if self.unread.count > 0 {
            let due = self.due();
            return sleep_until(due.into()).await;
        }
        let Some(input) = &mut self.input else { return };
        match input.recv().await {
            Some(frames) => self.unread = frames,
            None => self.input = None,
        }
    }

    fn take_answers(&mut self, at: &mut Connection, bytes: Bytes) -> Result<(), Ended> {
        for payload in Payloads(bytes) {
            let reply = rmp_serde::from_slice(&payload)
                .map_err(|e| Ended::Wrong(format!("its answer cannot be understood: {e}")))?;
            self.take_answer(at, reply)?;
        }
        Ok(())
    }

    fn take_answer(&mut self, at: &mut Connection, reply: Reply) -> Result<(), Ended> {
        match reply {
            Reply::Ack { count, offset: None, .. } => self.answered(at, count, |report| report.known(count)),
            Reply::Ack { offset: Some(offset), count, .. } => {
                if offset < at.next_offset || count == 0 {
                    return Err(Ended::Wrong(format!(
                        "it acknowledged {count} frames at offset {offset} after offset {}",
                        at.next_offset
                    )));
                }
                at.next_offset = offset + count;
                self.answered(at, count, |report| report.acked(offset, count))
            }
            // The frame may be good, but the server has no place for it, or
            // has not got it whole: it stays in the window for the next
            // connection.
            Reply::Error { code, message, fatal: true, .. }
                if is_of_the_server(&code) || (code == "truncated" && self.settings.producer.is_some()) =>
            {
                Err(Ended::Broken(io::Error::other(format!("{code}: {message}"))))
            }
            Reply::Error { code, message, fatal: true, .. } if code != "truncated" => {
                Err(Ended::Refused { code, message })
            }
            Reply::Error { frame, code, message, .. } => {
                if frame != at.cursor {
                    return Err(Ended::Wrong(format!(
                        "it refused frame {frame} of the connection where frame {} was to be answered",
                        at.cursor
                    )));
                }
                self.answered(at, 1, |report| report.refuse(code, message))
            }
            Reply::Closing { retry_after_ms, .. } => {
                at.closing = Some(Duration::from_millis(retry_after_ms.max(1)));
                Ok(())
            }
            // Where it goes on was said in the hello.
            Reply::Welcome { .. } | Reply::Unknown => Ok(()),
        }
    }

    fn answered(
        &mut self,
        at: &mut Connection,
        count: u64,
        note: impl FnOnce(&mut Report),
    ) -> Result<(), Ended> {
        let now = Instant::now();
        let mut report = self.tally.look();
        self.window
            .answered(count, |frames, since| report.took(now.saturating_duration_since(since), frames))
            .map_err(|_| Ended::Wrong(format!("it answered {count} frames, more than wait for an answer")))?;
        note(&mut report);
        at.cursor += count;
        Ok(())
    }
}

/// Writes some of `bytes` and says how many; ends the writing half if there
/// are none.
async fn put<W: AsyncWrite + Unpin>(write: &mut W, bytes: &[u8]) -> io::Result<usize> {
    if bytes.is_empty() {
        return write.shutdown().await.map(|()| 0);
    }
    match write.write(bytes).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        n => Ok(n),
    }
}

/// Frames that a paced client writes together.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded down on purpose")]
fn paced_frames(rate: f64) -> u64 {
    ((rate * PACE.as_secs_f64()) as u64).max(1)
}

/// Codes that say nothing about the frame, nor about who sends.
fn is_of_the_server(code: &str) -> bool {
    let codes =
        ["overloaded", "closing", "log_full", "log_failed", "identity_provider_away", "key_store_away"];
    codes.contains(&code)
}

#[cfg(test)]
mod tests;

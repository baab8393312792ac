//! The reading half of a connection: bytes in, frames out, in bounded memory
//! and bounded time.
//!
//! A buffer grows with what arrives, never with what a length claims. A frame
//! longer than [`SMALL_BYTES`] waits until there is room for all of it among
//! those that arrive at the same time; having that, it waits for nobody, so
//! that no two frames can wait for each other. A frame that was begun has to
//! end in time; between frames a connection may be silent for ever.

use std::{io, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};
use tokio_util::codec::Decoder;

use crate::{
    frame::{FrameCodec, Unit},
    units::ByteSize,
};

/// Frames up to this size need no room of their own.
pub const SMALL_BYTES: usize = 64 << 10;
/// Most bytes that one read asks for, and least.
const MOST_READ_BYTES: usize = 64 << 10;
const LEAST_READ_BYTES: usize = 4 << 10;
/// Bytes that one permit for large frames stands for.
const UNIT_BYTES: usize = 1 << 10;

/// Room for the large frames that arrive at the same time, over all
/// connections.
#[derive(Clone, Debug)]
pub struct LargeFrames {
    room: Arc<Semaphore>,
    units: u32,
}

impl LargeFrames {
    /// Room for `bytes`; a frame that alone is longer takes all of it.
    pub fn new(bytes: ByteSize) -> Self {
        let units = u32::try_from(bytes.as_usize() / UNIT_BYTES).unwrap_or(u32::MAX).max(1);
        let permits = usize::try_from(units).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(permits)), units }
    }

    async fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).min(self.units);
        self.room.clone().acquire_many_owned(units).await.ok()
    }
}

/// What arrived.
#[derive(Debug)]
pub enum Arrived {
    /// Frames, and the room that they took on their way if they are large; to
    /// be kept until they have room elsewhere.
    Unit(Unit, Option<OwnedSemaphorePermit>),
    /// A frame that was begun and did not end in time.
    Late {
        /// Where it began, in bytes from the start of the connection.
        at: u64,
        /// What arrived of it, from its length on.
        bytes: Bytes,
    },
}

/// Cuts what is read into frames.
#[derive(Debug)]
pub struct Intake<R> {
    read: R,
    codec: FrameCodec,
    buffer: BytesMut,
    /// How much the next read asks for: more where much arrives.
    ask_bytes: usize,
    frame_timeout: Duration,
    /// When the frame in the buffer began.
    begun: Option<Instant>,
    large: LargeFrames,
    /// Room for the large frame in the buffer.
    room: Option<OwnedSemaphorePermit>,
}

impl<R: AsyncRead + Unpin> Intake<R> {
    /// Reads from `read` frames of up to `max_frame`, each of which has to be
    /// whole within `frame_timeout`.
    pub fn new(read: R, max_frame: ByteSize, frame_timeout: Duration, large: LargeFrames) -> Self {
        Self {
            read,
            codec: FrameCodec::new(max_frame),
            buffer: BytesMut::new(),
            ask_bytes: LEAST_READ_BYTES,
            frame_timeout,
            begun: None,
            large,
            room: None,
        }
    }

    /// Takes frames of up to `max_frame` from the next one on.
    pub fn set_max_frame(&mut self, max_frame: ByteSize) {
        self.codec.set_max(max_frame);
    }

    /// What arrives next; `None` once the input has ended.
    ///
    /// # Errors
    /// If the connection breaks.
    pub async fn next(&mut self) -> io::Result<Option<Arrived>> {
        loop {
            if let Some(unit) = self.codec.decode(&mut self.buffer)? {
                self.begun = None;
                return Ok(Some(Arrived::Unit(unit, self.room.take())));
            }
            self.make_room().await;
            let inside = !self.buffer.is_empty() || self.codec.is_skipping();
            let read = match inside {
                false => Some(self.read().await?),
                true => {
                    let began = *self.begun.get_or_insert_with(Instant::now);
                    let deadline = began.checked_add(self.frame_timeout);
                    match deadline {
                        Some(deadline) => timeout_at(deadline, self.read()).await.ok().transpose()?,
                        None => Some(self.read().await?),
                    }
                }
            };
            match read {
                Some(0) => {
                    let last = self.codec.decode_eof(&mut self.buffer)?;
                    return Ok(last.map(|unit| Arrived::Unit(unit, self.room.take())));
                }
                Some(_) => {}
                // A frame that is skipped had its answer.
                None if self.codec.is_skipping() => return Ok(None),
                None => {
                    let (at, bytes) = (self.codec.position(), self.buffer.split().freeze());
                    return Ok(Some(Arrived::Late { at, bytes }));
                }
            }
        }
    }

    /// The input, with what was not taken of it.
    pub fn into_inner(self) -> R {
        self.read
    }

    /// Waits for room if the frame in the buffer is large and has none yet.
    async fn make_room(&mut self) {
        if self.room.is_none()
            && let Some(bytes) = self.codec.begun(&self.buffer)
            && bytes > SMALL_BYTES
        {
            self.room = self.large.room(bytes).await;
            // The wait was ours.
            self.begun = None;
        }
    }

    async fn read(&mut self) -> io::Result<usize> {
        if self.buffer.is_empty() && self.buffer.capacity() > 2 * self.ask_bytes {
            // A connection that falls silent gives back what it used at work.
            self.buffer = BytesMut::new();
        }
        self.buffer.reserve(self.ask_bytes);
        let n = self.read.read_buf(&mut (&mut self.buffer).limit(self.ask_bytes)).await?;
        if n == self.ask_bytes {
            self.ask_bytes = (2 * n).min(MOST_READ_BYTES);
        } else if n < self.ask_bytes / 2 {
            self.ask_bytes = n.next_power_of_two().max(LEAST_READ_BYTES);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::frame::put_frame;

    const MOMENT: Duration = Duration::from_millis(20);
    const LIMIT: Duration = Duration::from_millis(400);

    fn connected(large: &LargeFrames) -> (DuplexStream, Intake<DuplexStream>) {
        let (there, here) = duplex(1 << 20);
        (there, Intake::new(here, ByteSize::mib(4), LIMIT, large.clone()))
    }

    fn frame(bytes: usize) -> Vec<u8> {
        let mut frame = BytesMut::new();
        put_frame(&mut frame, &vec![7; bytes]);
        frame.to_vec()
    }

    async fn run_of<R: AsyncRead + Unpin>(intake: &mut Intake<R>) -> (u32, usize, bool) {
        match intake.next().await.unwrap() {
            Some(Arrived::Unit(Unit::Run { count, bytes, .. }, room)) => (count, bytes.len(), room.is_some()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_frame_has_to_end_in_time_and_silence_between_frames_is_free() {
        let (mut there, mut intake) = connected(&LargeFrames::new(ByteSize::mib(4)));
        let writing = tokio::spawn(async move {
            tokio::time::sleep(LIMIT + MOMENT).await;
            there.write_all(&frame(3)).await.unwrap();
            let half = frame(200);
            for byte in &half[..100] {
                there.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(MOMENT).await;
            }
            there
        });
        assert_eq!(run_of(&mut intake).await, (1, 7, false));
        let began = Instant::now();
        let late = intake.next().await.unwrap().unwrap();
        assert!(
            matches!(&late, Arrived::Late { at: 7, bytes } if (1..50).contains(&bytes.len())),
            "{late:?}"
        );
        assert!((LIMIT..2 * LIMIT).contains(&began.elapsed()), "{:?}", began.elapsed());
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn large_frames_wait_for_each_other_and_small_ones_for_nobody() {
        let large = LargeFrames::new(ByteSize::mib(3));
        let (mut slow, mut first) = connected(&large);
        slow.write_all(&frame(2 << 20)[..100_000]).await.unwrap();
        let begun = tokio::time::timeout(MOMENT, first.next()).await;
        assert!(begun.is_err(), "not whole yet");

        let (mut there, mut second) = connected(&large);
        let writing = tokio::spawn(async move {
            there.write_all(&frame(10)).await.unwrap();
            there.write_all(&frame(2 << 20)).await.unwrap();
            there
        });
        assert_eq!(run_of(&mut second).await, (1, 14, false), "a small frame passes");
        assert!(tokio::time::timeout(MOMENT, second.next()).await.is_err(), "no room");
        let Some(Arrived::Late { .. }) = first.next().await.unwrap() else { panic!("the slow one is late") };
        drop(first);
        assert_eq!(run_of(&mut second).await, (1, (2 << 20) + 4, true));
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_claim_costs_nothing_and_a_quiet_connection_little() {
        let (mut there, mut intake) = connected(&LargeFrames::new(ByteSize::mib(4)));
        there.write_all(&(4_u32 << 20).to_be_bytes()).await.unwrap();
        assert!(tokio::time::timeout(MOMENT, intake.next()).await.is_err());
        assert!(intake.buffer.capacity() <= 512 << 10, "{}", intake.buffer.capacity());
        drop(there);

        let (mut there, mut intake) = connected(&LargeFrames::new(ByteSize::mib(4)));
        let writing = tokio::spawn(async move {
            for _ in 0..100 {
                there.write_all(&frame(10_000)).await.unwrap();
            }
            there
        });
        let mut frames = 0;
        while frames < 100 {
            frames += run_of(&mut intake).await.0;
        }
        let there = writing.await.unwrap();
        let _ = tokio::time::timeout(MOMENT, intake.next()).await;
        assert!(intake.buffer.capacity() <= 2 * MOST_READ_BYTES, "{}", intake.buffer.capacity());
        drop(there);
    }
}

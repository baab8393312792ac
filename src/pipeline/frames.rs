//! A range of a stream, read in runs: for work that goes over the log again.

use std::{collections::VecDeque, ops::Range};

use super::deriver::Frame;
use crate::log::{Cursor, LogReader, ReadError};

const BATCH_RECORDS: usize = 256;
const READ_BYTES: usize = 256 << 10;

/// Why a run could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FramesError {
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// Reading the log panicked.
    #[error("reading the log failed: {0}")]
    Reader(#[from] tokio::task::JoinError),
}

/// Consecutive frames of the log.
pub(super) struct FrameRun {
    pub frames: Vec<Frame>,
    /// Offsets before them that the log no longer holds.
    pub lost: u64,
}

impl FrameRun {
    /// The offset of the first, and the one after the last.
    pub fn bounds(&self) -> (u64, u64) {
        let first = self.frames.first().map_or(0, |frame| frame.offset);
        (first, self.frames.last().map_or(first, |frame| frame.offset + 1))
    }
}

/// Reads a range of a stream in runs.
pub(super) struct Frames {
    log: LogReader,
    cursor: Cursor,
    next: u64,
    end: u64,
    waiting: VecDeque<Frame>,
}

impl Frames {
    pub fn new(log: LogReader, offsets: Range<u64>) -> Self {
        Self {
            cursor: Cursor::at(offsets.start),
            next: offsets.start,
            end: offsets.end,
            waiting: VecDeque::new(),
            log,
        }
    }

    /// The next of them; none after the last.
    pub async fn next(&mut self) -> Result<Option<FrameRun>, FramesError> {
        while self.waiting.is_empty() && self.cursor.offset() < self.end {
            let (log, mut cursor) = (self.log.clone(), self.cursor.clone());
            let (read, cursor) =
                tokio::task::spawn_blocking(move || (log.read(&mut cursor, READ_BYTES), cursor)).await?;
            match read {
                Ok(batches) if batches.is_empty() => break,
                Ok(batches) => {
                    self.cursor = cursor;
                    for batch in &batches {
                        let appended_ms = batch.append_time_ms;
                        let frames =
                            batch.payloads().map(|(offset, payload)| Frame { offset, appended_ms, payload });
                        self.waiting.extend(frames.filter(|frame| frame.offset < self.end));
                    }
                }
                Err(error) => match error.resume_at() {
                    Some(offset) => self.cursor = Cursor::at(offset),
                    None => return Err(error.into()),
                },
            }
        }
        let n = self.waiting.len().min(BATCH_RECORDS);
        let frames: Vec<Frame> = self.waiting.drain(..n).collect();
        let first = frames.first().map_or_else(|| self.cursor.offset().min(self.end), |frame| frame.offset);
        let present = frames.len() as u64;
        let end = frames.last().map_or(first, |frame| frame.offset + 1);
        let lost = (end - self.next.min(end)).saturating_sub(present);
        self.next = end;
        Ok((!frames.is_empty() || lost > 0).then_some(FrameRun { frames, lost }))
    }
}

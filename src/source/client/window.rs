//! Frames that wait for their answer: pure.

use std::{collections::VecDeque, time::Instant};

use bytes::{Buf, Bytes};

/// Whole frames, end to end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Prefix, payload, prefix, payload, ...
    pub bytes: Bytes,
    /// How many.
    pub count: u64,
}

impl Frames {
    /// Takes frames off the front: at most `frames`, and no more than
    /// `max_bytes` hold unless the first alone is longer.
    pub fn take_front(&mut self, frames: u64, max_bytes: usize) -> Self {
        let (mut count, mut length) = (0, 0);
        let mut rest = self.bytes.clone();
        while count < frames.min(self.count) {
            let Ok(payload) = rest.try_get_u32() else { break };
            let payload = (payload as usize).min(rest.len());
            if count > 0 && length + 4 + payload > max_bytes {
                break;
            }
            rest.advance(payload);
            length += 4 + payload;
            count += 1;
        }
        self.count -= count;
        Self { bytes: self.bytes.split_to(length), count }
    }
}

#[derive(Debug)]
struct Piece {
    frames: Frames,
    /// From when its latency is counted.
    since: Instant,
}

/// Everything handed in and not answered yet, in order, and how much of it is
/// written on the present connection.
#[derive(Debug, Default)]
pub(super) struct Window {
    pieces: VecDeque<Piece>,
    frames: u64,
    bytes: usize,
    /// Pieces from the front that are written.
    written: usize,
    written_frames: u64,
}

/// An answer about frames that were not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unasked;

impl Window {
    pub(super) fn frames(&self) -> u64 {
        self.frames
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, frames: Frames, since: Instant) {
        self.frames += frames.count;
        self.bytes += frames.bytes.len();
        self.pieces.push_back(Piece { frames, since });
    }

    /// The next bytes to write. They count as written from here on.
    pub(super) fn write_next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.get(self.written)?;
        self.written += 1;
        self.written_frames += piece.frames.count;
        Some(piece.frames.bytes.clone())
    }

    /// The connection is gone: everything unanswered has to be written again.
    /// Returns how many frames had been written.
    pub(super) fn rewind(&mut self) -> u64 {
        self.written = 0;
        std::mem::take(&mut self.written_frames)
    }

    /// The first `count` frames are answered. Calls `each` with how many of
    /// them were handed in when.
    pub(super) fn answered(
        &mut self,
        mut count: u64,
        mut each: impl FnMut(u64, Instant),
    ) -> Result<(), Unasked> {
        if count > self.written_frames {
            return Err(Unasked);
        }
        while count > 0 {
            let Some(piece) = self.pieces.front_mut() else { break };
            let done = piece.frames.take_front(count, usize::MAX);
            count -= done.count;
            self.frames -= done.count;
            self.written_frames -= done.count;
            self.bytes -= done.bytes.len();
            each(done.count, piece.since);
            if piece.frames.count == 0 {
                self.pieces.pop_front();
                self.written -= 1;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;

    fn frames(payloads: &[&[u8]]) -> Frames {
        let mut bytes = BytesMut::new();
        payloads.iter().for_each(|p| crate::frame::put_frame(&mut bytes, p));
        Frames { bytes: bytes.freeze(), count: payloads.len() as u64 }
    }

    #[test]
    fn the_front_is_cut_between_frames_by_number_and_by_bytes() {
        let all = frames(&[b"a", b"bb", b"ccc"]);
        let mut rest = all.clone();
        assert_eq!(rest.take_front(2, usize::MAX), frames(&[b"a", b"bb"]));
        assert_eq!(rest, frames(&[b"ccc"]));
        assert_eq!(all.clone().take_front(9, 11), frames(&[b"a", b"bb"]));
        assert_eq!(all.clone().take_front(9, 10), frames(&[b"a"]));
        assert_eq!(all.clone().take_front(9, 1), frames(&[b"a"]), "one frame is taken however long");
    }

    #[test]
    fn what_is_not_answered_is_written_again_from_the_first_unanswered_frame() {
        let mut window = Window::default();
        let now = Instant::now();
        window.push(frames(&[b"a", b"b"]), now);
        window.push(frames(&[b"c"]), now);
        assert_eq!(window.write_next().unwrap(), frames(&[b"a", b"b"]).bytes);
        window.answered(1, |count, _| assert_eq!(count, 1)).unwrap();
        assert_eq!(window.rewind(), 1);
        assert_eq!(window.write_next().unwrap(), frames(&[b"b"]).bytes);
        assert_eq!(window.write_next().unwrap(), frames(&[b"c"]).bytes);
        assert_eq!(window.write_next(), None);
        let mut answered = Vec::new();
        window.answered(2, |count, _| answered.push(count)).unwrap();
        assert_eq!((answered, window.frames(), window.bytes()), (vec![1, 1], 0, 0));
    }

    #[test]
    fn an_answer_to_more_than_was_written_is_none() {
        let mut window = Window::default();
        window.push(frames(&[b"a"]), Instant::now());
        assert_eq!(window.answered(1, |_, _| ()), Err(Unasked), "handed in, but not written");
        window.write_next();
        assert_eq!(window.answered(2, |_, _| ()), Err(Unasked));
        assert_eq!(window.answered(1, |_, _| ()), Ok(()));
    }
}

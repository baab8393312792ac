//! Frames: what a producer sends, and what the log keeps verbatim.
//!
//! ```text
//! frame   = length payload
//! length  = u32, big-endian: bytes of payload
//! payload = one MessagePack map, at most `max_frame_bytes` (16 MiB by default)
//! ```
//!
//! This module knows the envelope only; what a payload must hold is
//! [`crate::record`]'s. The length is checked against the cap before anything
//! is allocated for it.

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio_util::codec::{Decoder, Encoder};

use crate::units::ByteSize;

/// Bytes of the length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Cap on a frame's payload unless a pipeline says otherwise.
pub const DEFAULT_MAX_FRAME: ByteSize = ByteSize::mib(16);

/// A run of whole frames with consecutive offsets that entered the log in one
/// append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameBatch {
    /// Offset of the first frame.
    pub base_offset: u64,
    /// When the log took the batch, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
    /// Number of frames in `bytes`.
    pub count: u32,
    /// The frames as sent: prefix, payload, prefix, payload, ...
    pub bytes: Bytes,
}

impl FrameBatch {
    /// The offset after the last frame.
    pub fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.count)
    }

    /// Each frame's offset and payload, in order.
    pub fn payloads(&self) -> impl Iterator<Item = (u64, Bytes)> + '_ {
        (self.base_offset..).zip(Payloads(self.bytes.clone()))
    }

    /// The part of this batch from `offset` on; the batch itself if it starts
    /// there or later, nothing if it ends before.
    pub fn starting_at(mut self, offset: u64) -> Option<Self> {
        if offset >= self.end_offset() {
            return None;
        }
        while self.base_offset < offset {
            let length = self.bytes.clone().try_get_u32().ok()? as usize;
            if self.bytes.len() < PREFIX_BYTES + length {
                return None;
            }
            self.bytes.advance(PREFIX_BYTES + length);
            self.base_offset += 1;
            self.count -= 1;
        }
        Some(self)
    }
}

/// Walks the payloads of whole frames laid end to end; stops at the first
/// incomplete one.
#[derive(Clone, Debug)]
pub struct Payloads(pub Bytes);

impl Iterator for Payloads {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let mut rest = self.0.clone();
        let length = rest.try_get_u32().ok()? as usize;
        if rest.len() < length {
            return None;
        }
        let payload = rest.split_to(length);
        self.0 = rest;
        Some(payload)
    }
}

/// Appends one frame around `payload`.
///
/// # Panics
/// Never for payloads under 4 GiB, which the cap of every source ensures.
pub fn put_frame(out: &mut BytesMut, payload: &[u8]) {
    debug_assert!(u32::try_from(payload.len()).is_ok());
    out.reserve(PREFIX_BYTES + payload.len());
    out.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
    out.put_slice(payload);
}

/// What [`FrameCodec`] found next in a byte stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Whole frames, end to end: exactly the bytes sent.
    Run {
        /// Where the first frame began, in bytes from the start of the stream.
        at: u64,
        /// Number of frames.
        count: u32,
        /// The frames, prefixes included.
        bytes: Bytes,
    },
    /// A frame longer than the cap. Its payload is skipped without being
    /// kept, apart from a head for the dead letter; the stream goes on after.
    Oversized {
        /// Where the frame began.
        at: u64,
        /// The length its prefix claims.
        claimed: u32,
        /// The first bytes of the payload that had arrived.
        head: Bytes,
    },
    /// The stream ended inside a frame.
    Truncated {
        /// Where the frame began.
        at: u64,
        /// Bytes the whole frame would have had, prefix included, if known.
        wanted: Option<u64>,
        /// What did arrive, from the prefix on.
        bytes: Bytes,
    },
}

/// Splits a byte stream into [`Unit`]s. Never allocates for a length it has
/// not accepted.
#[derive(Debug)]
pub struct FrameCodec {
    max_payload: u32,
    position: u64,
    skip: u64,
}

/// Largest run, unless one frame alone is longer.
pub const RUN_BYTES: usize = 1 << 20;

/// How much of an oversized frame is kept for its dead letter.
pub const OVERSIZED_HEAD_BYTES: usize = 4 << 10;

impl FrameCodec {
    /// A codec that accepts payloads of up to `max` bytes.
    pub fn new(max: ByteSize) -> Self {
        Self { max_payload: u32::try_from(max.0).unwrap_or(u32::MAX), position: 0, skip: 0 }
    }

    /// Accepts payloads of up to `max` bytes from the next frame on.
    pub fn set_max(&mut self, max: ByteSize) {
        self.max_payload = u32::try_from(max.0).unwrap_or(u32::MAX);
    }

    /// Bytes of the frame at the front of `src`, prefix included, if it has
    /// begun, is accepted and is not whole yet.
    pub fn begun(&self, src: &[u8]) -> Option<usize> {
        let length = { src }.try_get_u32().ok()?;
        let whole = PREFIX_BYTES + length as usize;
        (self.skip == 0 && length <= self.max_payload && src.len() < whole).then_some(whole)
    }

    /// Whether the payload of an oversized frame is going by.
    pub fn is_skipping(&self) -> bool {
        self.skip > 0
    }

    /// Where the next frame begins, in bytes from the start of the stream.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Count and bytes of the accepted whole frames at the front of `src`, up
    /// to [`RUN_BYTES`] unless a single frame is longer.
    fn whole_frames(&self, src: &[u8]) -> (u32, usize) {
        let (mut count, mut rest) = (0, src);
        while let Ok(length) = { rest }.try_get_u32()
            && length <= self.max_payload
            && let Some((frame, after)) = rest.split_at_checked(PREFIX_BYTES + length as usize)
            && (count == 0 || src.len() - after.len() <= RUN_BYTES)
        {
            debug_assert!(frame.len() >= PREFIX_BYTES);
            count += 1;
            rest = after;
        }
        (count, src.len() - rest.len())
    }

    fn drain_skipped(&mut self, src: &mut BytesMut) {
        let n = usize::try_from(self.skip).map_or(src.len(), |s| s.min(src.len()));
        src.advance(n);
        self.skip -= n as u64;
        self.position += n as u64;
    }
}

impl Decoder for FrameCodec {
    type Item = Unit;
    type Error = std::io::Error;

    fn decode(&mut self, src: &mut BytesMut) -> Result<Option<Unit>, std::io::Error> {
        self.drain_skipped(src);
        if self.skip > 0 {
            return Ok(None);
        }
        let at = self.position;
        let (count, whole) = self.whole_frames(src);
        if count > 0 {
            self.position += whole as u64;
            return Ok(Some(Unit::Run { at, count, bytes: src.split_to(whole).freeze() }));
        }
        let Ok(length) = src.as_ref().try_get_u32() else {
            return Ok(None);
        };
        let wanted = PREFIX_BYTES + length as usize;
        if length <= self.max_payload {
            src.reserve((wanted - src.len()).min(RESERVE_STEP_BYTES));
            return Ok(None);
        }
        // Told at once: a client that speaks another protocol waits for an
        // answer. Its payload goes by, but for what of its head is here.
        let head_bytes = wanted.min(PREFIX_BYTES + OVERSIZED_HEAD_BYTES).min(src.len());
        let mut head = src.split_to(head_bytes).freeze();
        head.advance(PREFIX_BYTES);
        self.position += head_bytes as u64;
        self.skip = (wanted - head_bytes) as u64;
        self.drain_skipped(src);
        Ok(Some(Unit::Oversized { at, claimed: length, head }))
    }

    fn decode_eof(&mut self, src: &mut BytesMut) -> Result<Option<Unit>, std::io::Error> {
        if let Some(unit) = self.decode(src)? {
            return Ok(Some(unit));
        }
        if src.is_empty() {
            // Also where a skipped payload was cut off: its frame was told as
            // oversized already, and has one answer.
            return Ok(None);
        }
        let at = self.position;
        let wanted = src.as_ref().try_get_u32().ok().map(|n| PREFIX_BYTES as u64 + u64::from(n));
        let bytes = src.split().freeze();
        self.position += bytes.len() as u64;
        Ok(Some(Unit::Truncated { at, wanted, bytes }))
    }
}

/// A claimed length earns memory only as its bytes arrive.
const RESERVE_STEP_BYTES: usize = 256 << 10;

impl Encoder<&[u8]> for FrameCodec {
    type Error = std::io::Error;

    fn encode(&mut self, payload: &[u8], dst: &mut BytesMut) -> Result<(), std::io::Error> {
        if payload.len() > self.max_payload as usize {
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidInput,
                format!("a payload of {} bytes is over the cap of {} bytes", payload.len(), self.max_payload),
            ));
        }
        put_frame(dst, payload);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames(payloads: &[Vec<u8>]) -> BytesMut {
        let mut out = BytesMut::new();
        payloads.iter().for_each(|p| put_frame(&mut out, p));
        out
    }

    /// Feeds `stream` in pieces and collects what comes out.
    fn decode(stream: &[u8], piece: usize, max: u64) -> Vec<Unit> {
        let mut codec = FrameCodec::new(ByteSize(max));
        let (mut buffer, mut units) = (BytesMut::new(), Vec::new());
        for part in stream.chunks(piece) {
            buffer.extend_from_slice(part);
            while let Some(unit) = codec.decode(&mut buffer).unwrap() {
                units.push(unit);
            }
        }
        while let Some(unit) = codec.decode_eof(&mut buffer).unwrap() {
            units.push(unit);
        }
        units
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in_however_they_arrive(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            piece in 1usize..400,
        ) {
            let stream = frames(&payloads);
            let mut seen = Vec::new();
            for unit in decode(&stream, piece, 1_000) {
                match unit {
                    Unit::Run { at, count, bytes } => {
                        prop_assert_eq!(&stream[at as usize..][..bytes.len()], &bytes[..]);
                        let run: Vec<_> = Payloads(bytes).map(|p| p.to_vec()).collect();
                        prop_assert_eq!(run.len(), count as usize);
                        seen.extend(run);
                    }
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert_eq!(seen, payloads);
        }

        #[test]
        fn a_cut_stream_ends_in_one_truncated_frame(cut in 1usize..30) {
            let stream = frames(&[vec![7; 10], vec![8; 16]]);
            let units = decode(&stream[..stream.len() - cut], 5, 1_000);
            match units.last() {
                Some(Unit::Truncated { at, bytes, .. }) => {
                    prop_assert_eq!(*at + bytes.len() as u64, (stream.len() - cut) as u64);
                }
                _ => prop_assert_eq!(cut, 20, "only a cut between the frames goes unnoticed"),
            }
        }
    }

    #[test]
    fn an_oversized_frame_is_skipped_and_the_stream_goes_on() {
        let stream = frames(&[vec![1; 8], vec![2; 9_000], vec![3; 8]]);
        for piece in [1, 100, 100_000] {
            let units = decode(&stream, piece, 8);
            let runs = units.iter().filter(|u| matches!(u, Unit::Run { count: 1, .. })).count();
            assert_eq!((units.len(), runs), (3, 2), "{piece}");
            assert!(units.iter().any(|u| matches!(u, Unit::Oversized { at: 12, claimed: 9_000, head }
                if head.len() <= OVERSIZED_HEAD_BYTES)));
        }
    }

    #[test]
    fn an_oversized_frame_that_is_cut_off_is_told_once() {
        let stream = frames(&[vec![2; 9_000]]);
        let units = decode(&stream[..5_000], 100, 8);
        assert!(matches!(units[..], [Unit::Oversized { at: 0, claimed: 9_000, .. }]), "{units:?}");
    }

    #[test]
    fn a_gigabyte_claim_allocates_nothing_before_its_bytes_arrive() {
        let mut codec = FrameCodec::new(ByteSize(u64::from(u32::MAX)));
        let mut buffer = BytesMut::from(&[0x40, 0, 0, 0, 1, 2, 3][..]);
        assert_eq!(codec.decode(&mut buffer).unwrap(), None);
        assert!(buffer.capacity() <= 2 * RESERVE_STEP_BYTES);
    }

    #[test]
    fn a_batch_is_cut_at_an_offset() {
        let bytes = frames(&[vec![1], vec![2; 5], vec![3]]).freeze();
        let batch = FrameBatch { base_offset: 10, append_time_ms: 0, count: 3, bytes };
        let cut = batch.clone().starting_at(12).unwrap();
        assert_eq!(cut.payloads().collect::<Vec<_>>(), [(12, Bytes::from_static(&[3]))]);
        assert_eq!(batch.clone().starting_at(3), Some(batch.clone()));
        assert_eq!(batch.starting_at(13), None);
    }
}

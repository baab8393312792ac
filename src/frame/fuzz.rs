//! The frame codec, fed arbitrary bytes in pieces of arbitrary size.

use bytes::{Bytes, BytesMut};
use tokio_util::codec::Decoder as _;

use super::{FrameCodec, OVERSIZED_HEAD_BYTES, PREFIX_BYTES, Payloads, RUN_BYTES, Unit};
use crate::units::ByteSize;

/// A frame, however it arrived.
#[derive(Debug, PartialEq)]
enum Seen {
    Whole { at: u64, payload: Bytes },
    Oversized { at: u64, claimed: u32 },
    Truncated { at: u64, wanted: Option<u64>, bytes: Bytes },
}

/// The first byte is the cap on payloads, the second the size of the pieces;
/// the rest is the stream. How it arrives makes no difference to what is seen.
pub fn target(input: &[u8]) {
    let Some(([cap, piece], stream)) = input.split_first_chunk() else { return };
    let cap = u64::from(*cap) + 1;
    let at_once = seen(stream, stream.len().max(1), cap);
    assert_eq!(seen(stream, usize::from(*piece) + 1, cap), at_once);
    let mut next = 0;
    for one in at_once {
        let (at, length) = match &one {
            Seen::Whole { at, payload } => (*at, (PREFIX_BYTES + payload.len()) as u64),
            Seen::Oversized { at, claimed } => (*at, PREFIX_BYTES as u64 + u64::from(*claimed)),
            Seen::Truncated { at, bytes, .. } => (*at, bytes.len() as u64),
        };
        assert_eq!(at, next, "{one:?}");
        next = at + length;
    }
    assert!(next >= stream.len() as u64, "bytes without a frame");
}

fn seen(stream: &[u8], piece: usize, cap: u64) -> Vec<Seen> {
    let (mut codec, mut buffer, mut all) = (FrameCodec::new(ByteSize(cap)), BytesMut::new(), Vec::new());
    for arrived in stream.chunks(piece) {
        buffer.extend_from_slice(arrived);
        while let Some(unit) = codec.decode(&mut buffer).unwrap() {
            note(&mut all, unit, stream, cap);
        }
        assert!(buffer.len() <= PREFIX_BYTES + cap as usize, "more is held than one frame");
    }
    while let Some(unit) = codec.decode_eof(&mut buffer).unwrap() {
        note(&mut all, unit, stream, cap);
    }
    all
}

fn note(all: &mut Vec<Seen>, unit: Unit, stream: &[u8], cap: u64) {
    match unit {
        Unit::Run { at, count, bytes } => {
            assert!(count == 1 || bytes.len() <= RUN_BYTES);
            assert_eq!(stream[at as usize..][..bytes.len()], bytes);
            let (mut next, before) = (at, all.len());
            for payload in Payloads(bytes) {
                assert!(payload.len() as u64 <= cap);
                let length = (PREFIX_BYTES + payload.len()) as u64;
                all.push(Seen::Whole { at: next, payload });
                next += length;
            }
            assert_eq!(all.len() - before, count as usize);
        }
        Unit::Oversized { at, claimed, head } => {
            assert!(u64::from(claimed) > cap && head.len() <= OVERSIZED_HEAD_BYTES);
            assert!(stream[at as usize + PREFIX_BYTES..].starts_with(&head));
            all.push(Seen::Oversized { at, claimed });
        }
        Unit::Truncated { at, wanted, bytes } => {
            assert_eq!(stream[at as usize..], bytes);
            all.push(Seen::Truncated { at, wanted, bytes });
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn fuzz_the_frame_codec() {
        crate::fuzz::bounded("frame_codec", super::target);
    }
}

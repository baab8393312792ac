//! What the tests of this module share.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
};

use bytes::BytesMut;

use super::{SealError, Sealed, SegmentHeader, Settings, seal};
use crate::{
    frame::{FrameBatch, put_frame},
    units::ByteSize,
};

pub(super) fn batch(base_offset: u64, append_time_ms: i64, payloads: &[Vec<u8>]) -> FrameBatch {
    let mut bytes = BytesMut::new();
    for payload in payloads {
        put_frame(&mut bytes, payload);
    }
    FrameBatch { base_offset, append_time_ms, count: payloads.len() as u32, bytes: bytes.freeze() }
}

pub(super) fn header() -> SegmentHeader {
    SegmentHeader { stream: "irc".into(), segment_id: *b"0123456789abcdef", sealed_at_ms: 9_000 }
}

pub(super) fn settings(block_bytes: u64) -> Settings {
    Settings { block_bytes: ByteSize(block_bytes), ..Settings::default() }
}

/// A payload that begins with `@` has its time in the byte after it.
pub(super) fn time_of(payload: &[u8]) -> Option<i64> {
    match payload {
        [b'@', time, ..] => Some((*time).into()),
        _ => None,
    }
}

pub(super) fn try_seal(batches: &[FrameBatch], block_bytes: u64, path: &Path) -> Result<Sealed, SealError> {
    let batches = batches.iter().cloned().map(Ok::<_, Infallible>);
    seal(batches, header(), &settings(block_bytes), time_of, path)
}

/// A directory with a segment in it.
pub(super) struct Fixture {
    pub dir: tempfile::TempDir,
    pub path: PathBuf,
    pub sealed: Sealed,
}

pub(super) fn fixture(batches: &[FrameBatch], block_bytes: u64) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.seg.zst");
    let sealed = try_seal(batches, block_bytes, &path).unwrap();
    Fixture { dir, path, sealed }
}

/// Four batches, a gap of 10 offsets, an empty payload, a frame larger than a
/// 64-byte block, and batches that lie in several blocks; ten frames.
pub(super) fn small_batches() -> Vec<FrameBatch> {
    let text = |n: usize, len: usize| (0..len).map(|i| b'a' + (i * n % 23) as u8).collect::<Vec<_>>();
    vec![
        batch(5, 1_000, &[text(1, 20), vec![], text(2, 30), b"@\x07 timed".to_vec()]),
        batch(9, 1_001, &[text(3, 100)]),
        batch(20, 990, &[text(5, 40), text(7, 40), text(11, 40)]),
        batch(23, 2_000, &[text(13, 1), text(17, 2)]),
    ]
}

pub(super) fn plain(batches: &[FrameBatch]) -> Vec<u8> {
    batches.iter().flat_map(|b| b.bytes.iter().copied()).collect()
}

/// Puts the pieces of each batch of `originals` together and holds them against
/// it; no piece may reach over a batch's end.
pub(super) fn assert_pieces_of(originals: &[FrameBatch], pieces: Vec<FrameBatch>) {
    let mut pieces = pieces.into_iter();
    for original in originals {
        let mut whole = pieces.next().unwrap();
        while whole.count < original.count {
            let piece = pieces.next().unwrap();
            assert_eq!(piece.append_time_ms, whole.append_time_ms);
            assert_eq!(piece.base_offset, whole.end_offset());
            whole.bytes = [&whole.bytes[..], &piece.bytes[..]].concat().into();
            whole.count += piece.count;
        }
        assert_eq!(&whole, original);
    }
    assert_eq!(pieces.next(), None);
}

/// SplitMix64: reproducible noise for tests.
pub(super) struct Noise(pub u64);

impl Noise {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

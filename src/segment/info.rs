//! What a segment holds, block by block and batch by batch.

use crate::dictionary::Identity;

/// What a segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Stream the frames belong to.
    pub stream: String,
    /// Identity of the segment, given when the active segment was made.
    pub segment_id: [u8; 16],
    /// Offset of the first frame.
    pub base_offset: u64,
    /// The offset after the last frame.
    pub end_offset: u64,
    /// Number of frames; less than `end_offset - base_offset` if there are
    /// gaps.
    pub records: u64,
    /// Bytes of all frames, prefixes included.
    pub plain_bytes: u64,
    /// Bytes of the file.
    pub object_bytes: u64,
    /// SHA-256 of all frames.
    pub content_digest: [u8; 32],
    /// Earliest record time, in milliseconds since the Unix epoch.
    pub first_time_ms: i64,
    /// Latest record time, in milliseconds since the Unix epoch.
    pub last_time_ms: i64,
    /// When the segment was sealed, in milliseconds since the Unix epoch.
    pub sealed_at_ms: i64,
    /// Zstandard level of the blocks.
    pub level: i32,
    /// Dictionary the blocks were compressed with.
    pub dictionary: Option<Identity>,
}

/// What one block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// First byte in the file.
    pub position: u64,
    /// Bytes in the file.
    pub compressed_len: u32,
    /// Bytes of its frames, prefixes included.
    pub plain_len: u32,
    /// CRC-32C of the bytes in the file.
    pub crc32c: u32,
    /// Offset of the first frame.
    pub first_offset: u64,
    /// The offset after the last frame.
    pub end_offset: u64,
    /// Number of frames; less than `end_offset - first_offset` if a gap lies
    /// within.
    pub count: u32,
    /// Earliest record time, in milliseconds since the Unix epoch.
    pub first_time_ms: i64,
    /// Latest record time, in milliseconds since the Unix epoch.
    pub last_time_ms: i64,
}

/// One append of the log, without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchInfo {
    pub base_offset: u64,
    pub append_time_ms: i64,
    pub count: u32,
}

impl BatchInfo {
    pub(super) fn end_offset(&self) -> u64 {
        self.base_offset + u64::from(self.count)
    }
}

/// The index in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    pub info: SegmentInfo,
    /// In offset order, without overlap.
    pub batches: Vec<BatchInfo>,
    /// In offset order; together they hold the frames of `batches`.
    pub blocks: Vec<BlockInfo>,
}

impl Index {
    /// Where the blocks end and the index frame must begin.
    pub(super) fn position(&self) -> u64 {
        self.blocks.last().map_or(0, |b| b.position + u64::from(b.compressed_len))
    }
}

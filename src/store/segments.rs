//! Sealed segments known to the store. An index only: it can be rebuilt from
//! the files.

use sqlx::FromRow;

/// A sealed segment.
#[derive(Clone, Debug, Default, PartialEq, Eq, FromRow)]
pub struct SegmentRow {
    /// The stream it is part of.
    pub stream: String,
    /// Its first offset.
    #[sqlx(try_from = "i64")]
    pub base_offset: u64,
    /// Its end, excluded.
    #[sqlx(try_from = "i64")]
    pub end_offset: u64,
    /// The id the active segment was given.
    pub segment_id: String,
    /// Frames in it.
    #[sqlx(try_from = "i64")]
    pub records: u64,
    /// Bytes of the frames.
    #[sqlx(try_from = "i64")]
    pub plain_bytes: u64,
    /// Bytes of the file.
    #[sqlx(try_from = "i64")]
    pub object_bytes: u64,
    /// SHA-256 of the frames, in hex.
    pub content_digest: String,
    /// SHA-256 of the file, in hex.
    pub object_digest: String,
    /// Time of its first append, in milliseconds since the Unix epoch.
    pub first_time_ms: i64,
    /// Time of its last append, in milliseconds since the Unix epoch.
    pub last_time_ms: i64,
    /// When it was sealed, in milliseconds since the Unix epoch.
    pub sealed_at_ms: i64,
    /// The file, relative to the data directory.
    pub file: String,
    /// Digest of the artifact it became, once archived.
    pub artifact: Option<String>,
}

//! Sealed segments known to the store. An index only: it can be rebuilt from
//! the files.

use sqlx::FromRow;

use super::error::{Doing, StoreError};
use super::sqlite::Store;

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

impl Store {
    /// Adds a segment, or replaces what is known of it.
    pub async fn put_segment(&self, segment: &SegmentRow) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
            .bind(&segment.stream)
            .bind(segment.base_offset.cast_signed())
            .bind(segment.end_offset.cast_signed())
            .bind(&segment.segment_id)
            .bind(segment.records.cast_signed())
            .bind(segment.plain_bytes.cast_signed())
            .bind(segment.object_bytes.cast_signed())
            .bind(&segment.content_digest)
            .bind(&segment.object_digest)
            .bind(segment.first_time_ms)
            .bind(segment.last_time_ms)
            .bind(segment.sealed_at_ms)
            .bind(&segment.file)
            .bind(&segment.artifact)
            .execute(&mut *transaction)
            .await
            .doing("adding a segment")?;
        transaction.commit().await.doing("adding a segment")
    }

    /// Forgets the segment of `stream` that begins at `base`.
    pub async fn remove_segment(&self, stream: &str, base: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("DELETE FROM segments WHERE stream = ? AND base_offset = ?")
            .bind(stream)
            .bind(base.cast_signed())
            .execute(&mut *transaction)
            .await
            .doing("removing a segment")?;
        transaction.commit().await.doing("removing a segment")
    }

    /// The sealed segments of `stream`, in order.
    pub async fn segments(&self, stream: &str) -> Result<Vec<SegmentRow>, StoreError> {
        sqlx::query_as("SELECT * FROM segments WHERE stream = ? ORDER BY base_offset")
            .bind(stream)
            .fetch_all(self.readers())
            .await
            .doing("reading the segments")
    }

    /// The sealed segment that holds `offset`; none while it is in the active
    /// one.
    pub async fn segment_at(&self, stream: &str, offset: u64) -> Result<Option<SegmentRow>, StoreError> {
        let last: Option<SegmentRow> = sqlx::query_as(
            "SELECT * FROM segments WHERE stream = ? AND base_offset <= ? ORDER BY base_offset DESC LIMIT 1",
        )
        .bind(stream)
        .bind(offset.cast_signed())
        .fetch_optional(self.readers())
        .await
        .doing("reading a segment")?;
        Ok(last.filter(|segment| offset < segment.end_offset))
    }
}

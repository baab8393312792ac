//! The catalog of sealed segments.

use sqlx::SqliteConnection;

use super::SqliteStore;
use super::webhooks::insert_deliveries;
use crate::store::error::{Doing, StoreError};
use crate::store::segments::SegmentRow;
use crate::store::webhooks::NewDelivery;

impl SqliteStore {
    pub async fn put_segment(&self, segment: &SegmentRow, told: &[NewDelivery]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        write_segment(&mut transaction, segment).await?;
        insert_deliveries(&mut transaction, told).await?;
        transaction.commit().await.doing("adding a segment")
    }

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

    pub async fn segments(&self, stream: &str) -> Result<Vec<SegmentRow>, StoreError> {
        sqlx::query_as("SELECT * FROM segments WHERE stream = ? ORDER BY base_offset")
            .bind(stream)
            .fetch_all(self.readers())
            .await
            .doing("reading the segments")
    }

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

/// Adds a segment's row, or puts it in the place of the one that is there.
pub(super) async fn write_segment(
    connection: &mut SqliteConnection,
    segment: &SegmentRow,
) -> Result<(), StoreError> {
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
        .execute(connection)
        .await
        .doing("adding a segment")
        .map(drop)
}

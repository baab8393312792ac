//! The catalog of sealed segments.

use super::{PostgresStore, Session};
use crate::store::error::{Doing, StoreError};
use crate::store::segments::SegmentRow;
use crate::store::webhooks::NewDelivery;

impl PostgresStore {
    pub async fn put_segment(&self, segment: &SegmentRow, told: &[NewDelivery]) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        write_segment(&mut session, segment).await?;
        session.insert_deliveries(told).await?;
        session.commit("adding a segment").await
    }

    pub async fn remove_segment(&self, stream: &str, base: u64) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        session
            .query("DELETE FROM thalweg.segments WHERE stream = $1 AND base_offset = $2")
            .bind(stream.to_owned())
            .bind(base.cast_signed())
            .run(&mut session)
            .await
            .doing("removing a segment")?;
        session.commit("removing a segment").await
    }

    pub async fn segments(&self, stream: &str) -> Result<Vec<SegmentRow>, StoreError> {
        let mut session = self.read().await?;
        session
            .query("SELECT * FROM thalweg.segments WHERE stream = $1 ORDER BY base_offset")
            .bind(stream.to_owned())
            .all(&mut session)
            .await
            .doing("reading the segments")
    }

    pub async fn segment_at(&self, stream: &str, offset: u64) -> Result<Option<SegmentRow>, StoreError> {
        let mut session = self.read().await?;
        let last: Option<SegmentRow> = session
            .query(
                "SELECT * FROM thalweg.segments WHERE stream = $1 AND base_offset <= $2
                 ORDER BY base_offset DESC LIMIT 1",
            )
            .bind(stream.to_owned())
            .bind(offset.cast_signed())
            .optional(&mut session)
            .await
            .doing("reading a segment")?;
        Ok(last.filter(|segment| offset < segment.end_offset))
    }
}

/// Adds a segment's row, or puts it in the place of the one that is there.
pub(super) async fn write_segment(session: &mut Session, segment: &SegmentRow) -> Result<(), StoreError> {
    session
        .query(
            "INSERT INTO thalweg.segments
                 (stream, base_offset, end_offset, segment_id, records, plain_bytes, object_bytes,
                  content_digest, object_digest, first_time_ms, last_time_ms, sealed_at_ms, file, artifact)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
             ON CONFLICT (stream, base_offset) DO UPDATE SET end_offset = excluded.end_offset,
                 segment_id = excluded.segment_id, records = excluded.records,
                 plain_bytes = excluded.plain_bytes, object_bytes = excluded.object_bytes,
                 content_digest = excluded.content_digest, object_digest = excluded.object_digest,
                 first_time_ms = excluded.first_time_ms, last_time_ms = excluded.last_time_ms,
                 sealed_at_ms = excluded.sealed_at_ms, file = excluded.file, artifact = excluded.artifact",
        )
        .bind(segment.stream.clone())
        .bind(segment.base_offset.cast_signed())
        .bind(segment.end_offset.cast_signed())
        .bind(segment.segment_id.clone())
        .bind(segment.records.cast_signed())
        .bind(segment.plain_bytes.cast_signed())
        .bind(segment.object_bytes.cast_signed())
        .bind(segment.content_digest.clone())
        .bind(segment.object_digest.clone())
        .bind(segment.first_time_ms)
        .bind(segment.last_time_ms)
        .bind(segment.sealed_at_ms)
        .bind(segment.file.clone())
        .bind(segment.artifact.clone())
        .run(session)
        .await
        .doing("adding a segment")
        .map(drop)
}

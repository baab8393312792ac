//! Checkpoints and leases.

use super::SqliteStore;
use crate::store::checkpoint::{Checkpoint, Lease};
use crate::store::error::{Doing, StoreError};

impl SqliteStore {
    pub async fn acquire(
        &self,
        pipeline: &str,
        stream: &str,
        start_offset: u64,
        now_ms: i64,
    ) -> Result<Lease, StoreError> {
        let mut transaction = self.begin().await?;
        let lease = sqlx::query_as(
            "INSERT INTO checkpoints (pipeline, stream, epoch, start_offset, next_offset, updated_ms)
             VALUES (?1, ?2, 1, ?3, ?3, ?4)
             ON CONFLICT DO UPDATE SET epoch = epoch + 1, updated_ms = excluded.updated_ms
             RETURNING *",
        )
        .bind(pipeline)
        .bind(stream)
        .bind(start_offset.cast_signed())
        .bind(now_ms)
        .fetch_one(&mut *transaction)
        .await
        .doing("acquiring a stream")?;
        transaction.commit().await.doing("acquiring a stream")?;
        Ok(lease)
    }

    pub async fn counts(&self, pipeline: &str, stream: &str) -> Result<Option<Checkpoint>, StoreError> {
        sqlx::query_as("SELECT * FROM checkpoints WHERE pipeline = ? AND stream = ?")
            .bind(pipeline)
            .bind(stream)
            .fetch_optional(self.readers())
            .await
            .doing("reading a checkpoint")
    }

    pub async fn checkpoints(&self) -> Result<Vec<(String, String, Checkpoint)>, StoreError> {
        let leases: Vec<Lease> = sqlx::query_as("SELECT * FROM checkpoints ORDER BY pipeline, stream")
            .fetch_all(self.readers())
            .await
            .doing("reading the checkpoints")?;
        Ok(leases.into_iter().map(|lease| (lease.pipeline, lease.stream, lease.checkpoint)).collect())
    }
}

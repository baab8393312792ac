//! Checkpoints and leases.

use super::PostgresStore;
use crate::store::checkpoint::{Checkpoint, Lease};
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn acquire(
        &self,
        pipeline: &str,
        stream: &str,
        start_offset: u64,
        now_ms: i64,
    ) -> Result<Lease, StoreError> {
        let mut session = self.begin().await?;
        let lease = session
            .query(
                "INSERT INTO thalweg.checkpoints AS c
                     (pipeline, stream, epoch, start_offset, next_offset, updated_ms)
                 VALUES ($1, $2, 1, $3, $3, $4)
                 ON CONFLICT (pipeline, stream) DO UPDATE SET epoch = c.epoch + 1, updated_ms = excluded.updated_ms
                 RETURNING *",
            )
            .bind(pipeline)
            .bind(stream)
            .bind(start_offset.cast_signed())
            .bind(now_ms)
            .one(&mut session)
            .await
            .doing("acquiring a stream")?;
        session.commit("acquiring a stream").await?;
        Ok(lease)
    }

    pub async fn counts(&self, pipeline: &str, stream: &str) -> Result<Option<Checkpoint>, StoreError> {
        let mut session = self.read().await?;
        session
            .query("SELECT * FROM thalweg.checkpoints WHERE pipeline = $1 AND stream = $2")
            .bind(pipeline)
            .bind(stream)
            .optional(&mut session)
            .await
            .doing("reading a checkpoint")
    }

    pub async fn checkpoints(&self) -> Result<Vec<(String, String, Checkpoint)>, StoreError> {
        let mut session = self.read().await?;
        let leases: Vec<Lease> = session
            .query("SELECT * FROM thalweg.checkpoints ORDER BY pipeline, stream")
            .all(&mut session)
            .await
            .doing("reading the checkpoints")?;
        Ok(leases.into_iter().map(|lease| (lease.pipeline, lease.stream, lease.checkpoint)).collect())
    }
}

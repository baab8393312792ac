//! The registry of artifacts.

use super::SqliteStore;
use crate::store::artifacts::ArtifactRow;
use crate::store::error::{Doing, StoreError};
use crate::store::segments::SegmentRow;

impl SqliteStore {
    pub async fn put_artifact(&self, artifact: &ArtifactRow) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let done = sqlx::query("INSERT OR IGNORE INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?)")
            .bind(&artifact.digest)
            .bind(&artifact.kind)
            .bind(&artifact.name)
            .bind(artifact.bytes.cast_signed())
            .bind(&artifact.location)
            .bind(artifact.created_ms)
            .bind(&artifact.meta)
            .execute(&mut *transaction)
            .await
            .doing("registering an artifact")?;
        transaction.commit().await.doing("registering an artifact")?;
        Ok(done.rows_affected() == 1)
    }

    pub async fn dictionary_users(&self, digest: &str) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT name FROM artifacts WHERE kind = 'segment' AND meta ->> '$.dictionary' = ? ORDER BY name",
        )
        .bind(digest)
        .fetch_all(self.readers())
        .await
        .doing("reading the segments of a dictionary")
    }

    pub async fn artifacts(&self) -> Result<Vec<ArtifactRow>, StoreError> {
        sqlx::query_as("SELECT * FROM artifacts ORDER BY created_ms, digest")
            .fetch_all(self.readers())
            .await
            .doing("reading the artifacts")
    }

    pub async fn artifacts_after(&self, location: &str, limit: u32) -> Result<Vec<ArtifactRow>, StoreError> {
        sqlx::query_as("SELECT * FROM artifacts WHERE location > ? ORDER BY location LIMIT ?")
            .bind(location)
            .bind(limit)
            .fetch_all(self.readers())
            .await
            .doing("reading the artifacts by location")
    }

    pub async fn segments_without_artifact(&self) -> Result<Vec<SegmentRow>, StoreError> {
        sqlx::query_as(
            "SELECT segments.* FROM segments LEFT JOIN artifacts ON artifacts.digest = segments.artifact
             WHERE artifacts.digest IS NULL ORDER BY stream, base_offset",
        )
        .fetch_all(self.readers())
        .await
        .doing("reading the segments without artifact")
    }
}

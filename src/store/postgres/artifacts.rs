//! The registry of artifacts.

use super::PostgresStore;
use crate::store::artifacts::ArtifactRow;
use crate::store::error::{Doing, StoreError};
use crate::store::segments::SegmentRow;

impl PostgresStore {
    pub async fn put_artifact(&self, artifact: &ArtifactRow) -> Result<bool, StoreError> {
        let mut session = self.begin().await?;
        let done = session
            .query(
                "INSERT INTO thalweg.artifacts (digest, kind, name, bytes, location, created_ms, meta)
                 VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (digest) DO NOTHING",
            )
            .bind(artifact.digest.clone())
            .bind(artifact.kind.clone())
            .bind(artifact.name.clone())
            .bind(artifact.bytes.cast_signed())
            .bind(artifact.location.clone())
            .bind(artifact.created_ms)
            .bind(artifact.meta.clone())
            .run(&mut session)
            .await
            .doing("registering an artifact")?;
        session.commit("registering an artifact").await?;
        Ok(done.rows_affected() == 1)
    }

    pub async fn dictionary_users(&self, digest: &str) -> Result<Vec<String>, StoreError> {
        let mut session = self.read().await?;
        session
            .query(
                "SELECT name FROM thalweg.artifacts
                 WHERE kind = 'segment' AND meta::json ->> 'dictionary' = $1 ORDER BY name",
            )
            .bind(digest.to_owned())
            .scalars(&mut session)
            .await
            .doing("reading the segments of a dictionary")
    }

    pub async fn artifacts(&self) -> Result<Vec<ArtifactRow>, StoreError> {
        let mut session = self.read().await?;
        session
            .query("SELECT * FROM thalweg.artifacts ORDER BY created_ms, digest")
            .all(&mut session)
            .await
            .doing("reading the artifacts")
    }

    pub async fn artifacts_after(&self, location: &str, limit: u32) -> Result<Vec<ArtifactRow>, StoreError> {
        let mut session = self.read().await?;
        session
            .query(
                "SELECT * FROM thalweg.artifacts WHERE location COLLATE \"C\" > $1
                 ORDER BY location COLLATE \"C\" LIMIT $2",
            )
            .bind(location.to_owned())
            .bind(i64::from(limit))
            .all(&mut session)
            .await
            .doing("reading the artifacts by location")
    }

    pub async fn segments_without_artifact(&self) -> Result<Vec<SegmentRow>, StoreError> {
        let mut session = self.read().await?;
        session
            .query(
                "SELECT segments.* FROM thalweg.segments AS segments
                 LEFT JOIN thalweg.artifacts AS artifacts ON artifacts.digest = segments.artifact
                 WHERE artifacts.digest IS NULL ORDER BY stream, base_offset",
            )
            .all(&mut session)
            .await
            .doing("reading the segments without artifact")
    }
}

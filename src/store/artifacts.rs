//! The registry of immutable objects.

use sqlx::FromRow;

use super::error::{Doing, StoreError};
use super::sqlite::Store;

/// An immutable object in the object store.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct ArtifactRow {
    /// SHA-256 of its bytes, in hex.
    pub digest: String,
    /// `segment`, `pack`, `dictionary`, `report` and the like.
    pub kind: String,
    /// For people; need not be unique.
    pub name: String,
    /// Its size.
    #[sqlx(try_from = "i64")]
    pub bytes: u64,
    /// Where it lies, as the object store names it.
    pub location: String,
    /// When it was registered, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Whatever belongs to its kind, as a JSON object.
    pub meta: String,
}

impl Store {
    /// Registers an artifact. One that is registered keeps its row: the
    /// digest says that it is the same object. Returns whether it was new.
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

    /// Names of the archived segments that cannot be read without the
    /// dictionary with this digest, in hex. As long as there are any, neither
    /// its artifact nor its copy beside the log may be removed.
    pub async fn dictionary_users(&self, digest: &str) -> Result<Vec<String>, StoreError> {
        sqlx::query_scalar(
            "SELECT name FROM artifacts WHERE kind = 'segment' AND meta ->> '$.dictionary' = ? ORDER BY name",
        )
        .bind(digest)
        .fetch_all(self.readers())
        .await
        .doing("reading the segments of a dictionary")
    }

    /// Every artifact, oldest first.
    pub async fn artifacts(&self) -> Result<Vec<ArtifactRow>, StoreError> {
        sqlx::query_as("SELECT * FROM artifacts ORDER BY created_ms, digest")
            .fetch_all(self.readers())
            .await
            .doing("reading the artifacts")
    }
}

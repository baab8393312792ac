//! How far file sources have read each file.

use sqlx::FromRow;

use super::error::{Doing, StoreError};
use super::sqlite::Store;

/// How far a source has read a file. A file whose size or time differ from
/// these is another file.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct SourceProgress {
    /// The source's name in the pipeline.
    pub source: String,
    /// The file, as the source names it.
    pub path: String,
    /// Its size in bytes.
    #[sqlx(try_from = "i64")]
    pub size: u64,
    /// When it was last changed, in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Records taken from it.
    #[sqlx(try_from = "i64")]
    pub records: u64,
    /// Whether it was read to its end.
    pub done: bool,
}

impl Store {
    /// Remembers how far a file was read.
    pub async fn set_progress(&self, progress: &SourceProgress) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        sqlx::query("INSERT OR REPLACE INTO source_progress VALUES (?, ?, ?, ?, ?, ?)")
            .bind(&progress.source)
            .bind(&progress.path)
            .bind(progress.size.cast_signed())
            .bind(progress.mtime_ns)
            .bind(progress.records.cast_signed())
            .bind(progress.done)
            .execute(&mut *transaction)
            .await
            .doing("remembering a source's progress")?;
        transaction.commit().await.doing("remembering a source's progress")
    }

    /// How far `source` has read `path`, if it ever did.
    pub async fn progress(&self, source: &str, path: &str) -> Result<Option<SourceProgress>, StoreError> {
        sqlx::query_as("SELECT * FROM source_progress WHERE source = ? AND path = ?")
            .bind(source)
            .bind(path)
            .fetch_optional(self.readers())
            .await
            .doing("reading a source's progress")
    }
}

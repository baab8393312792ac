//! How far file sources have read each file.

use super::SqliteStore;
use crate::store::error::{Doing, StoreError};
use crate::store::progress::SourceProgress;

impl SqliteStore {
    pub async fn set_progress(&self, files: &[SourceProgress]) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        for file in files {
            sqlx::query("INSERT OR REPLACE INTO source_progress VALUES (?, ?, ?, ?, ?, ?)")
                .bind(&file.source)
                .bind(&file.path)
                .bind(file.size.cast_signed())
                .bind(file.mtime_ns)
                .bind(file.records.cast_signed())
                .bind(file.done)
                .execute(&mut *transaction)
                .await
                .doing("remembering a source's progress")?;
        }
        transaction.commit().await.doing("remembering a source's progress")
    }

    pub async fn progress(&self, source: &str) -> Result<Vec<SourceProgress>, StoreError> {
        sqlx::query_as("SELECT * FROM source_progress WHERE source = ?")
            .bind(source)
            .fetch_all(self.readers())
            .await
            .doing("reading a source's progress")
    }
}

//! How far file sources have read each file.

use super::PostgresStore;
use crate::store::error::{Doing, StoreError};
use crate::store::progress::SourceProgress;

impl PostgresStore {
    pub async fn set_progress(&self, progress: &SourceProgress) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        session
            .query(
                "INSERT INTO thalweg.source_progress (source, path, size, mtime_ns, records, done)
                 VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (source, path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns,
                     records = excluded.records, done = excluded.done",
            )
            .bind(progress.source.clone())
            .bind(progress.path.clone())
            .bind(progress.size.cast_signed())
            .bind(progress.mtime_ns)
            .bind(progress.records.cast_signed())
            .bind(progress.done)
            .run(&mut session)
            .await
            .doing("remembering a source's progress")?;
        session.commit("remembering a source's progress").await
    }

    pub async fn progress(&self, source: &str) -> Result<Vec<SourceProgress>, StoreError> {
        let mut session = self.read().await?;
        session
            .query("SELECT * FROM thalweg.source_progress WHERE source = $1")
            .bind(source.to_owned())
            .all(&mut session)
            .await
            .doing("reading a source's progress")
    }
}

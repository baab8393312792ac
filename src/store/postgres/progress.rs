//! How far file sources have read each file.

use super::PostgresStore;
use crate::store::error::{Doing, StoreError};
use crate::store::progress::SourceProgress;

impl PostgresStore {
    pub async fn set_progress(&self, files: &[SourceProgress]) -> Result<(), StoreError> {
        let mut session = self.begin().await?;
        session
            .query(
                "INSERT INTO thalweg.source_progress (source, path, size, mtime_ns, records, done)
                 SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bool[])
                 ON CONFLICT (source, path) DO UPDATE SET size = excluded.size, mtime_ns = excluded.mtime_ns,
                     records = excluded.records, done = excluded.done",
            )
            .bind(files.iter().map(|file| file.source.clone()).collect::<Vec<_>>())
            .bind(files.iter().map(|file| file.path.clone()).collect::<Vec<_>>())
            .bind(files.iter().map(|file| file.size.cast_signed()).collect::<Vec<_>>())
            .bind(files.iter().map(|file| file.mtime_ns).collect::<Vec<_>>())
            .bind(files.iter().map(|file| file.records.cast_signed()).collect::<Vec<_>>())
            .bind(files.iter().map(|file| file.done).collect::<Vec<_>>())
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

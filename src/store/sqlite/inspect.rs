//! What people ask of a database file rather than of its rows.

use sqlx::AssertSqlSafe;

use super::SqliteStore;
use crate::store::error::{Doing, StoreError};
use crate::store::{StreamOwner, TableCount};

impl SqliteStore {
    pub async fn schema_version(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success")
            .fetch_one(self.readers())
            .await
            .doing("reading the schema's version")
    }

    pub async fn vectors_in(&self, space_key: i64) -> Result<u64, StoreError> {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM vectors WHERE space_key = ?")
            .bind(space_key)
            .fetch_one(self.readers())
            .await
            .map(i64::cast_unsigned)
            .doing("counting vectors")
    }

    /// Vectors are compared exactly here; there is nothing to do.
    #[expect(clippy::unused_async, reason = "the other database has something to do")]
    pub async fn maintain(&self, _now_ms: i64) -> Result<u64, StoreError> {
        Ok(0)
    }

    pub async fn tidy(&self, anew: bool) -> Result<(), StoreError> {
        let doing = "tidying the database";
        if anew {
            sqlx::query("VACUUM").execute(self.writer()).await.doing(doing)?;
        }
        // Looks at some of each index only, so that writers hardly wait.
        for statement in ["PRAGMA analysis_limit = 1000", "ANALYZE", "PRAGMA wal_checkpoint(PASSIVE)"] {
            sqlx::query(statement).execute(self.writer()).await.doing(doing)?;
        }
        Ok(())
    }

    /// The file lies in the owner's own directory.
    #[expect(clippy::unused_async, reason = "the other database has to ask")]
    pub async fn claim_stream(
        &self,
        _stream: &str,
        owner: &StreamOwner,
        _take_over: bool,
    ) -> Result<StreamOwner, StoreError> {
        Ok(owner.clone())
    }

    pub async fn inventory(&self) -> Result<Vec<TableCount>, StoreError> {
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB 'sqlite_*'
                 AND name NOT GLOB '_sqlx_*' AND name NOT GLOB 'keyword*' ORDER BY name",
        )
        .fetch_all(self.readers())
        .await
        .doing("listing tables")?;
        let mut counts = Vec::with_capacity(tables.len());
        for table in tables {
            let count = format!("SELECT count(*) FROM \"{table}\"");
            let rows = sqlx::query_scalar::<_, i64>(AssertSqlSafe(count))
                .fetch_one(self.readers())
                .await
                .doing("counting rows")?
                .cast_unsigned();
            counts.push(TableCount { table, rows });
        }
        Ok(counts)
    }
}

//! What people ask of a database rather than of its rows.

use sqlx::{AssertSqlSafe, Executor};

use super::PostgresStore;
use crate::store::TableCount;
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn schema_version(&self) -> Result<i64, StoreError> {
        let mut session = self.read().await?;
        session
            .query("SELECT coalesce(max(version), 0) FROM thalweg.migrations")
            .scalar(&mut session)
            .await
            .doing("reading the schema's version")
    }

    pub async fn vectors_in(&self, space_key: i64) -> Result<u64, StoreError> {
        let table = self.vector_table(space_key).await?;
        let mut session = self.read().await?;
        session
            .query(AssertSqlSafe(format!("SELECT count(*) FROM {}", table.name())))
            .scalar::<i64>(&mut session)
            .await
            .map(i64::cast_unsigned)
            .doing("counting vectors")
    }

    /// Vacuums and analyses every table; nobody waits for that. PostgreSQL
    /// writes no file anew here, whatever is asked.
    pub async fn tidy(&self, _anew: bool) -> Result<(), StoreError> {
        let doing = "vacuuming";
        let mut session = self.read().await?;
        let tables: Vec<String> = session
            .query("SELECT tablename::text FROM pg_tables WHERE schemaname = 'thalweg' ORDER BY tablename")
            .scalars(&mut session)
            .await
            .doing(doing)?;
        drop(session);
        let mut connection = self.inner.pool.acquire().await.doing(doing)?;
        // Nobody inherits a vacuum that was given up.
        connection.close_on_drop();
        for table in tables {
            let vacuum = format!("VACUUM (ANALYZE) thalweg.\"{table}\"");
            connection.execute(AssertSqlSafe(vacuum)).await.doing(doing)?;
        }
        Ok(())
    }

    pub async fn inventory(&self) -> Result<Vec<TableCount>, StoreError> {
        let mut session = self.read().await?;
        let tables: Vec<String> = session
            .query(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = 'thalweg' AND tablename <> 'migrations'
                 ORDER BY tablename",
            )
            .scalars(&mut session)
            .await
            .doing("listing tables")?;
        let mut counts = Vec::with_capacity(tables.len());
        for table in tables {
            let rows = session
                .query(AssertSqlSafe(format!("SELECT count(*) FROM thalweg.\"{table}\"")))
                .planned_anew()
                .scalar::<i64>(&mut session)
                .await
                .doing("counting rows")?
                .cast_unsigned();
            counts.push(TableCount { table, rows });
        }
        Ok(counts)
    }

    pub async fn database_bytes(&self) -> Result<u64, StoreError> {
        let mut session = self.read().await?;
        session
            .query(
                "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
                 WHERE c.relnamespace = 'thalweg'::regnamespace AND c.relkind = 'r'",
            )
            .scalar::<i64>(&mut session)
            .await
            .map(i64::cast_unsigned)
            .doing("measuring the database")
    }
}

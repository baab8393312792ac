//! What people ask of a database rather than of its rows.

use sqlx::AssertSqlSafe;

use super::PostgresStore;
use crate::store::TableCount;
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn schema_version(&self) -> Result<i64, StoreError> {
        let mut session = self.read().await?;
        session
            .scalar("SELECT coalesce(max(version), 0) FROM thalweg.migrations WHERE success")
            .fetch_one(session.connection())
            .await
            .doing("reading the schema's version")
    }

    pub async fn vectors_in(&self, space_key: i64) -> Result<u64, StoreError> {
        let table = self.vector_table(space_key).await?;
        let mut session = self.read().await?;
        session
            .scalar::<i64>(AssertSqlSafe(format!("SELECT count(*) FROM {}", table.name())))
            .fetch_one(session.connection())
            .await
            .map(i64::cast_unsigned)
            .doing("counting vectors")
    }

    pub async fn inventory(&self) -> Result<Vec<TableCount>, StoreError> {
        let mut session = self.read().await?;
        let tables: Vec<String> = session
            .scalar(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = 'thalweg' AND tablename <> 'migrations'
                 ORDER BY tablename",
            )
            .fetch_all(session.connection())
            .await
            .doing("listing tables")?;
        let mut counts = Vec::with_capacity(tables.len());
        for table in tables {
            let rows = session
                .scalar::<i64>(AssertSqlSafe(format!("SELECT count(*) FROM thalweg.\"{table}\"")))
                .persistent(false)
                .fetch_one(session.connection())
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
            .scalar::<i64>(
                "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class c
                 WHERE c.relnamespace = 'thalweg'::regnamespace AND c.relkind = 'r'",
            )
            .fetch_one(session.connection())
            .await
            .map(i64::cast_unsigned)
            .doing("measuring the database")
    }
}

//! Building a space beside the live one, and changing over.

use super::SqliteStore;
use crate::store::error::{Doing, StoreError};
use crate::store::migration::{Missing, Sample};

/// Vectors deleted in one transaction.
const PAGE_VECTORS: i64 = 10_000;

impl SqliteStore {
    pub async fn missing_in(&self, space_key: i64) -> Result<Missing, StoreError> {
        let (chunks, tokens): (i64, i64) = sqlx::query_as(
            "SELECT count(*), coalesce(sum(c.tokens), 0) FROM chunks c
             CROSS JOIN records r ON r.record_key = c.record_key
             LEFT JOIN vectors v ON v.space_key = ?1 AND v.tenant_key = r.tenant_key AND v.tier = r.tier
                                AND v.chunk_key = c.chunk_key
             WHERE v.chunk_key IS NULL",
        )
        .bind(space_key)
        .fetch_one(self.readers())
        .await
        .doing("counting what a space lacks")?;
        Ok(Missing { chunks: chunks.cast_unsigned(), tokens: tokens.cast_unsigned() })
    }

    pub async fn behind_live(&self, space_key: i64) -> Result<u64, StoreError> {
        let behind: i64 = sqlx::query_scalar(BEHIND)
            .bind(space_key)
            .fetch_one(self.readers())
            .await
            .doing("comparing spaces")?;
        Ok(behind.cast_unsigned())
    }

    pub async fn switch_space(&self, space_key: i64, most_behind: u64) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let state: Option<String> = sqlx::query_scalar("SELECT state FROM spaces WHERE space_key = ?")
            .bind(space_key)
            .fetch_optional(&mut *transaction)
            .await
            .doing("switching spaces")?;
        match state.as_deref() {
            None => return Err(StoreError::UnknownSpace { space_key }),
            Some("retired") => return Err(StoreError::Retired { space_key }),
            Some(_) => {}
        }
        let behind: i64 = sqlx::query_scalar(BEHIND)
            .bind(space_key)
            .fetch_one(&mut *transaction)
            .await
            .doing("comparing spaces")?;
        if behind.cast_unsigned() > most_behind {
            return Err(StoreError::Behind { space_key, chunks: behind.cast_unsigned() });
        }
        sqlx::query("UPDATE spaces SET state = 'shadow' WHERE state = 'live' AND space_key <> ?")
            .bind(space_key)
            .execute(&mut *transaction)
            .await
            .doing("switching spaces")?;
        sqlx::query("UPDATE spaces SET state = 'live' WHERE space_key = ?")
            .bind(space_key)
            .execute(&mut *transaction)
            .await
            .doing("switching spaces")?;
        transaction.commit().await.doing("switching spaces")?;
        self.forget_spaces();
        Ok(())
    }

    pub async fn retire_space(&self, space_key: i64) -> Result<u64, StoreError> {
        let mut transaction = self.begin().await?;
        let retired =
            sqlx::query("UPDATE spaces SET state = 'retired' WHERE space_key = ? AND state <> 'live'")
                .bind(space_key)
                .execute(&mut *transaction)
                .await
                .doing("retiring a space")?;
        if retired.rows_affected() == 0 {
            return Err(StoreError::NotRetirable { space_key });
        }
        sqlx::query("DELETE FROM canaries WHERE space_key = ?")
            .bind(space_key)
            .execute(&mut *transaction)
            .await
            .doing("retiring a space")?;
        transaction.commit().await.doing("retiring a space")?;
        self.forget_spaces();
        let mut deleted = 0;
        loop {
            let mut transaction = self.begin().await?;
            let page = sqlx::query(
                "DELETE FROM vectors WHERE space_key = ?1 AND (space_key, tenant_key, tier, chunk_key) IN (
                     SELECT space_key, tenant_key, tier, chunk_key FROM vectors WHERE space_key = ?1 LIMIT ?2)",
            )
            .bind(space_key)
            .bind(PAGE_VECTORS)
            .execute(&mut *transaction)
            .await
            .doing("deleting the vectors of a space")?;
            transaction.commit().await.doing("deleting the vectors of a space")?;
            match page.rows_affected() {
                0 => return Ok(deleted),
                count => deleted += count,
            }
        }
    }

    pub async fn sample_chunks(&self, count: u32, seed: i64) -> Result<Vec<Sample>, StoreError> {
        sqlx::query_as(
            "SELECT t.name AS tenant, r.stream, r.\"offset\", c.text FROM chunks c
             CROSS JOIN records r ON r.record_key = c.record_key
             CROSS JOIN tenants t ON t.tenant_key = r.tenant_key
             WHERE c.chunk_key IN (
                 SELECT 1 + abs((value.value * 7919 + ?2) * 104729) % (SELECT max(chunk_key) FROM chunks)
                 FROM (WITH RECURSIVE n(value) AS (SELECT 1 UNION ALL SELECT value + 1 FROM n WHERE value < ?1)
                       SELECT value FROM n) value)",
        )
        .bind(count)
        .bind(seed)
        .fetch_all(self.readers())
        .await
        .doing("sampling chunks")
    }
}

const BEHIND: &str = "SELECT count(*) FROM vectors l
     LEFT JOIN vectors v ON v.space_key = ?1 AND v.tenant_key = l.tenant_key AND v.tier = l.tier
                        AND v.chunk_key = l.chunk_key
     WHERE l.space_key = (SELECT space_key FROM spaces WHERE state = 'live')
       AND l.space_key <> ?1 AND v.chunk_key IS NULL";

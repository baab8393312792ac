//! Building a space beside the live one, and changing over.

use sqlx::AssertSqlSafe;

use super::text::original;
use super::vectors::VectorTable;
use super::{PostgresStore, Session};
use crate::store::error::{Doing, StoreError};
use crate::store::migration::{Missing, Sample};

impl PostgresStore {
    pub async fn missing_in(&self, space_key: i64) -> Result<Missing, StoreError> {
        let table = self.vector_table(space_key).await?;
        let mut session = self.read().await?;
        let statement = format!(
            "SELECT count(*), coalesce(sum(c.tokens), 0)::bigint FROM thalweg.chunks c WHERE NOT EXISTS (
                 SELECT FROM {} v WHERE v.tenant_key = c.tenant_key AND v.tier = c.tier AND v.chunk_key = c.chunk_key)",
            table.name()
        );
        let (chunks, tokens): (i64, i64) = session
            .query(AssertSqlSafe(statement))
            .one(&mut session)
            .await
            .doing("counting what a space lacks")?;
        Ok(Missing { chunks: chunks.cast_unsigned(), tokens: tokens.cast_unsigned() })
    }

    pub async fn behind_live(&self, space_key: i64) -> Result<u64, StoreError> {
        let table = self.vector_table(space_key).await?;
        let mut session = self.read().await?;
        session.behind_live(&table).await
    }

    pub async fn switch_space(&self, space_key: i64, most_behind: u64) -> Result<(), StoreError> {
        let table = self.vector_table(space_key).await?;
        let mut session = self.begin().await?;
        session.lock_spaces().await?;
        // Waits for every commit that has found the live space to be live.
        let states: Vec<(i64, String)> = session
            .query("SELECT space_key, state FROM thalweg.spaces ORDER BY space_key FOR UPDATE")
            .all(&mut session)
            .await
            .doing("switching spaces")?;
        match states.iter().find(|(key, _)| *key == space_key).map(|(_, state)| state.as_str()) {
            None => return Err(StoreError::UnknownSpace { space_key }),
            Some("retired") => return Err(StoreError::Retired { space_key }),
            Some(_) => {}
        }
        let chunks = session.behind_live(&table).await?;
        if chunks > most_behind {
            return Err(StoreError::Behind { space_key, chunks });
        }
        session.exchange_live(space_key, "shadow").await?;
        session.commit("switching spaces").await?;
        self.forget_spaces();
        Ok(())
    }

    pub async fn retire_space(&self, space_key: i64) -> Result<u64, StoreError> {
        let mut session = self.begin().await?;
        let retired = session
            .query("UPDATE thalweg.spaces SET state = 'retired' WHERE space_key = $1 AND state <> 'live'")
            .bind(space_key)
            .run(&mut session)
            .await
            .doing("retiring a space")?;
        if retired.rows_affected() == 0 {
            return Err(StoreError::NotRetirable { space_key });
        }
        let doing = "deleting the vectors of a space";
        let count = format!("SELECT count(*) FROM thalweg.vectors_{space_key}");
        let deleted: i64 = session.query(AssertSqlSafe(count)).scalar(&mut session).await.doing(doing)?;
        let indexes: Vec<String> = session
            .query("DELETE FROM thalweg.vector_indexes WHERE space_key = $1 RETURNING name")
            .bind(space_key)
            .scalars(&mut session)
            .await
            .doing(doing)?;
        let drops: String =
            indexes.iter().map(|name| format!("DROP INDEX IF EXISTS thalweg.{name}; ")).collect();
        let empty = format!(
            "{drops} TRUNCATE thalweg.vectors_{space_key};
             DELETE FROM thalweg.canaries WHERE space_key = {space_key};"
        );
        session.script(empty).await.doing(doing)?;
        session.commit("retiring a space").await?;
        self.forget_spaces();
        Ok(deleted.cast_unsigned())
    }

    pub async fn sample_chunks(&self, count: u32, seed: i64) -> Result<Vec<Sample>, StoreError> {
        let mut session = self.read().await?;
        let samples: Vec<Sample> = session
            .query(
                "SELECT t.name AS tenant, r.stream, r.\"offset\", c.text FROM thalweg.chunks c
                 JOIN thalweg.records r USING (record_key)
                 JOIN thalweg.tenants t ON t.tenant_key = r.tenant_key
                 WHERE c.chunk_key IN (
                     SELECT 1 + (hashint8extended(n, $2) & 9223372036854775807)
                                % (SELECT greatest(max(chunk_key), 1) FROM thalweg.chunks)
                     FROM generate_series(1, $1) AS n)",
            )
            .bind(i64::from(count))
            .bind(seed)
            .all(&mut session)
            .await
            .doing("sampling chunks")?;
        let unescaped = |s: Sample| Sample { tenant: original(s.tenant), text: original(s.text), ..s };
        Ok(samples.into_iter().map(unescaped).collect())
    }
}

impl Session {
    /// Vectors that the live space has and `table` lacks.
    async fn behind_live(&mut self, table: &VectorTable) -> Result<u64, StoreError> {
        let live: Option<i64> = self
            .query("SELECT space_key FROM thalweg.spaces WHERE state = 'live' AND space_key <> $1")
            .bind(table.space_key)
            .optional_scalar(self)
            .await
            .doing("comparing spaces")?;
        let Some(live) = live else { return Ok(0) };
        let statement = format!(
            "SELECT count(*) FROM thalweg.vectors_{live} l WHERE NOT EXISTS (
                 SELECT FROM {} v WHERE v.tenant_key = l.tenant_key AND v.tier = l.tier AND v.chunk_key = l.chunk_key)",
            table.name()
        );
        self.query(AssertSqlSafe(statement))
            .scalar::<i64>(self)
            .await
            .map(i64::cast_unsigned)
            .doing("comparing spaces")
    }
}

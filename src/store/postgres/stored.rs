//! What is stored of a range of offsets.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, FromRow};

use super::PostgresStore;
use super::text::original;
use crate::store::error::{Doing, StoreError};
use crate::store::rows::{OutcomeKind, OutcomeRow};
use crate::store::stored::{StoredRecord, StoredRow, gather};

impl PostgresStore {
    pub async fn known(&self, keys: &[[u8; 32]]) -> Result<HashMap<[u8; 32], (String, u64)>, StoreError> {
        if keys.is_empty() {
            return Ok(HashMap::new());
        }
        let mut session = self.read().await?;
        let held: Vec<(Vec<u8>, String, i64)> = session
            .query("SELECT key, stream, \"offset\" FROM thalweg.dedupe WHERE key = ANY($1)")
            .bind(keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>())
            .all(&mut session)
            .await
            .doing("looking up contents")?;
        Ok(held
            .into_iter()
            .filter_map(|(key, stream, offset)| {
                Some((key.try_into().ok()?, (stream, offset.cast_unsigned())))
            })
            .collect())
    }

    pub async fn stored(
        &self,
        stream: &str,
        from: u64,
        to: u64,
        space_key: i64,
    ) -> Result<Vec<StoredRecord>, StoreError> {
        let table = self.vector_table(space_key).await?;
        let mut session = self.read().await?;
        let statement = format!(
            "SELECT r.\"offset\", r.record_id, r.ts_ms, t.name AS tenant, r.session, r.tier::bigint, b.batch_tag,
                    b.config_digest, c.chunk::bigint, c.text, c.digest, {} AS vector
             FROM thalweg.records r
             JOIN thalweg.tenants t ON t.tenant_key = r.tenant_key
             JOIN thalweg.batches b USING (batch_key)
             LEFT JOIN thalweg.chunks c USING (record_key)
             LEFT JOIN {} v ON v.tenant_key = r.tenant_key AND v.tier = r.tier AND v.chunk_key = c.chunk_key
             WHERE r.stream = $1 AND r.\"offset\" >= $2 AND r.\"offset\" < $3
             ORDER BY r.\"offset\", c.chunk",
            table.numbers(),
            table.name()
        );
        let rows = session
            .query(AssertSqlSafe(statement))
            .bind(stream.to_owned())
            .bind(from.cast_signed())
            .bind(to.cast_signed())
            .rows(&mut session)
            .await
            .doing("reading records")?;
        let mut read = Vec::with_capacity(rows.len());
        for row in &rows {
            let stored = StoredRow::from_row(row).doing("reading a record")?.map_texts(original);
            read.push((stored, table.read(row, "vector")?));
        }
        gather(read)
    }

    pub async fn outcomes(
        &self,
        pipeline: &str,
        stream: &str,
        from: u64,
        to: u64,
    ) -> Result<Vec<OutcomeRow>, StoreError> {
        let mut session = self.read().await?;
        let rows: Vec<(i64, String, String, String)> = session
            .query(
                "SELECT \"offset\", kind, reason, detail FROM thalweg.outcomes
                 WHERE pipeline = $1 AND stream = $2 AND \"offset\" >= $3 AND \"offset\" < $4 ORDER BY \"offset\"",
            )
            .bind(pipeline.to_owned())
            .bind(stream.to_owned())
            .bind(from.cast_signed())
            .bind(to.cast_signed())
            .all(&mut session)
            .await
            .doing("reading outcomes")?;
        rows.into_iter()
            .map(|(offset, kind, reason, detail)| {
                Ok(OutcomeRow {
                    offset: offset.cast_unsigned(),
                    kind: OutcomeKind::parse(&kind)?,
                    reason: original(reason),
                    detail: original(detail),
                })
            })
            .collect()
    }
}

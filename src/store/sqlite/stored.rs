//! What is stored of a range of offsets.

use std::collections::HashMap;

use sqlx::{FromRow, Row};

use super::SqliteStore;
use crate::store::error::{Doing, StoreError};
use crate::store::rows::{OutcomeKind, OutcomeRow};
use crate::store::stored::{StoredRecord, StoredRow, gather};
use crate::store::vector::numbers;

impl SqliteStore {
    pub async fn known(&self, keys: &[[u8; 32]]) -> Result<HashMap<[u8; 32], (String, u64)>, StoreError> {
        let hex: Vec<String> =
            keys.iter().map(|key| key.iter().map(|b| format!("{b:02x}")).collect()).collect();
        let hex = serde_json::Value::from(hex).to_string();
        let held: Vec<(Vec<u8>, String, i64)> = sqlx::query_as(
            "SELECT key, stream, \"offset\" FROM dedupe
             WHERE key IN (SELECT unhex(value) FROM json_each(?))",
        )
        .bind(hex)
        .fetch_all(self.readers())
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
        let rows = sqlx::query(
            "SELECT r.\"offset\", r.record_id, r.ts_ms, t.name AS tenant, r.session, r.tier, b.batch_tag,
                    b.config_digest, c.chunk, c.text, c.digest, v.vector
             FROM records r
             JOIN tenants t ON t.tenant_key = r.tenant_key
             JOIN batches b ON b.batch_key = r.batch_key
             LEFT JOIN chunks c ON c.record_key = r.record_key
             LEFT JOIN vectors v ON v.space_key = ?4 AND v.tenant_key = r.tenant_key AND v.tier = r.tier
                                AND v.chunk_key = c.chunk_key
             WHERE r.stream = ?1 AND r.\"offset\" >= ?2 AND r.\"offset\" < ?3
             ORDER BY r.\"offset\", c.chunk",
        )
        .bind(stream)
        .bind(from.cast_signed())
        .bind(to.cast_signed())
        .bind(space_key)
        .fetch_all(self.readers())
        .await
        .doing("reading records")?;
        let mut read = Vec::with_capacity(rows.len());
        for row in &rows {
            let vector: Option<&[u8]> = row.try_get("vector").doing("reading a chunk")?;
            let vector = vector.map(|bytes| numbers(bytes).collect());
            read.push((StoredRow::from_row(row).doing("reading a record")?, vector));
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
        let rows: Vec<(i64, String, String, String)> = sqlx::query_as(
            "SELECT \"offset\", kind, reason, detail FROM outcomes
             WHERE pipeline = ? AND stream = ? AND \"offset\" >= ? AND \"offset\" < ? ORDER BY \"offset\"",
        )
        .bind(pipeline)
        .bind(stream)
        .bind(from.cast_signed())
        .bind(to.cast_signed())
        .fetch_all(self.readers())
        .await
        .doing("reading outcomes")?;
        rows.into_iter()
            .map(|(offset, kind, reason, detail)| {
                Ok(OutcomeRow {
                    offset: offset.cast_unsigned(),
                    kind: OutcomeKind::parse(&kind)?,
                    reason,
                    detail,
                })
            })
            .collect()
    }
}

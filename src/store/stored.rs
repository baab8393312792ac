//! What is stored of a range of offsets.

use std::collections::HashMap;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::record::Tier;

use super::error::{Doing, StoreError};
use super::rows::{OutcomeKind, OutcomeRow, tier_of};
use super::sqlite::Store;
use super::vector::numbers;

/// A record as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRecord {
    /// Its offset in the stream.
    pub offset: u64,
    /// The producer's own id.
    pub record_id: Option<String>,
    /// When it happened, in milliseconds since the Unix epoch.
    pub ts_ms: i64,
    /// Whose it is.
    pub tenant: String,
    /// Session within the tenant.
    pub session: Option<String>,
    /// Which kind of memory it is.
    pub tier: Tier,
    /// The batch that wrote it.
    pub batch_tag: String,
    /// Digest of the configuration that derived it, in hex.
    pub config_digest: String,
    /// Its pieces, in order.
    pub chunks: Vec<StoredChunk>,
}

/// A chunk as it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredChunk {
    /// Number within the record, from 0.
    pub chunk: u32,
    /// The text.
    pub text: String,
    /// SHA-256 of the text when it was stored.
    pub digest: Vec<u8>,
    /// Its vector in the space asked for, if it has one there.
    pub vector: Option<Vec<f32>>,
}

impl Store {
    /// Who holds each of `keys`, as stream and offset; those that nobody
    /// holds are left out.
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

    /// The records of `stream` with offsets `from..to`, in order, with the
    /// vectors they have in one space.
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
        let mut records: Vec<StoredRecord> = Vec::new();
        for row in &rows {
            let record = read_record(row)?;
            if records.last().is_none_or(|last| last.offset != record.offset) {
                records.push(record);
            }
            if let (Some(last), Some(chunk)) = (records.last_mut(), read_chunk(row).doing("reading a chunk")?)
            {
                last.chunks.push(chunk);
            }
        }
        Ok(records)
    }

    /// Why offsets of `from..to` are not indexed, in order.
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

fn read_record(row: &SqliteRow) -> Result<StoredRecord, StoreError> {
    let read = || {
        Ok(StoredRecord {
            offset: row.try_get::<i64, _>("offset")?.cast_unsigned(),
            record_id: row.try_get("record_id")?,
            ts_ms: row.try_get("ts_ms")?,
            tenant: row.try_get("tenant")?,
            session: row.try_get("session")?,
            tier: Tier::Event,
            batch_tag: row.try_get("batch_tag")?,
            config_digest: row.try_get("config_digest")?,
            chunks: Vec::new(),
        })
    };
    let tier = tier_of(row.try_get("tier").doing("reading a record")?)?;
    Ok(StoredRecord { tier, ..read().doing("reading a record")? })
}

fn read_chunk(row: &SqliteRow) -> Result<Option<StoredChunk>, sqlx::Error> {
    let Some(chunk) = row.try_get::<Option<u32>, _>("chunk")? else {
        return Ok(None);
    };
    let vector: Option<&[u8]> = row.try_get("vector")?;
    Ok(Some(StoredChunk {
        chunk,
        text: row.try_get("text")?,
        digest: row.try_get("digest")?,
        vector: vector.map(|bytes| numbers(bytes).collect()),
    }))
}

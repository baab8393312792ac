//! What a search shows of a chunk, and where the chunk came from.

use std::collections::HashMap;

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use crate::record::Tier;

use super::error::{Doing, StoreError};
use super::fusion::Fused;
use super::insert::json_array;
use super::rows::tier_of;
use super::spaces::SpaceRow;
use super::sqlite::Store;

/// A chunk found, with its record.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Higher is better; comparable within one answer only.
    pub score: f32,
    /// Cosine similarity, -1..1; none without a vector on either side.
    pub vector_score: Option<f32>,
    /// BM25; none if the chunk holds no word of the query.
    pub keyword_score: Option<f32>,
    /// The chunk's text.
    pub text: String,
    /// The producer's own id.
    pub record_id: Option<String>,
    /// When it happened, in milliseconds since the Unix epoch.
    pub ts_ms: i64,
    /// Whose it is: always the tenant asked for.
    pub tenant: String,
    /// Session within the tenant.
    pub session: Option<String>,
    /// Where it came from.
    pub source: String,
    /// Which kind of memory it is.
    pub tier: Tier,
    /// Every other field of the record, as a JSON object.
    pub attrs: String,
    /// The way back to the bytes.
    pub lineage: Lineage,
}

/// From a row back to the bytes it was derived from, and by what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lineage {
    /// Stream of the frame.
    pub stream: String,
    /// Offset of the frame.
    pub offset: u64,
    /// Number of the chunk within the record.
    pub chunk: u32,
    /// Bytes of the record's text that the chunk covers.
    pub bytes: (u64, u64),
    /// Content digest of the sealed segment; none while it is active.
    pub segment_digest: Option<String>,
    /// First offset of the sealed segment; none while it is active.
    pub segment_base: Option<u64>,
    /// The model that was compared; none if no vector was.
    pub model: Option<String>,
    /// Digest of its weights.
    pub model_revision: Option<String>,
    /// Id of its space.
    pub space_id: Option<String>,
    /// Digest of the configuration that derived the row, in hex.
    pub config_digest: String,
    /// The batch that wrote the row.
    pub batch_tag: String,
}

impl Store {
    /// The rows behind `fused`, in that order. A row that has gone since, or
    /// is not of this tenant after all, is left out.
    pub(super) async fn hits(
        &self,
        tenant_key: i64,
        space: Option<&SpaceRow>,
        fused: &[Fused],
    ) -> Result<Vec<Hit>, StoreError> {
        // Cross joins keep SQLite from starting with all records of the tenant.
        let rows = sqlx::query(
            "SELECT c.chunk_key, c.text, c.chunk, c.start_byte, c.end_byte, r.record_id, r.ts_ms,
                    t.name AS tenant, r.session, r.source, r.tier, r.attrs, r.stream, r.\"offset\",
                    b.config_digest, b.batch_tag, s.content_digest, s.base_offset
             FROM json_each(?) AS wanted
             CROSS JOIN chunks c ON c.chunk_key = wanted.value
             CROSS JOIN records r ON r.record_key = c.record_key
             CROSS JOIN tenants t ON t.tenant_key = r.tenant_key
             CROSS JOIN batches b ON b.batch_key = r.batch_key
             LEFT JOIN segments s ON s.stream = r.stream AND s.end_offset > r.\"offset\"
                  AND s.base_offset = (SELECT max(base_offset) FROM segments
                                       WHERE stream = r.stream AND base_offset <= r.\"offset\")
             WHERE r.tenant_key = ?",
        )
        .bind(json_array(fused.iter().map(|f| f.candidate.chunk_key)))
        .bind(tenant_key)
        .fetch_all(self.readers())
        .await
        .doing("reading hits")?;
        let mut by_key = HashMap::with_capacity(rows.len());
        for row in &rows {
            by_key.insert(row.try_get::<i64, _>("chunk_key").doing("reading hits")?, row);
        }
        fused
            .iter()
            .filter_map(|f| by_key.get(&f.candidate.chunk_key).map(|row| read(row, f, space)))
            .collect()
    }

    /// The record of each chunk.
    pub(super) async fn record_keys(&self, chunk_keys: &[i64]) -> Result<HashMap<i64, i64>, StoreError> {
        let pairs: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT chunk_key, record_key FROM chunks WHERE chunk_key IN (SELECT value FROM json_each(?))",
        )
        .bind(json_array(chunk_keys.iter().copied()))
        .fetch_all(self.readers())
        .await
        .doing("reading hits")?;
        Ok(pairs.into_iter().collect())
    }
}

fn read(row: &SqliteRow, fused: &Fused, space: Option<&SpaceRow>) -> Result<Hit, StoreError> {
    let tier = tier_of(row.try_get("tier").doing("reading a hit")?)?;
    let lineage =
        read_lineage(row, space.filter(|_| fused.candidate.vector.is_some())).doing("reading a hit")?;
    let fields = || {
        Ok(Hit {
            score: fused.score,
            vector_score: fused.candidate.vector,
            keyword_score: fused.candidate.keyword,
            text: row.try_get("text")?,
            record_id: row.try_get("record_id")?,
            ts_ms: row.try_get("ts_ms")?,
            tenant: row.try_get("tenant")?,
            session: row.try_get("session")?,
            source: row.try_get("source")?,
            tier,
            attrs: row.try_get("attrs")?,
            lineage,
        })
    };
    fields().doing("reading a hit")
}

fn read_lineage(row: &SqliteRow, space: Option<&SpaceRow>) -> Result<Lineage, sqlx::Error> {
    let number = |column| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
    Ok(Lineage {
        stream: row.try_get("stream")?,
        offset: number("offset")?,
        chunk: row.try_get("chunk")?,
        bytes: (number("start_byte")?, number("end_byte")?),
        segment_digest: row.try_get("content_digest")?,
        segment_base: row.try_get::<Option<i64>, _>("base_offset")?.map(i64::cast_unsigned),
        model: space.map(|s| s.space.model.clone()),
        model_revision: space.map(|s| s.space.revision.clone()),
        space_id: space.map(|s| s.space_id.clone()),
        config_digest: row.try_get("config_digest")?,
        batch_tag: row.try_get("batch_tag")?,
    })
}

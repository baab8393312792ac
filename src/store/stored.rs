//! What is stored of a range of offsets.

use sqlx::FromRow;

use crate::record::Tier;

use super::error::StoreError;
use super::rows::tier_of;

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

/// A record with one of its chunks, as both databases give it; the chunk's
/// columns are null for a record without any.
#[derive(FromRow)]
pub(super) struct StoredRow {
    offset: i64,
    record_id: Option<String>,
    ts_ms: i64,
    tenant: String,
    session: Option<String>,
    tier: i64,
    batch_tag: String,
    config_digest: String,
    chunk: Option<i64>,
    text: Option<String>,
    digest: Option<Vec<u8>>,
}

impl StoredRow {
    /// The row with every text that producers chose as `f` gives it back.
    pub fn map_texts(mut self, f: impl Fn(String) -> String) -> Self {
        self.tenant = f(self.tenant);
        self.batch_tag = f(self.batch_tag);
        self.record_id = self.record_id.map(&f);
        self.session = self.session.map(&f);
        self.text = self.text.map(&f);
        self
    }
}

/// Records of rows that come in the order of offset and chunk, each with its
/// vector.
pub(super) fn gather(
    rows: impl IntoIterator<Item = (StoredRow, Option<Vec<f32>>)>,
) -> Result<Vec<StoredRecord>, StoreError> {
    let mut records: Vec<StoredRecord> = Vec::new();
    for (row, vector) in rows {
        let offset = row.offset.cast_unsigned();
        if records.last().is_none_or(|last| last.offset != offset) {
            records.push(StoredRecord {
                offset,
                record_id: row.record_id,
                ts_ms: row.ts_ms,
                tenant: row.tenant,
                session: row.session,
                tier: tier_of(row.tier)?,
                batch_tag: row.batch_tag,
                config_digest: row.config_digest,
                chunks: Vec::new(),
            });
        }
        if let (Some(last), Some(chunk)) = (records.last_mut(), row.chunk) {
            let chunk = u32::try_from(chunk)
                .map_err(|e| StoreError::Damaged { what: "chunk number", reason: e.to_string() })?;
            last.chunks.push(StoredChunk {
                chunk,
                text: row.text.unwrap_or_default(),
                digest: row.digest.unwrap_or_default(),
                vector,
            });
        }
    }
    Ok(records)
}

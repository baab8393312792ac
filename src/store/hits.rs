//! What a search shows of a chunk, and where the chunk came from.

use std::collections::HashMap;

use sqlx::FromRow;

use crate::record::Tier;

use super::error::StoreError;
use super::fusion::Fused;
use super::rows::tier_of;
use super::spaces::SpaceRow;

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

/// A chunk with its record, as both databases give it.
#[derive(FromRow)]
pub(super) struct HitRow {
    chunk_key: i64,
    text: String,
    chunk: i64,
    start_byte: i64,
    end_byte: i64,
    record_id: Option<String>,
    ts_ms: i64,
    tenant: String,
    session: Option<String>,
    source: String,
    tier: i64,
    attrs: String,
    stream: String,
    offset: i64,
    config_digest: String,
    batch_tag: String,
    content_digest: Option<String>,
    base_offset: Option<i64>,
}

/// The rows behind `fused`, in that order; those that have gone are left out.
pub(super) fn in_order(
    rows: Vec<HitRow>,
    fused: &[Fused],
    space: Option<&SpaceRow>,
) -> Result<Vec<Hit>, StoreError> {
    let mut by_key: HashMap<i64, HitRow> = rows.into_iter().map(|row| (row.chunk_key, row)).collect();
    fused
        .iter()
        .filter_map(|f| by_key.remove(&f.candidate.chunk_key).map(|row| row.into_hit(f, space)))
        .collect()
}

impl HitRow {
    /// The row with every text that producers chose as `f` gives it back.
    pub fn map_texts(mut self, f: impl Fn(String) -> String) -> Self {
        for text in [&mut self.text, &mut self.tenant, &mut self.source, &mut self.batch_tag] {
            *text = f(std::mem::take(text));
        }
        self.record_id = self.record_id.map(&f);
        self.session = self.session.map(&f);
        self
    }

    fn into_hit(self, fused: &Fused, space: Option<&SpaceRow>) -> Result<Hit, StoreError> {
        let space = space.filter(|_| fused.candidate.vector.is_some());
        let chunk = u32::try_from(self.chunk)
            .map_err(|e| StoreError::Damaged { what: "chunk number", reason: e.to_string() })?;
        Ok(Hit {
            score: fused.score,
            vector_score: fused.candidate.vector,
            keyword_score: fused.candidate.keyword,
            text: self.text,
            record_id: self.record_id,
            ts_ms: self.ts_ms,
            tenant: self.tenant,
            session: self.session,
            source: self.source,
            tier: tier_of(self.tier)?,
            attrs: self.attrs,
            lineage: Lineage {
                stream: self.stream,
                offset: self.offset.cast_unsigned(),
                chunk,
                bytes: (self.start_byte.cast_unsigned(), self.end_byte.cast_unsigned()),
                segment_digest: self.content_digest,
                segment_base: self.base_offset.map(i64::cast_unsigned),
                model: space.map(|s| s.space.model.clone()),
                model_revision: space.map(|s| s.space.revision.clone()),
                space_id: space.map(|s| s.space_id.clone()),
                config_digest: self.config_digest,
                batch_tag: self.batch_tag,
            },
        })
    }
}

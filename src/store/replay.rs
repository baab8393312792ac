//! Putting back what is missing of a range of offsets: what is missing.

use std::collections::{BTreeMap, HashMap};

use sqlx::FromRow;

use super::analysed::Analysed;
use super::keywords::Terms;
use super::rows::{ChunkRow, RecordRow};

/// What putting back a range did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Records that were missing and are stored now.
    pub records: u64,
    /// Vectors added to chunks that were stored without.
    pub vectors: u64,
    /// Records that had everything.
    pub present: u64,
    /// Records left alone: their chunks differ from what is stored.
    pub differing: u64,
    /// Records left alone: the live reader has not come to them yet.
    pub ahead: u64,
}

/// The chunks one stored record has.
pub(super) struct StoredChunks {
    tenant_key: i64,
    tier: i64,
    chunks: BTreeMap<i64, StoredKey>,
}

struct StoredKey {
    chunk_key: i64,
    digest: Vec<u8>,
    embedded: bool,
}

/// A stored record with one of its chunks, as both databases give it.
#[derive(FromRow)]
pub(super) struct StoredKeyRow {
    offset: i64,
    tenant_key: i64,
    tier: i64,
    chunk_key: Option<i64>,
    chunk: Option<i64>,
    digest: Option<Vec<u8>>,
    embedded: bool,
}

/// Stored records by offset.
pub(super) fn by_offset(rows: Vec<StoredKeyRow>) -> HashMap<u64, StoredChunks> {
    let mut stored: HashMap<u64, StoredChunks> = HashMap::new();
    for row in rows {
        let record = stored.entry(row.offset.cast_unsigned()).or_insert_with(|| StoredChunks {
            tenant_key: row.tenant_key,
            tier: row.tier,
            chunks: BTreeMap::new(),
        });
        if let (Some(chunk), Some(chunk_key), Some(digest)) = (row.chunk, row.chunk_key, row.digest) {
            record.chunks.insert(chunk, StoredKey { chunk_key, digest, embedded: row.embedded });
        }
    }
    stored
}

/// A vector for a chunk that is stored without.
pub(super) struct MissingVector<'a> {
    pub tenant_key: i64,
    pub tier: i64,
    pub chunk_key: i64,
    pub vector: &'a [f32],
}

/// What of a batch is not stored.
#[derive(Default)]
pub(super) struct Gaps<'a> {
    pub replayed: Replayed,
    /// Records that are missing whole, with the terms of their chunks.
    pub records: Vec<(&'a RecordRow, &'a Vec<Terms>)>,
    pub vectors: Vec<MissingVector<'a>>,
    /// Offsets that then have all they should.
    pub complete: Vec<u64>,
    /// Those of them that were missing whole, ascending.
    pub regained: Vec<u64>,
}

impl<'a> Gaps<'a> {
    /// Compares a batch with what is stored; `next_offset` is where live
    /// reading stands.
    pub fn of(analysed: &'a Analysed, mut stored: HashMap<u64, StoredChunks>, next_offset: u64) -> Self {
        let mut gaps = Self::default();
        for (record, terms) in analysed.batch.records.iter().zip(&analysed.terms) {
            if record.offset >= next_offset {
                gaps.replayed.ahead += 1;
                continue;
            }
            let is_missing = match stored.remove(&record.offset) {
                None => {
                    gaps.replayed.records += 1;
                    gaps.records.push((record, terms));
                    true
                }
                Some(chunks) if !chunks.agree(record) => {
                    gaps.replayed.differing += 1;
                    continue;
                }
                Some(chunks) => {
                    let missing = chunks.without_vector(record);
                    gaps.replayed.present += u64::from(missing.is_empty());
                    gaps.vectors.extend(missing);
                    false
                }
            };
            if record.is_embedded() {
                gaps.complete.push(record.offset);
                gaps.regained.extend(is_missing.then_some(record.offset));
            }
        }
        gaps.replayed.vectors = gaps.vectors.len() as u64;
        gaps.regained.sort_unstable();
        gaps
    }
}

impl StoredChunks {
    fn agree(&self, record: &RecordRow) -> bool {
        self.chunks.len() == record.chunks.len()
            && record
                .chunks
                .iter()
                .all(|c| self.chunks.get(&c.chunk.into()).is_some_and(|stored| stored.digest == c.digest))
    }

    fn without_vector<'a>(&self, record: &'a RecordRow) -> Vec<MissingVector<'a>> {
        let missing = |chunk: &'a ChunkRow| {
            let stored = self.chunks.get(&chunk.chunk.into()).filter(|stored| !stored.embedded)?;
            Some(MissingVector {
                tenant_key: self.tenant_key,
                tier: self.tier,
                chunk_key: stored.chunk_key,
                vector: chunk.vector.as_deref()?,
            })
        };
        record.chunks.iter().filter_map(missing).collect()
    }
}

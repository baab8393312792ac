//! Records that are not stored yet, and how they are copied in.

use std::collections::{BTreeMap, HashMap};

use super::Session;
use super::copy::CopyRows;
use super::vectors::{VectorTable, small};
use crate::store::error::{Doing, StoreError};
use crate::store::keywords::{self, Terms};
use crate::store::rows::{ChunkRow, RecordRow, tier_code};

/// Records that are not stored yet, each with the terms of its chunks.
pub(super) struct NewRows<'a> {
    pub stream: &'a str,
    pub batch_key: i64,
    /// Where their vectors go, if they bring any.
    pub vectors: Option<VectorTable>,
    pub tenants: &'a HashMap<String, i64>,
    pub records: Vec<(&'a RecordRow, &'a Vec<Terms>)>,
}

impl NewRows<'_> {
    /// Copies the records and all that is searched of them.
    pub async fn write(&self, session: &mut Session) -> Result<(), StoreError> {
        if self.records.is_empty() {
            return Ok(());
        }
        let chunks: usize = self.records.iter().map(|(record, _)| record.chunks.len()).sum();
        let (record_keys, chunk_keys) = draw_keys(session, self.records.len(), chunks).await?;
        let mut chunk_keys = chunk_keys.into_iter();
        let mut rows = Copies::default();
        for ((record, terms), record_key) in self.records.iter().zip(record_keys) {
            let tenant_key = self.tenants.get(&record.tenant).copied().unwrap_or_default();
            self.encode_record(&mut rows.records, record, record_key, tenant_key);
            let partition = (tenant_key, tier_code(record.tier));
            let scope = keywords::scope(partition.0, partition.1);
            for ((chunk, terms), chunk_key) in record.chunks.iter().zip(terms.iter()).zip(&mut chunk_keys) {
                let keys = (chunk_key, record_key);
                encode_chunk(&mut rows.chunks, chunk, keys, partition, (&scope, terms));
                if let (Some(table), Some(vector)) = (&self.vectors, &chunk.vector) {
                    table.encode(&mut rows.vectors, chunk_key, partition, vector);
                }
                let sum = rows.partitions.entry(partition).or_default();
                sum.0 += 1;
                sum.1 += i64::try_from(terms.len()).unwrap_or(i64::MAX);
            }
        }
        rows.send(session, self.vectors.as_ref()).await
    }

    fn encode_record(&self, rows: &mut CopyRows, record: &RecordRow, record_key: i64, tenant_key: i64) {
        rows.row()
            .bigint(record_key)
            .bigint(tenant_key)
            .bigint(record.offset.cast_signed())
            .bigint(record.ts_ms)
            .bigint(self.batch_key)
            .smallint(small(tier_code(record.tier)))
            .text(self.stream)
            .optional_text(record.session.as_deref())
            .text(&record.source)
            .optional_text(record.record_id.as_deref())
            .text(&record.attrs);
    }

    /// Claims the records' contents; returns how many were claimed before. In
    /// the order of keys, so that no two transactions wait for each other.
    pub async fn claim_contents(&self, session: &mut Session) -> Result<u64, StoreError> {
        let mut claims: Vec<(&[u8; 32], i64)> = self
            .records
            .iter()
            .filter_map(|(row, _)| Some((row.dedupe_key.as_ref()?, row.offset.cast_signed())))
            .collect();
        if claims.is_empty() {
            return Ok(0);
        }
        claims.sort_unstable();
        let (keys, offsets): (Vec<Vec<u8>>, Vec<i64>) =
            claims.iter().map(|(key, offset)| (key.to_vec(), *offset)).unzip();
        let claimed = session
            .query(
                "INSERT INTO thalweg.dedupe (key, \"offset\", stream)
                 SELECT key, at, $3 FROM unnest($1::bytea[], $2::bigint[]) AS u(key, at)
                 ON CONFLICT (key) DO NOTHING",
            )
            .bind(keys)
            .bind(offsets)
            .bind(self.stream.to_owned())
            .run(session)
            .await
            .doing("claiming contents")?
            .rows_affected();
        Ok(claims.len() as u64 - claimed)
    }
}

/// Everything of one batch, encoded.
struct Copies {
    records: CopyRows,
    chunks: CopyRows,
    vectors: CopyRows,
    /// Chunks and terms by tenant and tier.
    partitions: BTreeMap<(i64, i64), (i64, i64)>,
}

impl Default for Copies {
    fn default() -> Self {
        Self {
            records: CopyRows::new(11),
            chunks: CopyRows::new(11),
            vectors: VectorTable::rows(),
            partitions: BTreeMap::new(),
        }
    }
}

impl Copies {
    async fn send(self, session: &mut Session, vectors: Option<&VectorTable>) -> Result<(), StoreError> {
        let Self { records, chunks, vectors: vector_rows, partitions } = self;
        session.copy("thalweg.records", records).await.doing("writing records")?;
        session.copy("thalweg.chunks", chunks).await.doing("writing chunks")?;
        if let Some(table) = vectors {
            table.copy(session, vector_rows).await.doing("writing vectors")?;
        }
        // Last, for these rows are contended: they are held to the commit.
        write_partitions(session, &partitions).await.doing("counting terms")
    }
}

fn encode_chunk(
    rows: &mut CopyRows,
    chunk: &ChunkRow,
    (chunk_key, record_key): (i64, i64),
    (tenant_key, tier): (i64, i64),
    (scope, terms): (&str, &Terms),
) {
    rows.row()
        .bigint(chunk_key)
        .bigint(record_key)
        .bigint(tenant_key)
        .integer(size(chunk.chunk))
        .integer(size(chunk.start))
        .integer(size(chunk.end))
        .integer(size(chunk.tokens))
        .smallint(small(tier))
        .bytes(&chunk.digest)
        .text(&chunk.text)
        .lexemes(scope, terms);
}

/// A number within one record, far below the limit.
fn size(n: impl TryInto<i32>) -> i32 {
    n.try_into().unwrap_or(i32::MAX)
}

/// Keys for new records and chunks, ascending.
async fn draw_keys(
    session: &mut Session,
    records: usize,
    chunks: usize,
) -> Result<(Vec<i64>, Vec<i64>), StoreError> {
    session
        .query(
            "SELECT ARRAY(SELECT nextval('thalweg.record_keys') FROM generate_series(1, $1)),
                    ARRAY(SELECT nextval('thalweg.chunk_keys') FROM generate_series(1, $2))",
        )
        .bind(size(records))
        .bind(size(chunks))
        .one(session)
        .await
        .doing("drawing keys")
}

async fn write_partitions(
    session: &mut Session,
    partitions: &BTreeMap<(i64, i64), (i64, i64)>,
) -> Result<(), sqlx::Error> {
    session
        .query(
            "INSERT INTO thalweg.partitions AS p (tenant_key, tier, chunks, terms)
             SELECT tenant_key, tier::smallint, chunks, terms
             FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[])
                  AS u(tenant_key, tier, chunks, terms)
             ON CONFLICT (tenant_key, tier) DO UPDATE SET chunks = p.chunks + excluded.chunks,
                 terms = p.terms + excluded.terms",
        )
        .bind(partitions.keys().map(|(tenant_key, _)| *tenant_key).collect::<Vec<_>>())
        .bind(partitions.keys().map(|(_, tier)| *tier).collect::<Vec<_>>())
        .bind(partitions.values().map(|(chunks, _)| *chunks).collect::<Vec<_>>())
        .bind(partitions.values().map(|(_, terms)| *terms).collect::<Vec<_>>())
        .run(session)
        .await
        .map(drop)
}

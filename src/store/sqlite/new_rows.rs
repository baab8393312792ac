//! Records that are not stored yet, and the statements that store them.

use std::collections::{BTreeMap, HashMap};

use sqlx::SqliteConnection;

use super::insert::insert_rows;
use crate::store::error::{Doing, StoreError};
use crate::store::keywords::{self, Terms};
use crate::store::rows::{ChunkRow, RecordRow, tier_code};
use crate::store::vector::vector_bytes;

/// Records that are not stored yet, each with the terms of its chunks.
pub(super) struct NewRows<'a> {
    pub stream: &'a str,
    pub batch_key: i64,
    pub space_key: i64,
    pub tenants: &'a HashMap<String, i64>,
    pub records: Vec<(&'a RecordRow, &'a Vec<Terms>)>,
}

struct KeyedRecord<'a> {
    record_key: i64,
    tenant_key: i64,
    row: &'a RecordRow,
}

struct KeyedChunk<'a> {
    chunk_key: i64,
    record_key: i64,
    tenant_key: i64,
    tier: i64,
    row: &'a ChunkRow,
    terms: &'a Terms,
}

impl NewRows<'_> {
    /// Writes the records and all that is searched of them.
    pub async fn write(&self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        let (records, chunks) = self.keyed(connection).await?;
        self.write_records(connection, &records).await.doing("writing records")?;
        write_chunks(connection, &chunks).await.doing("writing chunks")?;
        write_vectors(connection, self.space_key, &chunks).await.doing("writing vectors")?;
        write_keywords(connection, &chunks).await.doing("writing keywords")?;
        write_partitions(connection, &chunks).await.doing("counting terms")?;
        Ok(())
    }

    /// Keys are given here rather than asked back row by row. Taken from the
    /// highest ever in use within the transaction, they follow the order of
    /// commits.
    async fn keyed(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<(Vec<KeyedRecord<'_>>, Vec<KeyedChunk<'_>>), StoreError> {
        let (mut record_key, mut chunk_key): (i64, i64) = sqlx::query_as(
            "SELECT max(record_key, coalesce((SELECT max(record_key) FROM records), 0)),
                    max(chunk_key, coalesce((SELECT max(chunk_key) FROM chunks), 0)) FROM forgotten_keys",
        )
        .fetch_one(connection)
        .await
        .doing("reading the last keys")?;
        let (mut records, mut chunks) = (Vec::new(), Vec::new());
        for (row, terms) in &self.records {
            record_key += 1;
            let tenant_key = self.tenants.get(&row.tenant).copied().unwrap_or_default();
            records.push(KeyedRecord { record_key, tenant_key, row });
            for (chunk, terms) in row.chunks.iter().zip(terms.iter()) {
                chunk_key += 1;
                let tier = tier_code(row.tier);
                chunks.push(KeyedChunk { chunk_key, record_key, tenant_key, tier, row: chunk, terms });
            }
        }
        Ok((records, chunks))
    }

    async fn write_records(
        &self,
        connection: &mut SqliteConnection,
        records: &[KeyedRecord<'_>],
    ) -> Result<u64, sqlx::Error> {
        let head = "INSERT INTO records (record_key, stream, \"offset\", tenant_key, tier, session, source,
                        record_id, ts_ms, batch_key, attrs) ";
        insert_rows(connection, head, "", records, |values, record| {
            values.push_bind(record.record_key).push_bind(self.stream);
            values.push_bind(record.row.offset.cast_signed()).push_bind(record.tenant_key);
            values.push_bind(tier_code(record.row.tier)).push_bind(record.row.session.as_deref());
            values.push_bind(record.row.source.as_str()).push_bind(record.row.record_id.as_deref());
            values.push_bind(record.row.ts_ms).push_bind(self.batch_key).push_bind(record.row.attrs.as_str());
        })
        .await
    }

    /// Claims the records' contents; returns how many were claimed before.
    pub async fn claim_contents(&self, connection: &mut SqliteConnection) -> Result<u64, StoreError> {
        let claims: Vec<(&[u8], u64)> = self
            .records
            .iter()
            .filter_map(|(row, _)| Some((row.dedupe_key.as_ref()?.as_slice(), row.offset)))
            .collect();
        let head = "INSERT OR IGNORE INTO dedupe (key, stream, \"offset\") ";
        let claimed = insert_rows(connection, head, "", &claims, |values, (key, offset)| {
            values.push_bind(*key).push_bind(self.stream).push_bind(offset.cast_signed());
        })
        .await
        .doing("claiming contents")?;
        Ok(claims.len() as u64 - claimed)
    }
}

async fn write_chunks(
    connection: &mut SqliteConnection,
    chunks: &[KeyedChunk<'_>],
) -> Result<u64, sqlx::Error> {
    let head =
        "INSERT INTO chunks (chunk_key, record_key, chunk, start_byte, end_byte, tokens, text, digest) ";
    insert_rows(connection, head, "", chunks, |values, chunk| {
        values.push_bind(chunk.chunk_key).push_bind(chunk.record_key).push_bind(chunk.row.chunk);
        values.push_bind(signed(chunk.row.start)).push_bind(signed(chunk.row.end));
        values.push_bind(signed(chunk.row.tokens));
        values.push_bind(chunk.row.text.as_str()).push_bind(chunk.row.digest.as_slice());
    })
    .await
}

async fn write_vectors(
    connection: &mut SqliteConnection,
    space_key: i64,
    chunks: &[KeyedChunk<'_>],
) -> Result<u64, sqlx::Error> {
    let embedded: Vec<_> = chunks.iter().filter_map(|c| Some((c, c.row.vector.as_ref()?))).collect();
    let head = "INSERT INTO vectors (space_key, tenant_key, tier, chunk_key, vector) ";
    insert_rows(connection, head, "", &embedded, |values, (chunk, vector)| {
        values.push_bind(space_key).push_bind(chunk.tenant_key).push_bind(chunk.tier);
        values.push_bind(chunk.chunk_key).push_bind(vector_bytes(vector));
    })
    .await
}

async fn write_keywords(
    connection: &mut SqliteConnection,
    chunks: &[KeyedChunk<'_>],
) -> Result<u64, sqlx::Error> {
    insert_rows(connection, "INSERT INTO keywords (rowid, terms) ", "", chunks, |values, chunk| {
        let scope = keywords::scope(chunk.tenant_key, chunk.tier);
        values.push_bind(chunk.chunk_key).push_bind(keywords::scoped(&scope, chunk.terms));
    })
    .await
}

async fn write_partitions(
    connection: &mut SqliteConnection,
    chunks: &[KeyedChunk<'_>],
) -> Result<u64, sqlx::Error> {
    let mut sums: BTreeMap<(i64, i64), (i64, i64)> = BTreeMap::new();
    for chunk in chunks {
        let sum = sums.entry((chunk.tenant_key, chunk.tier)).or_default();
        sum.0 += 1;
        sum.1 += signed(chunk.terms.len());
    }
    let sums: Vec<_> = sums.into_iter().collect();
    let head = "INSERT INTO partitions (tenant_key, tier, chunks, terms, generation) ";
    let tail = " ON CONFLICT DO UPDATE SET chunks = chunks + excluded.chunks, terms = terms + excluded.terms";
    insert_rows(connection, head, tail, &sums, |values, ((tenant_key, tier), (chunks, terms))| {
        values.push_bind(*tenant_key).push_bind(*tier).push_bind(*chunks).push_bind(*terms).push_bind(0);
    })
    .await
}

/// Sizes within one record are far below the limit.
fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

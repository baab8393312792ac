//! Putting back what is missing of a range of offsets.

use std::collections::{BTreeMap, HashMap};

use sqlx::sqlite::SqliteRow;
use sqlx::{FromRow, Row, SqliteConnection};

use super::commit::{Analysed, batch_key, check_live, has_vectors};
use super::error::{Doing, StoreError};
use super::insert::{insert_rows, json_array};
use super::lost;
use super::new_rows::NewRows;
use super::rows::{Batch, ChunkRow, OutcomeKind, RecordRow};
use super::sqlite::Store;
use super::vector::vector_bytes;
use super::waiting::mark_changed;

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

impl Store {
    /// Adds whatever of `batch` is not stored: records, and vectors in the
    /// batch's space. The checkpoint does not move; an offset that had not
    /// been indexed and now is changes sides in its counters. The batch need
    /// not be complete and its outcomes are not written.
    pub async fn put_missing(
        &self,
        pipeline: &str,
        stream: &str,
        batch: Batch,
    ) -> Result<Replayed, StoreError> {
        let Analysed { batch, terms } = self.analyse(batch).await?;
        let mut transaction = self.begin().await?;
        if has_vectors(&batch) {
            check_live(&mut transaction, batch.space_key).await?;
        }
        let mut stored = stored_chunks(&mut transaction, stream, &batch).await?;
        let next_offset = next_offset(&mut transaction, pipeline, stream).await?;
        let mut replayed = Replayed::default();
        let mut missing_records = Vec::new();
        let mut missing_vectors = Vec::new();
        let mut complete = Vec::new();
        let mut regained = Vec::new();
        for (record, terms) in batch.records.iter().zip(&terms) {
            if record.offset >= next_offset {
                replayed.ahead += 1;
                continue;
            }
            match stored.remove(&record.offset) {
                None => {
                    replayed.records += 1;
                    missing_records.push((record, terms));
                }
                Some(chunks) if !chunks.agree(record) => {
                    replayed.differing += 1;
                    continue;
                }
                Some(chunks) => {
                    let missing = chunks.without_vector(record);
                    replayed.present += u64::from(missing.is_empty());
                    missing_vectors.extend(missing);
                }
            }
            if record.chunks.iter().all(|chunk| chunk.vector.is_some()) {
                complete.push(record.offset);
                regained.extend(
                    missing_records.last().filter(|(r, _)| r.offset == record.offset).map(|(r, _)| r.offset),
                );
            }
        }
        replayed.vectors = missing_vectors.len() as u64;
        let tenants = self.tenant_keys(&mut transaction, &batch.records).await?;
        let rows = NewRows {
            stream,
            batch_key: batch_key(&mut transaction, &batch).await?,
            space_key: batch.space_key,
            tenants: &tenants,
            records: missing_records,
        };
        rows.write(&mut transaction).await?;
        rows.claim_contents(&mut transaction).await?;
        add_vectors(&mut transaction, batch.space_key, &missing_vectors).await?;
        settle(&mut transaction, pipeline, stream, &complete).await?;
        regained.sort_unstable();
        lost::take_back(&mut transaction, pipeline, stream, &regained).await?;
        transaction.commit().await.doing("committing a replay")?;
        self.remember_tenants(tenants);
        Ok(replayed)
    }
}

/// The chunks one stored record has.
struct StoredChunks {
    tenant_key: i64,
    tier: i64,
    chunks: BTreeMap<u32, StoredKey>,
}

#[derive(FromRow)]
struct StoredKey {
    chunk_key: i64,
    digest: Vec<u8>,
    embedded: bool,
}

/// A vector for a chunk that is stored without.
struct MissingVector<'a> {
    tenant_key: i64,
    tier: i64,
    chunk_key: i64,
    vector: &'a [f32],
}

impl StoredChunks {
    fn agree(&self, record: &RecordRow) -> bool {
        self.chunks.len() == record.chunks.len()
            && record
                .chunks
                .iter()
                .all(|c| self.chunks.get(&c.chunk).is_some_and(|stored| stored.digest == c.digest))
    }

    fn without_vector<'a>(&self, record: &'a RecordRow) -> Vec<MissingVector<'a>> {
        let missing = |chunk: &'a ChunkRow| {
            let stored = self.chunks.get(&chunk.chunk).filter(|stored| !stored.embedded)?;
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

async fn stored_chunks(
    connection: &mut SqliteConnection,
    stream: &str,
    batch: &Batch,
) -> Result<HashMap<u64, StoredChunks>, StoreError> {
    let rows = sqlx::query(
        "SELECT r.\"offset\", r.tenant_key, r.tier, c.chunk_key, c.chunk, c.digest,
                v.chunk_key IS NOT NULL AS embedded
         FROM records r
         LEFT JOIN chunks c ON c.record_key = r.record_key
         LEFT JOIN vectors v ON v.space_key = ?3 AND v.tenant_key = r.tenant_key AND v.tier = r.tier
                            AND v.chunk_key = c.chunk_key
         WHERE r.stream = ?1 AND r.\"offset\" IN (SELECT value FROM json_each(?2))",
    )
    .bind(stream)
    .bind(json_array(batch.records.iter().map(|r| r.offset.cast_signed())))
    .bind(batch.space_key)
    .fetch_all(connection)
    .await
    .doing("reading what is stored")?;
    group(&rows).doing("reading what is stored")
}

fn group(rows: &[SqliteRow]) -> Result<HashMap<u64, StoredChunks>, sqlx::Error> {
    let mut stored = HashMap::new();
    for row in rows {
        let record = StoredChunks {
            tenant_key: row.try_get("tenant_key")?,
            tier: row.try_get("tier")?,
            chunks: BTreeMap::new(),
        };
        let offset = row.try_get::<i64, _>("offset")?.cast_unsigned();
        let record = stored.entry(offset).or_insert(record);
        if let Some(chunk) = row.try_get::<Option<u32>, _>("chunk")? {
            record.chunks.insert(chunk, StoredKey::from_row(row)?);
        }
    }
    Ok(stored)
}

/// Where live reading stands; a stream nobody reads has nothing to collide
/// with.
async fn next_offset(
    connection: &mut SqliteConnection,
    pipeline: &str,
    stream: &str,
) -> Result<u64, StoreError> {
    let next: Option<i64> =
        sqlx::query_scalar("SELECT next_offset FROM checkpoints WHERE pipeline = ? AND stream = ?")
            .bind(pipeline)
            .bind(stream)
            .fetch_optional(connection)
            .await
            .doing("reading a checkpoint")?;
    Ok(next.map_or(u64::MAX, i64::cast_unsigned))
}

async fn add_vectors(
    connection: &mut SqliteConnection,
    space_key: i64,
    missing: &[MissingVector<'_>],
) -> Result<(), StoreError> {
    let head = "INSERT INTO vectors (space_key, tenant_key, tier, chunk_key, vector) ";
    insert_rows(connection, head, "", missing, |values, new| {
        values.push_bind(space_key).push_bind(new.tenant_key).push_bind(new.tier);
        values.push_bind(new.chunk_key).push_bind(vector_bytes(new.vector));
    })
    .await
    .doing("adding vectors")?;
    mark_changed(connection, missing.iter().map(|new| (new.tenant_key, new.tier)).collect()).await
}

/// Offsets that now have all they should leave their outcome behind and count
/// as indexed.
async fn settle(
    connection: &mut SqliteConnection,
    pipeline: &str,
    stream: &str,
    complete: &[u64],
) -> Result<(), StoreError> {
    let kinds: Vec<String> = sqlx::query_scalar(
        "DELETE FROM outcomes WHERE pipeline = ? AND stream = ?
             AND \"offset\" IN (SELECT value FROM json_each(?)) RETURNING kind",
    )
    .bind(pipeline)
    .bind(stream)
    .bind(json_array(complete.iter().map(|offset| offset.cast_signed())))
    .fetch_all(&mut *connection)
    .await
    .doing("settling outcomes")?;
    let count = |kind: OutcomeKind| kinds.iter().filter(|k| k.as_str() == kind.as_str()).count() as i64;
    sqlx::query(
        "UPDATE checkpoints SET indexed = indexed + ?1 + ?2 + ?3 + ?4, rejected = rejected - ?1,
             deduplicated = deduplicated - ?2, deferred = deferred - ?3, dead_lettered = dead_lettered - ?4
         WHERE pipeline = ?5 AND stream = ?6",
    )
    .bind(count(OutcomeKind::Rejected))
    .bind(count(OutcomeKind::Deduplicated))
    .bind(count(OutcomeKind::Deferred))
    .bind(count(OutcomeKind::DeadLettered))
    .bind(pipeline)
    .bind(stream)
    .execute(connection)
    .await
    .doing("settling counters")?;
    Ok(())
}

//! Putting back what is missing of a range of offsets.

use std::collections::HashSet;

use sqlx::SqliteConnection;

use super::SqliteStore;
use super::commit::{batch_key, check_live};
use super::insert::{insert_rows, json_array};
use super::lost;
use super::new_rows::NewRows;
use super::waiting::mark_changed;
use crate::store::error::{Doing, StoreError};
use crate::store::forget::Forgetting;
use crate::store::replay::{Gaps, MissingVector, Replayed, StoredKeyRow, by_offset};
use crate::store::rows::{Batch, OutcomeKind};
use crate::store::vector::vector_bytes;

impl SqliteStore {
    pub async fn put_missing(
        &self,
        pipeline: &str,
        stream: &str,
        batch: Batch,
    ) -> Result<Replayed, StoreError> {
        let mut analysed = self.analyse(batch).await?;
        let mut transaction = self.begin().await?;
        let gone = forgotten(&mut transaction, pipeline, stream, &analysed.batch).await?;
        analysed.leave_out(&gone);
        let batch = &analysed.batch;
        if batch.has_vectors() {
            check_live(&mut transaction, batch.space_key).await?;
        }
        let stored = stored_chunks(&mut transaction, stream, batch).await?;
        let next_offset = next_offset(&mut transaction, pipeline, stream).await?;
        let gaps = Gaps::of(&analysed, by_offset(stored), next_offset);
        let tenants = Self::tenant_keys(&mut transaction, &batch.records).await?;
        let rows = NewRows {
            stream,
            batch_key: batch_key(&mut transaction, batch).await?,
            space_key: batch.space_key,
            tenants: &tenants,
            records: gaps.records,
        };
        rows.write(&mut transaction).await?;
        rows.claim_contents(&mut transaction).await?;
        add_vectors(&mut transaction, batch.space_key, &gaps.vectors).await?;
        settle(&mut transaction, pipeline, stream, &gaps.complete).await?;
        lost::take_back(&mut transaction, pipeline, stream, &gaps.regained).await?;
        transaction.commit().await.doing("committing a replay")?;
        Ok(gaps.replayed)
    }
}

/// Offsets of the batch that were taken away for good, by whoever read them
/// again before that.
async fn forgotten(
    connection: &mut SqliteConnection,
    pipeline: &str,
    stream: &str,
    batch: &Batch,
) -> Result<HashSet<u64>, StoreError> {
    let gone: Vec<i64> = sqlx::query_scalar(
        "SELECT \"offset\" FROM outcomes WHERE pipeline = ? AND stream = ? AND reason IN (?, ?)
             AND \"offset\" IN (SELECT value FROM json_each(?))",
    )
    .bind(pipeline)
    .bind(stream)
    .bind(Forgetting::Erased.as_str())
    .bind(Forgetting::Expired.as_str())
    .bind(json_array(batch.records.iter().map(|r| r.offset.cast_signed())))
    .fetch_all(connection)
    .await
    .doing("reading what was taken away")?;
    Ok(gone.into_iter().map(i64::cast_unsigned).collect())
}

async fn stored_chunks(
    connection: &mut SqliteConnection,
    stream: &str,
    batch: &Batch,
) -> Result<Vec<StoredKeyRow>, StoreError> {
    sqlx::query_as(
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
    .doing("reading what is stored")
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

//! Chunks that wait for vectors.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{FromRow, SqliteConnection};

use super::SqliteStore;
use super::commit::check_live;
use super::insert::{insert_rows, json_array};
use crate::store::error::{Doing, StoreError};
use crate::store::rows::OutcomeKind;
use crate::store::vector::vector_bytes;
use crate::store::waiting::{Moved, WaitingChunk, WaitingPage, check_vectors};

impl SqliteStore {
    pub async fn waiting_records(
        &self,
        (pipeline, stream): (&str, &str),
        space_key: i64,
        from: u64,
        (records, chunks): (u32, u32),
    ) -> Result<WaitingPage, StoreError> {
        let offsets: Vec<i64> = sqlx::query_scalar(
            "SELECT \"offset\" FROM outcomes INDEXED BY outcomes_deferred
             WHERE pipeline = ? AND stream = ? AND kind = 'deferred' AND \"offset\" >= ?
             ORDER BY \"offset\" LIMIT ?",
        )
        .bind(pipeline)
        .bind(stream)
        .bind(from.cast_signed())
        .bind(records)
        .fetch_all(self.readers())
        .await
        .doing("reading what waits for vectors")?;
        let rows = sqlx::query(
            "SELECT r.\"offset\", c.chunk_key, r.tenant_key, r.tier, c.text FROM json_each(?2) o
             CROSS JOIN records r ON r.stream = ?1 AND r.\"offset\" = o.value
             CROSS JOIN chunks c ON c.record_key = r.record_key
             LEFT JOIN vectors v ON v.space_key = ?3 AND v.tenant_key = r.tenant_key AND v.tier = r.tier
                                AND v.chunk_key = c.chunk_key
             WHERE v.chunk_key IS NULL LIMIT ?4",
        )
        .bind(stream)
        .bind(json_array(offsets.iter().copied()))
        .bind(space_key)
        .bind(chunks)
        .fetch_all(self.readers())
        .await
        .doing("reading what waits for vectors")?;
        let read = |row| -> Result<_, sqlx::Error> {
            let offset: i64 = sqlx::Row::try_get(row, "offset")?;
            Ok((offset.cast_unsigned(), WaitingChunk::from_row(row)?))
        };
        let chunks: Result<Vec<_>, _> = rows.iter().map(read).collect();
        Ok(WaitingPage {
            offsets: offsets.into_iter().map(i64::cast_unsigned).collect(),
            chunks: chunks.doing("reading what waits for vectors")?,
        })
    }

    pub async fn waiting_chunks(
        &self,
        space_key: i64,
        after: i64,
        limit: u32,
    ) -> Result<Vec<WaitingChunk>, StoreError> {
        sqlx::query_as(
            "SELECT c.chunk_key, r.tenant_key, r.tier, c.text FROM chunks c
             CROSS JOIN records r ON r.record_key = c.record_key
             LEFT JOIN vectors v ON v.space_key = ?1 AND v.tenant_key = r.tenant_key AND v.tier = r.tier
                                AND v.chunk_key = c.chunk_key
             WHERE c.chunk_key > ?2 AND v.chunk_key IS NULL ORDER BY c.chunk_key LIMIT ?3",
        )
        .bind(space_key)
        .bind(after)
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .doing("reading what waits for vectors")
    }

    pub async fn put_vectors(
        &self,
        space_key: i64,
        vectors: &[(WaitingChunk, Vec<f32>)],
    ) -> Result<(), StoreError> {
        check_vectors(self.space(space_key).await?.space.dimensions, vectors)?;
        let mut transaction = self.begin().await?;
        add(&mut transaction, space_key, vectors).await?;
        transaction.commit().await.doing("adding vectors")
    }

    pub async fn settle_waiting(
        &self,
        (pipeline, stream): (&str, &str),
        space_key: i64,
        vectors: &[(WaitingChunk, Vec<f32>)],
        (offsets, refused): (&[u64], &[(u64, String)]),
        now_ms: i64,
    ) -> Result<Moved, StoreError> {
        check_vectors(self.space(space_key).await?.space.dimensions, vectors)?;
        let mut transaction = self.begin().await?;
        check_live(&mut transaction, space_key).await?;
        add(&mut transaction, space_key, vectors).await?;
        let mut moved = Moved::default();
        for (offset, reason) in refused {
            let refused = refuse(&mut transaction, (pipeline, stream), *offset, reason, now_ms).await?;
            moved.dead_lettered += u64::from(refused);
        }
        moved.indexed = forget_complete(&mut transaction, (pipeline, stream), space_key, offsets).await?;
        sqlx::query(
            "UPDATE checkpoints SET indexed = indexed + ?1, dead_lettered = dead_lettered + ?2,
                 deferred = deferred - ?1 - ?2 WHERE pipeline = ?3 AND stream = ?4",
        )
        .bind(moved.indexed.cast_signed())
        .bind(moved.dead_lettered.cast_signed())
        .bind(pipeline)
        .bind(stream)
        .execute(&mut *transaction)
        .await
        .doing("settling counters")?;
        transaction.commit().await.doing("settling what waited for vectors")?;
        Ok(moved)
    }
}

/// Adds vectors, and marks the partitions in which they do not come last.
async fn add(
    connection: &mut SqliteConnection,
    space_key: i64,
    vectors: &[(WaitingChunk, Vec<f32>)],
) -> Result<(), StoreError> {
    let mut firsts: BTreeMap<(i64, i64), i64> = BTreeMap::new();
    for (chunk, _) in vectors {
        let first = firsts.entry((chunk.tenant_key, chunk.tier)).or_insert(chunk.chunk_key);
        *first = chunk.chunk_key.min(*first);
    }
    let mut changed = BTreeSet::new();
    for ((tenant_key, tier), first) in firsts {
        let last: Option<i64> = sqlx::query_scalar(
            "SELECT max(chunk_key) FROM vectors WHERE space_key = ? AND tenant_key = ? AND tier = ?",
        )
        .bind(space_key)
        .bind(tenant_key)
        .bind(tier)
        .fetch_one(&mut *connection)
        .await
        .doing("finding the newest vector")?;
        if last.is_some_and(|last| last > first) {
            changed.insert((tenant_key, tier));
        }
    }
    let stored = stored_of(connection, vectors).await?;
    let vectors: Vec<_> = vectors.iter().filter(|(chunk, _)| stored.contains(&chunk.chunk_key)).collect();
    let head = "INSERT OR IGNORE INTO vectors (space_key, tenant_key, tier, chunk_key, vector) ";
    insert_rows(connection, head, "", &vectors, |values, (chunk, vector)| {
        values.push_bind(space_key).push_bind(chunk.tenant_key).push_bind(chunk.tier);
        values.push_bind(chunk.chunk_key).push_bind(vector_bytes(vector));
    })
    .await
    .doing("adding vectors")?;
    mark_changed(connection, changed).await
}

/// Moves the generation of partitions, each a tenant and a tier, in which
/// vectors came other than at the end.
pub(super) async fn mark_changed(
    connection: &mut SqliteConnection,
    partitions: BTreeSet<(i64, i64)>,
) -> Result<(), StoreError> {
    for (tenant_key, tier) in partitions {
        sqlx::query("UPDATE partitions SET generation = generation + 1 WHERE tenant_key = ? AND tier = ?")
            .bind(tenant_key)
            .bind(tier)
            .execute(&mut *connection)
            .await
            .doing("marking a partition as changed")?;
    }
    Ok(())
}

/// Which of the chunks are still there.
async fn stored_of(
    connection: &mut SqliteConnection,
    vectors: &[(WaitingChunk, Vec<f32>)],
) -> Result<BTreeSet<i64>, StoreError> {
    let keys: Vec<i64> = sqlx::query_scalar(
        "SELECT chunk_key FROM chunks WHERE chunk_key IN (SELECT value FROM json_each(?))",
    )
    .bind(json_array(vectors.iter().map(|(chunk, _)| chunk.chunk_key)))
    .fetch_all(connection)
    .await
    .doing("looking for chunks")?;
    Ok(keys.into_iter().collect())
}

/// Records that have all their vectors leave their outcome behind; how many
/// did.
async fn forget_complete(
    connection: &mut SqliteConnection,
    (pipeline, stream): (&str, &str),
    space_key: i64,
    offsets: &[u64],
) -> Result<u64, StoreError> {
    let gone = sqlx::query(
        "DELETE FROM outcomes WHERE pipeline = ?1 AND stream = ?2 AND kind = 'deferred'
             AND \"offset\" IN (SELECT value FROM json_each(?3))
             AND NOT EXISTS (
                 SELECT 1 FROM records r CROSS JOIN chunks c ON c.record_key = r.record_key
                 WHERE r.stream = ?2 AND r.\"offset\" = outcomes.\"offset\" AND NOT EXISTS (
                     SELECT 1 FROM vectors v WHERE v.space_key = ?4 AND v.tenant_key = r.tenant_key
                         AND v.tier = r.tier AND v.chunk_key = c.chunk_key))",
    )
    .bind(pipeline)
    .bind(stream)
    .bind(json_array(offsets.iter().map(|offset| offset.cast_signed())))
    .bind(space_key)
    .execute(connection)
    .await
    .doing("settling outcomes")?;
    Ok(gone.rows_affected())
}

/// A record becomes a dead letter, unless it no longer waits.
async fn refuse(
    connection: &mut SqliteConnection,
    (pipeline, stream): (&str, &str),
    offset: u64,
    reason: &str,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let changed = sqlx::query(
        "UPDATE outcomes SET kind = ?1, reason = ?2, detail = ?3
         WHERE pipeline = ?4 AND stream = ?5 AND \"offset\" = ?6 AND kind = 'deferred'",
    )
    .bind(OutcomeKind::DeadLettered.as_str())
    .bind(crate::store::EMBED_INPUT)
    .bind(reason)
    .bind(pipeline)
    .bind(stream)
    .bind(offset.cast_signed())
    .execute(&mut *connection)
    .await
    .doing("settling outcomes")?;
    if changed.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query(
        "INSERT INTO dead_letters (at_ms, pipeline, source, stream, \"offset\", code, message)
         VALUES (?, ?, '', ?, ?, ?, ?)",
    )
    .bind(now_ms)
    .bind(pipeline)
    .bind(stream)
    .bind(offset.cast_signed())
    .bind(crate::store::EMBED_INPUT)
    .bind(reason)
    .execute(connection)
    .await
    .doing("writing dead letters")?;
    Ok(true)
}

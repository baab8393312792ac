//! Chunks that wait for vectors.

use sqlx::{AssertSqlSafe, FromRow, Row};

use super::commit::check_live;
use super::replay::next_offset;
use super::text::{original, stored};
use super::vectors::VectorTable;
use super::{PostgresStore, Session, array};
use crate::store::error::{Doing, StoreError};
use crate::store::rows::OutcomeKind;
use crate::store::waiting::{Moved, WaitingChunk, WaitingPage, check_vectors};

impl PostgresStore {
    pub async fn waiting_records(
        &self,
        (pipeline, stream): (&str, &str),
        space_key: i64,
        from: u64,
        (records, chunks): (u32, u32),
    ) -> Result<WaitingPage, StoreError> {
        let table = self.vector_table(space_key).await?;
        let mut session = self.read().await?;
        let offsets: Vec<i64> = session
            .query(
                "SELECT \"offset\" FROM thalweg.outcomes
                 WHERE pipeline = $1 AND stream = $2 AND kind = 'deferred' AND \"offset\" >= $3
                 ORDER BY \"offset\" LIMIT $4",
            )
            .bind(pipeline.to_owned())
            .bind(stream.to_owned())
            .bind(from.cast_signed())
            .bind(i64::from(records))
            .scalars(&mut session)
            .await
            .doing("reading what waits for vectors")?;
        let statement = format!(
            "SELECT r.\"offset\", c.chunk_key, r.tenant_key, r.tier::bigint, c.text
             FROM thalweg.records r JOIN thalweg.chunks c USING (record_key)
             WHERE r.stream = $1 AND r.\"offset\" = ANY($2) AND NOT EXISTS (
                 SELECT FROM {} v WHERE v.tenant_key = r.tenant_key AND v.tier = r.tier AND v.chunk_key = c.chunk_key)
             ORDER BY r.\"offset\", c.chunk LIMIT $3",
            table.name()
        );
        let rows = session
            .query(AssertSqlSafe(statement))
            .bind(stream.to_owned())
            .bind(offsets.clone())
            .bind(i64::from(chunks))
            .rows(&mut session)
            .await
            .doing("reading what waits for vectors")?;
        let read = |row| -> Result<_, sqlx::Error> {
            let offset: i64 = Row::try_get(row, "offset")?;
            Ok((offset.cast_unsigned(), unescaped(WaitingChunk::from_row(row)?)))
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
        let table = self.vector_table(space_key).await?;
        // Keys may be committed in another order than they were drawn in, and
        // whoever passes over one does not come back to it.
        let drawn = self.keys_drawn().await?;
        let mut session = self.read().await?;
        let statement = format!(
            "SELECT c.chunk_key, c.tenant_key, c.tier::bigint, c.text FROM thalweg.chunks c
             WHERE c.chunk_key > $1 AND c.chunk_key < $2 AND NOT EXISTS (
                 SELECT FROM {} v WHERE v.tenant_key = c.tenant_key AND v.tier = c.tier AND v.chunk_key = c.chunk_key)
             ORDER BY c.chunk_key LIMIT $3",
            table.name()
        );
        let chunks: Vec<WaitingChunk> = session
            .query(AssertSqlSafe(statement))
            .bind(after)
            .bind(drawn)
            .bind(i64::from(limit))
            .all(&mut session)
            .await
            .doing("reading what waits for vectors")?;
        Ok(chunks.into_iter().map(unescaped).collect())
    }

    pub async fn put_vectors(
        &self,
        space_key: i64,
        vectors: &[(WaitingChunk, Vec<f32>)],
    ) -> Result<(), StoreError> {
        let table = self.vector_table(space_key).await?;
        check_vectors(table.dimensions, vectors)?;
        let mut session = self.begin().await?;
        add(&mut session, &table, vectors).await?;
        session.commit("adding vectors").await
    }

    pub async fn settle_waiting(
        &self,
        (pipeline, stream): (&str, &str),
        space_key: i64,
        vectors: &[(WaitingChunk, Vec<f32>)],
        (offsets, refused): (&[u64], &[(u64, String)]),
        now_ms: i64,
    ) -> Result<Moved, StoreError> {
        let table = self.vector_table(space_key).await?;
        check_vectors(table.dimensions, vectors)?;
        let mut session = self.begin().await?;
        check_live(&mut session, space_key).await?;
        // First, as replays do, so that neither waits for the other.
        next_offset(&mut session, pipeline, stream).await?;
        add(&mut session, &table, vectors).await?;
        let mut moved = Moved::default();
        for (offset, reason) in refused {
            let refused = refuse(&mut session, (pipeline, stream), *offset, reason, now_ms).await?;
            moved.dead_lettered += u64::from(refused);
        }
        moved.indexed = forget_complete(&mut session, (pipeline, stream), &table, offsets).await?;
        session
            .query(
                "UPDATE thalweg.checkpoints SET indexed = indexed + $1, dead_lettered = dead_lettered + $2,
                     deferred = deferred - $1 - $2 WHERE pipeline = $3 AND stream = $4",
            )
            .bind(moved.indexed.cast_signed())
            .bind(moved.dead_lettered.cast_signed())
            .bind(pipeline.to_owned())
            .bind(stream.to_owned())
            .run(&mut session)
            .await
            .doing("settling counters")?;
        session.commit("settling what waited for vectors").await?;
        Ok(moved)
    }
}

fn unescaped(chunk: WaitingChunk) -> WaitingChunk {
    WaitingChunk { text: original(chunk.text), ..chunk }
}

async fn add(
    session: &mut Session,
    table: &VectorTable,
    vectors: &[(WaitingChunk, Vec<f32>)],
) -> Result<(), StoreError> {
    let mut rows = VectorTable::rows();
    for (chunk, vector) in vectors {
        table.encode(&mut rows, chunk.chunk_key, (chunk.tenant_key, chunk.tier), vector);
    }
    table.merge(session, rows).await.doing("adding vectors").map(drop)
}

/// Records that have all their vectors leave their outcome behind; how many
/// did.
async fn forget_complete(
    session: &mut Session,
    (pipeline, stream): (&str, &str),
    table: &VectorTable,
    offsets: &[u64],
) -> Result<u64, StoreError> {
    let statement = format!(
        "DELETE FROM thalweg.outcomes o WHERE o.pipeline = $1 AND o.stream = $2 AND o.kind = 'deferred'
             AND o.\"offset\" = ANY($3) AND NOT EXISTS (
                 SELECT FROM thalweg.records r JOIN thalweg.chunks c USING (record_key)
                 WHERE r.stream = $2 AND r.\"offset\" = o.\"offset\" AND NOT EXISTS (
                     SELECT FROM {} v WHERE v.tenant_key = r.tenant_key AND v.tier = r.tier
                         AND v.chunk_key = c.chunk_key))",
        table.name()
    );
    let gone = session
        .query(AssertSqlSafe(statement))
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .bind(array(offsets.iter().copied()))
        .run(session)
        .await
        .doing("settling outcomes")?;
    Ok(gone.rows_affected())
}

/// A record becomes a dead letter, unless it no longer waits.
async fn refuse(
    session: &mut Session,
    (pipeline, stream): (&str, &str),
    offset: u64,
    reason: &str,
    now_ms: i64,
) -> Result<bool, StoreError> {
    let changed = session
        .query(
            "UPDATE thalweg.outcomes SET kind = $1, reason = $2, detail = $3
             WHERE pipeline = $4 AND stream = $5 AND \"offset\" = $6 AND kind = 'deferred'",
        )
        .bind(OutcomeKind::DeadLettered.as_str())
        .bind(crate::store::EMBED_INPUT)
        .bind(stored(reason).into_owned())
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .bind(offset.cast_signed())
        .run(session)
        .await
        .doing("settling outcomes")?;
    if changed.rows_affected() == 0 {
        return Ok(false);
    }
    session
        .query(
            "INSERT INTO thalweg.dead_letters (at_ms, pipeline, source, stream, \"offset\", code, message)
             VALUES ($1, $2, '', $3, $4, $5, $6)",
        )
        .bind(now_ms)
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .bind(offset.cast_signed())
        .bind(crate::store::EMBED_INPUT)
        .bind(stored(reason).into_owned())
        .run(session)
        .await
        .doing("writing dead letters")?;
    Ok(true)
}

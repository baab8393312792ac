//! Putting back what is missing of a range of offsets.

use std::collections::HashSet;

use super::commit::{batch_key, check_live};
use super::lost;
use super::new_rows::NewRows;
use super::vectors::VectorTable;
use super::{PostgresStore, Session, array};
use crate::store::error::{Doing, StoreError};
use crate::store::forget::Forgetting;
use crate::store::replay::{Gaps, Replayed, StoredKeyRow, by_offset};
use crate::store::rows::{Batch, OutcomeKind};

impl PostgresStore {
    pub async fn put_missing(
        &self,
        pipeline: &str,
        stream: &str,
        batch: Batch,
    ) -> Result<Replayed, StoreError> {
        let mut analysed = self.analyse(batch).await?;
        let vectors = self.table_of(&analysed.batch).await?;
        let mut session = self.begin_drawing_keys().await?;
        // One replay of a stream at a time, and none beside its live reader:
        // what is found missing below stays so until the commit.
        session
            .query("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))")
            .bind(stream.to_owned())
            .run(&mut session)
            .await
            .doing("waiting for another replay")?;
        let next_offset = next_offset(&mut session, pipeline, stream).await?;
        let gone = forgotten(&mut session, pipeline, stream, &analysed.batch).await?;
        analysed.leave_out(&gone);
        let batch = &analysed.batch;
        if batch.has_vectors() {
            check_live(&mut session, batch.space_key).await?;
        }
        let stored = stored_chunks(&mut session, stream, batch, vectors.as_ref()).await?;
        let gaps = Gaps::of(&analysed, by_offset(stored), next_offset);
        let tenants = self.tenant_keys(&mut session, &batch.records).await?;
        let rows = NewRows {
            stream,
            batch_key: batch_key(&mut session, batch).await?,
            vectors,
            tenants: &tenants,
            records: gaps.records,
        };
        rows.claim_contents(&mut session).await?;
        rows.write(&mut session).await?;
        if let Some(table) = &vectors {
            let mut rows = VectorTable::rows();
            for missing in &gaps.vectors {
                table.encode(
                    &mut rows,
                    missing.chunk_key,
                    (missing.tenant_key, missing.tier),
                    missing.vector,
                );
            }
            table.merge(&mut session, rows).await.doing("adding vectors")?;
        }
        settle(&mut session, pipeline, stream, &gaps.complete).await?;
        lost::take_back(&mut session, pipeline, stream, &gaps.regained).await?;
        session.commit("committing a replay").await?;
        Ok(gaps.replayed)
    }
}

/// Offsets of the batch that were taken away for good, by whoever read them
/// again before that.
async fn forgotten(
    session: &mut Session,
    pipeline: &str,
    stream: &str,
    batch: &Batch,
) -> Result<HashSet<u64>, StoreError> {
    let gone: Vec<i64> = session
        .query(
            "SELECT \"offset\" FROM thalweg.outcomes WHERE pipeline = $1 AND stream = $2
                 AND reason IN ($3, $4) AND \"offset\" = ANY($5)",
        )
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .bind(Forgetting::Erased.as_str())
        .bind(Forgetting::Expired.as_str())
        .bind(array(batch.records.iter().map(|r| r.offset)))
        .scalars(session)
        .await
        .doing("reading what was taken away")?;
    Ok(gone.into_iter().map(i64::cast_unsigned).collect())
}

async fn stored_chunks(
    session: &mut Session,
    stream: &str,
    batch: &Batch,
    vectors: Option<&VectorTable>,
) -> Result<Vec<StoredKeyRow>, StoreError> {
    let (embedded, join) = match vectors {
        Some(table) => (
            "v.chunk_key IS NOT NULL",
            format!(
                "LEFT JOIN {} v ON v.tenant_key = r.tenant_key AND v.tier = r.tier AND v.chunk_key = c.chunk_key",
                table.name()
            ),
        ),
        None => ("false", String::new()),
    };
    let statement = format!(
        "SELECT r.\"offset\", r.tenant_key, r.tier::bigint, c.chunk_key, c.chunk::bigint, c.digest,
                {embedded} AS embedded
         FROM thalweg.records r LEFT JOIN thalweg.chunks c USING (record_key) {join}
         WHERE r.stream = $1 AND r.\"offset\" = ANY($2)"
    );
    session
        .query(sqlx::AssertSqlSafe(statement))
        .bind(stream.to_owned())
        .bind(array(batch.records.iter().map(|r| r.offset)))
        .all(session)
        .await
        .doing("reading what is stored")
}

/// Where live reading stands, held there; a stream nobody reads has nothing to
/// collide with.
pub(super) async fn next_offset(
    session: &mut Session,
    pipeline: &str,
    stream: &str,
) -> Result<u64, StoreError> {
    let next: Option<i64> = session
        .query("SELECT next_offset FROM thalweg.checkpoints WHERE pipeline = $1 AND stream = $2 FOR UPDATE")
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .optional_scalar(session)
        .await
        .doing("reading a checkpoint")?;
    Ok(next.map_or(u64::MAX, i64::cast_unsigned))
}

/// Offsets that now have all they should leave their outcome behind and count
/// as indexed.
async fn settle(
    session: &mut Session,
    pipeline: &str,
    stream: &str,
    complete: &[u64],
) -> Result<(), StoreError> {
    let kinds: Vec<String> = session
        .query(
            "DELETE FROM thalweg.outcomes WHERE pipeline = $1 AND stream = $2 AND \"offset\" = ANY($3)
             RETURNING kind",
        )
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .bind(array(complete.iter().copied()))
        .scalars(session)
        .await
        .doing("settling outcomes")?;
    let count = |kind: OutcomeKind| kinds.iter().filter(|k| k.as_str() == kind.as_str()).count() as i64;
    session
        .query(
            "UPDATE thalweg.checkpoints SET indexed = indexed + $1 + $2 + $3 + $4, rejected = rejected - $1,
                 deduplicated = deduplicated - $2, deferred = deferred - $3, dead_lettered = dead_lettered - $4
             WHERE pipeline = $5 AND stream = $6",
        )
        .bind(count(OutcomeKind::Rejected))
        .bind(count(OutcomeKind::Deduplicated))
        .bind(count(OutcomeKind::Deferred))
        .bind(count(OutcomeKind::DeadLettered))
        .bind(pipeline.to_owned())
        .bind(stream.to_owned())
        .run(session)
        .await
        .doing("settling counters")?;
    Ok(())
}

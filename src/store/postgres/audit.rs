//! Counting what is stored of a stream.

use sqlx::AssertSqlSafe;

use super::PostgresStore;
use super::session::Session;
use crate::store::audit::{Counted, outcome_counts, ranges};
use crate::store::checkpoint::Checkpoint;
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn counted(&self, pipeline: &str, stream: &str) -> Result<Option<Counted>, StoreError> {
        // One snapshot: every statement sees the same moment.
        let mut session = self.read().await?;
        let checkpoint: Option<Checkpoint> = session
            .query("SELECT * FROM thalweg.checkpoints WHERE pipeline = $1 AND stream = $2")
            .bind(pipeline.to_owned())
            .bind(stream.to_owned())
            .optional(&mut session)
            .await
            .doing("reading a checkpoint")?;
        match checkpoint {
            Some(checkpoint) => {
                count(&mut session, (pipeline.to_owned(), stream.to_owned()), checkpoint).await.map(Some)
            }
            None => Ok(None),
        }
    }
}

async fn count(
    session: &mut Session,
    (pipeline, stream): (String, String),
    checkpoint: Checkpoint,
) -> Result<Counted, StoreError> {
    let live: Option<i64> = session
        .query("SELECT space_key FROM thalweg.spaces WHERE state = 'live'")
        .optional_scalar(session)
        .await
        .doing("looking for the live space")?;
    let vectors = live.map(|space_key| format!("thalweg.vectors_{space_key}"));
    let (start, next) = (checkpoint.start_offset.cast_signed(), checkpoint.next_offset.cast_signed());
    let rows = session
        .query(AssertSqlSafe(rows(vectors.as_deref())))
        .planned_anew()
        .bind(pipeline.clone())
        .bind(stream.clone())
        .bind(start)
        .bind(next)
        .one(session)
        .await
        .doing("counting rows")?;
    let outcomes = session
        .query(OUTCOMES)
        .bind(pipeline.clone())
        .bind(stream.clone())
        .bind(start)
        .bind(next)
        .all(session)
        .await
        .doing("counting outcomes")?;
    let lost = session
        .query("SELECT first_offset, next_offset FROM thalweg.lost WHERE pipeline = $1 AND stream = $2")
        .bind(pipeline)
        .bind(stream.clone())
        .all(session)
        .await
        .doing("reading lost offsets")?;
    let segments = session
        .query("SELECT * FROM thalweg.segments WHERE stream = $1 ORDER BY base_offset")
        .bind(stream.clone())
        .all(session)
        .await
        .doing("reading the segments")?;
    let artifacts = session
        .query("SELECT * FROM thalweg.artifacts WHERE kind = 'segment'")
        .all(session)
        .await
        .doing("reading the artifacts")?;
    let damaged = session
        .query("SELECT first_offset, next_offset FROM thalweg.damage WHERE stream = $1")
        .bind(stream)
        .all(session)
        .await
        .doing("reading damage")?;
    Ok(Counted {
        checkpoint,
        rows,
        outcomes: outcome_counts(outcomes)?,
        lost: ranges(lost),
        has_live_space: vectors.is_some(),
        segments,
        artifacts,
        damaged: ranges(damaged),
    })
}

const OUTCOMES: &str = "SELECT o.kind, count(*), count(r.record_key) FROM thalweg.outcomes o
     LEFT JOIN thalweg.records r ON r.stream = o.stream AND r.\"offset\" = o.\"offset\"
     WHERE o.pipeline = $1 AND o.stream = $2 AND o.\"offset\" >= $3 AND o.\"offset\" < $4
     GROUP BY o.kind";

/// $1 pipeline, $2 stream, $3 start, $4 next offset. A chunk holds its own
/// keywords here, so none can be without.
fn rows(vectors: Option<&str>) -> String {
    let without_vectors = vectors.map_or("0::bigint".into(), |vectors| {
        format!(
            "(SELECT count(DISTINCT c.record_key) FROM thalweg.records r JOIN thalweg.chunks c USING (record_key)
              LEFT JOIN {vectors} v ON v.tenant_key = r.tenant_key AND v.tier = r.tier
                                   AND v.chunk_key = c.chunk_key
              WHERE v.chunk_key IS NULL AND r.stream = $2 AND r.\"offset\" >= $3 AND r.\"offset\" < $4
                AND NOT EXISTS (SELECT FROM thalweg.outcomes o WHERE o.pipeline = $1 AND o.stream = $2
                                    AND o.\"offset\" = r.\"offset\")
                AND NOT EXISTS (SELECT FROM thalweg.lost l WHERE l.pipeline = $1 AND l.stream = $2
                                    AND l.first_offset <= r.\"offset\" AND l.next_offset > r.\"offset\"))"
        )
    });
    let without_chunk = vectors.map_or("0::bigint".into(), |vectors| {
        format!(
            "(SELECT count(*) FROM {vectors} v LEFT JOIN thalweg.chunks c USING (chunk_key)
              WHERE c.chunk_key IS NULL)"
        )
    });
    format!(
        "SELECT
         (SELECT count(*) FROM thalweg.records
          WHERE stream = $2 AND \"offset\" >= $3 AND \"offset\" < $4) AS records,
         (SELECT count(*) FROM thalweg.lost l JOIN thalweg.records r ON r.stream = l.stream
              AND r.\"offset\" >= l.first_offset AND r.\"offset\" < l.next_offset
          WHERE l.pipeline = $1 AND l.stream = $2) AS records_lost,
         (SELECT count(*) FROM thalweg.records WHERE stream = $2 AND \"offset\" >= $4)
             + (SELECT count(*) FROM thalweg.outcomes WHERE pipeline = $1 AND stream = $2
                    AND (\"offset\" < $3 OR \"offset\" >= $4)) AS outside,
         {without_vectors} AS without_vectors,
         (SELECT count(*) FROM thalweg.chunks) AS chunks,
         (SELECT coalesce(sum(chunks), 0)::bigint FROM thalweg.partitions) AS ranked,
         (SELECT count(*) FROM thalweg.chunks c LEFT JOIN thalweg.records r USING (record_key)
          WHERE r.record_key IS NULL) AS without_record,
         0::bigint AS without_keywords,
         {without_chunk} AS without_chunk"
    )
}

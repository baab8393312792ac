//! Counting what is stored of a stream.

use sqlx::SqliteConnection;

use super::SqliteStore;
use crate::store::audit::{Counted, outcome_counts, ranges};
use crate::store::checkpoint::Checkpoint;
use crate::store::error::{Doing, StoreError};

impl SqliteStore {
    pub async fn counted(&self, pipeline: &str, stream: &str) -> Result<Option<Counted>, StoreError> {
        // One read transaction: every statement sees the same moment.
        let mut transaction = self.readers().begin().await.doing("beginning an audit")?;
        let checkpoint: Option<Checkpoint> =
            sqlx::query_as("SELECT * FROM checkpoints WHERE pipeline = ? AND stream = ?")
                .bind(pipeline)
                .bind(stream)
                .fetch_optional(&mut *transaction)
                .await
                .doing("reading a checkpoint")?;
        let Some(checkpoint) = checkpoint else { return Ok(None) };
        count(&mut transaction, (pipeline, stream), checkpoint).await.map(Some)
    }
}

async fn count(
    connection: &mut SqliteConnection,
    (pipeline, stream): (&str, &str),
    checkpoint: Checkpoint,
) -> Result<Counted, StoreError> {
    let live: Option<i64> = sqlx::query_scalar("SELECT space_key FROM spaces WHERE state = 'live'")
        .fetch_optional(&mut *connection)
        .await
        .doing("looking for the live space")?;
    let (start, next) = (checkpoint.start_offset.cast_signed(), checkpoint.next_offset.cast_signed());
    let rows = sqlx::query_as(ROWS)
        .bind(pipeline)
        .bind(stream)
        .bind(start)
        .bind(next)
        .bind(live)
        .fetch_one(&mut *connection)
        .await
        .doing("counting rows")?;
    let outcomes = sqlx::query_as(OUTCOMES)
        .bind(pipeline)
        .bind(stream)
        .bind(start)
        .bind(next)
        .fetch_all(&mut *connection)
        .await
        .doing("counting outcomes")?;
    let lost = sqlx::query_as("SELECT first_offset, next_offset FROM lost WHERE pipeline = ? AND stream = ?")
        .bind(pipeline)
        .bind(stream)
        .fetch_all(&mut *connection)
        .await
        .doing("reading lost offsets")?;
    let segments = sqlx::query_as("SELECT * FROM segments WHERE stream = ? ORDER BY base_offset")
        .bind(stream)
        .fetch_all(&mut *connection)
        .await
        .doing("reading the segments")?;
    let artifacts = sqlx::query_as("SELECT * FROM artifacts WHERE kind = 'segment'")
        .fetch_all(&mut *connection)
        .await
        .doing("reading the artifacts")?;
    let damaged = sqlx::query_as("SELECT first_offset, next_offset FROM damage WHERE stream = ?")
        .bind(stream)
        .fetch_all(&mut *connection)
        .await
        .doing("reading damage")?;
    Ok(Counted {
        checkpoint,
        rows,
        outcomes: outcome_counts(outcomes)?,
        lost: ranges(lost),
        has_live_space: live.is_some(),
        segments,
        artifacts,
        damaged: ranges(damaged),
    })
}

const OUTCOMES: &str = "SELECT o.kind, count(*), count(r.record_key) FROM outcomes o
     LEFT JOIN records r ON r.stream = o.stream AND r.\"offset\" = o.\"offset\"
     WHERE o.pipeline = ?1 AND o.stream = ?2 AND o.\"offset\" >= ?3 AND o.\"offset\" < ?4
     GROUP BY o.kind";

/// ?1 pipeline, ?2 stream, ?3 start, ?4 next offset, ?5 live space.
const ROWS: &str = "SELECT
     (SELECT count(*) FROM records WHERE stream = ?2 AND \"offset\" >= ?3 AND \"offset\" < ?4) AS records,
     (SELECT count(*) FROM lost l CROSS JOIN records r ON r.stream = l.stream
          AND r.\"offset\" >= l.first_offset AND r.\"offset\" < l.next_offset
      WHERE l.pipeline = ?1 AND l.stream = ?2) AS records_lost,
     (SELECT count(*) FROM records WHERE stream = ?2 AND \"offset\" >= ?4)
         + (SELECT count(*) FROM outcomes WHERE pipeline = ?1 AND stream = ?2
                AND (\"offset\" < ?3 OR \"offset\" >= ?4)) AS outside,
     (SELECT count(DISTINCT c.record_key) FROM chunks c
      CROSS JOIN records r ON r.record_key = c.record_key
      LEFT JOIN vectors v ON v.space_key = ?5 AND v.tenant_key = r.tenant_key AND v.tier = r.tier
                         AND v.chunk_key = c.chunk_key
      WHERE v.chunk_key IS NULL AND r.stream = ?2 AND r.\"offset\" >= ?3 AND r.\"offset\" < ?4
        AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.pipeline = ?1 AND o.stream = ?2
                            AND o.\"offset\" = r.\"offset\")
        AND NOT EXISTS (SELECT 1 FROM lost l WHERE l.pipeline = ?1 AND l.stream = ?2
                            AND l.first_offset <= r.\"offset\" AND l.next_offset > r.\"offset\")) AS without_vectors,
     (SELECT count(*) FROM chunks) AS chunks,
     (SELECT coalesce(sum(chunks), 0) FROM partitions) AS ranked,
     (SELECT count(*) FROM chunks c LEFT JOIN records r ON r.record_key = c.record_key
      WHERE r.record_key IS NULL) AS without_record,
     (SELECT count(*) FROM chunks c LEFT JOIN keywords_docsize k ON k.id = c.chunk_key
      WHERE k.id IS NULL) AS without_keywords,
     (SELECT count(*) FROM vectors v LEFT JOIN chunks c ON c.chunk_key = v.chunk_key
      WHERE v.space_key = ?5 AND c.chunk_key IS NULL) AS without_chunk";

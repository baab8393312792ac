//! One transaction: rows, vectors, keywords, outcomes and the checkpoint.

use std::collections::{BTreeSet, HashMap};

use sqlx::SqliteConnection;

use super::SqliteStore;
use super::insert::insert_rows;
use super::lost;
use super::new_rows::NewRows;
use crate::store::analysed::Analysed;
use crate::store::checkpoint::Lease;
use crate::store::error::{Doing, StoreError};
use crate::store::lost::lost_of;
use crate::store::rows::{Batch, OutcomeKind, RecordRow, Tally};

impl SqliteStore {
    pub async fn commit_analysed(&self, lease: &mut Lease, analysed: &Analysed) -> Result<(), StoreError> {
        let Analysed { batch, terms } = analysed;
        let tally = batch.tally()?;
        let (from, to) = (batch.from, batch.to);
        if from != lease.checkpoint.next_offset {
            let reason = format!("the checkpoint stands at {}", lease.checkpoint.next_offset);
            return Err(StoreError::Unbalanced { from, to, reason });
        }
        let mut transaction = self.begin().await?;
        if batch.has_vectors() {
            check_live(&mut transaction, batch.space_key).await?;
        }
        move_checkpoint(&mut transaction, lease, batch, tally).await?;
        let batch_key = batch_key(&mut transaction, batch).await?;
        let tenants = Self::tenant_keys(&mut transaction, &batch.records).await?;
        let rows = NewRows {
            stream: &lease.stream,
            batch_key,
            space_key: batch.space_key,
            tenants: &tenants,
            records: batch.records.iter().zip(terms).collect(),
        };
        rows.write(&mut transaction).await?;
        match rows.claim_contents(&mut transaction).await? {
            0 => {}
            // Free when the batch was judged: another stream came in between.
            count => return Err(StoreError::Duplicate { count }),
        }
        write_outcomes(&mut transaction, lease, batch).await?;
        lost::put(&mut transaction, &lease.pipeline, &lease.stream, &lost_of(batch)).await?;
        transaction.commit().await.doing("committing a batch")?;
        lease.checkpoint = lease.checkpoint.advanced(to, tally);
        Ok(())
    }

    /// As [`Analysed::of`], by the dimensions of the batch's space.
    pub async fn analyse(&self, batch: Batch) -> Result<Analysed, StoreError> {
        let dimensions = match batch.has_vectors() {
            true => Some(self.space(batch.space_key).await?.space.dimensions),
            false => None,
        };
        Analysed::of(batch, dimensions).await
    }

    /// The key of every tenant named, new ones given within `connection`'s
    /// transaction.
    pub(super) async fn tenant_keys(
        connection: &mut SqliteConnection,
        records: &[RecordRow],
    ) -> Result<HashMap<String, i64>, StoreError> {
        let names: BTreeSet<&str> = records.iter().map(|record| record.tenant.as_str()).collect();
        let listed = serde_json::Value::from_iter(names.iter().copied()).to_string();
        let known: Vec<(String, i64)> = sqlx::query_as(
            "SELECT name, tenant_key FROM tenants WHERE name IN (SELECT value FROM json_each(?))",
        )
        .bind(listed)
        .fetch_all(&mut *connection)
        .await
        .doing("naming tenants")?;
        let mut keys: HashMap<String, i64> = known.into_iter().collect();
        for name in names {
            if !keys.contains_key(name) {
                let key = sqlx::query_scalar("INSERT INTO tenants (name) VALUES (?) RETURNING tenant_key")
                    .bind(name)
                    .fetch_one(&mut *connection)
                    .await
                    .doing("naming a tenant")?;
                keys.insert(name.to_owned(), key);
            }
        }
        Ok(keys)
    }
}

/// Vectors of a space that was live when they were computed and no longer is
/// would be missing from the one that is.
pub(super) async fn check_live(connection: &mut SqliteConnection, space_key: i64) -> Result<(), StoreError> {
    let live: Option<bool> = sqlx::query_scalar("SELECT state = 'live' FROM spaces WHERE space_key = ?")
        .bind(space_key)
        .fetch_optional(connection)
        .await
        .doing("looking for the live space")?;
    if live == Some(true) { Ok(()) } else { Err(StoreError::NotLive { space_key }) }
}

async fn move_checkpoint(
    connection: &mut SqliteConnection,
    lease: &Lease,
    batch: &Batch,
    tally: Tally,
) -> Result<(), StoreError> {
    let moved = sqlx::query(
        "UPDATE checkpoints SET next_offset = ?1, indexed = indexed + ?2, rejected = rejected + ?3,
             deduplicated = deduplicated + ?4, deferred = deferred + ?5, dead_lettered = dead_lettered + ?6,
             lost = lost + ?7, updated_ms = ?8
         WHERE pipeline = ?9 AND stream = ?10 AND epoch = ?11 AND next_offset = ?12",
    )
    .bind(batch.to.cast_signed())
    .bind(tally.indexed.cast_signed())
    .bind(tally.rejected.cast_signed())
    .bind(tally.deduplicated.cast_signed())
    .bind(tally.deferred.cast_signed())
    .bind(tally.dead_lettered.cast_signed())
    .bind(tally.lost.cast_signed())
    .bind(batch.now_ms)
    .bind(&lease.pipeline)
    .bind(&lease.stream)
    .bind(lease.epoch.cast_signed())
    .bind(batch.from.cast_signed())
    .execute(connection)
    .await
    .doing("moving a checkpoint")?;
    if moved.rows_affected() == 1 {
        return Ok(());
    }
    Err(StoreError::Fenced {
        pipeline: lease.pipeline.clone(),
        stream: lease.stream.clone(),
        epoch: lease.epoch,
    })
}

pub(super) async fn batch_key(connection: &mut SqliteConnection, batch: &Batch) -> Result<i64, StoreError> {
    sqlx::query_scalar(
        "INSERT INTO batches (batch_tag, config_digest, created_ms) VALUES (?, ?, ?)
         ON CONFLICT DO UPDATE SET batch_tag = excluded.batch_tag RETURNING batch_key",
    )
    .bind(&batch.batch_tag)
    .bind(&batch.config_digest)
    .bind(batch.now_ms)
    .fetch_one(connection)
    .await
    .doing("naming a batch")
}

async fn write_outcomes(
    connection: &mut SqliteConnection,
    lease: &Lease,
    batch: &Batch,
) -> Result<(), StoreError> {
    let head = "INSERT INTO outcomes (pipeline, stream, \"offset\", kind, reason, detail) ";
    insert_rows(connection, head, "", &batch.outcomes, |values, outcome| {
        values.push_bind(lease.pipeline.as_str()).push_bind(lease.stream.as_str());
        values.push_bind(outcome.offset.cast_signed()).push_bind(outcome.kind.as_str());
        values.push_bind(outcome.reason.as_str()).push_bind(outcome.detail.as_str());
    })
    .await
    .doing("writing outcomes")?;
    let dead: Vec<_> = batch.outcomes.iter().filter(|o| o.kind == OutcomeKind::DeadLettered).collect();
    let head = "INSERT INTO dead_letters (at_ms, pipeline, source, stream, \"offset\", code, message) ";
    // The payload stays in the log, at the offset.
    insert_rows(connection, head, "", &dead, |values, outcome| {
        values.push_bind(batch.now_ms).push_bind(lease.pipeline.as_str()).push_bind("");
        values.push_bind(lease.stream.as_str()).push_bind(outcome.offset.cast_signed());
        values.push_bind(outcome.reason.as_str()).push_bind(outcome.detail.as_str());
    })
    .await
    .doing("writing dead letters")?;
    Ok(())
}

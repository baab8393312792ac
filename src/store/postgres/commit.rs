//! One transaction: rows, vectors, keywords, outcomes and the checkpoint.

use std::collections::{BTreeSet, HashMap};

use super::copy::CopyRows;
use super::lost;
use super::new_rows::NewRows;
use super::text::{original, stored};
use super::{PostgresStore, Session};
use crate::store::analysed::Analysed;
use crate::store::checkpoint::{Checkpoint, Lease};
use crate::store::error::{Doing, StoreError};
use crate::store::lost::lost_of;
use crate::store::rows::{Batch, OutcomeKind, RecordRow, Tally};

impl PostgresStore {
    pub async fn commit_analysed(&self, lease: &mut Lease, analysed: &Analysed) -> Result<(), StoreError> {
        let Analysed { batch, terms } = analysed;
        let tally = batch.tally()?;
        let (from, to) = (batch.from, batch.to);
        if from != lease.checkpoint.next_offset {
            let reason = format!("the checkpoint stands at {}", lease.checkpoint.next_offset);
            return Err(StoreError::Unbalanced { from, to, reason });
        }
        let vectors = self.table_of(batch).await?;
        let mut session = self.begin_drawing_keys().await?;
        if batch.has_vectors() {
            check_live(&mut session, batch.space_key).await?;
        }
        if let Some(checkpoint) = move_checkpoint(&mut session, lease, batch, tally).await? {
            lease.checkpoint = checkpoint;
            return Ok(());
        }
        let batch_key = batch_key(&mut session, batch).await?;
        let tenants = self.tenant_keys(&mut session, &batch.records).await?;
        let rows = NewRows {
            stream: &lease.stream,
            batch_key,
            vectors,
            tenants: &tenants,
            records: batch.records.iter().zip(terms).collect(),
        };
        match rows.claim_contents(&mut session).await? {
            0 => {}
            // Free when the batch was judged: another stream came in between.
            count => return Err(StoreError::Duplicate { count }),
        }
        rows.write(&mut session).await?;
        write_outcomes(&mut session, lease, batch).await?;
        lost::put(&mut session, &lease.pipeline, &lease.stream, &lost_of(batch)).await?;
        session.commit("committing a batch").await?;
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

    /// The key of every tenant named, new ones given within the transaction.
    /// In the order of names, so that no two transactions wait for each other.
    pub(super) async fn tenant_keys(
        &self,
        session: &mut Session,
        records: &[RecordRow],
    ) -> Result<HashMap<String, i64>, StoreError> {
        let names: BTreeSet<&str> = records.iter().map(|record| record.tenant.as_str()).collect();
        let names: Vec<String> = names.into_iter().map(|name| stored(name).into_owned()).collect();
        if names.is_empty() {
            return Ok(HashMap::new());
        }
        let mut found = lock_tenants(session, &names).await?;
        if found.len() < names.len() {
            session
                .query(
                    "INSERT INTO thalweg.tenants (name) SELECT name FROM unnest($1::text[]) AS u(name)
                     WHERE NOT EXISTS (SELECT FROM thalweg.tenants t WHERE t.name = u.name)
                     ON CONFLICT (name) DO NOTHING",
                )
                .bind(&names)
                .run(session)
                .await
                .doing("naming tenants")?;
            found = lock_tenants(session, &names).await?;
        }
        Ok(found.into_iter().map(|(name, key)| (original(name), key)).collect())
    }
}

/// The keys of those tenants that exist, who are not forgotten until the
/// commit.
async fn lock_tenants(session: &mut Session, names: &Vec<String>) -> Result<Vec<(String, i64)>, StoreError> {
    session
        .query(
            "SELECT name, tenant_key FROM thalweg.tenants WHERE name = ANY($1) ORDER BY name FOR KEY SHARE",
        )
        .bind(names)
        .all(session)
        .await
        .doing("naming tenants")
}

/// Vectors of a space that was live when they were computed and no longer is
/// would be missing from the one that is.
pub(super) async fn check_live(session: &mut Session, space_key: i64) -> Result<(), StoreError> {
    // Held against a switch until the commit.
    let live: Option<bool> = session
        .query("SELECT state = 'live' FROM thalweg.spaces WHERE space_key = $1 FOR SHARE")
        .bind(space_key)
        .optional_scalar(session)
        .await
        .doing("looking for the live space")?;
    if live == Some(true) { Ok(()) } else { Err(StoreError::NotLive { space_key }) }
}

/// Moves the checkpoint. Where it stands if this very batch is committed
/// already: by a call whose connection was lost before it heard so. Only the
/// holder of the epoch moves it, one batch at a time, so nobody else can have.
async fn move_checkpoint(
    session: &mut Session,
    lease: &Lease,
    batch: &Batch,
    tally: Tally,
) -> Result<Option<Checkpoint>, StoreError> {
    let moved = session
        .query(
            "UPDATE thalweg.checkpoints SET next_offset = $1, indexed = indexed + $2, rejected = rejected + $3,
                 deduplicated = deduplicated + $4, deferred = deferred + $5,
                 dead_lettered = dead_lettered + $6, lost = lost + $7, updated_ms = $8
             WHERE pipeline = $9 AND stream = $10 AND epoch = $11 AND next_offset = $12",
        )
        .bind(batch.to.cast_signed())
        .bind(tally.indexed.cast_signed())
        .bind(tally.rejected.cast_signed())
        .bind(tally.deduplicated.cast_signed())
        .bind(tally.deferred.cast_signed())
        .bind(tally.dead_lettered.cast_signed())
        .bind(tally.lost.cast_signed())
        .bind(batch.now_ms)
        .bind(lease.pipeline.clone())
        .bind(lease.stream.clone())
        .bind(lease.epoch.cast_signed())
        .bind(batch.from.cast_signed())
        .run(session)
        .await
        .doing("moving a checkpoint")?;
    if moved.rows_affected() == 1 {
        return Ok(None);
    }
    let now: Option<Lease> = session
        .query("SELECT * FROM thalweg.checkpoints WHERE pipeline = $1 AND stream = $2")
        .bind(&lease.pipeline)
        .bind(&lease.stream)
        .optional(session)
        .await
        .doing("reading a checkpoint")?;
    if let Some(now) = now.filter(|now| now.epoch == lease.epoch && now.checkpoint.next_offset == batch.to) {
        return Ok(Some(now.checkpoint));
    }
    Err(StoreError::Fenced {
        pipeline: lease.pipeline.clone(),
        stream: lease.stream.clone(),
        epoch: lease.epoch,
    })
}

pub(super) async fn batch_key(session: &mut Session, batch: &Batch) -> Result<i64, StoreError> {
    let known: Option<i64> = session
        .query("SELECT batch_key FROM thalweg.batches WHERE batch_tag = $1 AND config_digest = $2")
        .bind(stored(&batch.batch_tag).into_owned())
        .bind(batch.config_digest.clone())
        .optional_scalar(session)
        .await
        .doing("naming a batch")?;
    if let Some(key) = known {
        return Ok(key);
    }
    session
        .query(
            "INSERT INTO thalweg.batches (batch_tag, config_digest, created_ms) VALUES ($1, $2, $3)
             ON CONFLICT (batch_tag, config_digest) DO UPDATE SET batch_tag = excluded.batch_tag
             RETURNING batch_key",
        )
        .bind(stored(&batch.batch_tag).into_owned())
        .bind(batch.config_digest.clone())
        .bind(batch.now_ms)
        .scalar(session)
        .await
        .doing("naming a batch")
}

async fn write_outcomes(session: &mut Session, lease: &Lease, batch: &Batch) -> Result<(), StoreError> {
    let mut rows = CopyRows::new(6);
    for outcome in &batch.outcomes {
        rows.row()
            .text(&lease.pipeline)
            .text(&lease.stream)
            .bigint(outcome.offset.cast_signed())
            .text(outcome.kind.as_str())
            .text(&outcome.reason)
            .text(&outcome.detail);
    }
    session
        .copy("thalweg.outcomes (pipeline, stream, \"offset\", kind, reason, detail)", rows)
        .await
        .doing("writing outcomes")?;
    // The payload stays in the log, at the offset.
    let mut rows = CopyRows::new(7);
    for outcome in batch.outcomes.iter().filter(|o| o.kind == OutcomeKind::DeadLettered) {
        rows.row()
            .bigint(batch.now_ms)
            .text(&lease.pipeline)
            .text("")
            .text(&lease.stream)
            .bigint(outcome.offset.cast_signed())
            .text(&outcome.reason)
            .text(&outcome.detail);
    }
    session
        .copy("thalweg.dead_letters (at_ms, pipeline, source, stream, \"offset\", code, message)", rows)
        .await
        .doing("writing dead letters")
}

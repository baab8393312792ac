//! A batch made ready to be written, whatever the database.

use std::collections::HashSet;

use rayon::prelude::*;

use super::error::StoreError;
use super::keywords::Terms;
use super::rows::{Batch, OutcomeRow, RecordRow};
use super::vector::check_vector;

/// A batch whose vectors were checked, and the terms of each chunk of each of
/// its records: all that can be done before a transaction begins, so it can be
/// done of one batch while another is written.
#[derive(Clone, Debug)]
pub struct Analysed {
    pub(super) batch: Batch,
    pub(super) terms: Vec<Vec<Terms>>,
}

impl Analysed {
    /// Refuses vectors that must not be stored and finds the terms of every
    /// text, off the async threads. `dimensions` are those of the batch's
    /// space, if it has vectors.
    ///
    /// # Errors
    /// [`StoreError::Vector`] for a vector that must not be stored,
    /// [`StoreError::Unbalanced`] for a record without a tenant.
    pub async fn of(batch: Batch, dimensions: Option<usize>) -> Result<Self, StoreError> {
        tokio::task::spawn_blocking(move || {
            for record in &batch.records {
                check_record(record, dimensions)?;
            }
            let terms = batch
                .records
                .par_iter()
                .map(|record| record.chunks.iter().map(|chunk| Terms::of(&chunk.text)).collect())
                .collect();
            Ok(Self { batch, terms })
        })
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// The batch.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The batch, no longer ready.
    pub fn into_batch(self) -> Batch {
        self.batch
    }

    /// Sets when it is written, in milliseconds since the Unix epoch.
    pub fn set_time(&mut self, now_ms: i64) {
        self.batch.now_ms = now_ms;
    }

    /// Has `outcomes` stand for their offsets, and for their records.
    pub fn decide(&mut self, outcomes: Vec<OutcomeRow>) {
        let decided: HashSet<u64> = outcomes.iter().map(|outcome| outcome.offset).collect();
        self.leave_out(&decided);
        self.batch.outcomes.retain(|outcome| !decided.contains(&outcome.offset));
        self.batch.outcomes.extend(outcomes);
    }

    /// Without the records at these offsets.
    pub(super) fn leave_out(&mut self, gone: &HashSet<u64>) {
        if gone.is_empty() {
            return;
        }
        let (records, terms) = std::mem::take(&mut self.batch.records)
            .into_iter()
            .zip(std::mem::take(&mut self.terms))
            .filter(|(record, _)| !gone.contains(&record.offset))
            .unzip();
        (self.batch.records, self.terms) = (records, terms);
    }
}

fn check_record(record: &RecordRow, dimensions: Option<usize>) -> Result<(), StoreError> {
    if record.tenant.is_empty() {
        return Err(StoreError::Unbalanced {
            from: record.offset,
            to: record.offset + 1,
            reason: "the record has no tenant".into(),
        });
    }
    for chunk in &record.chunks {
        if let (Some(vector), Some(dimensions)) = (&chunk.vector, dimensions) {
            check_vector(vector, dimensions).map_err(|reason| StoreError::Vector {
                of: format!("offset {}, chunk {}", record.offset, chunk.chunk),
                reason,
            })?;
        }
    }
    Ok(())
}

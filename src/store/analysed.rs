//! A batch made ready to be written, whatever the database.

use std::collections::HashSet;

use rayon::prelude::*;

use super::error::StoreError;
use super::keywords;
use super::rows::{Batch, RecordRow};
use super::vector::check_vector;

/// A batch and the terms of each chunk of each of its records.
pub(super) struct Analysed {
    pub batch: Batch,
    pub terms: Vec<Vec<Vec<String>>>,
}

impl Analysed {
    /// Without the records at these offsets.
    pub fn leave_out(&mut self, gone: &HashSet<u64>) {
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

    /// Refuses vectors that must not be stored and finds the terms of every
    /// text, off the async threads. `dimensions` are those of the batch's
    /// space, if it has vectors.
    pub async fn of(batch: Batch, dimensions: Option<usize>) -> Result<Self, StoreError> {
        tokio::task::spawn_blocking(move || {
            for record in &batch.records {
                check_record(record, dimensions)?;
            }
            let terms = batch
                .records
                .par_iter()
                .map(|record| record.chunks.iter().map(|chunk| keywords::terms(&chunk.text)).collect())
                .collect();
            Ok(Self { batch, terms })
        })
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
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

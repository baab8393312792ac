//! A batch made ready to be written, whatever the database.

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

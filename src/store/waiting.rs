//! Chunks that are stored and searched by keyword, and wait for vectors.

use sqlx::FromRow;

use super::error::StoreError;
use super::vector::check_vector;

/// A chunk without a vector in some space.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct WaitingChunk {
    /// Its key in this store; rises with commits.
    pub chunk_key: i64,
    pub(super) tenant_key: i64,
    pub(super) tier: i64,
    /// What is to be embedded.
    pub text: String,
}

/// Records that were stored without all of their vectors: the oldest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingPage {
    /// Their offsets in the stream, in order.
    pub offsets: Vec<u64>,
    /// The first of their chunks that have no vector, each with its offset.
    pub chunks: Vec<(u64, WaitingChunk)>,
}

/// How many records changed sides in a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// From deferred to indexed.
    pub indexed: u64,
    /// From deferred to dead-lettered.
    pub dead_lettered: u64,
}

/// Refuses vectors that a space of `dimensions` cannot take.
pub(super) fn check_vectors(
    dimensions: usize,
    vectors: &[(WaitingChunk, Vec<f32>)],
) -> Result<(), StoreError> {
    for (chunk, vector) in vectors {
        check_vector(vector, dimensions)
            .map_err(|reason| StoreError::Vector { of: format!("chunk {}", chunk.chunk_key), reason })?;
    }
    Ok(())
}

//! Vectors by text: what is stored need not be computed again.

use futures::future::BoxFuture;

use super::Store;
use crate::embed::{Known, Shelf, ShelfError};

/// The stored vectors of one space, to be taken instead of computing them.
pub struct StoredVectors {
    /// Where they are.
    pub store: Store,
    /// Their space.
    pub space_key: i64,
}

impl Shelf for StoredVectors {
    fn vectors<'a>(&'a self, digests: &'a [[u8; 32]]) -> BoxFuture<'a, Result<Known, ShelfError>> {
        Box::pin(async move {
            let found = self.store.vectors_of_texts(self.space_key, digests).await;
            found.map_err(|error| ShelfError(error.to_string()))
        })
    }
}

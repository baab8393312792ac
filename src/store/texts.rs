//! Vectors by text: what is stored need not be computed again.

use futures::future::BoxFuture;

use super::error::{Doing, StoreError};
use super::sqlite::Store;
use super::vector::numbers;
use crate::embed::{Known, Shelf, ShelfError};

impl Store {
    /// The vectors in one space of the texts with these SHA-256 digests,
    /// whoever's they are: a vector depends on nothing but its text. Texts
    /// that have none are left out, as may be those of whose many chunks the
    /// first have none.
    pub async fn vectors_of_texts(&self, space_key: i64, digests: &[[u8; 32]]) -> Result<Known, StoreError> {
        let found: Vec<(Vec<u8>, Option<Vec<u8>>)> = sqlx::query_as(
            "SELECT unhex(wanted.value),
                    (SELECT v.vector FROM (SELECT chunk_key, record_key FROM chunks INDEXED BY chunks_by_text
                                           WHERE digest = unhex(wanted.value) ORDER BY chunk_key LIMIT 32) c
                     CROSS JOIN records r ON r.record_key = c.record_key
                     CROSS JOIN vectors v ON v.space_key = ?1 AND v.tenant_key = r.tenant_key AND v.tier = r.tier
                                   AND v.chunk_key = c.chunk_key
                     LIMIT 1)
             FROM json_each(?2) wanted",
        )
        .bind(space_key)
        .bind(hex_array(digests))
        .fetch_all(self.readers())
        .await
        .doing("looking up the vectors of texts")?;
        Ok(found
            .into_iter()
            .filter_map(|(digest, vector)| Some((digest.try_into().ok()?, numbers(&vector?).collect())))
            .collect())
    }
}

/// Digests as a JSON array of hex, for `unhex(value)` over `json_each(?)`.
pub(super) fn hex_array(digests: &[[u8; 32]]) -> String {
    let hex = |digest: &[u8; 32]| digest.iter().map(|b| format!("{b:02x}")).collect::<String>();
    serde_json::Value::from(digests.iter().map(hex).collect::<Vec<_>>()).to_string()
}

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

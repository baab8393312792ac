//! Vectors of texts that are stored already.

use super::SqliteStore;
use crate::embed::Known;
use crate::store::error::{Doing, StoreError};
use crate::store::vector::numbers;

impl SqliteStore {
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

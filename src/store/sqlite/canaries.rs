//! Vectors of the canary texts, as they were when a space was new.

use std::collections::HashMap;

use super::SqliteStore;
use super::insert::insert_rows;
use crate::store::error::{Doing, StoreError};
use crate::store::vector::{numbers, vector_bytes};

impl SqliteStore {
    pub async fn canaries(&self, space_key: i64) -> Result<HashMap<[u8; 32], Vec<f32>>, StoreError> {
        let recorded: Vec<(Vec<u8>, Vec<u8>)> =
            sqlx::query_as("SELECT digest, vector FROM canaries WHERE space_key = ?")
                .bind(space_key)
                .fetch_all(self.readers())
                .await
                .doing("reading the canaries")?;
        Ok(recorded
            .into_iter()
            .filter_map(|(digest, vector)| Some((digest.try_into().ok()?, numbers(&vector).collect())))
            .collect())
    }

    pub async fn record_canaries(
        &self,
        space_key: i64,
        vectors: &[([u8; 32], Vec<f32>)],
        now_ms: i64,
    ) -> Result<(), StoreError> {
        let mut transaction = self.begin().await?;
        let head = "INSERT OR IGNORE INTO canaries (space_key, digest, vector, recorded_ms) ";
        insert_rows(&mut transaction, head, "", vectors, |values, (digest, vector)| {
            values.push_bind(space_key).push_bind(digest.as_slice());
            values.push_bind(vector_bytes(vector)).push_bind(now_ms);
        })
        .await
        .doing("recording canaries")?;
        transaction.commit().await.doing("recording canaries")
    }
}

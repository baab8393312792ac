//! Vectors of the canary texts, as they were when a space was new.

use std::collections::HashMap;

use super::PostgresStore;
use crate::store::error::{Doing, StoreError};
use crate::store::vector::{numbers, vector_bytes};

impl PostgresStore {
    pub async fn canaries(&self, space_key: i64) -> Result<HashMap<[u8; 32], Vec<f32>>, StoreError> {
        let mut session = self.read().await?;
        let recorded: Vec<(Vec<u8>, Vec<u8>)> = session
            .query("SELECT digest, vector FROM thalweg.canaries WHERE space_key = $1")
            .bind(space_key)
            .all(&mut session)
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
        let (digests, bytes): (Vec<Vec<u8>>, Vec<Vec<u8>>) =
            vectors.iter().map(|(digest, vector)| (digest.to_vec(), vector_bytes(vector))).unzip();
        let mut session = self.begin().await?;
        session
            .query(
                "INSERT INTO thalweg.canaries (space_key, digest, vector, recorded_ms)
                 SELECT $1, digest, vector, $4 FROM unnest($2::bytea[], $3::bytea[]) AS u(digest, vector)
                 ON CONFLICT DO NOTHING",
            )
            .bind(space_key)
            .bind(digests)
            .bind(bytes)
            .bind(now_ms)
            .run(&mut session)
            .await
            .doing("recording canaries")?;
        session.commit("recording canaries").await
    }
}

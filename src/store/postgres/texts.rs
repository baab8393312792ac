//! Vectors of texts that are stored already.

use sqlx::{AssertSqlSafe, Row};

use super::PostgresStore;
use crate::embed::Known;
use crate::store::error::{Doing, StoreError};

impl PostgresStore {
    pub async fn vectors_of_texts(&self, space_key: i64, digests: &[[u8; 32]]) -> Result<Known, StoreError> {
        if digests.is_empty() {
            return Ok(Known::default());
        }
        let table = self.vector_table(space_key).await?;
        let mut session = self.read().await?;
        let statement = format!(
            "SELECT w.digest, found.vector FROM unnest($1::bytea[]) AS w(digest)
             JOIN LATERAL (
                 SELECT {} AS vector
                 FROM (SELECT tenant_key, tier, chunk_key FROM thalweg.chunks
                       WHERE digest = w.digest ORDER BY chunk_key LIMIT 32) c
                 JOIN {} v ON v.tenant_key = c.tenant_key AND v.tier = c.tier AND v.chunk_key = c.chunk_key
                 LIMIT 1
             ) found ON true",
            table.numbers(),
            table.name()
        );
        let rows = session
            .query(AssertSqlSafe(statement))
            .bind(digests.iter().map(|digest| digest.to_vec()).collect::<Vec<_>>())
            .rows(&mut session)
            .await
            .doing("looking up the vectors of texts")?;
        let mut known = Known::default();
        for row in &rows {
            let digest: Vec<u8> = row.try_get("digest").doing("looking up the vectors of texts")?;
            if let (Ok(digest), Some(vector)) = (digest.try_into(), table.read(row, "vector")?) {
                known.insert(digest, vector);
            }
        }
        Ok(known)
    }
}

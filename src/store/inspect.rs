//! What people ask of a database file rather than of its rows.

use super::error::{Doing, StoreError};
use super::sqlite::Store;

impl Store {
    /// Number of the last change of the schema that the file has seen.
    pub async fn schema_version(&self) -> Result<i64, StoreError> {
        sqlx::query_scalar("SELECT coalesce(max(version), 0) FROM _sqlx_migrations WHERE success")
            .fetch_one(self.readers())
            .await
            .doing("reading the schema's version")
    }

    /// Vectors of a space. Reads the keys of all of them.
    pub async fn vectors_in(&self, space_key: i64) -> Result<u64, StoreError> {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM vectors WHERE space_key = ?")
            .bind(space_key)
            .fetch_one(self.readers())
            .await
            .map(i64::cast_unsigned)
            .doing("counting vectors")
    }
}

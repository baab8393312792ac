//! Records that are older than they are kept, and those that are kept anyway.

use std::ops::Range;

use super::SqliteStore;
use crate::store::error::{Doing, StoreError};
use crate::store::forget::PinnedRecords;

/// Names as a JSON array.
fn names(names: &[String]) -> String {
    serde_json::Value::from(names).to_string()
}

impl SqliteStore {
    pub async fn expired(
        &self,
        stream: &str,
        before_ms: i64,
        pinned: &PinnedRecords,
        limit: u32,
    ) -> Result<Vec<u64>, StoreError> {
        // Tenant by tenant, for their records are indexed by time.
        let offsets: Vec<i64> = sqlx::query_scalar(
            "SELECT r.\"offset\" FROM tenants t
             CROSS JOIN records r ON r.tenant_key = t.tenant_key AND r.ts_ms < ?1
             WHERE t.name NOT IN (SELECT value FROM json_each(?2)) AND r.stream = ?3
               AND r.batch_key NOT IN (
                   SELECT batch_key FROM batches WHERE batch_tag IN (SELECT value FROM json_each(?4)))
             LIMIT ?5",
        )
        .bind(before_ms)
        .bind(names(&pinned.tenants))
        .bind(stream)
        .bind(names(&pinned.batches))
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .doing("looking for old records")?;
        Ok(offsets.into_iter().map(i64::cast_unsigned).collect())
    }

    pub async fn holds_pinned(
        &self,
        stream: &str,
        range: Range<u64>,
        pinned: &PinnedRecords,
    ) -> Result<bool, StoreError> {
        sqlx::query_scalar(
            "SELECT EXISTS (
                 SELECT 1 FROM records r
                 JOIN tenants t ON t.tenant_key = r.tenant_key JOIN batches b ON b.batch_key = r.batch_key
                 WHERE r.stream = ?1 AND r.\"offset\" >= ?2 AND r.\"offset\" < ?3
                   AND (t.name IN (SELECT value FROM json_each(?4))
                        OR b.batch_tag IN (SELECT value FROM json_each(?5))))",
        )
        .bind(stream)
        .bind(range.start.cast_signed())
        .bind(range.end.cast_signed())
        .bind(names(&pinned.tenants))
        .bind(names(&pinned.batches))
        .fetch_one(self.readers())
        .await
        .doing("looking for pinned records")
    }
}

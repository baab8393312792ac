//! Records that are older than they are kept, and those that are kept anyway.

use std::ops::Range;

use super::PostgresStore;
use super::text::stored;
use crate::store::error::{Doing, StoreError};
use crate::store::forget::PinnedRecords;

/// Names as they are stored.
fn names(names: &[String]) -> Vec<String> {
    names.iter().map(|name| stored(name).into_owned()).collect()
}

impl PostgresStore {
    pub async fn expired(
        &self,
        stream: &str,
        before_ms: i64,
        pinned: &PinnedRecords,
        limit: u32,
    ) -> Result<Vec<u64>, StoreError> {
        let mut session = self.read().await?;
        let offsets: Vec<i64> = session
            .query(
                "SELECT r.\"offset\" FROM thalweg.tenants t
                 JOIN thalweg.records r ON r.tenant_key = t.tenant_key AND r.ts_ms < $1
                 WHERE t.name <> ALL($2) AND r.stream = $3 AND r.batch_key NOT IN (
                     SELECT b.batch_key FROM thalweg.batches b WHERE b.batch_tag = ANY($4))
                 LIMIT $5",
            )
            .bind(before_ms)
            .bind(names(&pinned.tenants))
            .bind(stream.to_owned())
            .bind(names(&pinned.batches))
            .bind(i64::from(limit))
            .scalars(&mut session)
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
        let mut session = self.read().await?;
        session
            .query(
                "SELECT EXISTS (
                     SELECT FROM thalweg.records r
                     JOIN thalweg.tenants t USING (tenant_key) JOIN thalweg.batches b USING (batch_key)
                     WHERE r.stream = $1 AND r.\"offset\" >= $2 AND r.\"offset\" < $3
                       AND (t.name = ANY($4) OR b.batch_tag = ANY($5)))",
            )
            .bind(stream.to_owned())
            .bind(range.start.cast_signed())
            .bind(range.end.cast_signed())
            .bind(names(&pinned.tenants))
            .bind(names(&pinned.batches))
            .scalar(&mut session)
            .await
            .doing("looking for pinned records")
    }
}

//! The vectors nearest to a query, compared exactly.

use std::sync::Arc;

use futures::TryStreamExt;
use sqlx::Row;
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use super::SqliteStore;
use super::matrix::{Matrix, PartitionId};
use crate::store::error::{Doing, StoreError};
use crate::store::search::{Filter, Near, Partition, Scan};
use crate::store::vector::{numbers, vector_bytes};

/// Below this many chunks the database compares: it takes a millisecond or
/// two, and thousands of small tenants need not be held.
const IN_MEMORY_FROM_CHUNKS: u64 = 2_000;

/// Compares one query with the vectors of one tenant.
pub(super) struct Nearest<'a> {
    pub store: &'a SqliteStore,
    pub space_key: i64,
    pub tenant_key: i64,
    /// The query, of length 1.
    pub query: &'a [f32],
}

impl Nearest<'_> {
    /// The `depth` nearest chunks of a partition that pass `filter`.
    pub async fn search(
        &self,
        partition: Partition,
        filter: &Filter,
        depth: usize,
    ) -> Result<(Vec<Near>, Scan), StoreError> {
        if filter.passes_all() {
            if let Some(matrix) = self.matrix(partition).await? {
                let query = self.query.to_vec();
                let nearest = tokio::task::spawn_blocking(move || matrix.nearest(&query, depth))
                    .await
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));
                return Ok((nearest, Scan::Memory));
            }
            return Ok((self.scan(partition.tier, depth).await?, Scan::Exact));
        }
        Ok((self.scan_filtered(partition.tier, filter, depth).await?, Scan::Filtered))
    }

    async fn scan(&self, tier: i64, depth: usize) -> Result<Vec<Near>, StoreError> {
        sqlx::query_as(
            "SELECT chunk_key, 1.0 - vec_distance_cosine(vector, ?4) AS similarity FROM vectors
             WHERE space_key = ?1 AND tenant_key = ?2 AND tier = ?3
             ORDER BY similarity DESC, chunk_key LIMIT ?5",
        )
        .bind(self.space_key)
        .bind(self.tenant_key)
        .bind(tier)
        .bind(vector_bytes(self.query))
        .bind(i64::try_from(depth).unwrap_or(i64::MAX))
        .fetch_all(self.store.readers())
        .await
        .doing("scanning vectors")
    }

    /// From the records that pass to their vectors, so that a short session of
    /// a large tenant costs little.
    async fn scan_filtered(&self, tier: i64, filter: &Filter, depth: usize) -> Result<Vec<Near>, StoreError> {
        let statement = if filter.session.is_some() {
            "SELECT v.chunk_key, 1.0 - vec_distance_cosine(v.vector, ?4) AS similarity
             FROM records r INDEXED BY records_by_session
             CROSS JOIN chunks c ON c.record_key = r.record_key
             CROSS JOIN vectors v ON v.space_key = ?1 AND v.tenant_key = ?2 AND v.tier = ?3
                                 AND v.chunk_key = c.chunk_key
             WHERE r.tenant_key = ?2 AND r.tier = ?3 AND r.session = ?8 AND r.ts_ms >= ?6 AND r.ts_ms < ?7
             ORDER BY similarity DESC, v.chunk_key LIMIT ?5"
        } else {
            "SELECT v.chunk_key, 1.0 - vec_distance_cosine(v.vector, ?4) AS similarity
             FROM records r INDEXED BY records_by_time
             CROSS JOIN chunks c ON c.record_key = r.record_key
             CROSS JOIN vectors v ON v.space_key = ?1 AND v.tenant_key = ?2 AND v.tier = ?3
                                 AND v.chunk_key = c.chunk_key
             WHERE r.tenant_key = ?2 AND r.tier = ?3 AND r.ts_ms >= ?6 AND r.ts_ms < ?7
             ORDER BY similarity DESC, v.chunk_key LIMIT ?5"
        };
        let mut query = sqlx::query_as(statement)
            .bind(self.space_key)
            .bind(self.tenant_key)
            .bind(tier)
            .bind(vector_bytes(self.query))
            .bind(i64::try_from(depth).unwrap_or(i64::MAX))
            .bind(filter.from_ms)
            .bind(filter.until_ms);
        if let Some(session) = &filter.session {
            query = query.bind(session);
        }
        query.fetch_all(self.store.readers()).await.doing("scanning vectors")
    }

    /// The partition's vectors as of now, if they are many and fit in memory.
    async fn matrix(&self, partition: Partition) -> Result<Option<OwnedRwLockReadGuard<Matrix>>, StoreError> {
        let id = PartitionId { space_key: self.space_key, tenant_key: self.tenant_key, tier: partition.tier };
        let bytes = partition.chunks.saturating_mul(self.query.len() as u64 * 4 + 8);
        let held = usize::try_from(bytes).ok().and_then(|bytes| self.store.matrices().matrix(id, bytes));
        let Some(held) = held.filter(|_| partition.chunks >= IN_MEMORY_FROM_CHUNKS) else {
            return Ok(None);
        };
        let last_key = self.last_key(id).await?;
        let is_current =
            |matrix: &Matrix| matrix.generation() == partition.generation && matrix.last_key() >= last_key;
        let matrix = Arc::clone(&held).read_owned().await;
        if is_current(&matrix) {
            return Ok(Some(matrix));
        }
        drop(matrix);
        self.top_up(id, &held, partition.generation).await?;
        Ok(Some(held.read_owned().await))
    }

    async fn last_key(&self, id: PartitionId) -> Result<i64, StoreError> {
        let last: Option<i64> = sqlx::query_scalar(
            "SELECT max(chunk_key) FROM vectors WHERE space_key = ? AND tenant_key = ? AND tier = ?",
        )
        .bind(id.space_key)
        .bind(id.tenant_key)
        .bind(id.tier)
        .fetch_one(self.store.readers())
        .await
        .doing("finding the newest vector")?;
        Ok(last.unwrap_or(0))
    }

    /// Reads what is not held yet. Whoever waits for the lock meanwhile finds
    /// nothing left to read.
    async fn top_up(
        &self,
        id: PartitionId,
        held: &RwLock<Matrix>,
        generation: i64,
    ) -> Result<(), StoreError> {
        let mut matrix = held.write().await;
        if matrix.generation() != generation || matrix.last_key() == 0 {
            matrix.restart(self.query.len(), generation);
        }
        let mut rows = sqlx::query(
            "SELECT chunk_key, vector FROM vectors
             WHERE space_key = ? AND tenant_key = ? AND tier = ? AND chunk_key > ? ORDER BY chunk_key",
        )
        .bind(id.space_key)
        .bind(id.tenant_key)
        .bind(id.tier)
        .bind(matrix.last_key())
        .fetch(self.store.readers());
        while let Some(row) = rows.try_next().await.doing("reading vectors")? {
            let chunk_key = row.try_get("chunk_key").doing("reading vectors")?;
            let vector: &[u8] = row.try_get("vector").doing("reading vectors")?;
            matrix.push(chunk_key, numbers(vector));
        }
        Ok(())
    }
}

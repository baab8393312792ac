//! What one search reads.

use std::collections::HashMap;

use super::SqliteStore;
use super::insert::json_array;
use super::nearest::Nearest;
use crate::store::error::{Doing, StoreError};
use crate::store::hits::HitRow;
use crate::store::keywords;
use crate::store::search::{
    self, Answer, Completed, Filter, Lists, Near, Partition, PartitionRow, Query, Scan, Scope,
};
use crate::store::vector::vector_bytes;

impl SqliteStore {
    pub async fn search(&self, query: &Query) -> Result<Answer, StoreError> {
        query.check()?;
        let space = match query.vector.is_some() {
            true => Some(self.space(query.space_key).await?),
            false => None,
        };
        let vector = match &space {
            Some(space) => query.unit(space.space.dimensions)?.map(|vector| (&**space, vector)),
            None => None,
        };
        let Some(tenant_key) = self.tenant_key(&query.tenant).await? else {
            return Ok(Answer { mode: query.effective_mode(), ..Answer::default() });
        };
        let (partitions, live_space) = query.of_partitions(self.partitions(tenant_key).await?);
        let scope = Scope { tenant_key, partitions, vector, frequencies: self.frequencies() };
        let lists = OfTenant { store: self, tenant_key, space_key: query.space_key };
        let answer = search::search(&lists, query, &scope).await?;
        Ok(Answer { live_space, ..answer })
    }

    /// The tenant's key; none if the store has nothing of this tenant.
    async fn tenant_key(&self, name: &str) -> Result<Option<i64>, StoreError> {
        sqlx::query_scalar("SELECT tenant_key FROM tenants WHERE name = ?")
            .bind(name)
            .fetch_optional(self.readers())
            .await
            .doing("looking up a tenant")
    }

    /// The tenant's partitions.
    async fn partitions(&self, tenant_key: i64) -> Result<Vec<PartitionRow>, StoreError> {
        sqlx::query_as(
            "SELECT tier, chunks, terms, generation,
                    (SELECT space_key FROM spaces WHERE state = 'live') AS live_space
             FROM partitions WHERE tenant_key = ? ORDER BY tier",
        )
        .bind(tenant_key)
        .fetch_all(self.readers())
        .await
        .doing("looking up a tenant")
    }
}

/// One tenant's rows and its vectors of one space.
struct OfTenant<'a> {
    store: &'a SqliteStore,
    tenant_key: i64,
    space_key: i64,
}

impl OfTenant<'_> {
    /// Read by key, so a hundred cost well below a millisecond.
    async fn similarities(
        &self,
        tier: i64,
        query: &[f32],
        chunk_keys: &[i64],
    ) -> Result<Vec<Near>, StoreError> {
        sqlx::query_as(
            "SELECT chunk_key, 1.0 - vec_distance_cosine(vector, ?4) FROM vectors
             WHERE space_key = ?1 AND tenant_key = ?2 AND tier = ?3
               AND chunk_key IN (SELECT value FROM json_each(?5))",
        )
        .bind(self.space_key)
        .bind(self.tenant_key)
        .bind(tier)
        .bind(vector_bytes(query))
        .bind(json_array(chunk_keys.iter().copied()))
        .fetch_all(self.store.readers())
        .await
        .doing("comparing vectors")
    }
}

impl Lists for OfTenant<'_> {
    async fn nearest(
        &self,
        partition: Partition,
        filter: &Filter,
        query: &[f32],
        depth: usize,
    ) -> Result<(Vec<Near>, Scan), StoreError> {
        let nearest =
            Nearest { store: self.store, space_key: self.space_key, tenant_key: self.tenant_key, query };
        nearest.search(partition, filter, depth).await
    }

    async fn complete(
        &self,
        tier: i64,
        query: &[f32],
        unseen: &[i64],
        unread: &[i64],
    ) -> Result<Completed, StoreError> {
        futures::try_join!(self.similarities(tier, query, unseen), self.texts(unread))
    }

    /// A list comes as one value: handing it over row by row would cost
    /// several times more than making it.
    async fn postings(&self, tier: i64, terms: &[&str], most: u64) -> Result<Vec<Vec<i64>>, StoreError> {
        let scope = keywords::scope(self.tenant_key, tier);
        let quoted: Vec<String> = terms.iter().map(|term| keywords::quoted(&scope, term)).collect();
        let lists: Vec<String> = sqlx::query_scalar(
            "SELECT (SELECT json_group_array(rowid) FROM
                        (SELECT rowid FROM keywords WHERE keywords MATCH wanted.value ORDER BY rowid DESC LIMIT ?2))
             FROM json_each(?1) AS wanted ORDER BY wanted.key",
        )
        .bind(serde_json::Value::from(quoted).to_string())
        .bind(most.cast_signed())
        .fetch_all(self.store.readers())
        .await
        .doing("matching words")?;
        lists
            .iter()
            .map(|list| {
                serde_json::from_str(list)
                    .map_err(|e| StoreError::Damaged { what: "word list", reason: e.to_string() })
            })
            .collect()
    }

    async fn document_counts(&self, tier: i64, terms: &[&str]) -> Result<HashMap<String, u64>, StoreError> {
        let scope = keywords::scope(self.tenant_key, tier);
        let wanted: Vec<String> = terms.iter().map(|term| format!("{scope}{term}")).collect();
        let counted: Vec<(String, i64)> = sqlx::query_as(
            "SELECT v.term, v.doc FROM json_each(?) AS wanted
             CROSS JOIN keyword_terms v ON v.term = wanted.value",
        )
        .bind(serde_json::Value::from(wanted).to_string())
        .fetch_all(self.store.readers())
        .await
        .doing("counting words")?;
        let unscoped = |scoped: String| scoped.strip_prefix(&scope).map(str::to_owned);
        Ok(counted
            .into_iter()
            .filter_map(|(scoped, count)| Some((unscoped(scoped)?, count.cast_unsigned())))
            .collect())
    }

    async fn passing(&self, tier: i64, filter: &Filter) -> Result<Vec<i64>, StoreError> {
        let statement = if filter.session.is_some() {
            "SELECT json_group_array(c.chunk_key) FROM records r INDEXED BY records_by_session
             CROSS JOIN chunks c ON c.record_key = r.record_key
             WHERE r.tenant_key = ?1 AND r.tier = ?2 AND r.session = ?5 AND r.ts_ms >= ?3 AND r.ts_ms < ?4"
        } else {
            "SELECT json_group_array(c.chunk_key) FROM records r INDEXED BY records_by_time
             CROSS JOIN chunks c ON c.record_key = r.record_key
             WHERE r.tenant_key = ?1 AND r.tier = ?2 AND r.ts_ms >= ?3 AND r.ts_ms < ?4"
        };
        let mut query = sqlx::query_scalar(statement)
            .bind(self.tenant_key)
            .bind(tier)
            .bind(filter.from_ms)
            .bind(filter.until_ms);
        if let Some(session) = &filter.session {
            query = query.bind(session);
        }
        let list: String = query.fetch_one(self.store.readers()).await.doing("filtering records")?;
        let mut chunk_keys: Vec<i64> = serde_json::from_str(&list)
            .map_err(|e| StoreError::Damaged { what: "list of chunks", reason: e.to_string() })?;
        chunk_keys.sort_unstable();
        Ok(chunk_keys)
    }

    async fn texts(&self, chunk_keys: &[i64]) -> Result<Vec<(i64, String)>, StoreError> {
        sqlx::query_as(
            "SELECT chunk_key, text FROM chunks WHERE chunk_key IN (SELECT value FROM json_each(?))",
        )
        .bind(json_array(chunk_keys.iter().copied()))
        .fetch_all(self.store.readers())
        .await
        .doing("reading texts")
    }

    async fn record_keys(&self, chunk_keys: &[i64]) -> Result<HashMap<i64, i64>, StoreError> {
        let pairs: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT chunk_key, record_key FROM chunks WHERE chunk_key IN (SELECT value FROM json_each(?))",
        )
        .bind(json_array(chunk_keys.iter().copied()))
        .fetch_all(self.store.readers())
        .await
        .doing("reading hits")?;
        Ok(pairs.into_iter().collect())
    }

    async fn hits(&self, chunk_keys: &[i64]) -> Result<Vec<HitRow>, StoreError> {
        // Cross joins keep SQLite from starting with all records of the tenant.
        sqlx::query_as(
            "SELECT c.chunk_key, c.text, c.chunk, c.start_byte, c.end_byte, r.record_id, r.ts_ms,
                    t.name AS tenant, r.session, r.source, r.tier, r.attrs, r.stream, r.\"offset\",
                    b.config_digest, b.batch_tag, s.content_digest, s.base_offset
             FROM json_each(?) AS wanted
             CROSS JOIN chunks c ON c.chunk_key = wanted.value
             CROSS JOIN records r ON r.record_key = c.record_key
             CROSS JOIN tenants t ON t.tenant_key = r.tenant_key
             CROSS JOIN batches b ON b.batch_key = r.batch_key
             LEFT JOIN segments s ON s.stream = r.stream AND s.end_offset > r.\"offset\"
                  AND s.base_offset = (SELECT max(base_offset) FROM segments
                                       WHERE stream = r.stream AND base_offset <= r.\"offset\")
             WHERE r.tenant_key = ?",
        )
        .bind(json_array(chunk_keys.iter().copied()))
        .bind(self.tenant_key)
        .fetch_all(self.store.readers())
        .await
        .doing("reading hits")
    }
}

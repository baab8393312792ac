//! What one search reads: on one connection, as one tenant, on one snapshot.

use std::collections::HashMap;

use tokio::sync::Mutex;

use super::text::{original, stored};
use super::vectors::{VectorTable, small};
use super::{PostgresStore, Session};
use crate::store::error::{Doing, StoreError};
use crate::store::hits::HitRow;
use crate::store::search::{
    self, Answer, Completed, Filter, Lists, Near, Partition, PartitionRow, Query, Scan, Scope,
};
use crate::store::settings::VectorIndex;

impl PostgresStore {
    pub async fn search(&self, query: &Query) -> Result<Answer, StoreError> {
        query.check()?;
        let space = match query.vector.is_some() {
            true => Some((self.space(query.space_key).await?, self.vector_table(query.space_key).await?)),
            false => None,
        };
        let vector = match &space {
            Some((space, _)) => query.unit(space.space.dimensions)?.map(|vector| (&**space, vector)),
            None => None,
        };
        let Some(tenant_key) = self.tenant_key(&query.tenant).await? else {
            return Ok(Answer { mode: query.effective_mode(), ..Answer::default() });
        };
        let index = self.settings().index;
        let ef_search = u64::from(index.ef_search).max(query.depth as u64).min(1_000);
        let settings = match vector {
            Some(_) => format!("; SET LOCAL hnsw.ef_search = {ef_search}"),
            None => String::new(),
        };
        let mut session = self.read_as_tenant(tenant_key, &settings).await?;
        let rows = session.partitions(tenant_key).await?;
        if rows.is_empty() {
            drop(session);
            return self.search_elsewhere(query, tenant_key).await;
        }
        let (partitions, live_space) = query.of_partitions(rows);
        let scope = Scope { tenant_key, partitions, vector, frequencies: self.frequencies() };
        let lists = OfTenant {
            session: Mutex::new(session),
            tenant_key,
            table: space.as_ref().map(|(_, table)| *table),
            index,
        };
        let answer = search::search(&lists, query, &scope).await?;
        Ok(Answer { live_space, ..answer })
    }

    /// Of a tenant whose remembered key has no rows: another process may have
    /// erased the tenant, who has come back with another key since.
    async fn search_elsewhere(&self, query: &Query, tenant_key: i64) -> Result<Answer, StoreError> {
        self.forget_tenant(&query.tenant);
        match self.tenant_key(&query.tenant).await? {
            Some(key) if key != tenant_key => Box::pin(self.search(query)).await,
            _ => Ok(Answer { mode: query.effective_mode(), ..Answer::default() }),
        }
    }

    /// The tenant's key; none if the store has nothing of this tenant.
    async fn tenant_key(&self, name: &str) -> Result<Option<i64>, StoreError> {
        if let Some(key) = self.remembered_tenant(name) {
            return Ok(Some(key));
        }
        let mut session = self.read().await?;
        let key: Option<i64> = session
            .query("SELECT tenant_key FROM thalweg.tenants WHERE name = $1")
            .bind(stored(name).into_owned())
            .optional_scalar(&mut session)
            .await
            .doing("looking up a tenant")?;
        if let Some(key) = key {
            self.remember_tenant(name, key);
        }
        Ok(key)
    }
}

impl Session {
    /// The tenant's partitions.
    async fn partitions(&mut self, tenant_key: i64) -> Result<Vec<PartitionRow>, StoreError> {
        self.query(
            "SELECT tier::bigint, chunks, terms, generation,
                    (SELECT space_key FROM thalweg.spaces WHERE state = 'live') AS live_space
             FROM thalweg.partitions WHERE tenant_key = $1 ORDER BY tier",
        )
        .bind(tenant_key)
        .all(self)
        .await
        .doing("looking up a tenant")
    }
}

/// One tenant's rows and its vectors of one space.
pub(super) struct OfTenant {
    /// One statement at a time.
    pub(super) session: Mutex<Session>,
    pub(super) tenant_key: i64,
    /// None if no vectors are compared.
    pub(super) table: Option<VectorTable>,
    pub(super) index: VectorIndex,
}

impl Lists for OfTenant {
    async fn nearest(
        &self,
        partition: Partition,
        filter: &Filter,
        query: &[f32],
        depth: usize,
    ) -> Result<(Vec<Near>, Scan), StoreError> {
        match self.table {
            Some(table) => self.nearest_in(&table, partition, filter, query, depth).await,
            None => Ok((Vec::new(), Scan::Exact)),
        }
    }

    async fn complete(
        &self,
        tier: i64,
        query: &[f32],
        unseen: &[i64],
        unread: &[i64],
    ) -> Result<Completed, StoreError> {
        match self.table {
            Some(table) => self.complete_in(&table, tier, query, unseen, unread).await,
            None => Ok((Vec::new(), self.texts(unread).await?)),
        }
    }

    async fn postings(&self, tier: i64, terms: &[&str], most: u64) -> Result<Vec<Vec<i64>>, StoreError> {
        let wanted: Vec<String> = terms.iter().map(|term| (*term).to_owned()).collect();
        let mut session = self.session.lock().await;
        let found: Vec<(String, Vec<i64>)> = session
            .query("SELECT term, chunk_keys FROM thalweg.postings($1, $2, $3)")
            .bind(small(tier))
            .bind(&wanted)
            .bind(most.cast_signed())
            .all(&mut session)
            .await
            .doing("matching words")?;
        let mut found: HashMap<String, Vec<i64>> = found.into_iter().collect();
        Ok(terms.iter().map(|term| found.remove(*term).unwrap_or_default()).collect())
    }

    async fn document_counts(&self, tier: i64, terms: &[&str]) -> Result<HashMap<String, u64>, StoreError> {
        let wanted: Vec<String> = terms.iter().map(|term| (*term).to_owned()).collect();
        let mut session = self.session.lock().await;
        let counted: Vec<(String, i64)> = session
            .query("SELECT term, chunks FROM thalweg.document_counts($1, $2)")
            .bind(small(tier))
            .bind(wanted)
            .all(&mut session)
            .await
            .doing("counting words")?;
        Ok(counted.into_iter().map(|(term, count)| (term, count.cast_unsigned())).collect())
    }

    async fn passing(&self, tier: i64, filter: &Filter) -> Result<Vec<i64>, StoreError> {
        let mut session = self.session.lock().await;
        session
            .query(
                "SELECT coalesce(array_agg(c.chunk_key ORDER BY c.chunk_key), '{}')
                 FROM thalweg.records r JOIN thalweg.chunks c USING (record_key)
                 WHERE r.tenant_key = $1 AND r.tier = $2 AND ($3::text IS NULL OR r.session = $3)
                   AND r.ts_ms >= $4 AND r.ts_ms < $5",
            )
            .bind(self.tenant_key)
            .bind(small(tier))
            .bind(filter.session.as_deref().map(|session| stored(session).into_owned()))
            .bind(filter.from_ms)
            .bind(filter.until_ms)
            // Planned each time, for it depends on what is asked.
            .planned_anew()
            .scalar(&mut session)
            .await
            .doing("filtering records")
    }

    async fn texts(&self, chunk_keys: &[i64]) -> Result<Vec<(i64, String)>, StoreError> {
        let mut session = self.session.lock().await;
        let texts: Vec<(i64, String)> = session
            .query("SELECT chunk_key, text FROM thalweg.chunks WHERE chunk_key = ANY($1)")
            .bind(chunk_keys.to_vec())
            .all(&mut session)
            .await
            .doing("reading texts")?;
        Ok(texts.into_iter().map(|(key, text)| (key, original(text))).collect())
    }

    async fn record_keys(&self, chunk_keys: &[i64]) -> Result<HashMap<i64, i64>, StoreError> {
        let mut session = self.session.lock().await;
        let pairs: Vec<(i64, i64)> = session
            .query("SELECT chunk_key, record_key FROM thalweg.chunks WHERE chunk_key = ANY($1)")
            .bind(chunk_keys.to_vec())
            .all(&mut session)
            .await
            .doing("reading hits")?;
        Ok(pairs.into_iter().collect())
    }

    async fn hits(&self, chunk_keys: &[i64]) -> Result<Vec<HitRow>, StoreError> {
        let mut session = self.session.lock().await;
        let rows: Vec<HitRow> = session
            .query(
                "SELECT c.chunk_key, c.text, c.chunk::bigint, c.start_byte::bigint, c.end_byte::bigint,
                        r.record_id, r.ts_ms, t.name AS tenant, r.session, r.source, r.tier::bigint,
                        r.attrs::text AS attrs, r.stream, r.\"offset\", b.config_digest, b.batch_tag,
                        s.content_digest, s.base_offset
                 FROM thalweg.chunks c
                 JOIN thalweg.records r USING (record_key)
                 JOIN thalweg.tenants t ON t.tenant_key = r.tenant_key
                 JOIN thalweg.batches b USING (batch_key)
                 LEFT JOIN LATERAL (
                     SELECT content_digest, base_offset, end_offset FROM thalweg.segments
                     WHERE stream = r.stream AND base_offset <= r.\"offset\"
                     ORDER BY base_offset DESC LIMIT 1
                 ) s ON s.end_offset > r.\"offset\"
                 WHERE c.chunk_key = ANY($1) AND r.tenant_key = $2",
            )
            .bind(chunk_keys.to_vec())
            .bind(self.tenant_key)
            .all(&mut session)
            .await
            .doing("reading hits")?;
        Ok(rows.into_iter().map(|row| row.map_texts(original)).collect())
    }
}

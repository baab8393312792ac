//! The chunks that match a query's words best.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::error::{Doing, StoreError};
use super::insert::json_array;
use super::keywords::{self, Bm25, Bm25Parameters};
use super::search::{Filter, Partition};
use super::sqlite::Store;

/// Documents that may be listed to find candidates of one tier.
const MAX_POSTINGS: u64 = 12_000;

/// Candidates scored for each match kept. They are picked by the weights of
/// the terms they hold, which leaves out how often and in how long a text.
const CANDIDATES_PER_MATCH: usize = 2;

/// A chunk with its BM25 score, above 0.
pub(super) type Match = (i64, f32);

/// A query's words, with what is known of them in one tenant's partitions.
pub(super) struct Matches {
    tenant_key: i64,
    bm25: Arc<Bm25>,
    /// Terms and how many documents hold them, by tier.
    frequencies: HashMap<i64, Vec<(String, u64)>>,
}

impl Matches {
    /// Looks up the words of `query`; none if it has none.
    pub async fn new(
        store: &Store,
        tenant_key: i64,
        partitions: &[Partition],
        query: &str,
        parameters: Bm25Parameters,
    ) -> Result<Option<Self>, StoreError> {
        let terms = keywords::query_terms(query);
        if terms.is_empty() {
            return Ok(None);
        }
        let documents = document_counts(store, tenant_key, partitions, &terms).await?;
        let mut frequencies: HashMap<i64, Vec<(String, u64)>> = HashMap::new();
        let mut totals: HashMap<String, u64> = HashMap::new();
        for partition in partitions {
            let scope = keywords::scope(tenant_key, partition.tier);
            let counted = terms.iter().map(|term| {
                let count = documents.get(&format!("{scope}{term}")).copied().unwrap_or(0);
                *totals.entry(term.clone()).or_default() += count;
                (term.clone(), count)
            });
            frequencies.insert(partition.tier, counted.collect());
        }
        // One set of statistics for all tiers makes their scores comparable.
        let chunks = partitions.iter().map(|p| p.chunks).sum();
        let length = partitions.iter().map(|p| p.terms).sum();
        let bm25 = Arc::new(Bm25::new(chunks, length, totals, parameters));
        Ok(Some(Self { tenant_key, bm25, frequencies }))
    }

    /// The `depth` best matches of one tier that pass `filter`, best first.
    pub async fn search(
        &self,
        store: &Store,
        tier: i64,
        filter: &Filter,
        depth: usize,
    ) -> Result<Vec<Match>, StoreError> {
        let Some(frequencies) = self.frequencies.get(&tier) else {
            return Ok(Vec::new());
        };
        let counts: Vec<(&str, u64)> = frequencies.iter().map(|(term, n)| (term.as_str(), *n)).collect();
        let rarest = keywords::rarest(&counts, MAX_POSTINGS);
        if rarest.is_empty() {
            return Ok(Vec::new());
        }
        let candidates = self.candidates(store, tier, &rarest, filter, depth * CANDIDATES_PER_MATCH).await?;
        let mut matches = self.scores(store, &candidates).await?;
        matches.truncate(depth);
        Ok(matches)
    }

    /// The scores of chunks that were found otherwise; those that hold none of
    /// the words are left out.
    pub async fn scores(&self, store: &Store, chunk_keys: &[i64]) -> Result<Vec<Match>, StoreError> {
        let texts = sqlx::query_as(
            "SELECT chunk_key, text FROM chunks WHERE chunk_key IN (SELECT value FROM json_each(?))",
        )
        .bind(json_array(chunk_keys.iter().copied()))
        .fetch_all(store.readers())
        .await
        .doing("reading texts")?;
        Ok(self.score(texts).await)
    }

    /// The chunks that hold the most telling of `terms`, at most `limit`.
    async fn candidates(
        &self,
        store: &Store,
        tier: i64,
        terms: &[&str],
        filter: &Filter,
        limit: usize,
    ) -> Result<Vec<i64>, StoreError> {
        let passing = match filter.passes_all() {
            true => None,
            false => Some(passing(store, self.tenant_key, tier, filter).await?),
        };
        let mut weights: HashMap<i64, f32> = HashMap::new();
        for (term, chunk_keys) in terms.iter().zip(postings(store, self.tenant_key, tier, terms).await?) {
            let weight = self.bm25.weight(term);
            for chunk_key in chunk_keys {
                if passing.as_ref().is_none_or(|passing| passing.binary_search(&chunk_key).is_ok()) {
                    *weights.entry(chunk_key).or_default() += weight;
                }
            }
        }
        // A short session may hold only words that were too common to list:
        // then all of it is looked at.
        let lacking = limit.saturating_sub(weights.len());
        for chunk_key in passing.iter().flat_map(|passing| passing.iter().rev()).take(lacking) {
            weights.entry(*chunk_key).or_default();
        }
        let mut candidates: Vec<(i64, f32)> = weights.into_iter().collect();
        candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
        Ok(candidates.into_iter().take(limit).map(|(chunk_key, _)| chunk_key).collect())
    }

    async fn score(&self, texts: Vec<(i64, String)>) -> Vec<Match> {
        let bm25 = Arc::clone(&self.bm25);
        tokio::task::spawn_blocking(move || {
            let mut matches: Vec<Match> = texts
                .par_iter()
                .map(|(chunk_key, text)| (*chunk_key, bm25.score(&keywords::terms(text))))
                .filter(|(_, score)| *score > 0.0)
                .collect();
            matches.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
            matches
        })
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

/// Which chunks hold each of `terms`, the newest [`MAX_POSTINGS`] of them.
/// A list comes as one value: handing it over row by row would cost several
/// times more than making it.
async fn postings(
    store: &Store,
    tenant_key: i64,
    tier: i64,
    terms: &[&str],
) -> Result<Vec<Vec<i64>>, StoreError> {
    let scope = keywords::scope(tenant_key, tier);
    let quoted: Vec<String> = terms.iter().map(|term| keywords::quoted(&scope, term)).collect();
    let lists: Vec<String> = sqlx::query_scalar(
        "SELECT (SELECT json_group_array(rowid) FROM
                    (SELECT rowid FROM keywords WHERE keywords MATCH wanted.value ORDER BY rowid DESC LIMIT ?2))
         FROM json_each(?1) AS wanted ORDER BY wanted.key",
    )
    .bind(serde_json::Value::from(quoted).to_string())
    .bind(MAX_POSTINGS.cast_signed())
    .fetch_all(store.readers())
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

/// The chunks of one tier whose records pass `filter`, in order.
async fn passing(store: &Store, tenant_key: i64, tier: i64, filter: &Filter) -> Result<Vec<i64>, StoreError> {
    let statement = if filter.session.is_some() {
        "SELECT json_group_array(c.chunk_key) FROM records r INDEXED BY records_by_session
         CROSS JOIN chunks c ON c.record_key = r.record_key
         WHERE r.tenant_key = ?1 AND r.tier = ?2 AND r.session = ?5 AND r.ts_ms >= ?3 AND r.ts_ms < ?4"
    } else {
        "SELECT json_group_array(c.chunk_key) FROM records r INDEXED BY records_by_time
         CROSS JOIN chunks c ON c.record_key = r.record_key
         WHERE r.tenant_key = ?1 AND r.tier = ?2 AND r.ts_ms >= ?3 AND r.ts_ms < ?4"
    };
    let mut query =
        sqlx::query_scalar(statement).bind(tenant_key).bind(tier).bind(filter.from_ms).bind(filter.until_ms);
    if let Some(session) = &filter.session {
        query = query.bind(session);
    }
    let list: String = query.fetch_one(store.readers()).await.doing("filtering records")?;
    let mut chunk_keys: Vec<i64> = serde_json::from_str(&list)
        .map_err(|e| StoreError::Damaged { what: "list of chunks", reason: e.to_string() })?;
    chunk_keys.sort_unstable();
    Ok(chunk_keys)
}

/// About how many documents of each partition hold each term, by scoped term.
async fn document_counts(
    store: &Store,
    tenant_key: i64,
    partitions: &[Partition],
    terms: &[String],
) -> Result<HashMap<String, u64>, StoreError> {
    let mut counts = HashMap::new();
    let mut unknown = HashMap::new();
    for partition in partitions {
        let scope = keywords::scope(tenant_key, partition.tier);
        for scoped in terms.iter().map(|term| format!("{scope}{term}")) {
            match store.frequencies().get(&scoped, partition.chunks) {
                Some(count) => drop(counts.insert(scoped, count)),
                None => drop(unknown.insert(scoped, partition.chunks)),
            }
        }
    }
    let wanted: Vec<&str> = unknown.keys().map(String::as_str).collect();
    let counted: Vec<(String, i64)> = sqlx::query_as(
        "SELECT v.term, v.doc FROM json_each(?) AS wanted CROSS JOIN keyword_terms v ON v.term = wanted.value",
    )
    .bind(serde_json::Value::from(wanted).to_string())
    .fetch_all(store.readers())
    .await
    .doing("counting words")?;
    for (term, count) in counted {
        let count = count.cast_unsigned();
        if let Some(chunks) = unknown.get(&term) {
            store.frequencies().put(term.clone(), count, *chunks);
        }
        counts.insert(term, count);
    }
    Ok(counts)
}

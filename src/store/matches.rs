//! The chunks that match a query's words best.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::error::StoreError;
use super::frequencies::Frequencies;
use super::keywords::{self, Bm25, Terms};
use super::search::{Filter, Lists, Partition, Query};

/// Documents that may be listed to find candidates of one tier.
const MAX_POSTINGS: u64 = 12_000;

/// Candidates scored for each match kept. They are picked by the weights of
/// the terms they hold, which leaves out how often and in how long a text.
const CANDIDATES_PER_MATCH: usize = 2;

/// A chunk with its BM25 score, above 0.
pub(super) type Match = (i64, f32);

/// A query's words, with what is known of them in one tenant's partitions.
pub(super) struct Matches {
    bm25: Arc<Bm25>,
    /// Terms and how many documents hold them, by tier.
    frequencies: HashMap<i64, Vec<(String, u64)>>,
}

impl Matches {
    /// Looks up the words of a query; none if it has none.
    pub async fn look_up(
        lists: &impl Lists,
        known: &Frequencies,
        tenant_key: i64,
        partitions: &[Partition],
        query: &Query,
    ) -> Result<Option<Self>, StoreError> {
        let terms = keywords::query_terms(&query.text);
        if terms.is_empty() {
            return Ok(None);
        }
        let mut frequencies: HashMap<i64, Vec<(String, u64)>> = HashMap::new();
        let mut totals: HashMap<String, u64> = HashMap::new();
        for partition in partitions {
            let counts = document_counts(lists, known, tenant_key, *partition, &terms).await?;
            for (term, count) in &counts {
                *totals.entry(term.clone()).or_default() += count;
            }
            frequencies.insert(partition.tier, counts);
        }
        // One set of statistics for all tiers makes their scores comparable.
        let chunks = partitions.iter().map(|p| p.chunks).sum();
        let length = partitions.iter().map(|p| p.terms).sum();
        let bm25 = Arc::new(Bm25::new(chunks, length, totals, query.bm25));
        Ok(Some(Self { bm25, frequencies }))
    }

    /// The `depth` best matches of one tier that pass `filter`, best first.
    pub async fn search(
        &self,
        lists: &impl Lists,
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
        let passing = match filter.passes_all() {
            true => None,
            false => Some(lists.passing(tier, filter).await?),
        };
        let postings = lists.postings(tier, &rarest, MAX_POSTINGS).await?;
        let listed = rarest.iter().copied().zip(postings);
        let candidates = self.candidates(listed, passing.as_deref(), depth * CANDIDATES_PER_MATCH);
        if candidates.is_empty() {
            return Ok(Vec::new());
        }
        let mut matches = self.score(lists.texts(&candidates).await?).await;
        matches.truncate(depth);
        Ok(matches)
    }

    /// The chunks that hold the most telling words, at most `limit`.
    fn candidates<'a>(
        &self,
        listed: impl Iterator<Item = (&'a str, Vec<i64>)>,
        passing: Option<&[i64]>,
        limit: usize,
    ) -> Vec<i64> {
        let mut weights: HashMap<i64, f32> = HashMap::new();
        for (term, chunk_keys) in listed {
            let weight = self.bm25.weight(term);
            for chunk_key in chunk_keys {
                if passing.is_none_or(|passing| passing.binary_search(&chunk_key).is_ok()) {
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
        candidates.into_iter().take(limit).map(|(chunk_key, _)| chunk_key).collect()
    }

    /// The scores of chunks by their texts, best first; those that hold none
    /// of the words are left out.
    pub async fn score(&self, texts: Vec<(i64, String)>) -> Vec<Match> {
        let bm25 = Arc::clone(&self.bm25);
        tokio::task::spawn_blocking(move || {
            let mut matches: Vec<Match> = texts
                .par_iter()
                .map(|(chunk_key, text)| (*chunk_key, bm25.score(&Terms::of(text))))
                .filter(|(_, score)| *score > 0.0)
                .collect();
            matches.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
            matches
        })
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}

/// About how many chunks of a partition hold each of `terms`.
async fn document_counts(
    lists: &impl Lists,
    known: &Frequencies,
    tenant_key: i64,
    partition: Partition,
    terms: &[String],
) -> Result<Vec<(String, u64)>, StoreError> {
    let scope = keywords::scope(tenant_key, partition.tier);
    let remembered: Vec<Option<u64>> =
        terms.iter().map(|term| known.get(&format!("{scope}{term}"), partition.chunks)).collect();
    let unknown: Vec<&str> = terms
        .iter()
        .zip(&remembered)
        .filter(|(_, count)| count.is_none())
        .map(|(term, _)| term.as_str())
        .collect();
    let mut counted = match unknown.as_slice() {
        [] => HashMap::new(),
        unknown => lists.document_counts(partition.tier, unknown).await?,
    };
    for (term, count) in &counted {
        known.put(format!("{scope}{term}"), *count, partition.chunks);
    }
    let count = |(term, remembered): (&String, Option<u64>)| {
        let count = remembered.or_else(|| counted.remove(term)).unwrap_or(0);
        (term.clone(), count)
    };
    Ok(terms.iter().zip(remembered).map(count).collect())
}

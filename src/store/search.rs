//! One question, several lists, one answer.
//!
//! Each tier gives its nearest vectors and its best keyword matches. In a
//! union both scores are then completed: what only keywords found is compared
//! by its vector, and what only vectors found is scored by its text, so that
//! fusion weighs two known numbers instead of guessing one. Both are reads by
//! key of at most a few hundred rows.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::Tier;

use super::error::{Doing, StoreError};
use super::fusion::{Candidate, Fused, Fusion, Weights, by_side, fuse};
use super::hits::Hit;
use super::keywords::Bm25Parameters;
use super::matches::Matches;
use super::matrix::make_unit;
use super::nearest::Nearest;
use super::rows::{tier_code, tier_of};
use super::spaces::SpaceRow;
use super::sqlite::Store;
use super::vector::check_vector;

/// Which lists are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Vectors and keywords, united; keywords alone where there is no query
    /// vector.
    #[default]
    Union,
    /// Vectors only.
    Vector,
    /// Keywords only.
    Keyword,
}

/// What to look for. `Query::default()` asks for 10 hits by union; the tenant
/// must be set.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Whose records; mandatory, and the only ones ever returned.
    pub tenant: String,
    /// Only this session of the tenant.
    pub session: Option<String>,
    /// Only these tiers; all if empty.
    pub tiers: Vec<Tier>,
    /// The words to match. Any text is safe.
    pub text: String,
    /// The text's vector in the space.
    pub vector: Option<Vec<f32>>,
    /// The space whose vectors are compared; not looked at without `vector`.
    pub space_key: i64,
    /// Which lists are asked for.
    pub mode: Mode,
    /// How they are united.
    pub fusion: Fusion,
    /// What each list and tier counts.
    pub weights: Weights,
    /// Hits at most.
    pub limit: usize,
    /// Length of each list.
    pub depth: usize,
    /// How keyword matches are scored.
    pub bm25: Bm25Parameters,
    /// Whether what one list found is scored by the other as well. Without
    /// it, what a list did not find counts as its worst.
    pub complete: bool,
    /// Of each record only its best chunk.
    pub per_record: bool,
    /// Only records of this time or later, in milliseconds since the Unix
    /// epoch.
    pub from_ms: Option<i64>,
    /// Only records before this time.
    pub until_ms: Option<i64>,
}

impl Default for Query {
    fn default() -> Self {
        Self {
            tenant: String::new(),
            session: None,
            tiers: Vec::new(),
            text: String::new(),
            vector: None,
            space_key: 0,
            mode: Mode::Union,
            fusion: Fusion::MinMax,
            weights: Weights::default(),
            limit: 10,
            depth: 100,
            bm25: Bm25Parameters::default(),
            complete: true,
            per_record: false,
            from_ms: None,
            until_ms: None,
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Best first.
    pub hits: Vec<Hit>,
    /// Chunks that the vectors brought.
    pub nearest: usize,
    /// Chunks that the keywords brought.
    pub matched: usize,
    /// How it was searched: `Keyword` where a union had no vector to compare.
    pub mode: Mode,
}

/// Which records count, beyond tenant and tier.
pub(super) struct Filter {
    pub session: Option<String>,
    pub from_ms: i64,
    pub until_ms: i64,
}

impl Filter {
    pub fn passes_all(&self) -> bool {
        self.session.is_none() && self.from_ms == i64::MIN && self.until_ms == i64::MAX
    }
}

/// One tier of one tenant.
#[derive(Clone, Copy)]
pub(super) struct Partition {
    pub tier: i64,
    pub chunks: u64,
    pub terms: u64,
    pub generation: i64,
}

impl Query {
    fn check(&self) -> Result<(), StoreError> {
        let reason = if self.tenant.is_empty() {
            "it names no tenant"
        } else if self.mode == Mode::Vector && self.vector.is_none() {
            "vector mode needs a query vector"
        } else if self.limit == 0 || self.depth == 0 {
            "limit and depth must be at least 1"
        } else {
            return Ok(());
        };
        Err(StoreError::Query { reason })
    }

    /// The mode that this query's parts allow.
    fn effective_mode(&self) -> Mode {
        match self.mode {
            Mode::Union if self.vector.is_none() => Mode::Keyword,
            mode => mode,
        }
    }

    fn filter(&self) -> Filter {
        Filter {
            session: self.session.clone(),
            from_ms: self.from_ms.unwrap_or(i64::MIN),
            until_ms: self.until_ms.unwrap_or(i64::MAX),
        }
    }
}

impl Store {
    /// The best chunks of one tenant for a query.
    pub async fn search(&self, query: &Query) -> Result<Answer, StoreError> {
        query.check()?;
        let mode = query.effective_mode();
        let vector = match &query.vector {
            Some(vector) if mode != Mode::Keyword => Some(self.comparable(query.space_key, vector).await?),
            _ => None,
        };
        let mut answer = Answer { mode, ..Answer::default() };
        let Some((tenant_key, partitions)) = self.partitions(query).await? else {
            return Ok(answer);
        };
        let lists = Lists {
            store: self,
            filter: query.filter(),
            depth: query.depth,
            complete: query.complete,
            nearest: vector.as_ref().map(|(_, vector)| Nearest {
                store: self,
                space_key: query.space_key,
                tenant_key,
                query: vector,
            }),
            matches: match mode {
                Mode::Vector => None,
                _ => Matches::new(self, tenant_key, &partitions, &query.text, query.bm25).await?,
            },
        };
        let mut candidates = Vec::new();
        for partition in &partitions {
            let found = lists.search(*partition).await?;
            answer.nearest += found.nearest;
            answer.matched += found.matched;
            candidates.extend(found.candidates);
        }
        let fused = match mode {
            Mode::Union => fuse(&candidates, query.fusion, &query.weights),
            Mode::Vector => by_side(&candidates, |c| c.vector, &query.weights),
            Mode::Keyword => by_side(&candidates, |c| c.keyword, &query.weights),
        };
        let fused = self.best(fused, query).await?;
        answer.hits = self.hits(tenant_key, vector.as_ref().map(|(space, _)| &**space), &fused).await?;
        Ok(answer)
    }

    /// The query's vector at length 1, and its space.
    async fn comparable(
        &self,
        space_key: i64,
        vector: &[f32],
    ) -> Result<(Arc<SpaceRow>, Vec<f32>), StoreError> {
        let space = self.space(space_key).await?;
        check_vector(vector, space.space.dimensions)
            .map_err(|reason| StoreError::Vector { of: "query".into(), reason })?;
        let mut unit = vector.to_vec();
        make_unit(&mut unit);
        Ok((space, unit))
    }

    /// The tenant and its partitions that the query asks for; none if the
    /// store has nothing of this tenant.
    async fn partitions(&self, query: &Query) -> Result<Option<(i64, Vec<Partition>)>, StoreError> {
        let rows: Vec<(i64, i64, i64, i64, i64)> = sqlx::query_as(
            "SELECT t.tenant_key, p.tier, p.chunks, p.terms, p.generation
             FROM tenants t JOIN partitions p ON p.tenant_key = t.tenant_key
             WHERE t.name = ? ORDER BY p.tier",
        )
        .bind(&query.tenant)
        .fetch_all(self.readers())
        .await
        .doing("looking up a tenant")?;
        let asked: HashSet<i64> = query.tiers.iter().map(|tier| tier_code(*tier)).collect();
        let tenant_key = rows.first().map(|row| row.0);
        let partitions = rows
            .into_iter()
            .map(|(_, tier, chunks, terms, generation)| Partition {
                tier,
                chunks: chunks.cast_unsigned(),
                terms: terms.cast_unsigned(),
                generation,
            })
            .filter(|partition| asked.is_empty() || asked.contains(&partition.tier))
            .collect();
        Ok(tenant_key.map(|tenant_key| (tenant_key, partitions)))
    }

    /// The first hits, of each record only the first if so asked.
    async fn best(&self, mut fused: Vec<Fused>, query: &Query) -> Result<Vec<Fused>, StoreError> {
        if query.per_record {
            let keys: Vec<i64> = fused.iter().map(|f| f.candidate.chunk_key).collect();
            let records = self.record_keys(&keys).await?;
            let mut seen = HashSet::new();
            fused.retain(|f| records.get(&f.candidate.chunk_key).is_some_and(|record| seen.insert(*record)));
        }
        fused.truncate(query.limit);
        Ok(fused)
    }
}

/// The lists a query asks for.
struct Lists<'a> {
    store: &'a Store,
    filter: Filter,
    depth: usize,
    complete: bool,
    nearest: Option<Nearest<'a>>,
    matches: Option<Matches>,
}

/// What is known of one chunk so far.
#[derive(Clone, Copy, Default)]
struct Scores {
    vector: Option<f32>,
    keyword: Option<f32>,
}

struct Found {
    candidates: Vec<Candidate>,
    nearest: usize,
    matched: usize,
}

impl Lists<'_> {
    /// Both lists of one partition, at the same time, then completed.
    async fn search(&self, partition: Partition) -> Result<Found, StoreError> {
        let nearest = async {
            match &self.nearest {
                Some(nearest) => nearest.search(partition, &self.filter, self.depth).await,
                None => Ok(Vec::new()),
            }
        };
        let matched = async {
            match &self.matches {
                Some(matches) => matches.search(self.store, partition.tier, &self.filter, self.depth).await,
                None => Ok(Vec::new()),
            }
        };
        let (nearest, matched) = futures::try_join!(nearest, matched)?;
        let counts = (nearest.len(), matched.len());
        let mut scores: BTreeMap<i64, Scores> = BTreeMap::new();
        nearest.into_iter().for_each(|(key, score)| scores.entry(key).or_default().vector = Some(score));
        matched.into_iter().for_each(|(key, score)| scores.entry(key).or_default().keyword = Some(score));
        if self.complete {
            self.complete(partition.tier, &mut scores).await?;
        }
        let tier = tier_of(partition.tier)?;
        let candidates = scores
            .into_iter()
            .map(|(chunk_key, Scores { vector, keyword })| Candidate { chunk_key, tier, vector, keyword })
            .collect();
        Ok(Found { candidates, nearest: counts.0, matched: counts.1 })
    }

    async fn complete(&self, tier: i64, scores: &mut BTreeMap<i64, Scores>) -> Result<(), StoreError> {
        let (Some(nearest), Some(matches)) = (&self.nearest, &self.matches) else {
            return Ok(());
        };
        let lacking = |side: fn(&Scores) -> Option<f32>| -> Vec<i64> {
            scores.iter().filter(|(_, both)| side(both).is_none()).map(|(key, _)| *key).collect()
        };
        let (no_vector, no_keyword) = (lacking(|both| both.vector), lacking(|both| both.keyword));
        let (similarities, matched) = futures::try_join!(
            nearest.similarities(tier, &no_vector),
            matches.scores(self.store, &no_keyword)
        )?;
        for (key, score) in similarities {
            scores.entry(key).or_default().vector = Some(score);
        }
        for (key, score) in matched {
            scores.entry(key).or_default().keyword = Some(score);
        }
        Ok(())
    }
}

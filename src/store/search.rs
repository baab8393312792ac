//! One question, several lists, one answer.
//!
//! Each tier gives its nearest vectors and its best keyword matches. In a
//! union both scores are then completed: what only keywords found is compared
//! by its vector, and what only vectors found is scored by its text, so that
//! fusion weighs two known numbers instead of guessing one. Both are reads by
//! key of at most a few hundred rows.
//!
//! What a database is asked for stands in [`Lists`]; everything else is the
//! same for all of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::Future;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::Tier;

use super::error::StoreError;
use super::frequencies::Frequencies;
use super::fusion::{Candidate, Fused, Fusion, Weights, by_side, fuse};
use super::hits::{Hit, HitRow, in_order};
use super::keywords::Bm25Parameters;
use super::matches::{Match, Matches};
use super::rows::{tier_code, tier_of};
use super::spaces::SpaceRow;
use super::vector::{check_vector, make_unit};

/// Which lists are asked for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, utoipa::ToSchema,
)]
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
    /// How the vectors of each tier were compared.
    pub scans: Vec<TierScan>,
    /// The space that was live as this was read; none if none was, or if the
    /// tenant has nothing here.
    pub live_space: Option<i64>,
}

/// How the vectors of one tier were compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TierScan {
    /// The tier.
    pub tier: Tier,
    /// Chunks that the tenant has in it.
    pub chunks: u64,
    /// The way taken.
    pub scan: Scan,
}

/// A way to find the nearest vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scan {
    /// Every vector, held in this process.
    Memory,
    /// Every vector, in the database.
    Exact,
    /// Every vector of the records that pass session and times.
    Filtered,
    /// An approximate index, and exactly what is newer than it.
    Index,
    /// The index came short, so every vector was compared after all.
    IndexThenExact,
}

impl Scan {
    /// The name that programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Exact => "exact",
            Self::Filtered => "filtered",
            Self::Index => "index",
            Self::IndexThenExact => "index_then_exact",
        }
    }
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
#[derive(Clone, Copy, sqlx::FromRow)]
pub(super) struct Partition {
    pub tier: i64,
    #[sqlx(try_from = "i64")]
    pub chunks: u64,
    #[sqlx(try_from = "i64")]
    pub terms: u64,
    /// Moves when vectors come or go other than at the end.
    pub generation: i64,
}

/// A partition, with what is read beside it.
#[derive(sqlx::FromRow)]
pub(super) struct PartitionRow {
    #[sqlx(flatten)]
    partition: Partition,
    live_space: Option<i64>,
}

impl Query {
    /// Those of a tenant's partitions that the query asks for, and the live
    /// space.
    pub(super) fn of_partitions(&self, rows: Vec<PartitionRow>) -> (Vec<Partition>, Option<i64>) {
        let live_space = rows.first().and_then(|row| row.live_space);
        let partitions = rows.into_iter().map(|row| row.partition);
        (partitions.filter(|partition| self.asks_for(partition.tier)).collect(), live_space)
    }

    pub(super) fn check(&self) -> Result<(), StoreError> {
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
    pub(super) fn effective_mode(&self) -> Mode {
        match self.mode {
            Mode::Union if self.vector.is_none() => Mode::Keyword,
            mode => mode,
        }
    }

    pub(super) fn filter(&self) -> Filter {
        Filter {
            session: self.session.clone(),
            from_ms: self.from_ms.unwrap_or(i64::MIN),
            until_ms: self.until_ms.unwrap_or(i64::MAX),
        }
    }
}

/// A chunk with its cosine similarity to the query.
pub(super) type Near = (i64, f32);

/// Similarities of some chunks and texts of others.
pub(super) type Completed = (Vec<Near>, Vec<(i64, String)>);

/// What a database answers during one search, of one tenant.
pub(super) trait Lists: Sync {
    /// The `depth` chunks of a partition nearest to `query`, of length 1, that
    /// pass `filter`, best first.
    fn nearest(
        &self,
        partition: Partition,
        filter: &Filter,
        query: &[f32],
        depth: usize,
    ) -> impl Future<Output = Result<(Vec<Near>, Scan), StoreError>> + Send;

    /// What two lists lack of each other: the similarities of `unseen`, where
    /// those without a vector are left out, and the texts of `unread`.
    fn complete(
        &self,
        tier: i64,
        query: &[f32],
        unseen: &[i64],
        unread: &[i64],
    ) -> impl Future<Output = Result<Completed, StoreError>> + Send;

    /// Which chunks hold each of `terms`, the newest `most` of each.
    fn postings(
        &self,
        tier: i64,
        terms: &[&str],
        most: u64,
    ) -> impl Future<Output = Result<Vec<Vec<i64>>, StoreError>> + Send;

    /// How many chunks of a tier hold each of `terms`; a term that none holds
    /// may be left out.
    fn document_counts(
        &self,
        tier: i64,
        terms: &[&str],
    ) -> impl Future<Output = Result<HashMap<String, u64>, StoreError>> + Send;

    /// The chunks of a tier whose records pass `filter`, ascending.
    fn passing(
        &self,
        tier: i64,
        filter: &Filter,
    ) -> impl Future<Output = Result<Vec<i64>, StoreError>> + Send;

    /// The texts of chunks.
    fn texts(
        &self,
        chunk_keys: &[i64],
    ) -> impl Future<Output = Result<Vec<(i64, String)>, StoreError>> + Send;

    /// The record of each chunk.
    fn record_keys(
        &self,
        chunk_keys: &[i64],
    ) -> impl Future<Output = Result<HashMap<i64, i64>, StoreError>> + Send;

    /// What is shown of chunks; those that have gone, or are not of this
    /// tenant after all, are left out.
    fn hits(&self, chunk_keys: &[i64]) -> impl Future<Output = Result<Vec<HitRow>, StoreError>> + Send;
}

/// One tenant, and the tiers that a query asks for.
pub(super) struct Scope<'a> {
    pub tenant_key: i64,
    pub partitions: Vec<Partition>,
    /// The query's vector, of length 1, and its space, where vectors are
    /// compared.
    pub vector: Option<(&'a SpaceRow, Vec<f32>)>,
    pub frequencies: &'a Frequencies,
}

impl Query {
    /// Whether the query asks for a tier.
    fn asks_for(&self, tier: i64) -> bool {
        self.tiers.is_empty() || self.tiers.iter().any(|asked| tier_code(*asked) == tier)
    }

    /// The query's vector at length 1; none if no vectors are to be compared.
    pub(super) fn unit(&self, dimensions: usize) -> Result<Option<Vec<f32>>, StoreError> {
        let Some(vector) = self.vector.as_ref().filter(|_| self.effective_mode() != Mode::Keyword) else {
            return Ok(None);
        };
        check_vector(vector, dimensions)
            .map_err(|reason| StoreError::Vector { of: "query".into(), reason })?;
        let mut unit = vector.clone();
        make_unit(&mut unit);
        Ok(Some(unit))
    }
}

/// The best chunks of `scope` for `query`.
pub(super) async fn search(
    lists: &impl Lists,
    query: &Query,
    scope: &Scope<'_>,
) -> Result<Answer, StoreError> {
    let mode = query.effective_mode();
    let Scope { tenant_key, partitions, vector, frequencies } = scope;
    let matches = match mode {
        Mode::Vector => None,
        _ => Matches::look_up(lists, frequencies, *tenant_key, partitions, query).await?,
    };
    let search = Search { lists, query, filter: query.filter(), vector: vector.as_ref(), matches };
    let mut answer = Answer { mode, ..Answer::default() };
    let mut candidates = Vec::new();
    for partition in partitions {
        let found = search.partition(*partition).await?;
        answer.nearest += found.nearest;
        answer.matched += found.matched;
        answer.scans.extend(found.scan);
        candidates.extend(found.candidates);
    }
    let mut fused = match mode {
        Mode::Union => fuse(&candidates, query.fusion, &query.weights),
        Mode::Vector => by_side(&candidates, |c| c.vector, &query.weights),
        Mode::Keyword => by_side(&candidates, |c| c.keyword, &query.weights),
    };
    if query.per_record {
        first_of_each_record(lists, &mut fused).await?;
    }
    fused.truncate(query.limit);
    let keys: Vec<i64> = fused.iter().map(|f| f.candidate.chunk_key).collect();
    let rows = if keys.is_empty() { Vec::new() } else { lists.hits(&keys).await? };
    answer.hits = in_order(rows, &fused, vector.as_ref().map(|(space, _)| *space))?;
    Ok(answer)
}

async fn first_of_each_record(lists: &impl Lists, fused: &mut Vec<Fused>) -> Result<(), StoreError> {
    let keys: Vec<i64> = fused.iter().map(|f| f.candidate.chunk_key).collect();
    let records = lists.record_keys(&keys).await?;
    let mut seen = HashSet::new();
    fused.retain(|f| records.get(&f.candidate.chunk_key).is_some_and(|record| seen.insert(*record)));
    Ok(())
}

/// One search under way.
struct Search<'a, L> {
    lists: &'a L,
    query: &'a Query,
    filter: Filter,
    vector: Option<&'a (&'a SpaceRow, Vec<f32>)>,
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
    scan: Option<TierScan>,
}

impl<L: Lists> Search<'_, L> {
    /// Both lists of one partition, at the same time, then completed.
    async fn partition(&self, partition: Partition) -> Result<Found, StoreError> {
        let tier = tier_of(partition.tier)?;
        let ((nearest, scan), matched) =
            futures::try_join!(self.nearest(partition), self.matched(partition.tier))?;
        let counts = (nearest.len(), matched.len());
        let mut scores: BTreeMap<i64, Scores> = BTreeMap::new();
        nearest.into_iter().for_each(|(key, score)| scores.entry(key).or_default().vector = Some(score));
        matched.into_iter().for_each(|(key, score)| scores.entry(key).or_default().keyword = Some(score));
        if self.query.complete {
            self.complete(partition.tier, &mut scores).await?;
        }
        let candidates = scores
            .into_iter()
            .map(|(chunk_key, Scores { vector, keyword })| Candidate { chunk_key, tier, vector, keyword })
            .collect();
        let scan = scan.map(|scan| TierScan { tier, chunks: partition.chunks, scan });
        Ok(Found { candidates, nearest: counts.0, matched: counts.1, scan })
    }

    async fn nearest(&self, partition: Partition) -> Result<(Vec<Near>, Option<Scan>), StoreError> {
        let Some((_, vector)) = self.vector else { return Ok((Vec::new(), None)) };
        let (nearest, scan) = self.lists.nearest(partition, &self.filter, vector, self.query.depth).await?;
        Ok((nearest, Some(scan)))
    }

    async fn matched(&self, tier: i64) -> Result<Vec<Match>, StoreError> {
        match &self.matches {
            Some(matches) => matches.search(self.lists, tier, &self.filter, self.query.depth).await,
            None => Ok(Vec::new()),
        }
    }

    async fn complete(&self, tier: i64, scores: &mut BTreeMap<i64, Scores>) -> Result<(), StoreError> {
        let (Some((_, vector)), Some(matches)) = (self.vector, &self.matches) else {
            return Ok(());
        };
        let lacking = |side: fn(&Scores) -> Option<f32>| -> Vec<i64> {
            scores.iter().filter(|(_, both)| side(both).is_none()).map(|(key, _)| *key).collect()
        };
        let (unseen, unread) = (lacking(|both| both.vector), lacking(|both| both.keyword));
        if unseen.is_empty() && unread.is_empty() {
            return Ok(());
        }
        let (similarities, texts) = self.lists.complete(tier, vector, &unseen, &unread).await?;
        let matched = matches.score(texts).await;
        for (key, score) in similarities {
            scores.entry(key).or_default().vector = Some(score);
        }
        for (key, score) in matched {
            scores.entry(key).or_default().keyword = Some(score);
        }
        Ok(())
    }
}

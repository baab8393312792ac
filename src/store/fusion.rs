//! Uniting what vectors and keywords found into one order.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::record::Tier;

/// How two scores become one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// Each score moved and scaled to 0..1 over the candidates, then summed
    /// by weight. Keeps how much better a hit is.
    #[default]
    MinMax,
    /// Reciprocal ranks summed by weight: 1 / (60 + rank), ranks from 1
    /// (Cormack, Clarke and Büttcher, SIGIR 2009). Robust where scores of
    /// one side mean little.
    Rank,
}

/// What each side and tier counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Weights {
    /// Of the vector score.
    pub vector: f32,
    /// Of the keyword score.
    pub keyword: f32,
    /// Factor on the sum, by tier; 1 where none is given.
    pub tiers: BTreeMap<Tier, f32>,
}

impl Default for Weights {
    fn default() -> Self {
        Self { vector: 0.5, keyword: 0.5, tiers: BTreeMap::new() }
    }
}

/// A chunk that at least one side found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Which chunk.
    pub chunk_key: i64,
    /// Its record's tier.
    pub tier: Tier,
    /// Cosine similarity to the query, -1..1; none if it has no vector.
    pub vector: Option<f32>,
    /// BM25; none if it holds no term of the query.
    pub keyword: Option<f32>,
}

/// A chunk with its place in the order.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fused {
    /// What was found.
    pub candidate: Candidate,
    /// Higher is better; comparable within one answer only.
    pub score: f32,
}

const RANK_CONSTANT: f32 = 60.0;

/// Candidates from best to worst; of equals the newer chunk first.
pub fn fuse(candidates: &[Candidate], fusion: Fusion, weights: &Weights) -> Vec<Fused> {
    let score_side = match fusion {
        Fusion::MinMax => normalised,
        Fusion::Rank => reciprocal_ranks,
    };
    let vector = score_side(&candidates.iter().map(|c| c.vector).collect::<Vec<_>>());
    let keyword = score_side(&candidates.iter().map(|c| c.keyword).collect::<Vec<_>>());
    order(candidates.iter().zip(vector.into_iter().zip(keyword)).map(|(candidate, (vector, keyword))| {
        let tier = weights.tiers.get(&candidate.tier).copied().unwrap_or(1.0);
        Fused { candidate: *candidate, score: tier * (weights.vector * vector + weights.keyword * keyword) }
    }))
}

/// Candidates by one side's own score, from best to worst; those without it
/// are left out.
pub fn by_side(
    candidates: &[Candidate],
    side: fn(&Candidate) -> Option<f32>,
    weights: &Weights,
) -> Vec<Fused> {
    order(candidates.iter().filter_map(|candidate| {
        let tier = weights.tiers.get(&candidate.tier).copied().unwrap_or(1.0);
        side(candidate).map(|score| Fused { candidate: *candidate, score: tier * score })
    }))
}

fn order(fused: impl Iterator<Item = Fused>) -> Vec<Fused> {
    let mut fused: Vec<Fused> = fused.collect();
    fused.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.candidate.chunk_key.cmp(&a.candidate.chunk_key)));
    fused
}

/// Scores moved and scaled to 0..1; a missing one counts as the worst. Where
/// all are equal they are all 1: whatever has a score was found.
fn normalised(scores: &[Option<f32>]) -> Vec<f32> {
    let found = || scores.iter().flatten().copied();
    let (min, max) = (found().fold(f32::INFINITY, f32::min), found().fold(f32::NEG_INFINITY, f32::max));
    scores
        .iter()
        .map(|score| match score {
            Some(score) if max > min => (score - min) / (max - min),
            Some(_) => 1.0,
            None => 0.0,
        })
        .collect()
}

/// 1 / (60 + rank); 0 for a missing score. Equal scores share a rank.
#[expect(clippy::cast_precision_loss, reason = "ranks are small")]
fn reciprocal_ranks(scores: &[Option<f32>]) -> Vec<f32> {
    let mut falling: Vec<f32> = scores.iter().flatten().copied().collect();
    falling.sort_by(|a, b| b.total_cmp(a));
    scores
        .iter()
        .map(|score| {
            score.map_or(0.0, |score| {
                let better = falling.partition_point(|other| other.total_cmp(&score) == Ordering::Greater);
                1.0 / (RANK_CONSTANT + better as f32 + 1.0)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(chunk_key: i64, vector: Option<f32>, keyword: Option<f32>) -> Candidate {
        Candidate { chunk_key, tier: Tier::Event, vector, keyword }
    }

    fn keys(fused: &[Fused]) -> Vec<i64> {
        fused.iter().map(|f| f.candidate.chunk_key).collect()
    }

    #[test]
    fn min_max_sums_both_sides_scaled_to_their_range() {
        let candidates = [
            candidate(1, Some(0.9), None),
            candidate(2, Some(0.8), Some(6.0)),
            candidate(3, Some(0.5), Some(2.0)),
        ];
        let fused = fuse(&candidates, Fusion::MinMax, &Weights::default());
        assert_eq!(keys(&fused), [2, 1, 3]);
        let scores: Vec<f32> = fused.iter().map(|f| f.score).collect();
        for (score, expected) in scores.iter().zip([0.5 * 0.75 + 0.5, 0.5, 0.0]) {
            assert!((score - expected).abs() < 1e-6, "{scores:?}");
        }
    }

    #[test]
    fn reciprocal_ranks_ignore_how_much_better_a_score_is() {
        let candidates = [
            candidate(1, Some(0.99), Some(1.0)),
            candidate(2, Some(0.2), Some(1.1)),
            candidate(3, Some(0.1), None),
        ];
        let fused = fuse(&candidates, Fusion::Rank, &Weights::default());
        assert_eq!(keys(&fused), [2, 1, 3]);
        assert!((fused[0].score - 0.5 * (1.0 / 61.0 + 1.0 / 62.0)).abs() < 1e-7);
        assert!((fused[2].score - 0.5 / 63.0).abs() < 1e-7);
    }

    #[test]
    fn a_single_candidate_scores_full_marks_on_the_side_that_found_it() {
        let fused = fuse(&[candidate(1, None, Some(0.3))], Fusion::MinMax, &Weights::default());
        assert!((fused[0].score - 0.5).abs() < 1e-6);
    }

    #[test]
    fn tiers_are_weighted() {
        let mut weights = Weights::default();
        weights.tiers.insert(Tier::Doc, 3.0);
        let doc = Candidate { tier: Tier::Doc, ..candidate(1, Some(0.5), Some(1.0)) };
        let candidates = [doc, candidate(2, Some(0.9), Some(1.0)), candidate(3, Some(0.1), Some(1.0))];
        assert_eq!(keys(&fuse(&candidates, Fusion::MinMax, &weights)), [1, 2, 3]);
        assert_eq!(keys(&fuse(&candidates, Fusion::MinMax, &Weights::default())), [2, 1, 3]);
    }

    #[test]
    fn one_side_alone_keeps_its_own_scores() {
        let candidates =
            [candidate(1, Some(0.4), None), candidate(2, None, Some(7.0)), candidate(3, Some(0.6), None)];
        let fused = by_side(&candidates, |c| c.vector, &Weights::default());
        assert_eq!(keys(&fused), [3, 1]);
        assert!((fused[0].score - 0.6).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn a_candidate_better_on_both_sides_is_never_below(
            sides in prop::collection::vec((prop::option::of(-1.0f32..1.0), prop::option::of(0.0f32..20.0)), 2..30),
            rank in any::<bool>(),
        ) {
            let candidates: Vec<_> = (0..).zip(&sides).map(|(key, (v, k))| candidate(key, *v, *k)).collect();
            let fusion = if rank { Fusion::Rank } else { Fusion::MinMax };
            let fused = fuse(&candidates, fusion, &Weights::default());
            prop_assert_eq!(fused.len(), candidates.len());
            for (i, worse) in fused.iter().enumerate() {
                for better in &fused[i + 1..] {
                    let (w, b) = (worse.candidate, better.candidate);
                    let dominates = b.vector > w.vector && b.keyword > w.keyword;
                    prop_assert!(!dominates || better.score == worse.score);
                }
            }
        }
    }
}

//! How good a ranking is.
//!
//! Both measures look at the first `k` ids of a ranking and at what is
//! relevant, each id with its gain; ids do not repeat.

use std::collections::BTreeMap;

/// Relevant ids and their gains.
pub type Relevant = BTreeMap<String, f64>;

/// Normalised discounted cumulative gain (Järvelin and Kekäläinen, 2002) as
/// trec_eval computes it: the gain at rank `r`, from 1, counts
/// `1 / log2(r + 1)`, and the sum is divided by that of the best possible
/// order. 0 where nothing is relevant.
pub fn ndcg<S: AsRef<str>>(ranked: &[S], relevant: &Relevant, k: usize) -> f64 {
    let mut best: Vec<f64> = relevant.values().copied().collect();
    best.sort_by(|a, b| b.total_cmp(a));
    let ideal = discounted(best.into_iter().take(k));
    let gains = ranked.iter().take(k).map(|id| relevant.get(id.as_ref()).copied().unwrap_or(0.0));
    if ideal > 0.0 { discounted(gains) / ideal } else { 0.0 }
}

/// Share of the relevant ids among the first `k`. 0 where nothing is relevant.
#[expect(clippy::cast_precision_loss, reason = "counts of ids")]
pub fn recall<S: AsRef<str>>(ranked: &[S], relevant: &Relevant, k: usize) -> f64 {
    let found = ranked.iter().take(k).filter(|id| relevant.contains_key(id.as_ref())).count();
    found as f64 / relevant.len().max(1) as f64
}

/// The mean; 0 of nothing.
#[expect(clippy::cast_precision_loss, reason = "a count of questions")]
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values.into_iter().fold((0.0, 0usize), |(sum, n), value| (sum + value, n + 1));
    sum / count.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "ranks")]
fn discounted(gains: impl Iterator<Item = f64>) -> f64 {
    gains.enumerate().map(|(i, gain)| gain / (i as f64 + 2.0).log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relevant(ids: &[(&str, f64)]) -> Relevant {
        ids.iter().map(|(id, gain)| ((*id).to_owned(), *gain)).collect()
    }

    #[test]
    fn the_best_order_scores_one_and_a_later_rank_less() {
        let wanted = relevant(&[("a", 1.0), ("b", 1.0)]);
        assert!((ndcg(&["a", "b", "x"], &wanted, 10) - 1.0).abs() < 1e-12);
        // By hand: (1/log2(2) + 1/log2(4)) / (1/log2(2) + 1/log2(3)).
        let expected = 1.5 / (1.0 + 1.0 / 3f64.log2());
        assert!((ndcg(&["a", "x", "b"], &wanted, 10) - expected).abs() < 1e-12);
    }

    #[test]
    fn greater_gains_belong_first() {
        let wanted = relevant(&[("a", 1.0), ("b", 3.0)]);
        assert!((ndcg(&["b", "a"], &wanted, 10) - 1.0).abs() < 1e-12);
        assert!(ndcg(&["a", "b"], &wanted, 10) < 0.9);
    }

    #[test]
    fn what_stands_beyond_the_cut_does_not_count() {
        let wanted = relevant(&[("a", 1.0), ("b", 1.0), ("c", 1.0)]);
        assert!((ndcg(&["a", "b"], &wanted, 2) - 1.0).abs() < 1e-12, "the ideal is cut as well");
        assert!((recall(&["a", "x", "b"], &wanted, 2) - 1.0 / 3.0).abs() < 1e-12);
        assert_eq!(ndcg(&["a"], &Relevant::new(), 10), 0.0);
        assert_eq!(recall(&["a"], &Relevant::new(), 10), 0.0);
    }

    #[test]
    fn the_mean_of_nothing_is_nothing() {
        assert_eq!(mean([]), 0.0);
        assert!((mean([1.0, 2.0]) - 1.5).abs() < 1e-12);
    }
}

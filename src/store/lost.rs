//! Which offsets a pipeline counted as lost, so that they can be taken back
//! when a repair brings them back.

use std::ops::Range;

use super::rows::Batch;

/// The offsets of `batch` that have no record and no outcome.
pub(super) fn lost_of(batch: &Batch) -> Vec<Range<u64>> {
    let mut kept: Vec<u64> =
        batch.records.iter().map(|r| r.offset).chain(batch.outcomes.iter().map(|o| o.offset)).collect();
    kept.sort_unstable();
    without(batch.from..batch.to, &kept)
}

/// What of `range` is not among the ascending `offsets`.
pub(super) fn without(range: Range<u64>, offsets: &[u64]) -> Vec<Range<u64>> {
    let mut left = Vec::new();
    let mut at = range.start;
    for offset in offsets.iter().copied().filter(|offset| range.contains(offset)) {
        if offset > at {
            left.push(at..offset);
        }
        at = offset + 1;
    }
    if at < range.end {
        left.push(at..range.end);
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_taken_out_of_a_range() {
        assert_eq!(without(3..10, &[]), [3..10]);
        assert_eq!(without(3..10, &[1, 3, 5, 6, 9, 12]), [4..5, 7..9]);
        assert_eq!(without(3..5, &[3, 4]), []);
    }
}

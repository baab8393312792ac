//! Sets of offsets, kept as ranges.

use std::{collections::BTreeMap, ops::Range};

/// A set of offsets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Offsets(BTreeMap<u64, u64>);

impl Offsets {
    /// Adds a range.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end) = (range.start, range.end);
        // Those that overlap or touch the range.
        let joined: Vec<u64> =
            self.0.range(..=end).rev().take_while(|(_, e)| **e >= start).map(|(s, _)| *s).collect();
        for s in joined {
            start = start.min(s);
            end = end.max(self.0.remove(&s).unwrap_or(end));
        }
        self.0.insert(start, end);
    }

    /// Whether all of `range` is in the set; true of an empty one.
    pub fn contains(&self, range: &Range<u64>) -> bool {
        self.missing(range.clone()).is_empty()
    }

    /// What of `range` is not in the set, in order.
    pub fn missing(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let mut missing = Vec::new();
        let mut at = range.start;
        let before = self.0.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        for (start, end) in self.0.range(before..range.end.max(before)) {
            if *start > at {
                missing.push(at..*start);
            }
            at = at.max(*end);
        }
        if at < range.end {
            missing.push(at..range.end);
        }
        missing
    }

    /// Number of offsets.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(start, end)| end - start).sum()
    }

    /// The ranges, in order and apart.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.0.iter().map(|(start, end)| *start..*end)
    }
}

impl FromIterator<Range<u64>> for Offsets {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut offsets = Self::default();
        ranges.into_iter().for_each(|range| offsets.insert(range));
        offsets
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_a_set_of_offsets(
            ranges in prop::collection::vec((0u64..40, 0u64..12), 0..8),
            asked in (0u64..50, 0u64..20),
        ) {
            let ranges: Vec<_> = ranges.into_iter().map(|(start, n)| start..start + n).collect();
            let truth: BTreeSet<u64> = ranges.iter().cloned().flatten().collect();
            let offsets: Offsets = ranges.into_iter().collect();
            prop_assert_eq!(offsets.ranges().flatten().collect::<BTreeSet<_>>(), truth.clone());
            prop_assert_eq!(offsets.count(), truth.len() as u64);
            let asked = asked.0..asked.0 + asked.1;
            let missing: Vec<u64> = offsets.missing(asked.clone()).into_iter().flatten().collect();
            let wanted: Vec<u64> = asked.clone().filter(|at| !truth.contains(at)).collect();
            prop_assert_eq!(&missing, &wanted);
            prop_assert_eq!(offsets.contains(&asked), wanted.is_empty());
        }
    }
}

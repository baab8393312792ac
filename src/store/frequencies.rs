//! How many documents hold a common term, remembered.
//!
//! Counting a term reads its whole list in the index. For rare terms that is
//! nothing; for the commonest of a large tenant it would be most of a search,
//! though their counts hardly change from one search to the next.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Rarer terms are counted afresh.
const COMMON_FROM_DOCUMENTS: u64 = 1_000;

/// A count is scaled, not repeated, until its partition has grown by more
/// than one in this many.
const GROWTH: u64 = 8;

/// Terms remembered before all are forgotten and counted anew.
const MAX_TERMS: usize = 50_000;

#[derive(Clone, Copy)]
struct Counted {
    documents: u64,
    /// Chunks in the partition when it was counted.
    chunks: u64,
}

/// Counts of common terms by scoped term, which names tenant and tier.
#[derive(Default)]
pub(super) struct Frequencies {
    counted: Mutex<HashMap<String, Counted>>,
}

impl Frequencies {
    /// About how many documents of a partition of `chunks` hold `term`, if it
    /// was counted when the partition was about this large.
    pub fn get(&self, term: &str, chunks: u64) -> Option<u64> {
        let counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let known = counted.get(term)?;
        let is_near = (known.chunks..=known.chunks + known.chunks / GROWTH).contains(&chunks);
        is_near.then(|| known.documents.saturating_mul(chunks) / known.chunks.max(1))
    }

    /// Remembers a count if the term is common.
    pub fn put(&self, term: String, documents: u64, chunks: u64) {
        if documents < COMMON_FROM_DOCUMENTS {
            return;
        }
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.len() >= MAX_TERMS {
            counted.clear();
        }
        counted.insert(term, Counted { documents, chunks });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_grow_with_their_partition_until_they_are_taken_anew() {
        let frequencies = Frequencies::default();
        frequencies.put("1k0river".into(), 4_000, 8_000);
        assert_eq!(frequencies.get("1k0river", 8_000), Some(4_000));
        assert_eq!(frequencies.get("1k0river", 9_000), Some(4_500));
        assert_eq!(frequencies.get("1k0river", 9_001), None);
        assert_eq!(frequencies.get("1k0river", 7_999), None, "rows have gone");
        assert_eq!(frequencies.get("2k0river", 8_000), None);
        frequencies.put("1k0delta".into(), 999, 8_000);
        assert_eq!(frequencies.get("1k0delta", 8_000), None, "rare terms are counted afresh");
    }
}

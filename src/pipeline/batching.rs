//! How many records the next commit takes.
//!
//! A commit costs a sync and some round trips whatever it holds, so large ones
//! are cheaper; small ones let a search find the first record while the last
//! is still embedded. So a batch is small while deriving keeps up, and where
//! embedding is what takes the time. It grows where the log is so far ahead
//! that the records of one batch wait for many others anyway.

use std::time::Duration;

/// Records of a batch while deriving keeps up, at most.
const LEAST: usize = 256;
/// Records of any batch, at most.
pub(crate) const MOST: usize = 2_048;
/// Bytes of the log from which on a batch takes no more records. They bound
/// the memory of a batch, together with those that are read at once.
pub(crate) const MOST_BYTES: usize = 512 << 10;
/// Embedding a larger batch should take no longer.
const EMBEDDING: Duration = Duration::from_millis(200);
/// The share of what is waiting that a larger batch may be: 1 in so many.
const SHARE: u64 = 8;

/// Most records of the next batch, when `behind` frames wait in the log and
/// embedding took `per_record` lately; `None` if that is not known.
pub(crate) fn records(behind: u64, per_record: Option<Duration>) -> usize {
    let Some(per_record) = per_record else { return LEAST };
    let in_time = EMBEDDING.as_nanos() / per_record.as_nanos().max(1);
    let in_time = usize::try_from(in_time).unwrap_or(MOST);
    let share = usize::try_from(behind / SHARE).unwrap_or(MOST);
    in_time.min(share).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Option<Duration> = Some(Duration::from_micros(10));

    #[test]
    fn what_keeps_up_commits_small_batches() {
        for behind in [0, 1, 256, 2_000] {
            assert_eq!(records(behind, CHEAP), LEAST, "{behind} behind");
        }
    }

    #[test]
    fn a_log_far_ahead_is_caught_up_in_large_ones() {
        assert_eq!(records(8_000, CHEAP), 1_000);
        assert_eq!(records(1_000_000, CHEAP), MOST);
        assert_eq!(records(u64::MAX, Some(Duration::ZERO)), MOST);
    }

    #[test]
    fn an_embedder_that_takes_its_time_gets_small_ones_however_far_behind() {
        assert_eq!(records(1_000_000, Some(Duration::from_millis(3))), LEAST);
        assert_eq!(records(1_000_000, Some(Duration::from_micros(200))), 1_000);
        assert_eq!(records(1_000_000, Some(Duration::MAX)), LEAST);
    }

    #[test]
    fn the_first_batches_are_small_for_nobody_knows_yet() {
        assert_eq!(records(1_000_000, None), LEAST);
    }
}

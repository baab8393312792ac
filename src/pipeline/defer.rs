//! When to stop waiting for an embedder: records go on without vectors, so
//! that they can be found by keyword.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::embed::EmbedError;

/// An embedder's failures, as all batches see them: who comes while it has
/// failed for long does not wait as long again.
#[derive(Debug)]
pub struct Outage {
    patience: Duration,
    since: Mutex<Option<Instant>>,
}

impl Outage {
    /// Nothing has failed. Records wait at most `patience`.
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: Mutex::default() }
    }

    /// It works.
    pub fn over(&self) {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// It failed a batch that has waited since `began`; how much longer to try,
    /// or none if it is time to give up.
    pub fn seen(&self, error: &EmbedError, began: Instant, now: Instant) -> Option<Duration> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        left(error, now.saturating_duration_since(*since.get_or_insert(began)), self.patience)
    }
}

/// A quota does not come back by waiting for seconds; anything else may.
fn left(error: &EmbedError, failing_for: Duration, patience: Duration) -> Option<Duration> {
    let waits = !matches!(error, EmbedError::Quota { .. });
    patience.checked_sub(failing_for).filter(|left| waits && !left.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_batches_together_wait_as_long_as_patience_lasts() {
        let outage = Outage::new(Duration::from_secs(10));
        let error = EmbedError::Transient { reason: String::new() };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(outage.seen(&error, at(0), at(2)), Some(Duration::from_secs(8)));
        assert_eq!(outage.seen(&error, at(1), at(9)), Some(Duration::from_secs(1)));
        assert_eq!(outage.seen(&error, at(9), at(10)), None);
        assert_eq!(outage.seen(&error, at(59), at(60)), None);
        outage.over();
        assert_eq!(outage.seen(&error, at(70), at(70)), Some(Duration::from_secs(10)));
    }

    #[test]
    fn a_spent_quota_is_not_waited_for() {
        let outage = Outage::new(Duration::from_secs(10));
        let error = EmbedError::Quota { reason: String::new(), reset_at: None };
        assert_eq!(outage.seen(&error, Instant::now(), Instant::now()), None);
    }
}

//! Which endpoint is asked: the first that may be asked now, in the order of
//! the file, unless it is so much slower than another that waiting for that
//! one is shorter. Pure.

use std::time::{Duration, Instant};

use super::gate::Outlook;
use crate::embed::EmbedError;

/// An endpoint this many times slower than the best one, and slower by
/// [`grace`](choose), is passed over.
const SLUGGISH: u32 = 4;

/// Why no endpoint is asked now.
#[derive(Clone, Debug)]
pub enum Blocked {
    /// One can be: then, or when a request ends.
    Until(Option<Instant>),
    /// None can be for a while.
    Failed(EmbedError),
}

/// Chooses among endpoints, numbered and in the order of the file.
///
/// # Errors
/// If it is none of them now.
pub fn choose(outlooks: &[(usize, Outlook)], grace: Duration, now: Instant) -> Result<usize, Blocked> {
    let best = outlooks.iter().filter_map(|(_, outlook)| cost(outlook, now)).min();
    let Some(best) = best else {
        return Err(Blocked::Failed(soonest(outlooks)));
    };
    let enough = best.saturating_mul(SLUGGISH).saturating_add(grace);
    let usable = outlooks.iter().find_map(|(index, outlook)| match outlook {
        Outlook::Now { expected } if *expected <= enough => Some(*index),
        _ => None,
    });
    if let Some(index) = usable {
        return Ok(index);
    }
    Err(Blocked::Until(outlooks.iter().filter_map(|(_, outlook)| later(outlook)).min()))
}

/// How long it is to a result by way of this endpoint; `None` if it is closed.
fn cost(outlook: &Outlook, now: Instant) -> Option<Duration> {
    match outlook {
        Outlook::Now { expected } => Some(*expected),
        Outlook::Busy { expected } => Some(expected.saturating_mul(2)),
        Outlook::Later { at, expected } => Some(at.saturating_duration_since(now).saturating_add(*expected)),
        Outlook::Closed { .. } => None,
    }
}

fn later(outlook: &Outlook) -> Option<Instant> {
    match outlook {
        Outlook::Later { at, .. } => Some(*at),
        _ => None,
    }
}

/// The error of the endpoint that will be tried first again.
fn soonest(outlooks: &[(usize, Outlook)]) -> EmbedError {
    let closed = outlooks.iter().filter_map(|(_, outlook)| match outlook {
        Outlook::Closed { until, error } => Some((until, error)),
        _ => None,
    });
    // A probe under way (no time known) is the soonest of all.
    let first = closed.min_by_key(|(until, _)| **until).map(|(_, error)| error.clone());
    first.unwrap_or_else(|| EmbedError::Transient { reason: "no endpoint is left to ask".to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(1);

    fn chosen(outlooks: &[Outlook], now: Instant) -> Result<usize, Blocked> {
        let numbered: Vec<_> = outlooks.iter().cloned().enumerate().collect();
        choose(&numbered, GRACE, now)
    }

    fn ready(millis: u64) -> Outlook {
        Outlook::Now { expected: Duration::from_millis(millis) }
    }

    fn busy(millis: u64) -> Outlook {
        Outlook::Busy { expected: Duration::from_millis(millis) }
    }

    fn closed(until: Option<Instant>, reason: &str) -> Outlook {
        Outlook::Closed { until, error: EmbedError::Transient { reason: reason.into() } }
    }

    #[test]
    fn the_first_that_may_be_asked_is_asked() {
        let now = Instant::now();
        let later = Outlook::Later { at: now + GRACE, expected: Duration::ZERO };
        assert!(matches!(chosen(&[ready(900), ready(100)], now), Ok(0)));
        assert!(matches!(chosen(&[closed(None, ""), ready(100)], now), Ok(1)));
        assert!(matches!(chosen(&[busy(100), ready(100)], now), Ok(1)));
        assert!(matches!(chosen(&[later, ready(100)], now), Ok(1)));
    }

    #[test]
    fn one_that_is_much_slower_than_another_is_passed_over() {
        let now = Instant::now();
        assert!(matches!(chosen(&[ready(30_000), ready(100)], now), Ok(1)));
        assert!(matches!(chosen(&[ready(30_000), busy(100)], now), Err(Blocked::Until(None))));
        assert!(matches!(chosen(&[ready(30_000), closed(None, "")], now), Ok(0)));
        assert!(matches!(chosen(&[ready(30_000), busy(20_000)], now), Ok(0)));
    }

    #[test]
    fn waiting_ends_when_the_first_may_be_asked() {
        let now = Instant::now();
        let later = |n: u32| Outlook::Later { at: now + GRACE * n, expected: Duration::ZERO };
        let wait = chosen(&[later(3), later(2), busy(10)], now);
        assert!(matches!(wait, Err(Blocked::Until(Some(at))) if at == now + GRACE * 2));
    }

    #[test]
    fn where_all_are_closed_the_reason_is_that_of_the_soonest() {
        let now = Instant::now();
        let reason = |outlooks: &[Outlook]| match chosen(outlooks, now) {
            Err(Blocked::Failed(EmbedError::Transient { reason })) => reason,
            other => panic!("{other:?}"),
        };
        let (a, b) = (closed(Some(now + GRACE * 2), "a"), closed(Some(now + GRACE), "b"));
        assert_eq!(reason(&[a.clone(), b.clone()]), "b");
        assert_eq!(reason(&[a, b, closed(None, "c")]), "c");
        assert!(reason(&[]).contains("no endpoint"));
    }
}

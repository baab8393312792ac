//! The bucket: how much of a minute's requests is there to be taken.
//!
//! A bucket is one number, the time at which it will be full: each request
//! moves it by a minute's share, and one that would move it further than a
//! minute ahead is refused (the generic cell rate algorithm).

use std::time::Duration;

const MINUTE_US: i64 = 60_000_000;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// Requests of a minute.
    pub limit: u32,
    /// Requests that could follow at once.
    pub remaining: u32,
    /// Until all of them can again.
    pub reset: Duration,
    /// Until one can, of a refused one.
    pub retry_after: Duration,
}

/// The share of one request in a minute.
pub(super) fn share_us(limit: u32) -> i64 {
    MINUTE_US / i64::from(limit.max(1))
}

/// Takes one request out of the bucket that is full at `full_at_us`; gives
/// when it is full then.
pub(super) fn take(full_at_us: i64, now_us: i64, limit: u32) -> (i64, Decision) {
    let full_at = full_at_us.max(now_us);
    let taken = full_at + share_us(limit);
    let allowed = taken - now_us <= MINUTE_US;
    let next = if allowed { taken } else { full_at };
    (next, Decision::of(allowed, next - now_us, limit))
}

impl Decision {
    /// Of a bucket that is full `ahead_us` from now.
    pub(super) fn of(allowed: bool, ahead_us: i64, limit: u32) -> Self {
        let micros = |us: i64| Duration::from_micros(u64::try_from(us).unwrap_or(0));
        let left = (MINUTE_US - ahead_us).max(0) / share_us(limit);
        Self {
            allowed,
            limit,
            remaining: u32::try_from(left).unwrap_or(u32::MAX).min(limit),
            reset: micros(ahead_us),
            retry_after: if allowed {
                Duration::ZERO
            } else {
                micros(ahead_us + share_us(limit) - MINUTE_US)
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_minutes_requests_can_come_at_once_and_then_one_after_the_other() {
        let (mut full_at, now) = (0, 5_000_000);
        for left in (0..60).rev() {
            let (next, decision) = take(full_at, now, 60);
            assert_eq!((decision.allowed, decision.remaining), (true, left));
            full_at = next;
        }
        let (same, refused) = take(full_at, now, 60);
        assert_eq!((same, refused.allowed, refused.remaining), (full_at, false, 0));
        assert_eq!((refused.retry_after, refused.reset), (Duration::from_secs(1), Duration::from_secs(60)));
        let (_, later) = take(full_at, now + 1_000_000, 60);
        assert!(later.allowed);
    }

    proptest! {
        /// Over any times of asking, no stretch of time sees more than what
        /// was in a full bucket and what came in meanwhile.
        #[test]
        fn no_more_than_the_limit_and_what_came_in_is_let_through(
            limit in 1_u32..500,
            steps in proptest::collection::vec(0_i64..3_000_000, 1..400),
        ) {
            let (mut full_at, mut now, mut allowed) = (0, 0, 0_i64);
            for step in steps {
                now += step;
                let (next, decision) = take(full_at, now, limit);
                full_at = next;
                allowed += i64::from(decision.allowed);
                prop_assert!(allowed <= i64::from(limit) + now / share_us(limit) + 1);
                if !decision.allowed {
                    let wait = i64::try_from(decision.retry_after.as_micros()).unwrap();
                    prop_assert!(take(full_at, now + wait, limit).1.allowed);
                    prop_assert!(!take(full_at, now + wait - 1, limit).1.allowed);
                }
            }
        }
    }
}

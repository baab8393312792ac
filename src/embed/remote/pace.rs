//! How long one endpoint's requests are expected to take. Pure.
//!
//! A running mean of what they took. An endpoint that nobody asks keeps its
//! mean; if it is slower than another, it comes near to that one's with time,
//! so that it is tried again. Requests that were given up without an answer
//! are heard too: an endpoint that takes requests and never answers would
//! otherwise look as fast as on its best day.

use std::time::{Duration, Instant};

/// Weight of the newest request in the mean.
const NEWEST: f64 = 0.3;
/// After this long unasked, half of what an endpoint is slower than another is
/// forgotten.
const FORGETTING: Duration = Duration::from_secs(60);
/// Each time in a row that a request is given up, the wait for it counts this
/// many times as long ...
const DOUBT: u32 = 4;
/// ... up to so many times.
const MOST_DOUBTS: u32 = 3;

/// One endpoint's pace.
#[derive(Clone, Debug)]
pub struct Pace {
    mean: Option<Duration>,
    /// What a request takes at least, by those that were given up.
    suspected: Duration,
    /// Given up in a row, those under way at once counted as one.
    given_up: u32,
    given_up_at: Option<Instant>,
    heard_at: Instant,
}

impl Pace {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { mean: None, suspected: Duration::ZERO, given_up: 0, given_up_at: None, heard_at: now }
    }

    /// A request was answered.
    pub fn answered(&mut self, took: Duration, now: Instant) {
        let mean = self.mean.map_or(took, |mean| mean.mul_f64(1.0 - NEWEST) + took.mul_f64(NEWEST));
        *self = Self { mean: Some(mean), ..Self::new(now) };
    }

    /// A request failed: one that did so at once says nothing of those that
    /// are answered.
    pub fn failed(&mut self, took: Duration, now: Instant) {
        let mean = self.mean.unwrap_or_default();
        if took > mean {
            self.mean = Some(mean.mul_f64(1.0 - NEWEST) + took.mul_f64(NEWEST));
            self.heard_at = now;
        }
    }

    /// A request that went at `began` was given up after it had been waited
    /// for in earnest.
    pub fn given_up(&mut self, began: Instant, now: Instant) {
        if self.given_up_at.is_none_or(|at| began >= at) {
            self.given_up = self.given_up.saturating_add(1);
            self.given_up_at = Some(now);
        }
        let doubts = self.given_up.saturating_sub(1).min(MOST_DOUBTS);
        let waited = now.saturating_duration_since(began).saturating_mul(DOUBT.pow(doubts));
        self.suspected = self.suspected.max(waited);
        self.heard_at = now;
    }

    /// What requests took, if there were any.
    pub fn mean(&self) -> Option<Duration> {
        self.mean
    }

    /// What the next one will take, beside an endpoint with that mean.
    pub fn expected(&self, other: Duration, now: Instant) -> Duration {
        let last = self.mean.unwrap_or_default().max(self.suspected);
        let unasked = now.saturating_duration_since(self.heard_at).as_secs_f64();
        let remembered = 0.5_f64.powf(unasked / FORGETTING.as_secs_f64());
        last.min(other) + last.saturating_sub(other).mul_f64(remembered)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn millis(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn it_is_a_mean_that_follows_the_newest() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!((pace.mean(), pace.expected(millis(9), now)), (None, Duration::ZERO));
        pace.answered(millis(100), now);
        assert_eq!(pace.mean(), Some(millis(100)));
        pace.answered(millis(200), now);
        assert_eq!(pace.mean(), Some(millis(130)));
    }

    #[test]
    fn a_failure_makes_it_slower_and_never_faster() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.answered(millis(100), now);
        pace.failed(millis(1), now);
        assert_eq!(pace.mean(), Some(millis(100)));
        pace.failed(millis(30_100), now);
        assert_eq!(pace.mean(), Some(millis(9_100)));
    }

    #[test]
    fn unasked_it_keeps_its_pace_and_comes_down_to_that_of_a_faster_one() {
        let now = Instant::now();
        let (mut pace, later) = (Pace::new(now), now + FORGETTING);
        pace.answered(millis(2_000), now);
        assert_eq!(pace.expected(millis(400), now), millis(2_000));
        assert_eq!(pace.expected(millis(400), later), millis(1_200));
        assert_eq!(pace.expected(millis(3_000), later), millis(2_000));
        assert_eq!(pace.expected(millis(3_000), now + FORGETTING * 1_000), millis(2_000));
    }

    #[test]
    fn requests_given_up_in_a_row_make_it_slower_and_slower_until_an_answer() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.answered(millis(100), now);
        let waited = millis(700);
        for (times, expected) in [(1_u32, 700), (2, 2_800), (3, 11_200), (4, 44_800), (5, 44_800)] {
            let began = now + waited * times;
            pace.given_up(began, began + waited);
            assert_eq!(pace.expected(Duration::ZERO, began + waited), millis(expected));
        }
        pace.answered(millis(100), now);
        assert_eq!(pace.expected(Duration::ZERO, now), millis(100));
    }

    #[test]
    fn those_under_way_at_once_are_one() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for n in 0..10 {
            pace.given_up(now + millis(n), now + millis(700 + n));
        }
        assert_eq!(pace.expected(Duration::ZERO, now + millis(709)), millis(700));
    }
}

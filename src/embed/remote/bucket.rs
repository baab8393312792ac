//! The rate of one endpoint: requests and tokens a minute, as token buckets.
//!
//! A bucket fills at nine tenths of the limit and holds one tenth of it, so
//! that in no minute, wherever it begins, more than the limit goes. A request
//! larger than the bucket goes when the bucket is full and leaves it in debt.
//! What the answers' headers say tightens it: others may use the same key.

use std::time::{Duration, Instant};

use super::headers::{Limit, RateLimits};

const MINUTE: f64 = 60.0;
/// Of a limit, what may go at once.
const BURST: f64 = 0.1;

/// The rates of one endpoint.
#[derive(Clone, Debug)]
pub struct Bucket {
    requests: Meter,
    tokens: Meter,
    paused_until: Option<Instant>,
}

/// One rate.
#[derive(Clone, Debug)]
struct Meter {
    /// What the pipeline file allows a minute.
    set: Option<f64>,
    /// What the endpoint says that it allows a minute.
    told: Option<f64>,
    /// What may go now; below 0 it is owed.
    level: f64,
    at: Instant,
}

impl Bucket {
    /// With limits a minute; `None`: whatever the endpoint says.
    pub fn new(requests: Option<u64>, tokens: Option<u64>, now: Instant) -> Self {
        Self { requests: Meter::new(requests, now), tokens: Meter::new(tokens, now), paused_until: None }
    }

    /// When a request of this many tokens may go, at the earliest.
    pub fn ready_at(&self, tokens: u64, now: Instant) -> Instant {
        let wait = self.requests.wait(1.0, now).max(self.tokens.wait(float(tokens), now));
        (now + wait).max(self.paused_until.unwrap_or(now))
    }

    /// Reserves for a request that goes now.
    pub fn reserve(&mut self, tokens: u64, now: Instant) {
        self.requests.change(-1.0, now);
        self.tokens.change(-float(tokens), now);
    }

    /// What the request took is known: `reserved` becomes `used`.
    pub fn settle(&mut self, reserved: u64, used: u64, now: Instant) {
        self.tokens.change(float(reserved) - float(used), now);
    }

    /// Takes in what an answer's headers say.
    pub fn observe(&mut self, told: &RateLimits, now: Instant) {
        for (meter, told) in [(&mut self.requests, &told.requests), (&mut self.tokens, &told.tokens)] {
            meter.observe(told, now);
            if let (Some(0), Some(reset)) = (told.remaining, told.reset) {
                self.paused_until = self.paused_until.max(Some(now + reset));
            }
        }
    }

    /// Nothing goes before `until`.
    pub fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Until when nothing goes, if that is not over.
    pub fn paused_until(&self, now: Instant) -> Option<Instant> {
        self.paused_until.filter(|until| *until > now)
    }

    /// Tokens that may go at once, if they are limited: a request of more
    /// leaves a debt that everything after it waits for.
    pub fn tokens_at_once(&self) -> Option<f64> {
        self.tokens.per_minute().map(|_| self.tokens.most())
    }

    /// Requests and tokens that may go now, where they are limited.
    pub fn remaining(&self, now: Instant) -> (Option<f64>, Option<f64>) {
        let left = |meter: &Meter| meter.per_minute().map(|_| meter.level_at(now).max(0.0));
        (left(&self.requests), left(&self.tokens))
    }
}

impl Meter {
    fn new(set: Option<u64>, now: Instant) -> Self {
        let set = set.map(float);
        let mut meter = Self { set, told: None, level: 0.0, at: now };
        meter.level = meter.most();
        meter
    }

    fn per_minute(&self) -> Option<f64> {
        match (self.set, self.told) {
            (Some(set), Some(told)) => Some(set.min(told)),
            (set, told) => set.or(told),
        }
    }

    /// What the bucket holds: at least one request's worth.
    fn most(&self) -> f64 {
        self.per_minute().map_or(0.0, |limit| (limit * BURST).max(1.0))
    }

    fn per_second(&self) -> f64 {
        self.per_minute().map_or(0.0, |limit| limit * (1.0 - BURST) / MINUTE)
    }

    fn level_at(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.level + passed * self.per_second()).min(self.most())
    }

    fn change(&mut self, by: f64, now: Instant) {
        if self.per_minute().is_some() {
            self.level = (self.level_at(now) + by).min(self.most());
            self.at = self.at.max(now);
        }
    }

    /// How long until `need` may go, or as much of it as the bucket holds.
    fn wait(&self, need: f64, now: Instant) -> Duration {
        if self.per_minute().is_none() {
            return Duration::ZERO;
        }
        let short = need.min(self.most()) - self.level_at(now);
        // A hair more, so that rounding does not find it short once again.
        let wait = if short > 0.0 { short / self.per_second() + 1e-6 } else { 0.0 };
        Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX).min(Duration::from_secs(86_400))
    }

    fn observe(&mut self, told: &Limit, now: Instant) {
        let level = self.level_at(now);
        let first = self.per_minute().is_none();
        if let Some(limit) = told.limit.filter(|limit| *limit > 0) {
            self.told = Some(float(limit));
        }
        self.level = if first { self.most() } else { level };
        if let Some(remaining) = told.remaining {
            self.level = self.level.min(float(remaining));
        }
        self.level = self.level.min(self.most());
        self.at = self.at.max(now);
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates are far below 2^53")]
fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(n: f64) -> Duration {
        Duration::from_secs_f64(n)
    }

    #[test]
    fn without_a_limit_everything_goes() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, None, now);
        for _ in 0..1_000 {
            assert_eq!(bucket.ready_at(1_000_000, now), now);
            bucket.reserve(1_000_000, now);
        }
        assert_eq!(bucket.remaining(now), (None, None));
    }

    #[test]
    fn a_large_request_goes_from_a_full_bucket_and_is_paid_before_the_next() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, Some(60_000), now);
        assert_eq!(bucket.ready_at(30_000, now), now);
        bucket.reserve(30_000, now);
        // 24,000 owed and one more wanted, at 900 a second.
        let wait = bucket.ready_at(1, now) - now;
        assert!((seconds(26.6)..seconds(26.7)).contains(&wait), "{wait:?}");
        bucket.settle(30_000, 3_000, now);
        assert_eq!(bucket.ready_at(1, now), now);
    }

    #[test]
    fn what_the_headers_say_tightens_it() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, None, now);
        let told = |limit, remaining, reset| RateLimits {
            tokens: Limit { limit: Some(limit), remaining: Some(remaining), reset },
            ..RateLimits::default()
        };
        bucket.observe(&told(6_000, 300, None), now);
        assert_eq!(bucket.tokens_at_once(), Some(600.0));
        assert_eq!(bucket.remaining(now).1, Some(300.0));
        bucket.observe(&told(6_000, 0, Some(seconds(7.0))), now);
        assert_eq!(bucket.ready_at(1, now), now + seconds(7.0));
        assert_eq!(bucket.ready_at(1, now + seconds(7.0)), now + seconds(7.0));
        // A limit in the file is kept where the endpoint allows more.
        let mut bucket = Bucket::new(None, Some(1_000), now);
        bucket.observe(&told(6_000, 6_000, None), now);
        assert_eq!(bucket.tokens_at_once(), Some(100.0));
    }

    #[test]
    fn a_pause_holds_everything_back_and_is_never_shortened() {
        let now = Instant::now();
        let mut bucket = Bucket::new(None, None, now);
        bucket.pause(now + seconds(5.0));
        bucket.pause(now + seconds(1.0));
        assert_eq!(bucket.ready_at(1, now), now + seconds(5.0));
    }

    proptest! {
        /// Sending as soon as allowed, in no minute more goes than the limit
        /// and the one request that went on credit.
        #[test]
        fn in_no_minute_more_goes_than_the_limit(
            limit in 100..100_000_u64,
            sizes in proptest::collection::vec(1..20_000_u64, 1..200),
            pauses in proptest::collection::vec(0..3_000_u64, 200),
        ) {
            let mut now = Instant::now();
            let mut bucket = Bucket::new(None, Some(limit), now);
            let mut sent: Vec<(Instant, u64)> = Vec::new();
            for (size, pause) in sizes.into_iter().zip(pauses) {
                now = bucket.ready_at(size, now + Duration::from_millis(pause));
                prop_assert!(bucket.ready_at(size, now) <= now + Duration::from_millis(1));
                bucket.reserve(size, now);
                sent.push((now, size));
            }
            for (start, _) in &sent {
                let minute: Vec<u64> = sent
                    .iter()
                    .filter(|(at, _)| at >= start && *at < *start + Duration::from_secs(60))
                    .map(|(_, size)| *size)
                    .collect();
                let (all, largest) = (minute.iter().sum::<u64>(), minute.iter().max().copied().unwrap_or(0));
                prop_assert!(all <= limit + largest, "{all} of {limit} and {largest}");
            }
        }
    }
}

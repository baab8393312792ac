//! Whether an endpoint may be asked now: its circuit, its rate, the requests
//! under way, and how long they take.
//!
//! Pure: the state changes only by what is told to it, with the time.

use std::time::{Duration, Instant};

use super::{
    breaker::{Breaker, Permission},
    bucket::Bucket,
    classify::Fault,
    headers::RateLimits,
    retry::backoff,
    settings::Endpoint as Settings,
    shape::Limits,
};
use crate::embed::EmbedError;

/// An account that may spend no more is tried again after this, unless it
/// says when.
const SPENT: Duration = Duration::from_secs(15 * 60);
/// What is configured wrongly is tried again after this: it may be put right
/// on the other side.
const MISCONFIGURED: Duration = Duration::from_secs(60);
/// The first wait after a 429 that does not say how long, doubled each time ...
const RATE_BASE: Duration = Duration::from_secs(1);
/// ... up to this.
const RATE_LONGEST: Duration = Duration::from_secs(60);
/// Less than this is no wait, whatever an answer says.
const SHORTEST: Duration = Duration::from_millis(20);
/// Weight of the newest request in the time that requests are expected to take.
const NEWEST: f64 = 0.3;
/// After this long unasked, an endpoint is expected to be half as slow.
const FORGETTING: Duration = Duration::from_secs(60);

/// One endpoint's state.
#[derive(Clone, Debug)]
pub struct Gate {
    breaker: Breaker,
    bucket: Bucket,
    limits: Limits,
    concurrency: usize,
    in_flight: Vec<Flight>,
    flights: u64,
    /// 429s in a row.
    rate_refusals: u32,
    expected: Duration,
    expected_at: Instant,
    last_success: Option<Instant>,
    /// Why the circuit is open.
    cause: Option<EmbedError>,
}

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    number: u64,
    probe: bool,
    tokens: u64,
    began: Instant,
}

/// What may be done with an endpoint.
#[derive(Clone, Debug)]
pub enum Outlook {
    /// It may be asked now.
    Now { expected: Duration },
    /// It is at work on as many requests as it takes.
    Busy { expected: Duration },
    /// It may be asked then.
    Later { at: Instant, expected: Duration },
    /// It is left alone.
    Closed { until: Option<Instant>, error: EmbedError },
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub enum Ending<'a> {
    /// With an answer, which took this many tokens.
    Answered(u64),
    /// Without.
    Failed(&'a Fault),
}

impl Gate {
    /// Nothing is known yet.
    pub fn new(settings: &Settings, now: Instant) -> Self {
        Self {
            breaker: Breaker::default(),
            bucket: Bucket::new(settings.requests_per_minute, settings.tokens_per_minute, now),
            limits: Limits::of(settings),
            concurrency: settings.concurrency,
            in_flight: Vec::new(),
            flights: 0,
            rate_refusals: 0,
            expected: Duration::ZERO,
            expected_at: now,
            last_success: None,
            cause: None,
        }
    }

    /// What one request may hold, if no more than `room` tokens may be spent.
    pub fn limits(&self, room: u64) -> Limits {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let at_once = self.bucket.tokens_at_once().map_or(u64::MAX, |tokens| tokens as u64);
        Limits { tokens: self.limits.tokens.min(at_once).min(room), ..self.limits }
    }

    /// What may be done with a request of this many tokens. Urgent requests
    /// may take the last place, others leave it free where there are several.
    pub fn outlook(&self, tokens: u64, urgent: bool, now: Instant) -> Outlook {
        if let Permission::No(until) = self.breaker.permission(now) {
            let error = self.cause.clone().unwrap_or_else(|| EmbedError::Transient {
                reason: "it failed and is being tried again".to_owned(),
            });
            return Outlook::Closed { until, error };
        }
        let expected = self.expected(now);
        let places = if urgent { self.concurrency } else { (self.concurrency - 1).max(1) };
        if self.in_flight.len() >= places {
            return Outlook::Busy { expected };
        }
        match self.bucket.ready_at(tokens, now) {
            at if at <= now => Outlook::Now { expected },
            at => Outlook::Later { at, expected },
        }
    }

    /// How long a request is expected to take: as the last ones did, and no
    /// less than the oldest under way has taken already.
    fn expected(&self, now: Instant) -> Duration {
        let unasked = now.saturating_duration_since(self.expected_at).as_secs_f64();
        let remembered = self.expected.mul_f64(0.5_f64.powf(unasked / FORGETTING.as_secs_f64()));
        let age = |flight: &Flight| now.saturating_duration_since(flight.began);
        self.in_flight.iter().map(age).max().unwrap_or_default().max(remembered)
    }

    /// A request goes.
    pub fn begin(&mut self, tokens: u64, now: Instant) -> Flight {
        let permission = self.breaker.permission(now);
        self.breaker.begin(permission);
        self.bucket.reserve(tokens, now);
        self.flights += 1;
        let probe = permission == Permission::Probe;
        let flight = Flight { number: self.flights, probe, tokens, began: now };
        self.in_flight.push(flight);
        flight
    }

    /// A request ended. `inputs` is how many texts it had, `random` is in
    /// `0..1`, `now_ms` is the time of day.
    pub fn end(
        &mut self,
        flight: Flight,
        inputs: usize,
        ending: Ending<'_>,
        random: f64,
        now: Instant,
        now_ms: i64,
    ) {
        self.land(flight);
        let took = now.saturating_duration_since(flight.began);
        self.expected = self.expected.mul_f64(1.0 - NEWEST) + took.mul_f64(NEWEST);
        self.expected_at = now;
        let fault = match ending {
            Ending::Answered(tokens) => {
                self.bucket.settle(flight.tokens, tokens, now);
                self.last_success = Some(now);
                self.answered(flight);
                return;
            }
            Ending::Failed(fault) => fault,
        };
        match fault {
            Fault::Rate { retry_after, .. } => {
                let refusals = self.rate_refusals + 1;
                let wait = retry_after
                    .unwrap_or_else(|| backoff(refusals, RATE_BASE, RATE_LONGEST, 0.5 + random / 2.0));
                self.answered(flight);
                self.rate_refusals = refusals;
                // One that says again and again to wait for nothing is not believed.
                let wait =
                    if wait < SHORTEST { backoff(refusals, SHORTEST, RATE_LONGEST, 1.0) } else { wait };
                self.bucket.pause(now + wait);
            }
            Fault::TooLarge { of, .. } => {
                self.limits.learn(*of, inputs, flight.tokens);
                self.answered(flight);
            }
            Fault::Input { .. } => self.answered(flight),
            Fault::Transient { retry_after, reason } => {
                self.breaker.failed(flight.probe, now, random);
                self.cause = Some(EmbedError::Transient { reason: reason.clone() });
                if let Some(wait) = retry_after {
                    self.bucket.pause(now + *wait);
                }
            }
            Fault::Quota { retry_after, reason } => {
                let wait = retry_after.unwrap_or(SPENT).max(RATE_BASE);
                self.breaker.trip(now + wait);
                let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
                let reset_at = retry_after.is_some().then(|| now_ms.saturating_add(wait_ms));
                self.cause = Some(EmbedError::Quota { reason: reason.clone(), reset_at });
            }
            Fault::Configuration { reason } => {
                self.breaker.trip(now + MISCONFIGURED);
                self.cause = Some(EmbedError::Configuration { reason: reason.clone() });
            }
        }
    }

    /// It lives, whatever it thinks of the request.
    fn answered(&mut self, flight: Flight) {
        self.breaker.succeeded(flight.probe);
        self.rate_refusals = 0;
    }

    /// A request was given up without an ending.
    pub fn abandon(&mut self, flight: Flight, now: Instant) {
        self.land(flight);
        self.breaker.abandoned(flight.probe, now);
    }

    fn land(&mut self, flight: Flight) {
        self.in_flight.retain(|other| other.number != flight.number);
    }

    /// Takes in what an answer's headers say.
    pub fn observe(&mut self, told: &RateLimits, now: Instant) {
        self.bucket.observe(told, now);
    }

    /// It has answered a text well.
    pub fn worked(&mut self, now: Instant) {
        self.last_success = Some(now);
    }

    /// Whether it has answered a text well since `then`.
    pub fn has_worked_since(&self, then: Instant) -> bool {
        self.last_success.is_some_and(|at| at >= then)
    }

    /// The circuit's number, and what may go now of requests and tokens.
    pub fn gauges(&self, now: Instant) -> (u8, Option<f64>, Option<f64>) {
        let (requests, tokens) = self.bucket.remaining(now);
        (self.breaker.number(), requests, tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(more: &str, now: Instant) -> Gate {
        let settings = format!("name = 'a'\napi = 'openai'\nurl = 'http://a'\n{more}");
        Gate::new(&toml::from_str(&settings).unwrap(), now)
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn fail(gate: &mut Gate, fault: &Fault, now: Instant) {
        let flight = gate.begin(10, now);
        gate.end(flight, 1, Ending::Failed(fault), 1.0, now, 0);
    }

    #[test]
    fn queries_may_take_the_last_place_and_others_not() {
        let now = Instant::now();
        let mut gate = gate("concurrency = 2", now);
        let flight = gate.begin(1, now);
        assert!(matches!(gate.outlook(1, false, now), Outlook::Busy { .. }));
        assert!(matches!(gate.outlook(1, true, now), Outlook::Now { .. }));
        gate.end(flight, 1, Ending::Answered(1), 0.0, now, 0);
        assert!(matches!(gate.outlook(1, false, now), Outlook::Now { .. }));
    }

    #[test]
    fn a_429_pauses_it_for_as_long_as_it_says_and_costs_no_failure() {
        let now = Instant::now();
        let mut gate = gate("", now);
        let told = Fault::Rate { retry_after: Some(seconds(7)), reason: String::new() };
        for _ in 0..10 {
            fail(&mut gate, &told, now);
        }
        assert!(matches!(gate.outlook(1, false, now), Outlook::Later { at, .. } if at == now + seconds(7)));
        assert!(matches!(gate.outlook(1, false, now + seconds(7)), Outlook::Now { .. }));
    }

    #[test]
    fn a_429_that_does_not_say_pauses_it_longer_each_time() {
        let now = Instant::now();
        let mut gate = gate("", now);
        let untold = Fault::Rate { retry_after: None, reason: String::new() };
        for wait in [1, 2, 4] {
            fail(&mut gate, &untold, now);
            assert!(
                matches!(gate.outlook(1, false, now), Outlook::Later { at, .. } if at == now + seconds(wait))
            );
        }
    }

    #[test]
    fn a_spent_account_and_a_wrong_key_close_it_for_long_with_their_reason() {
        let now = Instant::now();
        let mut spent = gate("", now);
        fail(&mut spent, &Fault::Quota { retry_after: Some(seconds(100)), reason: "no".into() }, now);
        let Outlook::Closed { until, error } = spent.outlook(1, true, now) else { panic!() };
        assert_eq!(until, Some(now + seconds(100)));
        assert!(matches!(error, EmbedError::Quota { reset_at: Some(100_000), .. }));
        let mut wrong = gate("", now);
        fail(&mut wrong, &Fault::Configuration { reason: "key".into() }, now);
        let Outlook::Closed { until, error } = wrong.outlook(1, true, now) else { panic!() };
        assert_eq!(until, Some(now + MISCONFIGURED));
        assert!(matches!(error, EmbedError::Configuration { .. }));
    }

    #[test]
    fn a_bad_text_is_no_failure_of_the_endpoint() {
        let now = Instant::now();
        let mut gate = gate("", now);
        for _ in 0..10 {
            fail(&mut gate, &Fault::Input { reason: String::new() }, now);
        }
        assert!(matches!(gate.outlook(1, false, now), Outlook::Now { .. }));
        assert!(!gate.has_worked_since(now));
    }

    #[test]
    fn a_request_that_hangs_makes_it_slow_while_it_hangs_and_is_forgotten_slowly() {
        let now = Instant::now();
        let mut gate = gate("", now);
        let expected = |gate: &Gate, after: u64| match gate.outlook(1, true, now + seconds(after)) {
            Outlook::Now { expected } => expected.as_secs_f64(),
            other => panic!("{other:?}"),
        };
        let flight = gate.begin(1, now);
        assert!((expected(&gate, 20) - 20.0).abs() < 1e-6);
        gate.end(flight, 1, Ending::Answered(1), 0.0, now + seconds(30), 0);
        assert!((expected(&gate, 30) - 9.0).abs() < 1e-6);
        assert!((expected(&gate, 90) - 4.5).abs() < 1e-6);
    }
}

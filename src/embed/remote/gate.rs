//! Whether an endpoint may be asked now: its circuit, its rate, the requests
//! under way, and how long they take.
//!
//! Pure: the state changes only by what is told to it, with the time.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use super::{
    bucket::Bucket,
    classify::Fault,
    headers::RateLimits,
    learned::Learned,
    pace::Pace,
    retry::backoff,
    settings::Endpoint as Settings,
    shape::Limits,
    state::{Circuit, EndpointState, LastFailure},
};
use crate::{
    breaker::{Breaker, Permission, Policy},
    embed::EmbedError,
};

/// Three failures in a row close an endpoint, for a minute at most.
const CIRCUIT: Policy =
    Policy { failures: 3, open: Duration::from_secs(1), longest_open: Duration::from_secs(60) };

/// An account that may spend no more is tried again after this, unless it
/// says when.
const SPENT: Duration = Duration::from_secs(15 * 60);
/// Answers in a row that do not belong to their requests, until that counts as
/// a wrong configuration: each may have been paid for. The wait doubles from
/// then on ...
const MALFORMED: u32 = 2;
/// ... up to this.
const LONGEST_MALFORMED: Duration = Duration::from_secs(3_600);
/// The first wait after a 429 that does not say how long, doubled each time ...
const RATE_BASE: Duration = Duration::from_secs(1);
/// ... up to this.
const RATE_LONGEST: Duration = Duration::from_secs(60);
/// Less than this is no wait, whatever an answer says.
const SHORTEST: Duration = Duration::from_millis(20);

/// One endpoint's state.
#[derive(Clone, Debug)]
pub struct Gate {
    breaker: Breaker,
    bucket: Bucket,
    learned: Learned,
    pace: Pace,
    concurrency: usize,
    misconfigured: Duration,
    in_flight: Vec<Flight>,
    flights: u64,
    /// 429s in a row, those of one burst counted as one.
    rate_refusals: u32,
    rate_refused_at: Option<Instant>,
    /// Answers in a row that did not belong to their requests.
    malformed: u32,
    /// Whether probes try a few plain words before texts that cost something.
    rehearse: bool,
    last_success: Option<Instant>,
    /// Why the circuit is open.
    cause: Option<EmbedError>,
    last_failure: Option<(&'static str, String, Instant)>,
}

/// A request under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flight {
    number: u64,
    probe: bool,
    /// Whether a few plain words go first.
    pub rehearsed: bool,
    tokens: u64,
    pub began: Instant,
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
    /// Nothing is known yet. One that is configured wrongly is left alone for
    /// `misconfigured`.
    pub fn new(settings: &Settings, misconfigured: Duration, now: Instant) -> Self {
        Self {
            breaker: Breaker::new(CIRCUIT),
            bucket: Bucket::new(settings.requests_per_minute, settings.tokens_per_minute, now),
            learned: Learned::new(Limits::of(settings), now),
            pace: Pace::new(now),
            concurrency: settings.concurrency,
            misconfigured,
            in_flight: Vec::new(),
            flights: 0,
            rate_refusals: 0,
            rate_refused_at: None,
            malformed: 0,
            rehearse: false,
            last_success: None,
            cause: None,
            last_failure: None,
        }
    }

    /// What one request may hold, if no more than `room` tokens may be spent;
    /// `whole`: whatever was learned.
    pub fn limits(&self, room: u64, whole: bool) -> Limits {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let at_once = self.bucket.tokens_at_once().map_or(u64::MAX, |tokens| tokens as u64);
        let limits = if whole { self.learned.most() } else { self.learned.limits() };
        Limits { tokens: limits.tokens.min(at_once).min(room), ..limits }
    }

    /// What may be done with a request of this many tokens. Urgent requests
    /// may take the last place, others leave it free where there are several.
    /// `other` is the pace of the fastest of the other endpoints.
    pub fn outlook(&self, tokens: u64, urgent: bool, other: Duration, now: Instant) -> Outlook {
        if let Permission::No(until) = self.breaker.permission(now) {
            let error = self.cause.clone().unwrap_or_else(|| EmbedError::Transient {
                reason: "it failed and is being tried again".to_owned(),
            });
            return Outlook::Closed { until, error };
        }
        let expected = self.expected(other, now);
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
    fn expected(&self, other: Duration, now: Instant) -> Duration {
        let age = |flight: &Flight| now.saturating_duration_since(flight.began);
        let oldest = self.in_flight.iter().map(age).max().unwrap_or_default();
        oldest.max(self.pace.expected(other, now))
    }

    /// What requests took, if there were any.
    pub fn pace(&self) -> Option<Duration> {
        self.pace.mean()
    }

    /// A request goes.
    pub fn begin(&mut self, tokens: u64, now: Instant) -> Flight {
        let permission = self.breaker.permission(now);
        self.breaker.begin(permission);
        self.bucket.reserve(tokens, now);
        self.flights += 1;
        let probe = permission == Permission::Probe;
        let rehearsed = probe && self.rehearse;
        let flight = Flight { number: self.flights, probe, rehearsed, tokens, began: now };
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
        let fault = match ending {
            Ending::Answered(tokens) => {
                self.bucket.settle(flight.tokens, tokens, now);
                self.pace.answered(took, now);
                self.learned.passed(inputs, flight.tokens, now);
                (self.last_success, self.malformed, self.rehearse) = (Some(now), 0, false);
                self.answered(flight);
                return;
            }
            Ending::Failed(fault) => fault,
        };
        self.pace.failed(took, now);
        self.last_failure = Some((fault.class(), fault.reason().to_owned(), now));
        match fault {
            Fault::Rate { retry_after, .. } => self.slow_down(flight, *retry_after, random, now),
            Fault::TooLarge { of, .. } => {
                self.learned.refused(*of, inputs, flight.tokens, now);
                self.answered(flight);
            }
            Fault::Input { .. } | Fault::TooLong { .. } | Fault::Poison { .. } => self.answered(flight),
            Fault::ServerError { reason } => self.failed(flight, reason, random, now),
            Fault::Transient { retry_after, reason } => {
                self.failed(flight, reason, random, now);
                if let Some(wait) = retry_after {
                    self.bucket.pause(now + *wait);
                }
            }
            Fault::Malformed { reason } => self.malformed(flight, reason, random, now),
            Fault::Quota { retry_after, reason } => {
                let wait = retry_after.unwrap_or(SPENT).max(RATE_BASE);
                self.breaker.trip(now + wait);
                let wait_ms = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
                let reset_at = retry_after.is_some().then(|| now_ms.saturating_add(wait_ms));
                self.cause = Some(EmbedError::Quota { reason: reason.clone(), reset_at });
            }
            Fault::Configuration { reason } => self.misconfigured(self.misconfigured, reason, now),
        }
    }

    /// It lives, whatever it thinks of the request.
    fn answered(&mut self, flight: Flight) {
        self.breaker.succeeded(flight.probe);
        // One that went before the last 429 says nothing of what came after it.
        if self.rate_refused_at.is_none_or(|at| flight.began >= at) {
            self.rate_refusals = 0;
        }
    }

    /// After a 429. Requests that were under way when the last one came are of
    /// the same burst, and have no more to say than it had.
    fn slow_down(&mut self, flight: Flight, told: Option<Duration>, random: f64, now: Instant) {
        self.breaker.succeeded(flight.probe);
        let same_burst = self.rate_refused_at.is_some_and(|at| flight.began < at);
        if !same_burst {
            self.rate_refusals = self.rate_refusals.saturating_add(1);
            self.rate_refused_at = Some(now);
        }
        let refusals = self.rate_refusals.max(1);
        let wait = match told {
            // One that says again and again to wait for nothing is not believed.
            Some(wait) if wait < SHORTEST => backoff(refusals, SHORTEST, RATE_LONGEST, 1.0),
            Some(wait) => wait,
            None if same_burst => return,
            None => backoff(refusals, RATE_BASE, RATE_LONGEST, 0.5 + random / 2.0),
        };
        self.bucket.pause(now + wait);
    }

    /// It failed as it would have at other texts.
    fn failed(&mut self, flight: Flight, reason: &str, random: f64, now: Instant) {
        let (circuit, _) = self.breaker.circuit();
        self.breaker.failed(flight.probe, now, random);
        if circuit == Circuit::Closed || flight.probe {
            self.cause = Some(EmbedError::Transient { reason: reason.to_owned() });
        }
    }

    /// Its answer does not belong to the request: once that may be chance.
    fn malformed(&mut self, flight: Flight, reason: &str, random: f64, now: Instant) {
        self.malformed = self.malformed.saturating_add(1);
        match self.malformed.checked_sub(MALFORMED) {
            None => self.failed(flight, reason, random, now),
            Some(more) => {
                let wait = backoff(more.saturating_add(1), self.misconfigured, LONGEST_MALFORMED, 1.0);
                self.misconfigured(wait, reason, now);
            }
        }
    }

    fn misconfigured(&mut self, wait: Duration, reason: &str, now: Instant) {
        self.breaker.trip(now + wait);
        self.rehearse = true;
        self.cause = Some(EmbedError::Configuration { reason: reason.to_owned() });
    }

    /// A request was given up without an ending; if it was waited for `long`,
    /// as is a query's before another endpoint is asked, that tells something.
    pub fn abandon(&mut self, flight: Flight, long: Duration, now: Instant) {
        self.land(flight);
        self.breaker.abandoned(flight.probe, now);
        if now.saturating_duration_since(flight.began) >= long {
            self.pace.given_up(flight.began, now);
        }
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

    /// Whether one more failure of this request's kind leaves it alone.
    pub fn is_last_straw(&self, flight: Flight) -> bool {
        self.breaker.is_last_straw(flight.probe)
    }

    /// Its circuit, and what may go now of requests and tokens.
    pub fn gauges(&self, now: Instant) -> (Circuit, Option<f64>, Option<f64>) {
        let (requests, tokens) = self.bucket.remaining(now);
        (self.breaker.circuit().0, requests, tokens)
    }

    /// All that can be seen of it; `now_ms` is the time of day.
    pub fn state(&self, name: &str, now: Instant, now_ms: i64) -> EndpointState {
        let millis = |span: Duration| i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
        let (circuit, until) = self.breaker.circuit();
        let retry_at = until.max(self.bucket.paused_until(now));
        let retry_at = retry_at.map(|at| now_ms.saturating_add(millis(at.saturating_duration_since(now))));
        let (remaining_requests, remaining_tokens) = self.bucket.remaining(now);
        let last_failure = self.last_failure.as_ref().map(|(class, reason, at)| LastFailure {
            class: Cow::Borrowed(class),
            reason: reason.clone(),
            at: now_ms.saturating_sub(millis(now.saturating_duration_since(*at))),
        });
        EndpointState {
            name: name.to_owned(),
            circuit,
            retry_at,
            remaining_requests,
            remaining_tokens,
            expected_seconds: self.pace.mean().map(|mean| mean.as_secs_f64()),
            last_failure,
        }
    }
}

#[cfg(test)]
#[path = "tests/gate.rs"]
mod tests;

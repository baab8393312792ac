//! A circuit breaker: after failures in a row a service is left alone for a
//! while, then tried with one request.
//!
//! Pure: the state changes only by what is told to it, with the time it
//! happened.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// When a circuit opens, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Failures in a row that open it.
    pub failures: u32,
    /// For how long it stays open at first; doubled each time the probe fails
    pub open: Duration,
    /// ... up to this.
    pub longest_open: Duration,
}

/// Whether a service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    /// It is in use.
    Closed,
    /// It has failed, and one request tries whether it works again.
    HalfOpen,
    /// It is left alone.
    Open,
}

impl Circuit {
    /// Its number in metrics: 0 closed, 1 half open, 2 open.
    pub fn number(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    policy: Policy,
    state: State,
    /// How often it was opened since it was last closed.
    openings: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In use; failures in a row.
    Closed(u32),
    /// Left alone until then; after it, one request may try.
    Open(Instant),
    /// That request is under way.
    HalfOpen,
}

/// Whether a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// It may.
    Go,
    /// It may, as the one that tries.
    Probe,
    /// Not before then, if it is known when.
    No(Option<Instant>),
}

impl Breaker {
    /// Closed.
    pub fn new(policy: Policy) -> Self {
        Self { policy, state: State::Closed(0), openings: 0 }
    }

    /// Whether a request may go at `now`.
    pub fn permission(&self, now: Instant) -> Permission {
        match self.state {
            State::Closed(_) => Permission::Go,
            State::Open(until) if until <= now => Permission::Probe,
            State::Open(until) => Permission::No(Some(until)),
            State::HalfOpen => Permission::No(None),
        }
    }

    /// A request with this permission goes.
    pub fn begin(&mut self, permission: Permission) {
        if permission == Permission::Probe {
            self.state = State::HalfOpen;
        }
    }

    /// A request was answered. One that began before the circuit opened says
    /// nothing about now.
    pub fn succeeded(&mut self, probe: bool) {
        if probe || matches!(self.state, State::Closed(_)) {
            *self = Self::new(self.policy);
        }
    }

    /// A request failed in a way that others would. `random` in `0..1` keeps
    /// several daemons from probing at the same moment.
    pub fn failed(&mut self, probe: bool, now: Instant, random: f64) {
        match &mut self.state {
            State::Closed(failures) if *failures + 1 < self.policy.failures => *failures += 1,
            State::Closed(_) => self.open(now, random),
            State::HalfOpen if probe => self.open(now, random),
            State::HalfOpen | State::Open(_) => {}
        }
    }

    /// Whether one more failure opens it.
    pub fn is_last_straw(&self, probe: bool) -> bool {
        match self.state {
            State::Closed(failures) => failures + 1 >= self.policy.failures,
            State::HalfOpen => probe,
            State::Open(_) => false,
        }
    }

    fn open(&mut self, now: Instant, random: f64) {
        let doubled = 1_u32.checked_shl(self.openings).unwrap_or(u32::MAX);
        let span = self.policy.open.saturating_mul(doubled).min(self.policy.longest_open);
        self.state = State::Open(now + span.mul_f64(1.0 + random.clamp(0.0, 1.0) / 4.0));
        self.openings = self.openings.saturating_add(1);
    }

    /// It is known that nothing will pass before `until`.
    pub fn trip(&mut self, until: Instant) {
        self.state = match self.state {
            State::Open(earlier) => State::Open(earlier.max(until)),
            _ => State::Open(until),
        };
    }

    /// The probe was given up without a result: the next one may try.
    pub fn abandoned(&mut self, probe: bool, now: Instant) {
        if probe && self.state == State::HalfOpen {
            self.state = State::Open(now);
        }
    }

    /// What can be seen of it, and until when it is open.
    pub fn circuit(&self) -> (Circuit, Option<Instant>) {
        match self.state {
            State::Closed(_) => (Circuit::Closed, None),
            State::HalfOpen => (Circuit::HalfOpen, None),
            State::Open(until) => (Circuit::Open, Some(until)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FAILURES: u32 = 3;
    const OPEN: Duration = Duration::from_secs(1);
    const LONGEST_OPEN: Duration = Duration::from_secs(60);

    fn closed() -> Breaker {
        Breaker::new(Policy { failures: FAILURES, open: OPEN, longest_open: LONGEST_OPEN })
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = closed();
        for _ in 0..FAILURES {
            assert_eq!(breaker.permission(now), Permission::Go);
            breaker.failed(false, now, 0.0);
        }
        breaker
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_does_not() {
        let now = Instant::now();
        assert_eq!(opened(now).permission(now), Permission::No(Some(now + OPEN)));
        let mut breaker = closed();
        for _ in 0..10 {
            breaker.failed(false, now, 0.0);
            breaker.failed(false, now, 0.0);
            breaker.succeeded(false);
        }
        assert_eq!(breaker.permission(now), Permission::Go);
    }

    #[test]
    fn it_is_known_beforehand_which_failure_opens_it() {
        let now = Instant::now();
        let mut breaker = closed();
        for last in [false, false, true] {
            assert_eq!(breaker.is_last_straw(false), last);
            breaker.failed(false, now, 0.0);
        }
        assert_eq!(breaker.circuit(), (Circuit::Open, Some(now + OPEN)));
        breaker.begin(Permission::Probe);
        assert!(breaker.is_last_straw(true) && !breaker.is_last_straw(false));
    }

    #[test]
    fn one_probe_goes_and_its_result_decides() {
        let now = Instant::now();
        let later = now + OPEN;
        let mut breaker = opened(now);
        assert_eq!(breaker.permission(later), Permission::Probe);
        breaker.begin(Permission::Probe);
        assert_eq!(breaker.permission(later), Permission::No(None));
        let mut failed = breaker;
        failed.failed(true, later, 0.0);
        assert_eq!(failed.permission(later), Permission::No(Some(later + 2 * OPEN)));
        breaker.succeeded(true);
        assert_eq!(breaker.permission(later), Permission::Go);
        assert_eq!(breaker, closed());
    }

    #[test]
    fn results_of_older_requests_change_nothing() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let before = breaker;
        breaker.succeeded(false);
        breaker.failed(false, now, 0.0);
        assert_eq!(breaker, before);
        breaker.begin(Permission::Probe);
        breaker.failed(false, now, 0.0);
        breaker.succeeded(false);
        breaker.abandoned(false, now);
        assert_eq!(breaker.permission(now), Permission::No(None));
    }

    #[test]
    fn a_probe_given_up_lets_the_next_one_try() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.begin(Permission::Probe);
        breaker.abandoned(true, now);
        assert_eq!(breaker.permission(now), Permission::Probe);
    }

    #[test]
    fn tripped_it_stays_open_for_as_long_as_was_said() {
        let now = Instant::now();
        let until = now + Duration::from_secs(900);
        let mut breaker = closed();
        breaker.trip(until);
        breaker.trip(now);
        assert_eq!(breaker.permission(now), Permission::No(Some(until)));
        assert_eq!(breaker.permission(until), Permission::Probe);
    }

    proptest! {
        /// Whatever happens, it lets a request through again within its
        /// longest span after the last opening, and never two probes at once.
        #[test]
        fn it_never_stays_shut_for_good(events in proptest::collection::vec((0..4_u8, 0..5_000_u64, 0.0..1.0), 0..60)) {
            let (mut now, mut breaker, mut probing) = (Instant::now(), closed(), false);
            for (event, millis, random) in events {
                now += Duration::from_millis(millis);
                let permission = breaker.permission(now);
                if !probing && permission == Permission::Probe {
                    breaker.begin(permission);
                    probing = true;
                    prop_assert_eq!(breaker.permission(now), Permission::No(None));
                }
                match event {
                    0 => breaker.failed(probing, now, random),
                    1 => breaker.succeeded(probing),
                    2 => breaker.abandoned(probing, now),
                    _ => continue,
                }
                probing = false;
            }
            if !probing {
                let later = now + LONGEST_OPEN * 5 / 4;
                prop_assert!(!matches!(breaker.permission(later), Permission::No(_)));
            }
        }
    }
}

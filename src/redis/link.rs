//! Whether Redis is in use: what is said of it, and when it is tried again.
//!
//! Pure: the state changes only by what is told to it, with the time.

use std::time::{Duration, Instant};

use crate::breaker::{Breaker, Permission, Policy};

/// One failure is enough: what is asked of Redis can be done without it, and
/// a wait for it cannot be had back.
const CIRCUIT: Policy =
    Policy { failures: 1, open: Duration::from_millis(500), longest_open: Duration::from_secs(5) };
/// How often a connection that nobody uses is tried, so that a loss is seen.
const IDLE: Duration = Duration::from_secs(2);

/// The state of the link to Redis.
#[derive(Clone, Debug)]
pub(super) struct Link {
    breaker: Breaker,
    /// Since when it is away, and why.
    away: Option<(Instant, String)>,
    /// Counts connections, so that the results of an older one change nothing.
    generation: u64,
}

/// What is worth a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// It has just been lost.
    Lost(String),
    /// It is back, after so long.
    Back(Duration),
}

/// What whoever sees to the link does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Try whether the connection still works, after this.
    Check(Duration),
    /// Wait.
    Wait(Duration),
    /// Connect anew.
    Connect,
}

impl Link {
    /// Not connected yet.
    pub fn new() -> Self {
        Self { breaker: Breaker::new(CIRCUIT), away: None, generation: 0 }
    }

    /// The connection in use.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Why it is away, if it is.
    pub fn away(&self) -> Option<&str> {
        self.away.as_ref().map(|(_, reason)| reason.as_str())
    }

    /// What to do at `now`.
    pub fn next(&self, now: Instant) -> Next {
        match self.breaker.permission(now) {
            Permission::Go => Next::Check(IDLE),
            Permission::No(Some(until)) => Next::Wait(until.saturating_duration_since(now)),
            Permission::Probe | Permission::No(None) => Next::Connect,
        }
    }

    /// A connection of `generation` failed, or could not be made. Failures of
    /// one that is out of use say nothing about now.
    pub fn failed(&mut self, generation: u64, reason: String, now: Instant, random: f64) -> Option<Said> {
        if generation != self.generation {
            return None;
        }
        let probe = self.begin(now);
        self.breaker.failed(probe, now, random);
        let news = self.away.is_none().then(|| Said::Lost(reason.clone()));
        let since = self.away.as_ref().map_or(now, |(since, _)| *since);
        self.away = Some((since, reason));
        news
    }

    /// There is a new connection, and it works.
    pub fn connected(&mut self, now: Instant) -> Option<Said> {
        self.generation += 1;
        let probe = self.begin(now);
        self.breaker.succeeded(probe);
        let (since, _) = self.away.take()?;
        Some(Said::Back(now.saturating_duration_since(since)))
    }

    fn begin(&mut self, now: Instant) -> bool {
        let permission = self.breaker.permission(now);
        self.breaker.begin(permission);
        permission == Permission::Probe
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_and_a_return_are_said_once_and_tries_come_at_most_every_few_seconds() {
        let mut now = Instant::now();
        let mut link = Link::new();
        assert_eq!(link.connected(now), None, "a first connection is no news");
        assert_eq!(link.failed(1, "reset".into(), now, 0.0), Some(Said::Lost("reset".into())));
        assert_eq!(link.failed(1, "late".into(), now, 0.0), None);
        let began = now;
        let mut waits = Vec::new();
        for _ in 0..6 {
            let Next::Wait(wait) = link.next(now) else { panic!("{:?}", link.next(now)) };
            waits.push(wait.as_millis());
            now += wait;
            assert_eq!(link.next(now), Next::Connect);
            assert_eq!(link.failed(1, "refused".into(), now, 0.0), None);
        }
        assert_eq!(waits, [500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        assert_eq!(link.away(), Some("refused"));
        now += Duration::from_secs(5);
        assert_eq!(link.connected(now), Some(Said::Back(now - began)));
        assert_eq!((link.away(), link.next(now)), (None, Next::Check(IDLE)));
    }

    #[test]
    fn one_that_is_not_there_at_the_start_is_a_loss_as_well() {
        let now = Instant::now();
        let mut link = Link::new();
        assert_eq!(link.failed(0, "refused".into(), now, 0.0), Some(Said::Lost("refused".into())));
        assert!(matches!(link.next(now), Next::Wait(_)));
    }

    #[test]
    fn what_an_older_connection_comes_to_changes_nothing() {
        let now = Instant::now();
        let mut link = Link::new();
        link.connected(now);
        link.failed(1, "reset".into(), now, 0.0);
        link.connected(now + Duration::from_secs(1));
        assert_eq!(link.failed(1, "late".into(), now + Duration::from_secs(1), 0.0), None);
        assert_eq!(link.away(), None);
    }
}

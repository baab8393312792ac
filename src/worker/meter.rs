//! How far a job is, and what holds it back: its rate, and the stream.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;

use crate::{
    log::LogReader,
    pipeline::{meter::Meter, progress::Progress},
    store::{JobProgress, JobRow},
};

/// A stream that has more records than these to derive goes before jobs.
const BEHIND: u64 = 256;
/// Longest time that a step of a job waits for the stream, so that a stream
/// that is always behind does not keep jobs from ever being done.
const LONGEST_WAIT: Duration = Duration::from_millis(500);
const LOOKING: Duration = Duration::from_millis(10);

/// Where a job says how far it is. Clones are the same.
#[derive(Clone)]
pub(super) struct Told {
    progress: Arc<Mutex<JobProgress>>,
    /// Units that were done before.
    before: u64,
    begun: Instant,
    rate: u32,
    stream: Option<(LogReader, Arc<Progress>)>,
}

impl Told {
    /// Of the job `row`, at `rate` units a second. `stream`: the log that is
    /// derived beside it, and how far.
    pub fn new(row: &JobRow, rate: u32, stream: Option<(LogReader, Arc<Progress>)>) -> Self {
        let progress = JobProgress {
            done: row.done,
            total: row.total.map(i64::cast_unsigned),
            note: String::new(),
            place: None,
        };
        Self {
            progress: Arc::new(Mutex::new(progress)),
            before: row.done,
            begun: Instant::now(),
            rate,
            stream,
        }
    }

    fn state(&self) -> MutexGuard<'_, JobProgress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is to be noted.
    pub fn progress(&self) -> JobProgress {
        self.state().clone()
    }

    /// Whether anything was done since the job was claimed.
    pub fn has_moved(&self) -> bool {
        self.state().done > self.before
    }

    /// What the job is doing, for people.
    pub fn note(&self, note: impl Into<String>) {
        self.state().note = note.into();
    }

    /// As [`Meter::at`], and whoever takes the job up again goes on at `place`.
    pub async fn at_place(&self, done: u64, total: u64, place: &impl Serialize) {
        {
            let mut state = self.state();
            (state.done, state.total) = (done, Some(total));
            state.place = serde_json::to_string(place).ok();
        }
        self.give_way().await;
    }

    /// Waits as long as the job is ahead of its rate, and while the stream is
    /// behind.
    async fn give_way(&self) {
        let here = self.state().done.saturating_sub(self.before);
        if let Some(due) = due(here, self.rate) {
            tokio::time::sleep_until(self.begun + due).await;
        }
        let until = Instant::now() + LONGEST_WAIT;
        let behind = |(log, stream): &(LogReader, Arc<Progress>)| {
            log.end_offset().saturating_sub(stream.next_offset()) > BEHIND
        };
        let is_behind = || self.stream.as_ref().is_some_and(behind);
        while is_behind() && Instant::now() < until {
            tokio::time::sleep(LOOKING).await;
        }
    }
}

impl Meter for Told {
    async fn at(&mut self, done: u64, total: u64) {
        {
            let mut state = self.state();
            (state.done, state.total) = (done, Some(total));
        }
        self.give_way().await;
    }
}

/// When `done` units may be done at a rate; none if there is none.
#[expect(clippy::cast_precision_loss, reason = "a pace needs no more digits")]
fn due(done: u64, rate: u32) -> Option<Duration> {
    (rate > 0).then(|| Duration::try_from_secs_f64(done as f64 / f64::from(rate)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_when_work_may_be_done_and_none_means_at_once() {
        assert_eq!(due(500, 1_000), Some(Duration::from_millis(500)));
        assert_eq!(due(500, 0), None);
    }
}

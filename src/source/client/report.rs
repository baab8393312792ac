//! What a client counts.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Refusals that are kept whole.
const REFUSALS_KEPT: usize = 10;
/// Longest latency that is told apart, in microseconds.
const LONGEST_US: u64 = 3_600_000_000;

/// Acknowledged frames with consecutive numbers and consecutive offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Acked {
    /// Number of the first frame handed in, from 0.
    pub frame: u64,
    /// Its offset in the stream.
    pub offset: u64,
    /// How many.
    pub count: u64,
}

/// A frame that the server did not take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// Its number among the frames handed in, from 0.
    pub frame: u64,
    /// The stable code.
    pub code: String,
    /// What is wrong with it.
    pub message: String,
}

/// How a client stands; exact at any moment.
#[derive(Debug)]
pub struct Report {
    /// Frames handed in.
    pub sent: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Frames that are durable.
    pub acknowledged: u64,
    /// How many of them were in the log before and not stored again.
    pub duplicates: u64,
    /// Where the others are. As many as the acks that did not follow each other.
    pub ranges: Vec<Acked>,
    /// Frames refused, by code.
    pub refused: BTreeMap<String, u64>,
    /// The first of them.
    pub first_refused: Vec<Refused>,
    /// Frames written once more after a broken connection.
    pub resent: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// From writing a frame, or from when it was due if a rate is set, to its
    /// acknowledgement, in microseconds.
    pub latency_us: Histogram<u64>,
}

impl Default for Report {
    #[expect(clippy::expect_used, reason = "three digits up to an hour are within the bounds of the library")]
    fn default() -> Self {
        Self {
            sent: 0,
            bytes: 0,
            acknowledged: 0,
            duplicates: 0,
            ranges: Vec::new(),
            refused: BTreeMap::new(),
            first_refused: Vec::new(),
            resent: 0,
            reconnects: 0,
            latency_us: Histogram::new_with_max(LONGEST_US, 3).expect("constant bounds"),
        }
    }
}

impl Report {
    /// Frames refused.
    pub fn refused_total(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Frames handed in that were neither acknowledged nor refused.
    pub fn unanswered(&self) -> u64 {
        self.sent - self.answered()
    }

    /// The number of the next frame to be answered.
    pub(super) fn answered(&self) -> u64 {
        self.acknowledged + self.refused_total()
    }

    pub(super) fn acked(&mut self, offset: u64, count: u64) {
        let frame = self.answered();
        self.acknowledged += count;
        match self.ranges.last_mut() {
            Some(last) if last.frame + last.count == frame && last.offset + last.count == offset => {
                last.count += count;
            }
            _ => self.ranges.push(Acked { frame, offset, count }),
        }
    }

    pub(super) fn known(&mut self, count: u64) {
        self.acknowledged += count;
        self.duplicates += count;
    }

    pub(super) fn refuse(&mut self, code: String, message: String) {
        let frame = self.answered();
        if self.first_refused.len() < REFUSALS_KEPT {
            self.first_refused.push(Refused { frame, code: code.clone(), message });
        }
        *self.refused.entry(code).or_default() += 1;
    }

    pub(super) fn took(&mut self, latency: Duration, frames: u64) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US);
        self.latency_us.saturating_record_n(us.min(LONGEST_US), frames);
    }
}

/// A [`Report`] that others may look at while the client works.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Report>);

impl Tally {
    /// The report as it is now.
    pub fn look(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_while_frames_and_offsets_both_go_on() {
        let mut report = Report { sent: 9, ..Report::default() };
        report.acked(100, 2);
        report.acked(102, 1);
        report.refuse("not_utf8".into(), "bad".into());
        report.acked(103, 1);
        report.acked(110, 1);
        let range = |frame, offset, count| Acked { frame, offset, count };
        assert_eq!(report.ranges, [range(0, 100, 3), range(4, 103, 1), range(5, 110, 1)]);
        assert_eq!(report.first_refused[0].frame, 3);
        assert_eq!((report.acknowledged, report.refused_total(), report.unanswered()), (5, 1, 3));
    }
}

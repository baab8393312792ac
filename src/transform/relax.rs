//! Adaptive relaxation: quality thresholds that loosen when too little passes.
//!
//! A filter set for one source can refuse nearly everything of another, and an
//! index that stays empty helps nobody. After each window of records the
//! thresholds move by at most one step:
//!
//! - fewer than `target_share` passed: one step looser, up to `max_steps`;
//! - at least `tighten_share` would have passed one step tighter: one step
//!   tighter. What would have passed is counted, not guessed, so the step
//!   does not swing to and fro on a steady stream.
//!
//! Minimums are multiplied by `1 - step` at each step, maximums divided by it.
//! The caller stores the step in force with each batch: a replay passes the
//! stored step to [`Measures::judge`](super::quality::Measures::judge) and
//! decides as the live run did.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::quality::{self, Verdict};
use crate::setting::SettingError;

/// `[derive.quality.relax]` of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Records after which the share that passed is looked at.
    pub window: u64,
    /// Below this share of records passing, thresholds loosen.
    pub target_share: f64,
    /// From this share of records passing one step tighter, they tighten.
    pub tighten_share: f64,
    /// How much a threshold moves at a step, from 0 to 1 exclusive.
    pub step: f64,
    /// Most steps; 0 keeps the thresholds as they are set.
    pub max_steps: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { window: 1_000, target_share: 0.5, tighten_share: 0.6, step: 0.25, max_steps: 3 }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        let Self { window, target_share, tighten_share, step, max_steps } = *self;
        SettingError::unless(window > 0, "window", "0 records tell nothing; write 1 or more")?;
        SettingError::unless(
            (0.0..=1.0).contains(&target_share),
            "target_share",
            format!("{target_share} is not a share; write a number from 0 to 1"),
        )?;
        SettingError::unless(
            (target_share..=1.0).contains(&tighten_share),
            "tighten_share",
            format!("{tighten_share} is not between target_share ({target_share}) and 1"),
        )?;
        SettingError::unless(
            step > 0.0 && step < 1.0,
            "step",
            format!("{step} would not loosen by degrees; write a number between 0 and 1, such as 0.25"),
        )?;
        SettingError::unless(
            max_steps <= 20,
            "max_steps",
            format!(
                "{max_steps} steps leave no threshold; write 20 or fewer, and set enabled = false to judge nothing"
            ),
        )
    }

    /// `minimum` after `steps` steps.
    pub(super) fn loosened_minimum(&self, minimum: f64, steps: u32) -> f64 {
        minimum * self.factor(steps)
    }

    /// `maximum` after `steps` steps.
    pub(super) fn loosened_maximum(&self, maximum: f64, steps: u32) -> f64 {
        maximum / self.factor(steps)
    }

    /// Multiplied out: `powi` may round differently from platform to platform.
    fn factor(&self, steps: u32) -> f64 {
        (0..steps.min(self.max_steps)).fold(1.0, |factor, _| factor * (1.0 - self.step))
    }
}

/// What became of some records at one step of relaxation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Records judged.
    pub total: u64,
    /// Of these, passed.
    pub passed: u64,
    /// Of these, passed at the step before the one in force, too.
    pub passed_tighter: u64,
}

impl Tally {
    /// Counts a verdict given with `step` in force.
    pub fn count(&mut self, verdict: &Verdict, step: u32) {
        self.add(verdict_tally(verdict, step));
    }

    /// Counts the records of `other`, judged at the same step.
    pub fn add(&mut self, other: Self) {
        self.total += other.total;
        self.passed += other.passed;
        self.passed_tighter += other.passed_tighter;
    }
}

fn verdict_tally(verdict: &Verdict, in_force: u32) -> Tally {
    match verdict {
        Verdict::Pass { step } => Tally { total: 1, passed: 1, passed_tighter: u64::from(*step < in_force) },
        Verdict::Reject { .. } => Tally { total: 1, ..Tally::default() },
    }
}

/// Where a stream's relaxation stands; kept by the caller from batch to batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relaxation {
    /// Steps in force for the next batch.
    pub step: u32,
    /// Records of the window so far, all judged at `step`.
    pub window: Tally,
}

impl Relaxation {
    /// State and, where the thresholds moved, what changed, after a batch
    /// judged at `self.step`. The window closes at the first batch that fills
    /// it, so one batch is judged by one set of thresholds.
    pub fn observe(mut self, settings: &quality::Settings, batch: Tally) -> (Self, Option<Change>) {
        let relax = &settings.relax;
        // The setting may have been lowered since the state was stored.
        let step = self.step.min(relax.max_steps);
        self.window.add(batch);
        let Tally { total, passed, passed_tighter } = self.window;
        if total < relax.window {
            return (Self { step, ..self }, None);
        }
        let next = if share(passed, total) < relax.target_share {
            (step + 1).min(relax.max_steps)
        } else if step > 0 && share(passed_tighter, total) >= relax.tighten_share {
            step - 1
        } else {
            step
        };
        let change = (next != step).then(|| Change::new(settings, step, next, self.window));
        (Self { step: next, window: Tally::default() }, change)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a window of records stays far below 2^52")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// A move of the thresholds; displays as a sentence for the report.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// Steps in force before.
    pub from: u32,
    /// Steps in force from now on.
    pub to: u32,
    /// The window that caused it.
    pub window: Tally,
    /// Key, value before and value after of each threshold that moved.
    pub thresholds: Vec<(String, f64, f64)>,
}

impl Change {
    fn new(settings: &quality::Settings, from: u32, to: u32, window: Tally) -> Self {
        let thresholds = settings
            .listed(from)
            .into_iter()
            .zip(settings.listed(to))
            .filter(|((_, before), (_, after))| before != after)
            .map(|((key, before), (_, after))| (key, before, after))
            .collect();
        Self { from, to, window, thresholds }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let loosened = self.to > self.from;
        write!(f, "{} to step {}: ", if loosened { "relaxed" } else { "tightened" }, self.to)?;
        for (i, (key, before, after)) in self.thresholds.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{key} {} → {}", Number(*before), Number(*after))?;
        }
        let (count, condition) = if loosened {
            (self.window.passed, "passed")
        } else {
            (self.window.passed_tighter, "would have passed")
        };
        let percent = 100.0 * share(count, self.window.total);
        write!(f, " because {percent:.0} % of the last {} records {condition}", self.window.total)
    }
}

/// Counts in full, shares with two decimals.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.fract() == 0.0 { write!(f, "{}", self.0) } else { write!(f, "{:.2}", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> quality::Settings {
        quality::Settings::default()
    }

    fn batch(total: u64, passed: u64, passed_tighter: u64) -> Tally {
        Tally { total, passed, passed_tighter }
    }

    #[test]
    fn thresholds_loosen_when_too_little_passes_and_the_report_says_so() {
        let (state, change) = Relaxation::default().observe(&settings(), batch(1_000, 310, 0));
        assert_eq!(state, Relaxation { step: 1, window: Tally::default() });
        let report = change.unwrap().to_string();
        assert!(
            report.starts_with("relaxed to step 1: min_chars.summary 16 → 12, min_chars.doc 40 → 30"),
            "{report}"
        );
        assert!(report.contains("max_repeated_word_share 0.40 → 0.53"), "{report}");
        assert!(report.ends_with("because 31 % of the last 1000 records passed"), "{report}");
    }

    #[test]
    fn nothing_moves_before_the_window_is_full() {
        let (state, change) = Relaxation::default().observe(&settings(), batch(999, 0, 0));
        assert_eq!((state.step, change), (0, None));
        let (state, change) = state.observe(&settings(), batch(1, 0, 0));
        assert_eq!((state.step, change.is_some()), (1, true));
    }

    #[test]
    fn thresholds_tighten_when_enough_would_pass_one_step_tighter() {
        let relaxed = Relaxation { step: 2, window: Tally::default() };
        let (state, change) = relaxed.observe(&settings(), batch(1_000, 900, 599));
        assert_eq!((state.step, change), (2, None));
        let (state, change) = relaxed.observe(&settings(), batch(1_000, 900, 600));
        assert_eq!(state.step, 1);
        let report = change.unwrap().to_string();
        assert!(report.starts_with("tightened to step 1:"), "{report}");
        assert!(report.ends_with("because 60 % of the last 1000 records would have passed"), "{report}");
    }

    #[test]
    fn a_steady_stream_settles_on_one_step() {
        // Of this stream 30 % pass as set, 45 % at step 1, 80 % at step 2.
        let passing = [300, 450, 800, 900];
        let mut state = Relaxation::default();
        let mut steps = Vec::new();
        for _ in 0..6 {
            let at = state.step as usize;
            let tighter = at.checked_sub(1).map_or(0, |i| passing[i]);
            state = state.observe(&settings(), batch(1_000, passing[at], tighter)).0;
            steps.push(state.step);
        }
        assert_eq!(steps, [1, 2, 2, 2, 2, 2]);
    }

    #[test]
    fn steps_end_at_the_maximum_and_follow_a_lowered_one() {
        let mut state = Relaxation::default();
        for _ in 0..9 {
            state = state.observe(&settings(), batch(1_000, 0, 0)).0;
        }
        assert_eq!(state.step, 3);
        let mut never = settings();
        never.relax.max_steps = 0;
        assert_eq!(state.observe(&never, batch(1_000, 0, 0)).0.step, 0);
    }

    #[test]
    fn a_verdict_counts_as_tighter_only_below_the_step_in_force() {
        let mut tally = Tally::default();
        tally.count(&Verdict::Pass { step: 0 }, 1);
        tally.count(&Verdict::Pass { step: 1 }, 1);
        tally.count(&Verdict::Reject { reason: "symbols", detail: String::new() }, 1);
        assert_eq!(tally, batch(3, 2, 1));
    }
}

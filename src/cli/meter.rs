//! Progress on standard error: a bar on a terminal, a line now and then
//! elsewhere.

use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{count, rate};

/// How often a line is written where no bar can be drawn.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Shows how far long work is.
pub struct Meter {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    next_line: Instant,
    pace: Pace,
}

impl Meter {
    /// For work of `total` units, if that is known.
    pub fn new(total: Option<u64>) -> Self {
        let now = Instant::now();
        let bar = std::io::stderr().is_terminal().then(|| bar(total));
        Self { bar, total, next_line: now + LINE_EVERY, pace: Pace::new(now) }
    }

    /// `done` units are done in all; `more` says what else is worth knowing.
    pub fn at(&mut self, done: u64, more: &str) {
        let now = Instant::now();
        let per_second = self.pace.at(done, now);
        if let Some(bar) = &self.bar {
            bar.set_position(done);
            bar.set_message(format!("{}{more}", speed(per_second, self.total, done)));
        } else if now >= self.next_line {
            self.next_line = now + LINE_EVERY;
            let of = self.total.map_or_else(String::new, |total| format!(" of {}", count(total)));
            let speed = speed(per_second, self.total, done);
            let _ = writeln!(std::io::stderr().lock(), "{}{of}  {speed}{more}", count(done));
        }
    }

    /// Writes a line without disturbing the bar.
    pub fn say(&self, text: &str) {
        let line = || {
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        };
        match &self.bar {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let template = match total {
        Some(_) => "{bar:30} {human_pos}/{human_len}  {msg}",
        None => "{spinner} {human_pos}  {msg}",
    };
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(5)).with_style(style)
}

fn speed(per_second: f64, total: Option<u64>, done: u64) -> String {
    let mut text = format!("{}/s", rate(per_second));
    if let Some(left) = total.map(|total| total.saturating_sub(done)).filter(|left| *left > 0)
        && per_second > 0.0
    {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = left as f64 / per_second;
        let rounded = Duration::try_from_secs_f64(seconds.ceil()).unwrap_or(Duration::MAX);
        if rounded < Duration::from_secs(360_000) {
            text += &format!("  {} left", humantime::format_duration(rounded));
        }
    }
    text
}

/// A rate over the last seconds: recent time weighs more, so that a stall
/// shows within a few seconds and a hiccup does not.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    seen: Option<u64>,
    at: Instant,
    per_second: Option<f64>,
}

/// Time after which what was seen weighs half.
const HALF_LIFE_S: f64 = 2.0;

impl Pace {
    /// Nothing is seen yet.
    pub fn new(now: Instant) -> Self {
        Self { seen: None, at: now, per_second: None }
    }

    /// `done` units are done by `now`; returns how many a second.
    pub fn at(&mut self, done: u64, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        let Some(seen) = self.seen.replace(done) else {
            self.at = now;
            return 0.0;
        };
        if seconds <= 0.0 {
            self.seen = Some(seen);
            return self.per_second.unwrap_or(0.0);
        }
        #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
        let fresh = done.saturating_sub(seen) as f64 / seconds;
        let keep = 0.5f64.powf(seconds / HALF_LIFE_S);
        let per_second = self.per_second.map_or(fresh, |old| old * keep + fresh * (1.0 - keep));
        self.per_second = Some(per_second);
        self.at = now;
        per_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_follows_a_stall_within_seconds() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let at = |s: u64| start + Duration::from_secs(s);
        assert!(pace.at(500, at(1)) == 0.0, "what was done before is no rate");
        assert!((pace.at(1_500, at(2)) - 1_000.0).abs() < 1e-9);
        assert!((pace.at(2_500, at(3)) - 1_000.0).abs() < 1e-9);
        assert!((pace.at(2_500, at(5)) - 500.0).abs() < 1e-9, "a half-life of nothing");
    }

    #[test]
    fn the_time_left_is_told_only_where_it_is_known() {
        assert_eq!(speed(100.0, Some(1_000), 500), "100/s  5s left");
        assert_eq!(speed(100.0, None, 500), "100/s");
        assert_eq!(speed(0.0, Some(1_000), 500), "0/s");
        assert_eq!(speed(1.0, Some(u64::MAX), 0), "1.0/s");
    }
}

//! Whether a daemon keeps what is promised of it under load: one result per
//! objective, met or missed.
//!
//! Latency is taken on an open schedule: requests are due at a fixed rate and
//! counted from when they were due, so a daemon that stalls cannot hide it by
//! holding its clients up. The rate is half of what the same daemon was just
//! seen to sustain, deriving included. The clients share the machine with the
//! daemon, and their processor time is told apart.

mod client;
mod identity;
mod load;
mod mixed;
mod model;
mod overload;
mod texts;

use std::time::Duration;

use anyhow::Result;
use tokio::runtime::Runtime;

use super::{
    Better, Case, Options,
    daemon::{Daemon, Folder},
    progress,
    sample::{quantile, sample_of},
    stages::local_model,
};
use client::{Answer, Client};
use load::{Load, Pace, Seen, drive, number};
use texts::Texts;

/// Parts of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// 30 and 64 clients that send and search, with the hashing embedder
    Mixed,
    /// 3 users who send messages, with the local model
    Model,
    /// What keys and limits cost
    Identity,
    /// Ten times what the daemon can take
    Overload,
}

/// What is measured, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long each run of an objective lasts.
    pub seconds: Duration,
    /// How long the overload lasts.
    pub overload: Duration,
    /// Little data and few requests: to see that it works, not how fast.
    pub quick: bool,
    /// Only these parts; all if empty.
    pub only: Vec<Part>,
}

/// What every part needs.
struct Bench<'a> {
    options: &'a Options,
    settings: &'a Settings,
    texts: Texts,
    runtime: Runtime,
}

/// Measures every objective.
///
/// # Errors
/// If the fixtures are missing or a daemon fails.
pub fn slo(options: &Options, settings: &Settings) -> Result<Vec<Case>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let bench = Bench { options, settings, texts: Texts::load(&options.fixtures)?, runtime };
    let asked = |part| settings.only.is_empty() || settings.only.contains(&part);
    let mut cases = Vec::new();
    if asked(Part::Mixed) {
        cases.extend(mixed::mixed(&bench)?);
    }
    if asked(Part::Model) {
        match local_model()? {
            Some(_) => cases.extend(model::model(&bench)?),
            None => progress("slo: NOT MEASURED, for want of the local model: what its users may expect"),
        }
    }
    if asked(Part::Identity) {
        cases.extend(identity::identity(&bench)?);
    }
    if asked(Part::Overload) {
        cases.extend(overload::overload(&bench)?);
    }
    Ok(cases)
}

impl Bench<'_> {
    fn daemon(&self, settings: &str) -> Result<Daemon> {
        Daemon::start(Folder::new(&self.options.scratch, settings)?)
    }
}

/// What a daemon can take of the mix, in requests a second.
struct Capacity {
    /// Answered, by clients that send as soon as they have their answer.
    answered_per_s: f64,
    /// The same until everything is searchable, too.
    sustained_per_s: f64,
}

impl Capacity {
    async fn of(daemon: &Daemon, client: &Client, texts: &Texts, seconds: Duration) -> Result<Self> {
        let started = std::time::Instant::now();
        let load = Load { clients: 64, pace: Pace::Closed, seconds };
        let seen = drive(client, load, |client, n| texts.mixed(client, n)).await?;
        daemon.derived(client.end_offset()).await?;
        let sustained_s = started.elapsed().as_secs_f64();
        let answered = number(seen.done_ms().len());
        Ok(Self { answered_per_s: answered / seen.seconds, sustained_per_s: answered / sustained_s })
    }
}

/// p50, p95 and p99 of the runs' `values` in milliseconds; the p95 has a goal.
fn quantiles<T>(what: &str, runs: &[T], values: fn(&T) -> Vec<f64>, p95_ms: f64) -> Result<Vec<Case>> {
    let case = |(name, q)| {
        let sample = sample_of(runs, |run| quantile(&mut values(run), q))?;
        let case = Case::new(format!("{what}: {name}"), "ms", Better::Lower, &sample);
        Ok(if name == "p95" { case.with_goal(p95_ms) } else { case })
    };
    [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)].into_iter().map(case).collect()
}

/// What went wrong in all runs together: a median would hide a single error.
fn errors(what: &str, runs: &[Seen], most_percent: f64) -> Case {
    let share = Seen::percent(runs, |answer| !answer.is_done());
    Case::single(format!("{what}: errors"), "%", Better::Lower, share).with_goal(most_percent)
}

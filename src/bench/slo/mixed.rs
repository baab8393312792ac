//! Clients that send and search at once.

use anyhow::Result;

use super::{Answer, Bench, Capacity, Client, Load, Pace, Seen, drive, errors, number, quantiles};
use crate::bench::{Better, Case, daemon::Daemon, progress, sample::in_turn, sample_of};

/// A pipeline whose embedder costs next to nothing.
pub const HASHING: &str = "[embed]\nprovider = \"hashing\"";

/// Of what the daemon sustains.
const SHARE: f64 = 0.5;
/// Records of each tenant who is searched.
const SEEDED: usize = 250;
const SEEDED_QUICK: usize = 25;

/// What so many clients may expect.
struct Objective {
    clients: u32,
    p95_ms: f64,
    errors_percent: f64,
    available_percent: f64,
}

const OBJECTIVES: [Objective; 2] = [
    Objective { clients: 30, p95_ms: 500.0, errors_percent: 1.0, available_percent: 99.5 },
    Objective { clients: 64, p95_ms: 50.0, errors_percent: 0.0, available_percent: 100.0 },
];

/// What one run gave.
struct Run {
    seen: Seen,
    daemon_cpu_s: f64,
}

/// Measures [`OBJECTIVES`], in turn, against one daemon.
pub fn mixed(bench: &Bench<'_>) -> Result<Vec<Case>> {
    let daemon = bench.daemon(HASHING)?;
    let client = Client::new(&daemon, None)?;
    let capacity = bench.runtime.block_on(prepared(bench, &daemon, &client))?;
    let rate = capacity.sustained_per_s * SHARE;
    let run = |objective: &Objective| -> Result<Run> {
        let load =
            Load { clients: objective.clients, pace: Pace::Open(rate), seconds: bench.settings.seconds };
        let before = daemon.process().usage()?.cpu;
        let seen = bench.runtime.block_on(drive(&client, load, |n, turn| bench.texts.mixed(n, turn)))?;
        let after = daemon.process().rest()?.cpu;
        Ok(Run { seen, daemon_cpu_s: after.saturating_sub(before).as_secs_f64() })
    };
    let mut sides: Vec<Box<dyn FnMut() -> Result<Run> + '_>> = Vec::new();
    for objective in &OBJECTIVES {
        sides.push(Box::new(|| run(objective)));
    }
    let all = in_turn("slo, mixed", bench.options.runs, &mut sides)?;
    drop(sides);
    daemon.stop()?;
    let per_s = |what: &str, value| {
        Case::single(format!("mixed, 64 clients: {what}"), "requests/s", Better::Higher, value)
    };
    let mut cases = vec![
        per_s("answered, closed loop", capacity.answered_per_s),
        per_s("sustained, searchable included", capacity.sustained_per_s),
    ];
    for (objective, runs) in OBJECTIVES.iter().zip(all) {
        cases.extend(judged(objective, rate, runs)?);
    }
    Ok(cases)
}

/// Brings what is searched for, and measures what can be taken.
pub async fn prepared(bench: &Bench<'_>, daemon: &Daemon, client: &Client) -> Result<Capacity> {
    progress("slo: what the daemon can take");
    for request in bench.texts.seeds(if bench.settings.quick { SEEDED_QUICK } else { SEEDED }) {
        client.done(request).await?;
    }
    daemon.derived(client.end_offset()).await?;
    Capacity::of(daemon, client, &bench.texts, bench.settings.seconds).await
}

fn judged(objective: &Objective, rate: f64, runs: Vec<Run>) -> Result<Vec<Case>> {
    let what = format!("mixed, {} clients, {rate:.0} requests/s", objective.clients);
    let cpu = |whose: &str, ms: fn(&Run) -> f64| {
        let sample = sample_of(&runs, |run| ms(run) / number(run.seen.answers.len().max(1)))?;
        let title = format!("{what}: processor time of the {whose}");
        Ok::<_, anyhow::Error>(Case::new(title, "ms/request", Better::Lower, &sample))
    };
    let cpu = [
        cpu("daemon", |run| run.daemon_cpu_s * 1e3)?,
        cpu("clients", |run| run.seen.cpu.as_secs_f64() * 1e3)?,
    ];
    let seen: Vec<Seen> = runs.into_iter().map(|run| run.seen).collect();
    let available = 100.0 - Seen::percent(&seen, Answer::is_absent);
    let mut cases = quantiles(&what, &seen, Seen::done_ms, objective.p95_ms)?;
    cases.push(errors(&what, &seen, objective.errors_percent));
    cases.push(
        Case::single(format!("{what}: availability"), "%", Better::Higher, available)
            .with_goal(objective.available_percent),
    );
    cases.extend(cpu);
    Ok(cases)
}

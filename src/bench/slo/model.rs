//! A few people who write to each other, and the local model.

use anyhow::Result;

use super::{Bench, Client, Load, Pace, Seen, drive, errors, quantiles};
use crate::bench::{Better, Case, progress, sample::repeated, sample_of};

const USERS: u32 = 3;
/// Messages of each in a second; a request has one.
const PACE: f64 = 5.0;
/// Until a message is acknowledged, and until it is found.
const ACK_P95_MS: f64 = 20.0;
const SEARCHABLE_P95_MS: f64 = 500.0;

/// What one run gave.
struct Run {
    seen: Seen,
    searchable_p50_ms: f64,
    searchable_p95_ms: f64,
}

/// Measures it with a fresh daemon each time: what it tells of the time until
/// records are searchable is of all since its start.
pub fn model(bench: &Bench<'_>) -> Result<Vec<Case>> {
    let runs = repeated(bench.options.runs, || {
        progress("slo, model: a run");
        bench.runtime.block_on(run(bench))
    })?;
    let what = format!("model, {USERS} users at {PACE} messages/s");
    let searchable = |name: &str, value: fn(&Run) -> f64| {
        let sample = sample_of(&runs, value)?;
        Ok::<_, anyhow::Error>(Case::new(format!("{what}: searchable, {name}"), "ms", Better::Lower, &sample))
    };
    let searchable = [
        searchable("p50", |run| run.searchable_p50_ms)?,
        searchable("p95", |run| run.searchable_p95_ms)?.with_goal(SEARCHABLE_P95_MS),
    ];
    let seen: Vec<Seen> = runs.into_iter().map(|run| run.seen).collect();
    let mut cases = quantiles(&format!("{what}: acknowledged"), &seen, Seen::done_ms, ACK_P95_MS)?;
    cases.extend(searchable);
    cases.push(errors(&what, &seen, 0.0));
    Ok(cases)
}

async fn run(bench: &Bench<'_>) -> Result<Run> {
    let daemon = bench.daemon("[embed]\nprovider = \"local\"")?;
    let client = Client::new(&daemon, None)?;
    let load =
        Load { clients: USERS, pace: Pace::Open(PACE * f64::from(USERS)), seconds: bench.settings.seconds };
    let seen = drive(&client, load, |user, _| bench.texts.ingest(Some(&format!("user-{user}")), 1)).await?;
    let searchable = daemon.derived(client.end_offset()).await?.derived.searchable_ms;
    daemon.stop()?;
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    Ok(Run { seen, searchable_p50_ms: searchable.p50 as f64, searchable_p95_ms: searchable.p95 as f64 })
}

//! The whole path: a daemon of its own process, a producer over TCP, until
//! everything is searchable.
//!
//! Each run starts a fresh daemon, sends some records at a steady pace (for
//! latency) and then the rest as fast as they are taken (for throughput). The
//! producer shares the machine with the daemon; its processor time is not
//! counted.
//!
//! Apart from that: a second run over files that have not changed ([`rerun`]),
//! and the same files through another system ([`cocoindex`]).

mod client;
mod cocoindex;
mod rerun;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;

pub use cocoindex::{Settings as CocoIndex, beside_cocoindex};

use super::{
    Better, Case, Options,
    daemon::{Daemon, Folder},
    data::Corpus,
    progress,
    sample::{quantile, sample_of},
    stages::local_model,
};

/// Parts of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// What a producer sends, until it is searchable
    Live,
    /// A second run over files that have not changed
    Rerun,
}

/// One way to run the daemon.
struct Setup {
    provider: &'static str,
    /// Records per second of the steady pace: well below what two cores can
    /// derive, so that latency is that of the path and not of a queue.
    pace: u16,
    /// Records sent at that pace.
    paced: usize,
    /// Records sent in all unless told otherwise, at most.
    records: usize,
}

const SETUPS: [Setup; 2] = [
    Setup { provider: "hashing", pace: 100, paced: 500, records: usize::MAX },
    Setup { provider: "local", pace: 5, paced: 100, records: 1_000 },
];

/// What one run gave.
struct Run {
    ack_ms: Vec<f64>,
    searchable_p50_ms: f64,
    searchable_p95_ms: f64,
    acknowledged_per_s: f64,
    indexed_per_s: f64,
    cpu_ms_per_record: f64,
    peak_rss_mib: f64,
}

/// Measures the whole path with the hashing embedder, and with the local model
/// if it is there. `records` are sent in each run; if none are given, as
/// many as take a minute or two. Only the parts `only`; all if empty.
///
/// # Errors
/// If the fixtures are missing, there are not enough records in them, or the
/// daemon fails.
pub fn pipeline(options: &Options, records: Option<usize>, only: &[Part]) -> Result<Vec<Case>> {
    let with_model = local_model()?.is_some();
    let setups = || SETUPS.iter().filter(|setup| with_model || setup.provider != "local");
    let asked = |part| only.is_empty() || only.contains(&part);
    let mut cases = Vec::new();
    if asked(Part::Rerun) {
        for setup in setups() {
            cases.push(rerun::rerun(options, setup, records)?);
        }
    }
    if asked(Part::Live) {
        cases.extend(live(options, setups(), records)?);
    }
    Ok(cases)
}

fn live<'a>(
    options: &Options,
    setups: impl Iterator<Item = &'a Setup>,
    records: Option<usize>,
) -> Result<Vec<Case>> {
    let payloads = mixed(
        Corpus::load(&options.fixtures, "irc_ubuntu")?.payloads(),
        Corpus::load_all(&options.fixtures, &["scifact_docs", "python311"])?.payloads(),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut cases = Vec::new();
    for setup in setups {
        let (provider, least) = (setup.provider, setup.paced + 1);
        let records = records.unwrap_or(setup.records.min(payloads.len()));
        let fits = (least..=payloads.len()).contains(&records);
        ensure!(fits, "--records must be between {least} and {} with `{provider}`", payloads.len());
        // Spread over all, so that every run has the same mix.
        let sent: Vec<Bytes> =
            (0..records).filter_map(|n| payloads.get(n * payloads.len() / records).cloned()).collect();
        let mut runs = Vec::new();
        for n in 1..=options.runs {
            progress(format_args!("pipeline, {provider}: {records} records, run {n} of {}", options.runs));
            runs.push(runtime.block_on(run(options, setup, &sent))?);
        }
        cases.extend(summed_up(setup, &runs)?);
    }
    Ok(cases)
}

async fn run(options: &Options, setup: &Setup, payloads: &[Bytes]) -> Result<Run> {
    let settings = format!("[embed]\nprovider = {:?}", setup.provider);
    let daemon = Daemon::start(Folder::new(&options.scratch, &settings)?)?;
    let (paced, flooded) = payloads.split_at(setup.paced.min(payloads.len()));
    let every = Duration::from_secs(1) / u32::from(setup.pace);
    let ack_ms = client::paced(daemon.address()?, paced, every).await?;
    let settled = daemon.derived(paced.len() as u64).await?.derived.searchable_ms;
    let before = daemon.process().usage()?;
    let started = Instant::now();
    let acknowledged_s = client::flood(daemon.address()?, flooded).await?;
    let status = daemon.derived(payloads.len() as u64).await?;
    let indexed_s = started.elapsed().as_secs_f64();
    let after = daemon.process().usage()?;
    ensure!(
        status.derived.dead_lettered + status.derived.lost == 0,
        "records were lost: {:?}",
        status.derived
    );
    daemon.stop()?;
    #[expect(clippy::cast_precision_loss, reason = "thousands of records, milliseconds, megabytes")]
    Ok(Run {
        ack_ms,
        searchable_p50_ms: settled.p50 as f64,
        searchable_p95_ms: settled.p95 as f64,
        acknowledged_per_s: flooded.len() as f64 / acknowledged_s,
        indexed_per_s: flooded.len() as f64 / indexed_s,
        cpu_ms_per_record: (after.cpu - before.cpu).as_secs_f64() * 1e3 / flooded.len() as f64,
        peak_rss_mib: after.peak_rss_bytes as f64 / f64::from(1 << 20),
    })
}

/// A name, a unit, which way it improves, and how it is read off a run.
type Value = (&'static str, &'static str, Better, fn(&Run) -> f64);

const VALUES: [Value; 8] = [
    ("acknowledged", "records/s", Better::Higher, |run| run.acknowledged_per_s),
    ("derived and searchable", "records/s", Better::Higher, |run| run.indexed_per_s),
    ("daemon's processor time", "ms/record", Better::Lower, |run| run.cpu_ms_per_record),
    ("daemon's peak memory", "MiB", Better::Lower, |run| run.peak_rss_mib),
    ("steady pace, ack p50", "ms", Better::Lower, |run| quantile(&mut run.ack_ms.clone(), 0.5)),
    ("steady pace, ack p95", "ms", Better::Lower, |run| quantile(&mut run.ack_ms.clone(), 0.95)),
    ("steady pace, append to searchable p50", "ms", Better::Lower, |run| run.searchable_p50_ms),
    ("steady pace, append to searchable p95", "ms", Better::Lower, |run| run.searchable_p95_ms),
];

fn summed_up(setup: &Setup, runs: &[Run]) -> Result<Vec<Case>> {
    let case = |(name, unit, better, value): Value| {
        let name = name.replace("steady pace", &format!("{} records/s", setup.pace));
        Ok(Case::new(format!("{}: {name}", setup.provider), unit, better, &sample_of(runs, value)?))
    };
    VALUES.into_iter().map(case).collect()
}

/// Both in one order in which each is spread evenly.
fn mixed<T>(some: Vec<T>, others: Vec<T>) -> Vec<T> {
    let place = |n: usize, of: usize| (2 * n as u64 + 1, of as u64);
    let (a, b) = (some.len(), others.len());
    let mut all: Vec<_> = some.into_iter().enumerate().map(|(n, item)| (place(n, a), item)).collect();
    all.extend(others.into_iter().enumerate().map(|(n, item)| (place(n, b), item)));
    // Compared as fractions, without rounding.
    all.sort_by(|((n, of), _), ((m, among), _)| (n * among).cmp(&(m * of)));
    all.into_iter().map(|(_, item)| item).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_spreads_the_rarer_evenly() {
        let order: String = mixed(vec!['a'; 6], vec!['b'; 2]).into_iter().collect();
        let places: Vec<usize> = order.match_indices('b').map(|(at, _)| at).collect();
        assert!(places[0] <= 2 && (3..=4).contains(&(places[1] - places[0])), "{order}");
    }
}

//! Ten times what the daemon can take, for a while.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    Bench, Capacity, Client, Load, Pace, Seen, drive,
    mixed::{HASHING, prepared},
    number,
};
use crate::bench::{Better, Case, daemon::Daemon, progress, sample::quantile};

/// Clients: more than the daemon has places for requests, fewer than it takes
/// connections.
const CLIENTS: u32 = 800;
/// Times its capacity. Some clients wait for an answer whenever it is their
/// turn; that at least [`TIMES`] arrives is measured.
const PRESSED: f64 = 16.0;
const TIMES: f64 = 10.0;
/// A refusal should not take longer, in milliseconds.
const REFUSED_P95_MS: f64 = 100.0;
/// Memory in MiB, and that at the end over that at half the time.
const PEAK_MIB: f64 = 256.0;
const GROWTH: f64 = 1.1;
/// Share of the speed before that counts as full speed, and when it should be
/// there again, in seconds.
const FULL: f64 = 0.9;
const AGAIN_S: f64 = 5.0;
/// Speed is looked at over so long, and for no longer than so many looks.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS: u32 = 20;

/// What was seen.
struct Outcome {
    seen: Seen,
    times: f64,
    half_peak_mib: f64,
    peak_mib: f64,
    /// Seconds after the end, if ever.
    full_speed_s: f64,
    kept_percent: f64,
}

/// Measures it once: it is long.
pub fn overload(bench: &Bench<'_>) -> Result<Vec<Case>> {
    let outcome = bench.runtime.block_on(measured(bench))?;
    let mut refused: Vec<f64> =
        outcome.seen.answers.iter().filter(|answer| !answer.is_done()).map(|answer| answer.ms).collect();
    let unclear = Seen::percent(std::slice::from_ref(&outcome.seen), |answer| {
        !answer.is_done() && !answer.is_clear_refusal()
    });
    let share = Seen::percent(std::slice::from_ref(&outcome.seen), |answer| !answer.is_done());
    let case = |what: &str, unit: &str, better, value| {
        Case::single(
            format!("overload, {} s: {what}", bench.settings.overload.as_secs()),
            unit,
            better,
            value,
        )
    };
    let mut done = outcome.seen.done_ms();
    Ok(vec![
        case("offered, times its capacity", "x", Better::Higher, outcome.times).with_goal(TIMES),
        case("refused", "%", Better::Lower, share),
        case("answers p95", "ms", Better::Lower, quantile(&mut done, 0.95)),
        case("refusals p50", "ms", Better::Lower, quantile(&mut refused, 0.5)),
        case("refusals p95", "ms", Better::Lower, quantile(&mut refused, 0.95)).with_goal(REFUSED_P95_MS),
        case("neither done nor refused with a time to come again", "%", Better::Lower, unclear)
            .with_goal(0.0),
        case("peak memory", "MiB", Better::Lower, outcome.peak_mib).with_goal(PEAK_MIB),
        case(
            "peak memory, times that at half time",
            "x",
            Better::Lower,
            outcome.peak_mib / outcome.half_peak_mib,
        )
        .with_goal(GROWTH),
        case("full speed again after", "s", Better::Lower, outcome.full_speed_s).with_goal(AGAIN_S),
        case("acknowledged records there after kill -9", "%", Better::Higher, outcome.kept_percent)
            .with_goal(100.0),
    ])
}

async fn measured(bench: &Bench<'_>) -> Result<Outcome> {
    let daemon = bench.daemon(HASHING)?;
    let client = Client::new(&daemon, None)?;
    let capacity = prepared(bench, &daemon, &client).await?;
    let (pace, seconds) = (Pace::Pressing(PRESSED * capacity.answered_per_s), bench.settings.overload);
    progress(format_args!(
        "slo: {PRESSED} times {:.0} requests/s for {} s",
        capacity.answered_per_s,
        seconds.as_secs()
    ));
    let pressed =
        drive(&client, Load { clients: CLIENTS, pace, seconds }, |n, turn| bench.texts.mixed(n, turn));
    let half = async {
        tokio::time::sleep(seconds / 2).await;
        peak_mib(&daemon)
    };
    let (seen, half_peak_mib) = tokio::join!(pressed, half);
    let (seen, half_peak_mib) = (seen?, half_peak_mib?);
    let peak_mib = peak_mib(&daemon)?;
    let full_speed_s = recovery(bench, &client, &capacity).await?;
    ensure!(client.end_offset() > 0, "the daemon acknowledged nothing");
    let daemon = Daemon::start(daemon.kill())?;
    let (kept, acknowledged) = (daemon.status().await?.end_offset, client.end_offset());
    #[expect(clippy::cast_precision_loss, reason = "millions of records")]
    let kept_percent = 100.0 * kept.min(acknowledged) as f64 / acknowledged as f64;
    let times = number(seen.answers.len()) / seen.seconds / capacity.answered_per_s;
    Ok(Outcome { seen, times, half_peak_mib, peak_mib, full_speed_s, kept_percent })
}

/// Seconds until as many requests are answered as before: the end of the first
/// look that sees it.
async fn recovery(bench: &Bench<'_>, client: &Client, capacity: &Capacity) -> Result<f64> {
    let ended = Instant::now();
    for _ in 0..LOOKS {
        let load = Load { clients: 64, pace: Pace::Closed, seconds: LOOK };
        let seen = drive(client, load, |n, turn| bench.texts.mixed(n, turn)).await?;
        let done_per_s = number(seen.done_ms().len()) / seen.seconds;
        if done_per_s >= FULL * capacity.answered_per_s {
            break;
        }
    }
    Ok(ended.elapsed().as_secs_f64())
}

fn peak_mib(daemon: &Daemon) -> Result<f64> {
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let peak = daemon.process().usage()?.peak_rss_bytes as f64;
    Ok(peak / f64::from(1 << 20))
}

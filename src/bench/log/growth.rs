//! What more and more data costs, and how soon a daemon that was killed on top
//! of it is back. Nothing consumes the log meanwhile, so all of it is backlog.

use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;

use super::{
    frames::{self, FRAME_BYTES},
    load::{Shape, drive},
    served::{Acked, LOG_ONLY, MEMORY_MIB},
};
use crate::bench::{
    Better, Case, Options,
    daemon::{Daemon, Folder},
    progress,
};

const PRODUCERS: usize = 16;
const BATCH: usize = 256;

/// The cost of a gigabyte may grow by so much.
const COST_GROWTH: f64 = 1.1;
/// Seconds until a restarted daemon is ready.
const RESTART_S: f64 = 2.0;

/// What sending so much gave.
struct Sent {
    seconds_per_gb: f64,
    cpu_per_gb: f64,
    peak_mib: f64,
    restart_s: f64,
}

/// Sends each of `gigabytes` to a daemon of its own, kills it, and starts it
/// again.
///
/// # Errors
/// If a daemon fails, or the disk is full: the last takes up to twice as much.
pub fn growth(options: &Options, gigabytes: &[u32]) -> Result<Vec<Case>> {
    let payloads = frames::payloads(&options.fixtures)?;
    let batches = frames::batches(&payloads, BATCH);
    let mut cases = Vec::new();
    let mut first: Option<Sent> = None;
    for gb in gigabytes {
        progress(format_args!("log, sending {gb} GB, killing the daemon, starting it again"));
        let sent = send(options, *gb, &batches)?;
        let case = |name: &str, unit: &str, value| {
            Case::single(format!("{gb} GB of backlog: {name}"), unit, Better::Lower, value)
        };
        cases.push(case("time until acknowledged", "s/GB", sent.seconds_per_gb));
        cases.push(case("processor time until acknowledged", "CPU s/GB", sent.cpu_per_gb));
        if let Some(first) = &first {
            let grown = sent.seconds_per_gb / first.seconds_per_gb;
            cases.push(case("time per GB, times that of the first", "x", grown).with_goal(COST_GROWTH));
        }
        cases.push(case("peak memory", "MiB", sent.peak_mib).with_goal(MEMORY_MIB));
        cases.push(case("ready after kill -9", "s", sent.restart_s).with_goal(RESTART_S));
        first.get_or_insert(sent);
    }
    Ok(cases)
}

#[expect(clippy::cast_precision_loss, reason = "gigabytes and megabytes")]
fn send(options: &Options, gb: u32, batches: &[Bytes]) -> Result<Sent> {
    let bytes = usize::try_from(gb)? * 1_000_000_000;
    let shape = Shape {
        name: "growth",
        producers: PRODUCERS,
        batch: BATCH,
        batches_each: bytes / FRAME_BYTES / BATCH / PRODUCERS,
    };
    let daemon = Daemon::start(Folder::new(&options.scratch, LOG_ONLY)?)?;
    let before = daemon.process().usage()?;
    let seen = drive(daemon.address()?, &shape, &Acked, batches)?;
    let after = daemon.process().usage()?;
    let folder = daemon.kill();
    let started = Instant::now();
    let daemon = Daemon::start(folder)?;
    let restart_s = started.elapsed().as_secs_f64();
    drop(daemon);
    Ok(Sent {
        seconds_per_gb: seen.seconds / f64::from(gb),
        cpu_per_gb: after.cpu.saturating_sub(before.cpu).as_secs_f64() / f64::from(gb),
        peak_mib: after.peak_rss_bytes as f64 / f64::from(1 << 20),
        restart_s,
    })
}

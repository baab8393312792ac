//! A daemon's TCP source, as its users get it but for derivation, which is
//! off: what is measured is the way from the socket to the acknowledgement,
//! and sealing beside it.

use anyhow::{Result, ensure};
use bytes::Bytes;

use super::{
    Peer,
    bare::BareLoop,
    frames,
    load::{Run, Shape, Wire, drive},
    redis::{self, Redis, Resp},
};
use crate::{
    bench::{
        Better, Case, Options,
        daemon::{Daemon, Folder, Process},
        sample::{Sample, in_turn, sample_of},
    },
    frame::Payloads,
    source::wire::Reply,
};

const SHAPES: [Shape; 2] = [
    Shape { name: "16 producers x 256 frames", producers: 16, batch: 256, batches_each: 100 },
    Shape { name: "64 producers x 1 frame", producers: 64, batch: 1, batches_each: 1_000 },
];

/// A pipeline that only keeps a log.
pub const LOG_ONLY: &str = "[derive]\nenabled = false\n\n[embed]\nprovider = \"hashing\"\n";

/// Of the ceiling, in the first shape.
const OF_CEILING: f64 = 0.7;
/// Acknowledgements a second in the second.
const ACKS_PER_S: f64 = 30_000.0;
/// Of the same without its fsync, and of the same when nobody waits for the
/// acknowledgements.
const OF_UNSYNCED: f64 = 0.8;
const OF_NOT_AWAITED: f64 = 0.9;
/// Of the peer.
const OF_PEER: f64 = 5.0;
/// Milliseconds at the 99th percentile.
const ACK_P99_MS: f64 = 20.0;
/// Peak memory in MiB, at any load.
pub const MEMORY_MIB: f64 = 150.0;

/// The protocol of `docs/protocol.md`.
pub struct Acked;

impl Wire for Acked {
    fn count(&self, bytes: &[u8]) -> Result<(usize, usize)> {
        let (mut count, mut used) = (0, 0);
        for payload in Payloads(Bytes::copy_from_slice(bytes)) {
            match rmp_serde::from_slice(&payload)? {
                Reply::Ack { count: n, .. } => count += usize::try_from(n)?,
                refused => anyhow::bail!("the daemon refused a record: {refused:?}"),
            }
            used += crate::frame::PREFIX_BYTES + payload.len();
        }
        Ok((count, used))
    }
}

/// As [`Acked`], by a producer that sends a batch while it waits for the
/// acknowledgement of the one before, as `thalweg send` does.
struct AckedAhead;

impl Wire for AckedAhead {
    fn count(&self, bytes: &[u8]) -> Result<(usize, usize)> {
        Acked.count(bytes)
    }

    fn in_flight(&self) -> usize {
        2
    }
}

/// As [`Acked`], by a producer that does not wait for any answer.
struct NotAwaited;

impl Wire for NotAwaited {
    fn count(&self, bytes: &[u8]) -> Result<(usize, usize)> {
        Acked.count(bytes)
    }

    fn acknowledges(&self) -> bool {
        false
    }
}

/// One run against a server; its processor time includes what it does later.
fn run(address: &str, process: &Process, shape: &Shape, wire: &impl Wire, batches: &[Bytes]) -> Result<Run> {
    let before = process.usage()?;
    let seen = drive(address, shape, wire, batches)?;
    let after = process.rest()?;
    let cpu = after.cpu.saturating_sub(before.cpu);
    Ok(Run::new(shape, seen.seconds, seen.latencies_ms, cpu, seen.cpu))
}

/// Every case of the served log.
pub fn cases(options: &Options, peer: Option<Peer>) -> Result<Vec<Case>> {
    let dir = options.scratch_dir()?;
    let payloads = frames::payloads(&options.fixtures)?;
    let daemon = Daemon::start(Folder::new(&options.scratch, LOG_ONLY)?)?;
    let redis = peer.map(|Peer::Redis| Redis::start(&dir.path().join("redis"))).transpose()?;
    let bare = BareLoop::new(&dir.path().join("bare"), 64 << 20)?;
    let mut cases = Vec::new();
    for shape in &SHAPES {
        cases.extend(of_shape(options, shape, &payloads, &daemon, redis.as_ref(), &bare)?);
    }
    let [many, ..] = &SHAPES;
    cases.extend(price_of_acks(options, many, &payloads, &daemon)?);
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let peak = daemon.process().usage()?.peak_rss_bytes as f64 / f64::from(1 << 20);
    cases.push(Case::single("peak memory, no consumer", "MiB", Better::Lower, peak).with_goal(MEMORY_MIB));
    daemon.stop()?;
    Ok(cases)
}

/// What durability costs, and waiting for the acknowledgements.
fn price_of_acks(options: &Options, shape: &Shape, payloads: &[Bytes], daemon: &Daemon) -> Result<Vec<Case>> {
    let batches = frames::batches(payloads, shape.batch);
    let unsynced = format!("[log]\nack = \"memory\"\n\n{LOG_ONLY}");
    let unsynced = Daemon::start(Folder::new(&options.scratch, &unsynced)?)?;
    let (address, from_memory) = (daemon.address()?.to_owned(), unsynced.address()?.to_owned());
    let mut sides: Vec<Box<dyn FnMut() -> Result<Run> + '_>> = vec![
        Box::new(|| run(&address, daemon.process(), shape, &Acked, &batches)),
        Box::new(|| run(&from_memory, unsynced.process(), shape, &Acked, &batches)),
        Box::new(|| run(&address, daemon.process(), shape, &NotAwaited, &batches)),
        Box::new(|| run(&address, daemon.process(), shape, &AckedAhead, &batches)),
    ];
    let runs = in_turn("log, price of acknowledgements", options.runs, &mut sides)?;
    drop(sides);
    unsynced.stop()?;
    let [awaited, unsynced, not_awaited, ahead] = runs.as_slice() else {
        anyhow::bail!("a side gave nothing")
    };
    let rate = |runs: &[Run]| sample_of(runs, |run: &Run| run.records_per_s);
    let (mine, ahead) = (rate(awaited)?, rate(ahead)?);
    let case = Case::new(format!("{}: throughput", shape.name), "records/s", Better::Higher, &mine);
    Ok(vec![
        case.clone().against_peer("acknowledged from memory", &mine, &rate(unsynced)?).with_goal(OF_UNSYNCED),
        case.against_peer("acks not awaited", &mine, &rate(not_awaited)?).with_goal(OF_NOT_AWAITED),
        Case::new(format!("{}, 2 in flight: throughput", shape.name), "records/s", Better::Higher, &ahead)
            .against_peer("acks not awaited", &ahead, &rate(not_awaited)?)
            .with_goal(OF_NOT_AWAITED),
    ])
}

fn of_shape(
    options: &Options,
    shape: &Shape,
    payloads: &[Bytes],
    daemon: &Daemon,
    redis: Option<&Redis>,
    bare: &BareLoop,
) -> Result<Vec<Case>> {
    let (ours, commands) = (frames::batches(payloads, shape.batch), redis::batches(payloads, shape.batch));
    let address = daemon.address()?.to_owned();
    let mut sides: Vec<Box<dyn FnMut() -> Result<Run> + '_>> = vec![
        Box::new(|| run(&address, daemon.process(), shape, &Acked, &ours)),
        Box::new(|| bare.run(shape, &ours)),
    ];
    if let Some(redis) = redis {
        sides.push(Box::new(|| {
            let run = run(redis.address(), redis.process(), shape, &Resp, &commands);
            redis::clear(redis.address())?;
            redis.process().rest()?;
            run
        }));
    }
    let runs = in_turn(&format!("log, {}", shape.name), options.runs, &mut sides)?;
    let [ours, bare, peer @ ..] = runs.as_slice() else { anyhow::bail!("a side gave nothing") };
    compared(shape, ours, bare, peer.first())
}

/// A name, a unit, which way it improves, and how it is read off a run.
type Value = (&'static str, &'static str, Better, fn(&Run) -> f64);

const VALUES: [Value; 6] = [
    ("throughput", "records/s", Better::Higher, |run| run.records_per_s),
    ("throughput", "MB/s", Better::Higher, |run| run.mb_per_s),
    ("ack p50", "ms", Better::Lower, |run| run.p50_ms),
    ("ack p99", "ms", Better::Lower, |run| run.p99_ms),
    ("processor time of the server", "CPU s/GB", Better::Lower, |run| run.cpu_s_per_gb),
    ("processor time of the generator", "CPU s/GB", Better::Lower, |run| run.generator_cpu_s_per_gb),
];

fn compared(shape: &Shape, ours: &[Run], bare: &[Run], peer: Option<&Vec<Run>>) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for (name, unit, better, value) in VALUES {
        let read = |runs: &[Run]| -> Result<Sample> { sample_of(runs, value) };
        let (mine, bound) = (read(ours)?, read(bare)?);
        let title = format!("{}: {name}", shape.name);
        let throughput = better == Better::Higher;
        let batched = shape.batch > 1;
        if let Some(peer) = peer {
            let case = Case::new(&title, unit, better, &mine).against_peer(
                "redis, appendfsync always",
                &mine,
                &read(peer)?,
            );
            cases.push(if throughput && batched { case.with_goal(OF_PEER) } else { case });
        }
        let case = Case::new(&title, unit, better, &mine);
        if unit == "records/s" || name == "ack p99" {
            let beside = case.clone().under_ceiling("bare loop", &mine, &bound);
            cases.push(if throughput && batched { beside.with_goal(OF_CEILING) } else { beside });
        }
        if unit == "records/s" && !batched {
            cases.push(case.clone().with_goal(ACKS_PER_S));
        }
        if name == "ack p99" {
            cases.push(case.with_goal(ACK_P99_MS));
        }
    }
    ensure!(!cases.is_empty(), "nothing was measured");
    Ok(cases)
}

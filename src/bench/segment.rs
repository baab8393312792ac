//! Sealing and reading segments, beside the `zstd` program on the same bytes.
//!
//! Both sides start from a file in the page cache and end with a synced one.
//! Sealing checks every batch's CRC-32C, computes two SHA-256 digests and an
//! index on the way; `zstd` compresses as one stream, which packs tighter than
//! blocks that can be read alone.

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::{
    Better, Case, Options, Sample,
    data::Corpus,
    machine::version_of,
    progress,
    sample::{interleaved, quantile, repeated, sample_of},
    stages::{header, time_of},
    timed,
    usage::cpu_seconds,
};
use crate::{
    clock,
    log::{self, Log, RawFile},
    segment,
};

/// Share of the peer's throughput to be reached.
const GOAL: f64 = 0.9;
/// Microseconds within which 99 of 100 point reads are to end.
const POINT_READ_GOAL: f64 = 1_000.0;
/// Frames of a batch, as a busy source sends them.
const BATCH_FRAMES: usize = 256;
/// Records read one by one in a run.
const POINT_READS: u64 = 2_000;

/// One side's run over the whole segment.
#[derive(Clone, Copy)]
struct Run {
    seconds: f64,
    cpu_seconds: f64,
}

fn measured(work: impl FnOnce() -> Result<()>) -> Result<Run> {
    let ((done, seconds), cpu_seconds) = cpu_seconds(|| timed(work));
    done.map(|()| Run { seconds, cpu_seconds })
}

/// Measures sealing, reading back and point reads.
///
/// # Errors
/// If the fixtures are missing or a step fails.
pub fn segment(options: &Options) -> Result<Vec<Case>> {
    let corpus = Corpus::load_all(&options.fixtures, &["irc_ubuntu", "scifact_docs", "python311"])?;
    let dir = options.scratch_dir()?;
    let raw = closed_segment(dir.path(), &corpus)?;
    let files = Files::new(dir.path(), &raw)?;
    let settings = segment::Settings::default();
    let seal = || {
        measured(|| {
            segment::seal(raw.batches(), header(), &settings, time_of, &files.sealed)?;
            Ok(())
        })
    };
    let peer = version_of("zstd").is_some();
    let mut cases = Vec::new();
    if peer {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (level, threads) = (format!("-{}", settings.level), format!("-T{threads}"));
        let (ours, theirs) = interleaved("segment, seal", options.runs, seal, || {
            measured(|| files.compress(&level, &threads))
        })?;
        let name = format!("zstd {level} {threads}, synced");
        cases.extend(compared("seal", &name, files.plain_bytes, &ours, &theirs)?);
        cases.push(files.packing(&level)?);
        let (ours, theirs) = interleaved(
            "segment, read back",
            options.runs,
            || measured(|| files.read_back()),
            || measured(|| files.decompress()),
        )?;
        cases.extend(compared("read back", "zstd -d", files.plain_bytes, &ours, &theirs)?);
        let (ours, theirs) = interleaved(
            "segment, read back on all cores",
            options.runs,
            || measured(|| files.read_back_on_all_cores()),
            || measured(|| files.decompress()),
        )?;
        cases.push(per_core(files.plain_bytes, &ours, &theirs)?);
    } else {
        progress("without the peer: there is no `zstd` program");
        cases.extend(alone("seal", files.plain_bytes, &repeated(options.runs, seal)?)?);
        let ours = repeated(options.runs, || measured(|| files.read_back()))?;
        cases.extend(alone("read back", files.plain_bytes, &ours)?);
    }
    cases.extend(files.point_reads(options)?);
    Ok(cases)
}

/// A segment as the log leaves it to be sealed, nearly full.
fn closed_segment(dir: &Path, corpus: &Corpus) -> Result<Arc<RawFile>> {
    let settings = log::Settings::default();
    let (log, _) = Log::open(dir, "bench", &settings, clock::system(), Box::new(rand::random))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let writer = log.writer();
    runtime.block_on(async {
        let room = settings.segment_bytes.as_usize() / 16 * 15;
        for batch in corpus.batches(room - corpus.frames.len(), BATCH_FRAMES) {
            writer.append(batch.bytes, batch.count).await?;
        }
        writer.close_segment().await
    })?;
    drop(writer);
    let raw = log.closed().into_iter().next().context("the log closed no segment")?;
    log.shut_down();
    Ok(raw)
}

struct Files {
    plain: PathBuf,
    sealed: PathBuf,
    packed: PathBuf,
    plain_bytes: u64,
    records: u64,
}

impl Files {
    /// Writes the frames of `raw` as a plain file for the peer.
    fn new(dir: &Path, raw: &RawFile) -> Result<Self> {
        let plain = dir.join("plain");
        let mut file = File::create(&plain)?;
        let (mut plain_bytes, mut records) = (0, 0);
        for batch in raw.batches() {
            let batch = batch?;
            file.write_all(&batch.bytes)?;
            plain_bytes += batch.bytes.len() as u64;
            records += u64::from(batch.count);
        }
        file.sync_all()?;
        progress(format_args!("segment of {records} records, {plain_bytes} bytes"));
        Ok(Self {
            plain,
            sealed: dir.join("sealed.seg.zst"),
            packed: dir.join("packed.zst"),
            plain_bytes,
            records,
        })
    }

    fn compress(&self, level: &str, threads: &str) -> Result<()> {
        let mut zstd = Command::new("zstd");
        zstd.args(["-q", "-f", level, threads]).arg(&self.plain).arg("-o").arg(&self.packed);
        ran(&mut zstd)?;
        File::open(&self.packed)?.sync_all()?;
        Ok(())
    }

    fn decompress(&self) -> Result<()> {
        let mut zstd = Command::new("zstd");
        zstd.args(["-q", "-d", "-c"]).arg(&self.sealed).stdout(Stdio::null());
        ran(&mut zstd)
    }

    fn read_back(&self) -> Result<()> {
        let reader = segment::Reader::open(&self.sealed)?;
        let mut bytes = 0;
        for batch in reader.batches_from(0) {
            bytes += batch?.bytes.len() as u64;
        }
        ensure!(bytes == self.plain_bytes, "{bytes} bytes of {} were read back", self.plain_bytes);
        Ok(())
    }

    fn read_back_on_all_cores(&self) -> Result<()> {
        let reader = segment::Reader::open(&self.sealed)?;
        let block = |block| Ok::<_, segment::ReadError>(reader.read_block(block)?.len() as u64);
        let bytes: u64 = (0..reader.blocks().len()).into_par_iter().map(block).sum::<Result<_, _>>()?;
        ensure!(bytes == self.plain_bytes, "{bytes} bytes of {} were read back", self.plain_bytes);
        Ok(())
    }

    /// How many times smaller the files are.
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    fn packing(&self, level: &str) -> Result<Case> {
        let times = |path: &Path| -> Result<f64> {
            Ok(self.plain_bytes as f64 / std::fs::metadata(path)?.len() as f64)
        };
        let (ours, theirs) = (Sample::of(times(&self.sealed)?), Sample::of(times(&self.packed)?));
        let case = Case::new("seal, times smaller", "x", Better::Higher, &ours);
        Ok(case.against_peer(format!("zstd {level}, one stream"), &ours, &theirs))
    }

    fn point_reads(&self, options: &Options) -> Result<Vec<Case>> {
        progress("segment, point reads");
        let reader = segment::Reader::open(&self.sealed)?;
        let runs = repeated(options.runs, || {
            let mut took = Vec::new();
            for n in 0..POINT_READS {
                // Steps of the golden ratio: spread over the segment, never
                // twice in the same block in a row.
                let offset = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % self.records;
                let started = Instant::now();
                let frame = reader.frame(offset)?;
                took.push(started.elapsed().as_secs_f64() * 1e6);
                ensure!(frame.is_some(), "offset {offset} is not in the segment");
            }
            Ok((quantile(&mut took, 0.5), quantile(&mut took, 0.99)))
        })?;
        let (p50, p99) = (sample_of(&runs, |run| run.0)?, sample_of(&runs, |run| run.1)?);
        Ok(vec![
            Case::new("point read, page cache warm, p50", "us", Better::Lower, &p50),
            Case::new("point read, page cache warm, p99", "us", Better::Lower, &p99)
                .with_goal(POINT_READ_GOAL),
        ])
    }
}

fn ran(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).status().context("cannot start zstd")?;
    ensure!(status.success(), "zstd failed: {status}");
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "megabytes")]
fn samples(plain_bytes: u64, runs: &[Run]) -> Result<(Sample, Sample)> {
    let bytes = plain_bytes as f64;
    Ok((
        sample_of(runs, |run| bytes / 1e6 / run.seconds)?,
        sample_of(runs, |run| run.cpu_seconds / (bytes / 1e9))?,
    ))
}

fn compared(what: &str, peer: &str, plain_bytes: u64, ours: &[Run], theirs: &[Run]) -> Result<Vec<Case>> {
    let ((wall, cpu), (their_wall, their_cpu)) = (samples(plain_bytes, ours)?, samples(plain_bytes, theirs)?);
    let [a, b] = cases(what, &wall, &cpu);
    let throughput = a.against_peer(peer, &wall, &their_wall).with_goal(GOAL);
    Ok(vec![throughput, b.against_peer(peer, &cpu, &their_cpu)])
}

/// Throughput of all cores, divided by their number, beside a peer that has
/// one.
fn per_core(plain_bytes: u64, ours: &[Run], theirs: &[Run]) -> Result<Case> {
    let cores = rayon::current_num_threads();
    #[expect(clippy::cast_precision_loss, reason = "a number of cores")]
    let (all, one) =
        (samples(plain_bytes, ours)?.0.map(|rate| rate / cores as f64), samples(plain_bytes, theirs)?.0);
    let case = Case::new(format!("read back on {cores} cores, each"), "MB/s", Better::Higher, &all);
    Ok(case.against_peer("zstd -d", &all, &one).with_goal(GOAL))
}

fn alone(what: &str, plain_bytes: u64, ours: &[Run]) -> Result<Vec<Case>> {
    let (wall, cpu) = samples(plain_bytes, ours)?;
    Ok(cases(what, &wall, &cpu).into())
}

fn cases(what: &str, wall: &Sample, cpu: &Sample) -> [Case; 2] {
    [
        Case::new(format!("{what}, throughput"), "MB/s", Better::Higher, wall),
        Case::new(format!("{what}, processor time"), "CPU s/GB", Better::Lower, cpu),
    ]
}

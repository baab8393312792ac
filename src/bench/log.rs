//! Durable appends, beside the loop that nothing can be faster than.
//!
//! The ceiling is group commit without anything around it: one thread writes
//! the bytes of a whole group (what all producers have in flight) into a file
//! whose blocks are allocated and written, syncs its data, and begins again.
//! It parses nothing, wakes nobody and computes no checksum.

use std::{fs::File, os::unix::fs::FileExt, path::Path, sync::Arc, time::Instant};

use anyhow::{Context, Result};
use bytes::{Bytes, BytesMut};
use futures::future::try_join_all;
use tokio::runtime::Runtime;

use super::{
    Better, Case, Options,
    sample::{interleaved, quantile, sample_of},
};
use crate::{
    clock,
    frame::{PREFIX_BYTES, put_frame},
    log::{Log, LogWriter, Settings},
};

/// Bytes of a frame, prefix included: a chat message with its fields.
const FRAME_BYTES: usize = 427;

/// Who appends, and how much at once.
struct Load {
    name: &'static str,
    producers: usize,
    frames_per_append: u32,
    appends_each: usize,
}

const LOADS: [Load; 3] = [
    Load { name: "one producer, frame by frame", producers: 1, frames_per_append: 1, appends_each: 400 },
    Load {
        name: "sixteen producers, 256 frames at once",
        producers: 16,
        frames_per_append: 256,
        appends_each: 16,
    },
    Load {
        name: "sixty-four producers, one frame in flight",
        producers: 64,
        frames_per_append: 1,
        appends_each: 100,
    },
];

impl Load {
    fn append_bytes(&self) -> usize {
        self.frames_per_append as usize * FRAME_BYTES
    }

    #[expect(clippy::cast_precision_loss, reason = "thousands of records")]
    fn records(&self) -> f64 {
        (self.producers * self.appends_each) as f64 * f64::from(self.frames_per_append)
    }
}

/// A name, a unit, which way it improves, and how it is read off a run.
type Value = (&'static str, &'static str, Better, fn(&Run) -> f64);

const VALUES: [Value; 3] = [
    ("throughput", "records/s", Better::Higher, |run| run.records_per_second),
    ("ack p50", "ms", Better::Lower, |run| run.p50_ms),
    ("ack p99", "ms", Better::Lower, |run| run.p99_ms),
];

/// What one run gave.
struct Run {
    records_per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

impl Run {
    fn new(load: &Load, seconds: f64, mut latencies_ms: Vec<f64>) -> Self {
        Self {
            records_per_second: load.records() / seconds,
            p50_ms: quantile(&mut latencies_ms, 0.5),
            p99_ms: quantile(&mut latencies_ms, 0.99),
        }
    }
}

/// Measures durable appends.
///
/// # Errors
/// If the log or the file system fails.
pub fn log(options: &Options) -> Result<Vec<Case>> {
    let dir = options.scratch_dir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let settings = Settings::default();
    let bare = BareLoop::new(&dir.path().join("bare"), settings.segment_bytes.0)?;
    let (log, _) = Log::open(dir.path(), "bench", &settings, clock::system(), Box::new(rand::random))?;
    let mut cases = Vec::new();
    for load in &LOADS {
        let (ours, ceiling) = interleaved(
            &format!("log, {}", load.name),
            options.runs,
            || append(&runtime, &log.writer(), load),
            || bare.run(load),
        )?;
        for (name, unit, better, value) in VALUES {
            let (ours, bound) = (sample_of(&ours, value)?, sample_of(&ceiling, value)?);
            let case = Case::new(format!("{}, {name}", load.name), unit, better, &ours);
            cases.push(case.under_ceiling("bare loop", &ours, &bound));
        }
    }
    log.shut_down();
    Ok(cases)
}

/// `count` frames of [`FRAME_BYTES`] bytes.
fn frames(count: u32) -> Bytes {
    let payload: Vec<u8> = (b'a'..=b'z').cycle().take(FRAME_BYTES - PREFIX_BYTES).collect();
    let mut out = BytesMut::new();
    (0..count).for_each(|_| put_frame(&mut out, &payload));
    out.freeze()
}

fn append(runtime: &Runtime, writer: &LogWriter, load: &Load) -> Result<Run> {
    let frames = frames(load.frames_per_append);
    let started = Instant::now();
    let producers = (0..load.producers).map(|_| {
        let (writer, frames) = (writer.clone(), frames.clone());
        let (count, appends) = (load.frames_per_append, load.appends_each);
        runtime.spawn(async move {
            let mut latencies = Vec::with_capacity(appends);
            for _ in 0..appends {
                let sent = Instant::now();
                writer.append(frames.clone(), count).await?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, crate::log::AppendError>(latencies)
        })
    });
    let latencies = runtime.block_on(try_join_all(producers))?;
    let seconds = started.elapsed().as_secs_f64();
    let latencies: Vec<Vec<f64>> = latencies.into_iter().collect::<Result<_, _>>()?;
    Ok(Run::new(load, seconds, latencies.concat()))
}

/// Group commit without anything around it.
struct BareLoop {
    file: Arc<File>,
    bytes: u64,
}

impl BareLoop {
    fn new(path: &Path, bytes: u64) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < bytes {
            file.write_all_at(&zeros, at)?;
            at += zeros.len() as u64;
        }
        file.sync_all()?;
        Ok(Self { file: Arc::new(file), bytes })
    }

    fn run(&self, load: &Load) -> Result<Run> {
        let group = vec![b'x'; load.append_bytes() * load.producers];
        let mut latencies = Vec::with_capacity(load.appends_each);
        let (started, mut at) = (Instant::now(), 0);
        for _ in 0..load.appends_each {
            let sent = Instant::now();
            if at + group.len() as u64 > self.bytes {
                at = 0;
            }
            self.file.write_all_at(&group, at)?;
            self.file.sync_data()?;
            at += group.len() as u64;
            latencies.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        Ok(Run::new(load, started.elapsed().as_secs_f64(), latencies))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_write_the_same_records() {
        assert_eq!(frames(3).len(), 3 * FRAME_BYTES);
        let load = Load { name: "test", producers: 2, frames_per_append: 3, appends_each: 4 };
        assert_eq!(load.append_bytes(), frames(3).len());
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { segment_bytes: crate::units::ByteSize::mib(18), ..Settings::default() };
        let (log, _) =
            Log::open(dir.path(), "s", &settings, clock::system(), Box::new(rand::random)).unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        append(&runtime, &log.writer(), &load).unwrap();
        assert_eq!(log.reader().end_offset(), load.records() as u64);
        log.shut_down();
        // A file that is too small for all of it is written from its start again.
        let bare = BareLoop::new(&dir.path().join("bare"), 1 << 20).unwrap();
        let wide = Load { frames_per_append: 700, ..load };
        assert!(bare.run(&wide).unwrap().records_per_second > 0.0);
        assert_eq!(std::fs::metadata(dir.path().join("bare")).unwrap().len(), 1 << 20);
    }
}

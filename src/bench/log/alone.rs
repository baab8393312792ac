//! The log of the library, without a socket: how much of the served log's time
//! is the log's.

use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use futures::future::try_join_all;
use tokio::runtime::Runtime;

use super::{
    bare::BareLoop,
    frames,
    load::{Run, Shape},
};
use crate::{
    bench::{
        Better, Case, Options,
        sample::{interleaved, sample_of},
        usage,
    },
    clock,
    log::{AppendError, Log, LogWriter, Settings},
};

const SHAPES: [Shape; 3] = [
    Shape { name: "library, 1 producer x 1 frame", producers: 1, batch: 1, batches_each: 400 },
    Shape { name: "library, 16 producers x 256 frames", producers: 16, batch: 256, batches_each: 64 },
    Shape { name: "library, 64 producers x 1 frame", producers: 64, batch: 1, batches_each: 400 },
];

/// A name, a unit, which way it improves, and how it is read off a run.
type Value = (&'static str, &'static str, Better, fn(&Run) -> f64);

const VALUES: [Value; 2] = [
    ("throughput", "records/s", Better::Higher, |run| run.records_per_s),
    ("ack p99", "ms", Better::Lower, |run| run.p99_ms),
];

/// Every case of the log alone.
pub fn cases(options: &Options) -> Result<Vec<Case>> {
    let dir = options.scratch_dir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let payloads = frames::payloads(&options.fixtures)?;
    let settings = Settings::default();
    let bare = BareLoop::new(&dir.path().join("bare"), settings.segment_bytes.0)?;
    let (log, _) = Log::open(dir.path(), "bench", &settings, clock::system(), Box::new(rand::random))?;
    let mut cases = Vec::new();
    for shape in &SHAPES {
        let batches = frames::batches(&payloads, shape.batch);
        let (ours, ceiling) = interleaved(
            &format!("log, {}", shape.name),
            options.runs,
            || append(&runtime, &log.writer(), shape, &batches),
            || bare.run(shape, &batches),
        )?;
        for (name, unit, better, value) in VALUES {
            let (ours, bound) = (sample_of(&ours, value)?, sample_of(&ceiling, value)?);
            let case = Case::new(format!("{}: {name}", shape.name), unit, better, &ours);
            cases.push(case.under_ceiling("bare loop", &ours, &bound));
        }
    }
    log.shut_down();
    Ok(cases)
}

fn append(runtime: &Runtime, writer: &LogWriter, shape: &Shape, batches: &[Bytes]) -> Result<Run> {
    let cpu = usage::own().cpu;
    let started = Instant::now();
    let producers = (0..shape.producers).map(|n| {
        let (writer, shape) = (writer.clone(), *shape);
        let count = u32::try_from(shape.batch).unwrap_or(u32::MAX);
        let first = n * batches.len() / shape.producers;
        let mine: Vec<Bytes> = batches.iter().cycle().skip(first).take(shape.batches_each).cloned().collect();
        runtime.spawn(async move {
            let mut latencies = Vec::with_capacity(mine.len());
            for frames in mine {
                let sent = Instant::now();
                writer.append(frames, count).await?;
                latencies.push(sent.elapsed().as_secs_f64() * 1e3);
            }
            Ok::<_, AppendError>(latencies)
        })
    });
    let latencies = runtime.block_on(try_join_all(producers))?;
    let seconds = started.elapsed().as_secs_f64();
    let latencies: Vec<Vec<f64>> = latencies.into_iter().collect::<Result<_, _>>()?;
    Ok(Run::new(shape, seconds, latencies.concat(), usage::own().cpu.saturating_sub(cpu), Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_log_holds_what_the_shape_says() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings { segment_bytes: crate::units::ByteSize::mib(18), ..Settings::default() };
        let (log, _) =
            Log::open(dir.path(), "s", &settings, clock::system(), Box::new(rand::random)).unwrap();
        let shape = Shape { name: "test", producers: 2, batch: 4, batches_each: 5 };
        let batches = frames::batches(&frames::payloads(Path::new("fixtures")).unwrap(), shape.batch);
        append(&Runtime::new().unwrap(), &log.writer(), &shape, &batches).unwrap();
        assert_eq!(log.reader().end_offset(), 40);
        log.shut_down();
    }
}

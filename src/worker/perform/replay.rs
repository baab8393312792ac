//! A replay as a job: in stretches, so that it can be taken up again between
//! two of them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{PerformError, refused};
use crate::{
    jobs::work,
    pipeline::{
        deriver::Deriver,
        replay::{Replay, Report, Selection},
    },
    store::JobRow,
    worker::{Worker, meter::Told},
};

/// Offsets of one stretch.
const STRETCH: u64 = 1_024;
/// Mismatches that a job names; all are counted.
const NAMED: usize = 100;

/// How far it is, and what was found so far.
#[derive(Debug, Serialize, Deserialize)]
struct Place {
    /// What is selected.
    offsets: Range<u64>,
    /// The next offset.
    next: u64,
    report: Report,
}

/// What came of it.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    offsets: Range<u64>,
    agrees: bool,
    report: Report,
}

pub(super) async fn run(
    worker: &Worker,
    row: &JobRow,
    replay: &work::Replay,
    told: &Told,
) -> Result<Outcome, PerformError> {
    let bench = &worker.bench;
    let place = row.place.as_deref().map(serde_json::from_str::<Place>).transpose()?;
    let mut place = match place {
        Some(place) => place,
        None => begin(worker, replay).await?,
    };
    let replaying = Replay {
        log: worker.archive.log.clone(),
        deriver: deriver(worker),
        store: bench.store.clone(),
        pipeline: bench.pipeline.name.clone(),
        served: bench.serving.now().await?,
        config_digest: bench.pipeline.digest(),
        batch_tag: worker.batch_tag.clone(),
    };
    let time_ms = match (replay.since_ms, replay.until_ms) {
        (None, None) => None,
        (since, until) => Some(since.unwrap_or(i64::MIN)..until.unwrap_or(i64::MAX)),
    };
    let Range { start, end } = place.offsets;
    while place.next < end {
        let stretch = place.next..end.min(place.next + STRETCH);
        let next = stretch.end;
        let selection = Selection {
            offsets: stretch,
            tenant: replay.tenant.clone(),
            tier: replay.tier,
            time_ms: time_ms.clone(),
        };
        place.report.add(replaying.run(&selection, replay.mode, (worker.clock)(), |_| {}).await?);
        place.report.mismatches.truncate(NAMED);
        place.next = next;
        told.at_place(next - start, end - start, &place).await;
    }
    Ok(Outcome { offsets: place.offsets, agrees: place.report.agrees(), report: place.report })
}

/// What is asked for, within what the log holds and the pipeline has derived:
/// what comes after that is live work.
async fn begin(worker: &Worker, replay: &work::Replay) -> Result<Place, PerformError> {
    let pipeline = &worker.bench.pipeline;
    let checkpoint = worker.bench.store.counts(&pipeline.name, &pipeline.stream).await?;
    let checkpoint = checkpoint.ok_or_else(|| refused("the pipeline has derived nothing yet"))?;
    let there = worker.archive.log.start_offset().max(checkpoint.start_offset)..checkpoint.next_offset;
    let start = replay.from.map_or(there.start, |from| from.max(there.start));
    let end = replay.to.map_or(there.end, |to| to.min(there.end));
    if start >= end && there.start < there.end {
        let Range { start, end } = there;
        let reason = format!(
            "nothing is selected: offsets {start} to {end} are in the log and derived, the latter excluded"
        );
        return Err(refused(reason));
    }
    Ok(Place { offsets: start..end.max(start), next: start, report: Report::default() })
}

/// As the pipeline's, but where it keeps nobody waiting.
fn deriver(worker: &Worker) -> Deriver {
    let bench = &worker.bench;
    let (settings, defaults) = (bench.pipeline.derive.clone(), bench.pipeline.defaults.clone());
    Deriver::new(settings, defaults, bench.tokens.clone(), worker.cpu.clone()).for_backfill()
}

//! `thalweg replay`.

use std::{
    ops::Range,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::json;

use super::{
    FOUND_WRONG, Output, PipelineFile,
    meter::Meter,
    offline,
    output::{self, count, facts},
    search::tier,
    send::per_second,
};
use crate::{
    clock,
    config::Pipeline,
    log::LogReader,
    pipeline::replay::{Mode, Plan, Replay as Replaying, Selection},
    record::Tier,
    store::Checkpoint,
    workbench::{self, Workbench},
};

/// Derive again from the log, to compare or to put back what is missing.
///
/// Without --plan or --restore, compares what is derived now with what is
/// stored and writes nothing. Nothing is embedded unless --recompute asks for
/// it, or --restore finds a text without a vector. Works with a daemon running and without. Only
/// what the pipeline has derived already is looked at.
///
/// Exit codes: 0 everything agrees or is put back; 1 failed; 3 something does
/// not agree, or is lost in the log.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg replay
  thalweg replay --segment 0 --rate 2000/s
  thalweg replay --tenant docs --since 2026-01-01T00:00:00Z --plan
  thalweg replay --from 1200 --to 1300 --restore")]
pub struct Replay {
    #[command(flatten)]
    pipeline: PipelineFile,
    /// Only the segment that begins at this offset
    #[arg(long, value_name = "BASE")]
    segment: Option<u64>,
    /// From this offset on
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
    /// Up to this offset, itself excluded
    #[arg(long, value_name = "OFFSET")]
    to: Option<u64>,
    /// Only records of this tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// Only records of this tier
    #[arg(long, value_name = "TIER", value_parser = tier)]
    tier: Option<Tier>,
    /// Only records of this time or later (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<jiff::Timestamp>,
    /// Only records before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    until: Option<jiff::Timestamp>,
    /// Only count what would be read and embedded
    #[arg(long, conflicts_with = "restore")]
    plan: bool,
    /// Store what is missing
    #[arg(long)]
    restore: bool,
    /// Compute every vector anew and compare it: costs what embedding costs
    #[arg(long, conflicts_with_all = ["restore", "plan"])]
    recompute: bool,
    /// Read at most this many records a second, such as 2000/s
    #[arg(long, value_name = "N/s", value_parser = per_second)]
    rate: Option<f64>,
    #[command(flatten)]
    output: Output,
}

impl Replay {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        super::block_on(self.replay(pipeline))
    }

    async fn replay(self, pipeline: Pipeline) -> Result<ExitCode> {
        let store = offline::store(&pipeline).await?;
        let checkpoint = store.counts(&pipeline.name, &pipeline.stream).await?;
        store.close().await;
        let (log, recovery) = offline::log(&pipeline)?;
        for damage in &recovery.damage {
            eprintln!(
                "{}: offsets {}..{} are damaged in the log",
                damage.path.display(),
                damage.first_offset,
                damage.next_offset
            );
        }
        let checkpoint = checkpoint.with_context(|| {
            format!("pipeline `{}` has derived nothing yet; `thalweg run` does that", pipeline.name)
        })?;
        let selection = self.selection(&log, &checkpoint)?;
        let bench = Workbench::open(pipeline).await?;
        let code = self.replay_on(&bench, log, selection).await;
        // Also after a failure: what it has cost has to be written down.
        bench.close().await?;
        code
    }

    async fn replay_on(&self, bench: &Workbench, log: LogReader, selection: Selection) -> Result<ExitCode> {
        let replaying = Replaying {
            log,
            deriver: bench.deriver().for_backfill(),
            store: bench.store.clone(),
            pipeline: bench.pipeline.name.clone(),
            served: bench.serving.now().await?,
            config_digest: bench.pipeline.digest(),
            batch_tag: workbench::batch_tag(&bench.pipeline, clock::system_ms()),
        };
        let mut steps = Steps::new(selection.offsets.end - selection.offsets.start, self.rate);
        let code = if self.plan {
            let plan = replaying.plan(&selection, |read| steps.step(read)).await?;
            drop(steps);
            self.output.print(&json!({"selection": selection, "plan": plan}), |_| plan_text(&plan))?;
            ExitCode::SUCCESS
        } else {
            let mode = match (self.restore, self.recompute) {
                (true, _) => Mode::Restore,
                (_, true) => Mode::Recompute,
                _ => Mode::Verify,
            };
            let report = replaying.run(&selection, mode, clock::system_ms(), |read| steps.step(read)).await?;
            let seconds = steps.started.elapsed().as_secs_f64();
            drop(steps);
            let shown = json!({"selection": selection, "mode": mode, "seconds": seconds, "agrees": report.agrees(), "report": report});
            let Range { start, end } = selection.offsets;
            #[expect(clippy::cast_precision_loss, reason = "a rate needs no more digits")]
            let rate = output::rate(report.frames as f64 / seconds.max(1e-9));
            self.output.print(&shown, |_| {
                format!("offsets            {start}..{end}\n{report}\ntook               {seconds:.2} s, {rate}/s\n")
            })?;
            if report.agrees() { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) }
        };
        Ok(code)
    }

    /// What is asked for, within what the log holds and the pipeline has
    /// derived: what comes after that is live work.
    fn selection(&self, log: &LogReader, checkpoint: &Checkpoint) -> Result<Selection> {
        let there = log.start_offset().max(checkpoint.start_offset)..checkpoint.next_offset;
        let segment = match self.segment {
            None => there.clone(),
            Some(base) => {
                let segments = log.segments();
                if !segments.contains_key(&base) {
                    bail!("no segment begins at offset {base}; `thalweg segments list` shows them");
                }
                let end =
                    segments.range(base + 1..).next().map_or_else(|| log.end_offset(), |(next, _)| *next);
                base.max(there.start)..end.min(there.end)
            }
        };
        let start = self.from.unwrap_or(segment.start).max(segment.start);
        let end = self.to.unwrap_or(segment.end).min(segment.end);
        if start >= end && there.start < there.end {
            bail!(
                "nothing is selected: offsets {} to {} are in the log and derived, the latter excluded",
                there.start,
                there.end
            );
        }
        let ms = |time: Option<jiff::Timestamp>| time.map(jiff::Timestamp::as_millisecond);
        let time_ms = match (ms(self.since), ms(self.until)) {
            (None, None) => None,
            (since, until) => Some(since.unwrap_or(i64::MIN)..until.unwrap_or(i64::MAX)),
        };
        let offsets = start..end.max(start);
        Ok(Selection { offsets, tenant: self.tenant.clone(), tier: self.tier, time_ms })
    }
}

/// Shows progress, and waits where the work is ahead of the rate.
struct Steps {
    meter: Meter,
    done: u64,
    rate: Option<f64>,
    started: Instant,
}

impl Steps {
    fn new(total: u64, rate: Option<f64>) -> Self {
        Self { meter: Meter::new(Some(total)), done: 0, rate, started: Instant::now() }
    }

    fn step(&mut self, read: u64) {
        self.done += read;
        self.meter.at(self.done, "");
        let Some(rate) = self.rate else { return };
        let ahead = due(self.done, rate).saturating_sub(self.started.elapsed());
        if !ahead.is_zero() {
            tokio::task::block_in_place(|| std::thread::sleep(ahead));
        }
    }
}

/// When `done` records may be done at `rate` a second.
#[expect(clippy::cast_precision_loss, reason = "a pace needs no more digits")]
fn due(done: u64, rate: f64) -> Duration {
    Duration::try_from_secs_f64(done as f64 / rate).unwrap_or(Duration::MAX)
}

fn plan_text(plan: &Plan) -> String {
    facts(&[
        ("frames", count(plan.frames)),
        ("records", count(plan.records)),
        ("chunks", count(plan.chunks)),
        ("tokens", count(plan.tokens)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_says_when_work_may_be_done() {
        assert_eq!(due(500, 1_000.0), Duration::from_millis(500));
        assert_eq!(due(1, 1e-300), Duration::MAX);
    }
}

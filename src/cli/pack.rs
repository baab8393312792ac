//! `thalweg pack`.

use std::{process::ExitCode, str::FromStr};

use anyhow::{Result, bail};
use clap::Args;

use super::{
    Output, PipelineFile,
    meter::Meter,
    offline,
    output::{count, facts, time},
};
use crate::{
    clock,
    config::Pipeline,
    dataflow::Cpu,
    pipeline::pack::{Outcome, Pack as Made, PackError, Packer, Period},
    units::{self, ByteSize},
    workbench::open_artifacts,
};

/// Put the documents of a period into the object store, as one artifact.
///
/// Packed are the records of tier `doc` that are indexed or wait for vectors,
/// as they were sent: `zstd -dc` gives frames that `thalweg send` takes. Without
/// --since, a pack goes on where the last one made without it ended, so packs
/// made every few hours have neither gap nor overlap. A period without documents
/// makes no pack. Works with a daemon running and without.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg pack
  thalweg pack --since 6h --dry-run
  thalweg pack --since 2026-11-21T06:00:00Z --until 2026-11-21T12:00:00Z
  thalweg artifacts fetch DIGEST corpus.msgpack.zst")]
pub struct Pack {
    #[command(flatten)]
    pipeline: PipelineFile,
    /// Only what was appended then or later: a time (RFC 3339), or an age such as 6h
    #[arg(long, value_name = "TIME")]
    since: Option<When>,
    /// Only what was appended before then: a time (RFC 3339), or an age such as 6h
    #[arg(long, value_name = "TIME")]
    until: Option<When>,
    /// Say what would be packed; write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: Output,
}

/// A time, or how long ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    At(i64),
    Ago(i64),
}

impl When {
    /// In milliseconds since the Unix epoch.
    fn at(self, now_ms: i64) -> i64 {
        match self {
            Self::At(ms) => ms,
            Self::Ago(ms) => now_ms.saturating_sub(ms),
        }
    }
}

impl FromStr for When {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if let Ok(time) = s.parse::<jiff::Timestamp>() {
            return Ok(Self::At(time.as_millisecond()));
        }
        let age = s.parse::<units::Period>().map_err(|_| {
            format!("`{s}` is neither a time such as 2026-11-21T06:00:00Z nor an age such as 6h")
        })?;
        Ok(Self::Ago(i64::try_from(age.0.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Pack {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        super::block_on(self.pack(pipeline))
    }

    async fn pack(self, pipeline: Pipeline) -> Result<ExitCode> {
        let now_ms = clock::system_ms();
        let at = |when: Option<When>| when.map(|when| when.at(now_ms));
        let period = Period { since_ms: at(self.since), until_ms: at(self.until) };
        if let (Some(since), Some(until)) = (period.since_ms, period.until_ms)
            && since >= until
        {
            bail!("the period ends ({}) before it begins ({})", time(until), time(since));
        }
        let store = offline::store(&pipeline).await?;
        let artifacts = open_artifacts(&pipeline, &store)?;
        let outcome = loop {
            let (log, _) = offline::log(&pipeline)?;
            let packer = Packer::new(&pipeline, log, store.clone(), artifacts.clone(), Cpu::background()?);
            let mut meter = None;
            let told = |read, total| meter.get_or_insert_with(|| Meter::new(Some(total))).at(read, "");
            let outcome = match self.dry_run {
                true => packer.plan(period, told).await,
                false => packer.pack(period, now_ms, told).await,
            };
            // A daemon seals every few minutes, which is longer than it takes
            // to read what is not sealed.
            if !matches!(outcome, Err(PackError::Moved { .. })) {
                break outcome;
            }
        };
        store.close().await;
        self.output.print(&outcome?, |outcome| shown(outcome, self.dry_run))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn shown(outcome: &Outcome, dry_run: bool) -> String {
    let finished =
        outcome.finished.iter().map(|name| format!("finished {name}, which an earlier run left\n"));
    let made = match &outcome.pack {
        None => {
            let (start, end) = (count(outcome.offsets.start), count(outcome.offsets.end));
            format!("no documents in offsets {start}..{end}: no pack\n")
        }
        Some(pack) => pack_text(pack, dry_run),
    };
    finished.chain([made]).collect()
}

fn pack_text(pack: &Made, dry_run: bool) -> String {
    let state = match (dry_run, pack.known) {
        (_, true) => "registered already",
        (true, false) => "would be packed",
        (false, false) => "packed",
    };
    let meta = &pack.meta;
    let mut shown = vec![
        (state, pack.name.clone()),
        ("digest", pack.digest.clone()),
        ("documents", format!("{} of {} tenants", count(meta.documents), count(meta.tenants))),
        ("appended", format!("{} to {}", time(meta.first_append_ms), time(meta.last_append_ms))),
        ("offsets", format!("{}..{} of {}", meta.first_offset, meta.next_offset, meta.stream)),
        ("size", format!("{} as {}", ByteSize(meta.plain_bytes), ByteSize(pack.bytes))),
    ];
    if meta.lost > 0 {
        shown.push(("lost in the log", format!("{} offsets", count(meta.lost))));
    }
    facts(&shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_moment_or_an_age() {
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(When::At(1_000)));
        assert_eq!("6h".parse::<When>().unwrap().at(30_000_000), 30_000_000 - 21_600_000);
        assert!("yesterday".parse::<When>().unwrap_err().contains("neither a time"));
    }
}

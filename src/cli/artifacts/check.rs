//! `thalweg artifacts check`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::{
    artifact::{Artifacts, CheckReport, Findings},
    cli::{
        FOUND_WRONG, Output,
        output::{count, short, time},
    },
    clock,
    config::Pipeline,
    units::ByteSize,
};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Remove the objects that no row names and that are older than `grace` in
    /// `[artifacts]`, up to 1,000 at a time. Never do so where several
    /// registries (several `data_dir`s) share one bucket and prefix: the
    /// objects of one are orphans to the other
    #[arg(long)]
    delete_orphans: bool,
}

#[derive(Debug, Serialize)]
struct Checked {
    #[serde(flatten)]
    report: CheckReport,
    /// Locations of the orphans that were removed.
    removed: Vec<String>,
}

impl Check {
    pub(super) async fn run(
        &self,
        pipeline: &Pipeline,
        artifacts: &Artifacts,
        output: Output,
    ) -> Result<ExitCode> {
        let grace_ms = i64::try_from(pipeline.artifacts.grace.0.as_millis()).unwrap_or(i64::MAX);
        let report = artifacts.check(grace_ms, clock::system_ms()).await?;
        let mut checked = Checked { report, removed: Vec::new() };
        if self.delete_orphans {
            if checked.report.is_strange() {
                bail!(
                    "{} of {} objects are unknown to this registry, so these may be the objects of another one; \
                     none was removed. `thalweg artifacts check` names them; if they are yours, remove them by hand",
                    checked.report.orphans.count,
                    checked.report.objects
                );
            }
            for orphan in &checked.report.orphans.first {
                if artifacts.remove_orphan(orphan).await? {
                    checked.removed.push(orphan.location.clone());
                }
            }
        }
        output.print(&checked, text)?;
        let left = checked.report.orphans.count - checked.removed.len() as u64;
        let fine = checked.report.is_whole() && left == 0;
        Ok(if fine { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) })
    }
}

fn text(checked: &Checked) -> String {
    let report = &checked.report;
    let mut text = String::new();
    for broken in &report.missing.first {
        text += &format!("MISSING  {}  {}  {}\n", broken.kind, broken.name, broken.location);
    }
    text += &more(&report.missing);
    for broken in &report.resized.first {
        let found = broken.found_bytes.map(count).unwrap_or_default();
        let should = count(broken.bytes);
        text += &format!(
            "RESIZED  {}  {}  {}  has {found} bytes and should have {should}\n",
            broken.kind, broken.name, broken.location
        );
    }
    text += &more(&report.resized);
    for orphan in &report.orphans.first {
        let state = match (checked.removed.contains(&orphan.location), orphan.is_ours) {
            (true, _) => "REMOVED",
            (false, true) => "ORPHAN ",
            (false, false) => "FOREIGN",
        };
        let (size, modified) = (ByteSize(orphan.bytes), time(orphan.modified_ms));
        text += &format!("{state}  {}  {size}  {modified}\n", orphan.location);
    }
    text += &more(&report.orphans);
    for segment in &report.segments.first {
        text += &format!(
            "NO ARTIFACT  segment {}/{}  {}\n",
            segment.stream,
            segment.base_offset,
            short(&segment.object_digest)
        );
    }
    text += &more(&report.segments);
    text + &format!(
        "{} rows, {} objects of {}: {} missing, {} resized, {} orphans, {} segments without artifact, {} too young to tell\n",
        count(report.rows),
        count(report.objects),
        ByteSize(report.bytes),
        count(report.missing.count),
        count(report.resized.count),
        count(report.orphans.count - checked.removed.len() as u64),
        count(report.segments.count),
        count(report.young)
    )
}

fn more<T>(findings: &Findings<T>) -> String {
    match findings.count - findings.first.len() as u64 {
        0 => String::new(),
        more => format!("         and {} more\n", count(more)),
    }
}

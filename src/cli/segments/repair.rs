//! `thalweg segments repair`.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::{
    cli::{FOUND_WRONG, Output, offline, output::count},
    clock,
    config::Pipeline,
    pipeline::repair::{FileReport, Repair, RepairError, Report},
    workbench::{open_artifacts, open_store, remembered, restore_dictionaries},
};

pub(super) async fn repair(pipeline: &Pipeline, dry_run: bool, output: Output) -> Result<ExitCode> {
    let directory = offline::log_folder(pipeline);
    let store = match offline::find_store(pipeline).await? {
        Some(store) => store,
        // Only the store was lost: its catalog is made again from the rest.
        None if directory.path().is_dir() && !dry_run => open_store(pipeline).await?,
        None => bail!(
            "there is no store at {}; without --dry-run one is made, if there is a log at {}",
            pipeline.in_data_dir(pipeline.store.path.as_ref()).display(),
            directory.path().display()
        ),
    };
    let remembered = remembered(pipeline, &store).await?;
    let checkpoint = store.counts(&pipeline.name, &pipeline.stream).await?;
    let artifacts = open_artifacts(pipeline, &store)?;
    if !dry_run {
        // What is sealed with one that is missing would count as lost.
        restore_dictionaries(pipeline, &artifacts).await;
    }
    let repair = Repair {
        stream: pipeline.stream.clone(),
        directory,
        artifacts,
        settings: pipeline.segment.clone(),
        known_end: remembered.end_offset(checkpoint.map_or(0, |checkpoint| checkpoint.next_offset)),
        remembered,
        store: store.clone(),
        clock: clock::system(),
        dry_run,
    };
    let done = repair.run().await;
    store.close().await;
    let report = match done {
        Err(error @ RepairError::Locked { .. }) => bail!("{error}"),
        done => done?,
    };
    output.print(&report, text)?;
    Ok(if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) })
}

fn text(report: &Report) -> String {
    if !report.changed && report.is_whole() {
        let lost = match report.lost_in_all {
            0 => String::new(),
            n => format!("; {} offsets were lost earlier, `thalweg segments list` shows them", count(n)),
        };
        return format!("nothing to repair: files, objects and catalog agree{lost}\n");
    }
    let mut text: String = report.files.iter().map(|file| about(file, report.dry_run)).collect();
    for one in &report.restored {
        let (first, next) = (one.first_offset, one.next_offset);
        text += &format!(
            "SEGMENT  {}  offsets {first}..{next}  {} records  from {}\n",
            one.file,
            count(one.records),
            one.from
        );
    }
    for (what, bases) in [
        ("entered", &report.rows.added),
        ("corrected", &report.rows.corrected),
        ("removed", &report.rows.removed),
    ] {
        text.extend(bases.iter().map(|base| format!("CATALOG  row of segment {base} {what}\n")));
    }
    text.extend(report.objects_restored.iter().map(|object| format!("OBJECT   {object} put back\n")));
    text.extend(
        report
            .objects_altered
            .iter()
            .map(|object| format!("OBJECT   {object} is not what its name says, and no file here is\n")),
    );
    for lost in &report.lost {
        text += &format!("LOST     offsets {}..{}  {}\n", lost.first_offset, lost.next_offset, lost.file);
    }
    for open in &report.undecided {
        text += &format!("UNKNOWN  offsets {}..{}  {}\n", open.first_offset, open.next_offset, open.file);
    }
    if report.files.iter().any(|file| !file.salvaged.is_empty()) {
        text += "What was passed over while it could not be read is searchable again after `thalweg replay --restore`.\n";
    }
    let would =
        if report.dry_run { "nothing was changed; `thalweg segments repair` would do this\n" } else { "" };
    text + would
}

fn about(file: &FileReport, dry_run: bool) -> String {
    let mut text = format!("FILE     {}  {}\n", file.file, file.wrong);
    if file.now != file.file {
        text += &format!("         {} {}\n", if dry_run { "goes to" } else { "is now" }, file.now);
    }
    for (what, ranges) in [("salvaged", &file.salvaged), ("lost", &file.lost)] {
        for (first, next) in ranges {
            text += &format!("         {what}: offsets {first}..{next}\n");
        }
    }
    if file.unproven > 0 {
        text += &format!(
            "         {} frames in it cannot be proven to be what was acknowledged, or at which offset; they stay there\n",
            count(file.unproven)
        );
    }
    text
}

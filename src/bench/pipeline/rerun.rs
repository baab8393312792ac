//! A second run over files that have not changed since the first: what it
//! costs to find out that there is nothing to do.

use std::fs;

use anyhow::{Result, ensure};
use bytes::BytesMut;

use super::{Setup, progress};
use crate::{
    bench::{Better, Case, Options, daemon::Folder, data::Corpus, sample::sample_of},
    frame::put_frame,
};

/// Records of the files unless told otherwise.
const RECORDS: usize = 10_000;
/// Processor time that the second run may take, over so many records.
const GOAL_CPU_S: f64 = 0.1;

/// Runs a pipeline over `records` chat messages and documents once, and then
/// again and again.
pub fn rerun(options: &Options, setup: &Setup, records: Option<usize>) -> Result<Case> {
    let (provider, records) = (setup.provider, records.unwrap_or(RECORDS));
    let payloads = Corpus::load_all(&options.fixtures, &["irc_ubuntu", "scifact_docs"])?.payloads();
    ensure!((1..=payloads.len()).contains(&records), "--records must be between 1 and {}", payloads.len());
    let scratch = options.scratch_dir()?;
    let file = scratch.path().join("records.frames");
    let mut frames = BytesMut::new();
    payloads.iter().take(records).for_each(|payload| put_frame(&mut frames, payload));
    fs::write(&file, frames)?;
    let settings =
        format!("[embed]\nprovider = {provider:?}\n\n[[source]]\ntype = \"file\"\npath = {file:?}\n");
    let folder = Folder::new(&options.scratch, &settings)?;
    progress(format_args!("pipeline, {provider}: {records} records from a file, the first run"));
    folder.run_once()?;
    progress(format_args!("pipeline, {provider}: the same again, {} times", options.runs));
    let runs = (0..options.runs).map(|_| folder.run_once()).collect::<Result<Vec<_>>>()?;
    let cpu = sample_of(&runs, |usage| usage.cpu.as_secs_f64())?;
    let name = format!("{provider}: second run over {records} unchanged records");
    let case = Case::new(name, "CPU s", Better::Lower, &cpu);
    Ok(if records == RECORDS { case.with_goal(GOAL_CPU_S) } else { case })
}

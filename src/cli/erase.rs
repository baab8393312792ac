//! `thalweg erase`.

use std::{process::ExitCode, time::Duration};

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::{
    FOUND_WRONG, Output, PipelineFile, keys, offline,
    output::{count, short, time},
};
use crate::{
    clock,
    config::Pipeline,
    identity::Entry,
    log::{Log, OpenError},
    pipeline::{
        damage::DamageRegister,
        erase::{self, Eraser, Renewed, Report},
        ownership,
    },
    redis::Redis,
    store::{Erasure, Store, Subject},
    workbench::{archive_of, open_artifacts, open_log_of},
};

/// Erase a tenant, or one session of theirs, from everything kept.
///
/// Rows, vectors, keywords, the shared cache, dead letters, sealed segments,
/// corpus packs, their objects, and dictionaries trained on any of it. Frames
/// are emptied in place, so offsets stay as they are and count as rejected,
/// for the reason `erased`. What is sent later is not meant.
///
/// A running daemon does it within seconds of being asked, beside its streams;
/// without one it is done here. Broken off, it goes on at the next start of
/// the daemon, or with --resume. A stream of another data directory is done by
/// its own daemon. Backups are not touched: docs/erasure.md.
///
/// Exit codes: 0 done; 1 failed; 3 something is left, for a daemon that does
/// not run here.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg erase --tenant acme --dry-run
  thalweg erase --tenant acme
  thalweg erase --tenant acme --session 2026-03-04-7 --json
  thalweg erase --list")]
pub struct Erase {
    #[command(flatten)]
    pipeline: PipelineFile,
    /// Whose records
    #[arg(long, value_name = "NAME", required_unless_present_any = ["list", "resume"])]
    tenant: Option<String>,
    /// Only this session of theirs
    #[arg(long, value_name = "NAME", requires = "tenant")]
    session: Option<String>,
    /// Only count what would be erased from the log and the store
    #[arg(long, requires = "tenant")]
    dry_run: bool,
    /// Go on with what was asked before
    #[arg(long, conflicts_with_all = ["tenant", "list"])]
    resume: bool,
    /// Show what was asked, and what was done
    #[arg(long, conflicts_with = "tenant")]
    list: bool,
    #[command(flatten)]
    output: Output,
}

/// What would be erased.
#[derive(Debug, Serialize)]
struct Plan {
    /// Records that are stored.
    records: u64,
    /// Frames of each segment, by its first offset.
    segments: Vec<(u64, u64)>,
}

/// What was asked, as people and programs see it.
#[derive(Debug, Serialize)]
struct Asked {
    erasure: i64,
    asked_ms: i64,
    done_ms: Option<i64>,
    streams: Vec<Part>,
}

#[derive(Debug, Serialize)]
struct Part {
    stream: String,
    done_ms: Option<i64>,
    report: Option<Report>,
}

impl From<Erasure> for Asked {
    fn from(erasure: Erasure) -> Self {
        let part = |part: crate::store::ErasureOfStream| Part {
            stream: part.stream,
            done_ms: part.done_ms,
            report: part.report.and_then(|json| serde_json::from_str(&json).ok()),
        };
        Self {
            erasure: erasure.erasure_id,
            asked_ms: erasure.asked_ms,
            done_ms: erasure.done_ms,
            streams: erasure.streams.into_iter().map(part).collect(),
        }
    }
}

/// How often it is looked whether the daemon is done.
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// How often, before it is looked whether one runs.
const LOOKS: u32 = 20;

impl Erase {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        super::block_on(self.erase(pipeline))
    }

    async fn erase(self, pipeline: Pipeline) -> Result<ExitCode> {
        let store = offline::store(&pipeline).await?;
        let subject = self.tenant.clone().map(|tenant| Subject { tenant, session: self.session.clone() });
        let code = match (subject, self.dry_run) {
            (Some(subject), true) => plan(&pipeline, &store, &subject, self.output).await,
            (Some(subject), false) => {
                claim(&pipeline, &store).await?;
                let streams = [pipeline.stream.clone()];
                let id = store.ask_erasure(&subject, &streams, clock::system_ms()).await?;
                let asked = Entry::done(clock::system_ms(), &keys::here(), "erase.ask", id.to_string());
                store.append_trail(&[asked.into()]).await?;
                self.carry_out(&pipeline, &store, Some(id)).await
            }
            (None, _) if self.list => {
                let asked: Vec<Asked> = store.erasures(false).await?.into_iter().map(Asked::from).collect();
                self.output.print(&asked, |asked| asked.iter().map(text).collect())?;
                Ok(ExitCode::SUCCESS)
            }
            (None, _) => {
                claim(&pipeline, &store).await?;
                self.carry_out(&pipeline, &store, None).await
            }
        };
        store.close().await;
        code
    }

    /// Does what is asked for, or has the daemon do it, and tells of `id`, or
    /// of everything that was open.
    async fn carry_out(&self, pipeline: &Pipeline, store: &Store, id: Option<i64>) -> Result<ExitCode> {
        let open: Vec<i64> = store.erasures(true).await?.iter().map(|erasure| erasure.erasure_id).collect();
        let mut told = false;
        loop {
            match open_log_of(pipeline, store, clock::system()).await {
                Ok((log, damage)) => {
                    let done = here(&log, pipeline, store, damage).await;
                    let ended = tokio::task::spawn_blocking(move || log.shut_down());
                    done?;
                    ended.await?;
                    break;
                }
                Err(error) if matches!(error.downcast_ref(), Some(OpenError::Locked { .. })) => {
                    if !std::mem::replace(&mut told, true) {
                        eprintln!(
                            "another process has the log: a daemon does this now, also if this command is \
                             interrupted; `thalweg status` tells what hinders it"
                        );
                    }
                    if await_daemon(&pipeline.stream, store).await? {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        let wanted =
            |erasure: &Erasure| id.map_or(open.contains(&erasure.erasure_id), |id| id == erasure.erasure_id);
        let told: Vec<Asked> =
            store.erasures(false).await?.into_iter().filter(wanted).map(Asked::from).collect();
        self.output.print(&told, |told| told.iter().map(text).collect())?;
        let done = told.iter().all(|asked| asked.done_ms.is_some());
        Ok(if done { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) })
    }
}

/// Only who has the stream may have anything of it erased.
async fn claim(pipeline: &Pipeline, store: &Store) -> Result<()> {
    ownership::claim(&pipeline.data_dir, store, &pipeline.stream, false, clock::system_ms()).await
}

async fn plan(pipeline: &Pipeline, store: &Store, subject: &Subject, output: Output) -> Result<ExitCode> {
    let (log, _) = offline::log(pipeline)?;
    let records = store.holdings(subject, &pipeline.stream, u64::MAX >> 1, u32::MAX).await?.len() as u64;
    let (subject, defaults) = (subject.clone(), pipeline.defaults.clone());
    let segments = tokio::task::spawn_blocking(move || erase::look(&log, &subject, &defaults)).await??;
    let plan = Plan { records, segments: segments.into_iter().collect() };
    output.print(&plan, |plan| {
        let lines = plan
            .segments
            .iter()
            .map(|(base, frames)| format!("SEGMENT  {base:020}  {} frames\n", count(*frames)));
        let rows = format!("ROWS     {} records\n", count(plan.records));
        rows + &lines.collect::<String>()
            + "nothing was changed; without --dry-run this is erased, and whatever was made of it\n"
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn here(
    log: &Log,
    pipeline: &Pipeline,
    store: &Store,
    damage: std::sync::Arc<DamageRegister>,
) -> Result<()> {
    let artifacts = open_artifacts(pipeline, store)?;
    artifacts.sweep()?;
    let redis = match &pipeline.redis {
        Some(settings) => Some(Redis::open(settings).await?),
        None => None,
    };
    let archive = archive_of(log, pipeline, store, &artifacts, &damage, clock::system())?;
    let eraser = Eraser::new(pipeline, log.writer(), archive, redis);
    eraser.erase_all().await?;
    Ok(())
}

/// Waits a while for a daemon that runs to do its stream's part of everything;
/// whether it has.
async fn await_daemon(stream: &str, store: &Store) -> Result<bool> {
    let is_left = |erasure: &Erasure| erasure.open_part(stream).is_some() || erasure.is_everywhere();
    for _ in 0..LOOKS {
        if !store.erasures(true).await?.iter().any(is_left) {
            return Ok(true);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(false)
}

fn text(asked: &Asked) -> String {
    let state = match asked.done_ms {
        Some(at) => format!("done {}", time(at)),
        None => "under way".into(),
    };
    let mut text = format!("ERASURE {}  asked {}  {state}\n", asked.erasure, time(asked.asked_ms));
    for part in &asked.streams {
        match &part.report {
            Some(report) => text += &of_stream(report, part.done_ms.is_some()),
            None => text += &format!("  {}: waits for the daemon of that stream\n", part.stream),
        }
    }
    text
}

fn of_stream(report: &Report, done: bool) -> String {
    let mut text = format!(
        "  {}{}: before offset {}: {} frames emptied, {} records, {} chunks, {} dead letters, {} shared vectors\n",
        report.stream,
        if done { "" } else { " (under way)" },
        report.until_offset,
        count(report.frames),
        count(report.records),
        count(report.chunks),
        count(report.dead_letters),
        count(report.cached),
    );
    let digest =
        |digest: &Option<String>| digest.as_deref().map_or("nothing".to_owned(), |d| short(d).to_owned());
    let renewed = |kind: &str, one: &Renewed| {
        let (name, frames) = (&one.name, count(one.frames));
        format!(
            "    {kind}  {name}  {frames} frames  {} is {} now\n",
            digest(&one.before),
            digest(&one.after)
        )
    };
    text.extend(report.segments.iter().map(|one| renewed("SEGMENT   ", one)));
    text.extend(report.packs.iter().map(|one| renewed("PACK      ", one)));
    text.extend(
        report.dictionaries.iter().map(|digest| format!("    DICTIONARY  {} removed\n", short(digest))),
    );
    text.extend(report.quarantine.iter().map(|file| format!("    FILE        {file} removed\n")));
    text.extend(report.objects.iter().map(|location| format!("    OBJECT      {location} deleted\n")));
    text
}

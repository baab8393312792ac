//! `thalweg audit`.

use std::{ops::Range, process::ExitCode};

use anyhow::{Result, bail};
use clap::Args;

use super::{
    FOUND_WRONG, Output, PipelineFile, offline,
    output::{count, facts, table},
};
use crate::{config::Pipeline, pipeline::audit::Audited};

/// Prove that nothing went missing: count every row of the store, and hold the
/// counters, the log and the catalog to it.
///
/// Works beside a running daemon and without one. All that is counted in the
/// store is of one moment; objects are compared by `thalweg artifacts check`,
/// files by `thalweg segments verify`. Reads the keys of everything: a few
/// seconds for each million rows.
///
/// Exit codes: 0 everything adds up; 1 failed; 2 the pipeline file is wrong; 3
/// something does not add up.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg audit -p pipelines/team.toml
  thalweg audit --json | jq '.laws[] | select(.ok | not)'")]
pub struct Audit {
    #[command(flatten)]
    pipeline: PipelineFile,
    #[command(flatten)]
    output: Output,
}

impl Audit {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = self.pipeline.load()?;
        let audited = super::block_on(audit(&pipeline))?;
        self.output.print(&audited, text)?;
        Ok(if audited.wrong == 0 { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) })
    }
}

async fn audit(pipeline: &Pipeline) -> Result<Audited> {
    let store = offline::store(pipeline).await?;
    let counted = store.counted(&pipeline.name, &pipeline.stream).await?;
    store.close().await;
    let Some(counted) = counted else {
        bail!("pipeline `{}` never read the stream `{}` of this store", pipeline.name, pipeline.stream);
    };
    // After the store, so that it cannot be behind it.
    let log = match offline::log_folder(pipeline).path().is_dir() {
        true => {
            let (log, _) = offline::log(pipeline)?;
            Some(log.start_offset()..log.end_offset())
        }
        false => None,
    };
    Ok(Audited::new((&pipeline.name, &pipeline.stream), &counted, log))
}

fn text(audited: &Audited) -> String {
    let offsets = |range: &Range<u64>| format!("offsets {} to {}", count(range.start), count(range.end));
    let log = audited.log.as_ref().map_or("not in this data_dir".into(), offsets);
    let mut text = facts(&[
        ("pipeline", format!("{}  stream {}", audited.pipeline, audited.stream)),
        ("log", log),
        ("derived", offsets(&(audited.start_offset..audited.next_offset))),
        ("in flight", audited.in_flight.map_or("unknown".into(), count)),
    ]);
    let mut rows = vec![["", "should be", "counted", ""].map(str::to_owned).to_vec()];
    rows.extend(audited.laws.iter().map(|law| {
        let verdict = if law.ok { "ok" } else { "WRONG" };
        vec![law.law.to_owned(), count(law.should), count(law.found), verdict.to_owned()]
    }));
    text += &format!("\n{}\n", table(&rows));
    if audited.wrong == 0 {
        return text + "everything adds up";
    }
    text += &format!("{} of {} do not add up:\n", audited.wrong, audited.laws.len());
    let wrong = audited.laws.iter().filter(|law| !law.ok);
    text + &wrong.map(|law| format!("  {}: {}\n", law.law, law.remedy)).collect::<String>()
}

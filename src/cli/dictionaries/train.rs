//! `thalweg dictionaries train`.

use anyhow::Result;

use crate::{
    cli::{
        Output, offline,
        output::{count, facts, short, table},
    },
    clock,
    config::Pipeline,
    dataflow::Cpu,
    dictionary::{Loss, Verdict},
    pipeline::dictionaries::{
        Dictionaries,
        trial::{Training, Trial},
    },
    units::ByteSize,
};

pub(super) async fn train(
    pipeline: &Pipeline,
    dictionaries: &Dictionaries,
    training: Training,
    dry_run: bool,
    output: Output,
) -> Result<()> {
    let (log, _) = offline::log(pipeline)?;
    let (cpu, now_ms) = (Cpu::background()?, clock::system_ms());
    let trial = match dry_run {
        true => dictionaries.try_out(&log, training, &cpu, now_ms).await?.0,
        false => dictionaries.train(&log, training, &cpu, now_ms).await?,
    };
    output.print(&trial, |trial| text(trial, dry_run))?;
    Ok(())
}

pub(super) fn text(trial: &Trial, dry_run: bool) -> String {
    let facts = facts(&[
        ("stream", trial.stream.clone()),
        (
            "trained on",
            format!(
                "{} segments, {} samples, {}",
                trial.trained_on.len(),
                count(trial.samples as u64),
                ByteSize(trial.sample_bytes as u64)
            ),
        ),
        ("held out", format!("{} segments, {} of frames", trial.held_out.len(), ByteSize(trial.plain_bytes))),
        ("level", trial.level.to_string()),
    ]);
    let failed: String = trial.failed.iter().map(|why| format!("{why}\n")).collect();
    format!("{facts}\n{}{failed}\n{}\n", weights(trial), verdict(trial, dry_run))
}

/// What the held-out segments come to, one way of sealing a line.
fn weights(trial: &Trial) -> String {
    let blocks = ByteSize(trial.dictionary_block_bytes).to_string();
    let contest = &trial.contest;
    let heading = ["sealed with", "blocks", "segments", "dictionary", "together", "ratio", "smaller by"];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    let mut row = |with: String, blocks: &str, segments: u64, dictionary: Option<u64>| {
        let together = segments + dictionary.unwrap_or(0);
        cells.push(vec![
            with,
            blocks.to_owned(),
            count(segments),
            dictionary.map_or_else(|| "-".to_owned(), count),
            count(together),
            format!("{:.3}", ratio(trial.plain_bytes, together)),
            format!("{:+.2} %", 100.0 * (1.0 - ratio(together, contest.without))),
        ]);
    };
    row("no dictionary".into(), &ByteSize(trial.block_bytes).to_string(), contest.undivided, None);
    row("no dictionary".into(), &blocks, contest.without, None);
    if let (Some(bytes), Some(digest)) = (contest.present, &trial.present) {
        row(format!("present {}", short(digest)), &blocks, bytes, None);
    }
    for tried in &trial.tried {
        let entrant = tried.entrant;
        row(
            format!("new {}", short(&tried.digest)),
            &blocks,
            entrant.segment_bytes,
            Some(entrant.dictionary_bytes),
        );
    }
    table(&cells)
}

fn verdict(trial: &Trial, dry_run: bool) -> String {
    let margin = format!("{:.1} %", 100.0 * trial.margin);
    let best = &trial.best.digest;
    match trial.verdict {
        Verdict::Adopted if dry_run => format!("would be adopted: {best}"),
        Verdict::Adopted => format!("adopted: {best}; segments are sealed with it from now on"),
        Verdict::Rejected { against } => {
            let why = match against {
                Loss::NoDictionary => {
                    format!("it is not {margin} smaller than the same blocks without a dictionary")
                }
                Loss::LargerBlocks => format!(
                    "segments would be larger than they are without a dictionary, in blocks of {}; set `dictionary_block_bytes` higher",
                    ByteSize(trial.block_bytes)
                ),
                Loss::Present => format!("it is not {margin} smaller than the present dictionary"),
            };
            format!("not adopted: {best}: {why}")
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn ratio(a: u64, b: u64) -> f64 {
    a as f64 / b.max(1) as f64
}

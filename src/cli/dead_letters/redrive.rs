//! Sending dead letters again.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Result;
use tokio::sync::mpsc;

use crate::{
    api::RedriveOutcome,
    cli::{Output, output::table},
    clock,
    secret::Secret,
    source::{
        amend::Field,
        client::{Client, Frames, Settings, Tally, Target},
        redrive::mended,
    },
    store::{DeadLetter, Store},
};

/// Sends `letters` to `to` and marks those that are acknowledged. What would
/// be refused again for the same fault is not sent: the server would keep it
/// as one more dead letter.
pub(super) async fn redrive(
    store: &Store,
    letters: Vec<DeadLetter>,
    (to, key): (Target, Option<Secret>),
    set: &[Field],
) -> Result<Vec<RedriveOutcome>> {
    let mut outcomes = Vec::new();
    let mut sent = Vec::new();
    let (input, frames) = mpsc::channel(letters.len().max(1));
    for letter in letters {
        match mended(&letter, set) {
            Ok(frame) => {
                // There is room for all of them.
                let _ = input.try_send(Frames { bytes: frame, count: 1 });
                sent.push(letter.id);
            }
            Err(why) => outcomes.push(outcome(letter.id, "kept", Some(why))),
        }
    }
    drop(input);
    let tally = Tally::default();
    let error = match sent.is_empty() {
        true => None,
        false => Client::new(to, Settings { key, ..Settings::default() }).send(frames, &tally).await.err(),
    };
    let acked: BTreeSet<u64> = {
        let report = tally.look();
        report.ranges.iter().flat_map(|range| range.frame..range.frame + range.count).collect()
    };
    for (frame, id) in (0..).zip(sent) {
        let refused = {
            let report = tally.look();
            report
                .first_refused
                .iter()
                .find(|r| r.frame == frame)
                .map(|r| format!("{}: {}", r.code, r.message))
        };
        outcomes.push(if acked.contains(&frame) {
            let first = store.mark_redriven(id, clock::system_ms()).await?;
            let why = (!first).then(|| "it was sent again by somebody else at the same time too".to_owned());
            outcome(id, "redriven", why)
        } else if let Some(error) = error.as_ref().filter(|_| refused.is_none()) {
            outcome(id, "unanswered", Some(error.to_string()))
        } else {
            outcome(id, "refused", refused)
        });
    }
    Ok(outcomes)
}

/// What became of one.
pub(super) fn outcome(id: i64, outcome: &str, why: Option<String>) -> RedriveOutcome {
    RedriveOutcome { id, outcome: outcome.to_owned(), why }
}

/// Prints what became of them; exit code 1 unless all were taken.
pub(super) fn told(outcomes: &[RedriveOutcome], output: Output) -> Result<ExitCode> {
    output.print(&outcomes, |outcomes| text(outcomes))?;
    let all = outcomes.iter().all(|outcome| outcome.outcome == "redriven");
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(outcomes: &[RedriveOutcome]) -> String {
    let mut cells = vec![["id", "outcome", "why"].map(str::to_owned).to_vec()];
    cells.extend(outcomes.iter().map(|outcome| {
        vec![outcome.id.to_string(), outcome.outcome.clone(), outcome.why.clone().unwrap_or_default()]
    }));
    table(&cells)
}

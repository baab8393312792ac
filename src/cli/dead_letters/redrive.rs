//! Sending dead letters again.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Result;
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
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

/// What became of one dead letter.
#[derive(Debug, Serialize)]
struct Outcome {
    id: i64,
    /// `redriven`, `refused`, `unanswered` or `kept`.
    outcome: &'static str,
    why: Option<String>,
}

/// Sends `letters` to `to` and marks those that are acknowledged. What would
/// be refused again for the same fault is not sent: the server would keep it
/// as one more dead letter.
pub(super) async fn redrive(
    store: &Store,
    letters: Vec<DeadLetter>,
    (to, key): (Target, Option<Secret>),
    set: &[Field],
    output: Output,
) -> Result<ExitCode> {
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
            Err(why) => outcomes.push(Outcome { id: letter.id, outcome: "kept", why: Some(why) }),
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
            Outcome { id, outcome: "redriven", why }
        } else if let Some(error) = error.as_ref().filter(|_| refused.is_none()) {
            Outcome { id, outcome: "unanswered", why: Some(error.to_string()) }
        } else {
            Outcome { id, outcome: "refused", why: refused }
        });
    }
    outcomes.sort_unstable_by_key(|outcome| outcome.id);
    output.print(&outcomes, |outcomes| text(outcomes))?;
    let all = outcomes.iter().all(|outcome| outcome.outcome == "redriven");
    Ok(if all { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(outcomes: &[Outcome]) -> String {
    let mut cells = vec![["id", "outcome", "why"].map(str::to_owned).to_vec()];
    cells.extend(outcomes.iter().map(|outcome| {
        vec![outcome.id.to_string(), outcome.outcome.to_owned(), outcome.why.clone().unwrap_or_default()]
    }));
    table(&cells)
}

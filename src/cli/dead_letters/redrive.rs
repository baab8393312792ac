//! Sending dead letters again.

use std::{collections::BTreeSet, process::ExitCode};

use anyhow::Result;
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::mpsc;

use crate::{
    cli::{
        Output,
        output::table,
        send::{Field, amend},
    },
    clock,
    frame::{Payloads, put_frame},
    record::RecordRef,
    secret::Secret,
    source::{
        client::{Client, Frames, Settings, Tally, Target},
        json::put_json,
    },
    store::{DeadLetter, DeadLetterState, Store},
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

/// The frame to send, or why there is none that could be taken.
fn mended(letter: &DeadLetter, set: &[Field]) -> Result<Bytes, String> {
    if letter.state == DeadLetterState::Redriven {
        return Err("it was sent again before".into());
    }
    let inner = &letter.letter;
    if let (Some(stream), Some(offset)) = (&inner.stream, inner.offset) {
        return Err(format!(
            "it is in the log, as {stream}@{offset}; `thalweg replay --from {offset} --to {}` shows what is \
             derived of it now",
            offset + 1
        ));
    }
    if matches!(inner.code.as_str(), "oversized" | "truncated") {
        return Err(format!(
            "only its beginning is kept ({}); its producer has to send it again",
            inner.code
        ));
    }
    let payload = inner.payload.as_deref().ok_or("its bytes are not kept")?;
    let mut bytes = BytesMut::new();
    match inner.code.as_str() {
        "not_json" => put_json(&mut bytes, payload)?,
        _ => put_frame(&mut bytes, payload),
    }
    let frames = amend(&Frames { bytes: bytes.freeze(), count: 1 }, set);
    let payload = Payloads(frames.bytes.clone()).next().unwrap_or_default();
    match RecordRef::parse(&payload) {
        Ok(_) => Ok(frames.bytes),
        Err(fault) => {
            Err(format!("it is still at fault ({}: {fault}); --set may mend a field", fault.code()))
        }
    }
}

fn text(outcomes: &[Outcome]) -> String {
    let mut cells = vec![["id", "outcome", "why"].map(str::to_owned).to_vec()];
    cells.extend(outcomes.iter().map(|outcome| {
        vec![outcome.id.to_string(), outcome.outcome.to_owned(), outcome.why.clone().unwrap_or_default()]
    }));
    table(&cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NewDeadLetter;

    fn letter(code: &str, payload: &[u8]) -> DeadLetter {
        let letter =
            NewDeadLetter { code: code.into(), payload: Some(payload.to_vec()), ..NewDeadLetter::default() };
        DeadLetter { id: 1, letter, state: DeadLetterState::Open, redriven_ms: None }
    }

    fn payload(json: &str) -> Vec<u8> {
        let mut frame = BytesMut::new();
        put_json(&mut frame, json.as_bytes()).unwrap();
        frame[4..].to_vec()
    }

    #[test]
    fn a_fault_in_a_field_is_mended_by_setting_it() {
        let bad = letter("unknown_tier", &payload(r#"{"text":"x","tier":"docs"}"#));
        assert!(mended(&bad, &[]).unwrap_err().contains("unknown_tier"));
        let frame = mended(&bad, &["tier=doc".parse().unwrap()]).unwrap();
        let payload = Payloads(frame).next().unwrap();
        assert_eq!(RecordRef::parse(&payload).unwrap().tier.map(|t| t.name()), Some("doc"));
    }

    #[test]
    fn what_is_incomplete_in_the_log_or_done_is_not_sent() {
        let good = payload(r#"{"text":"x"}"#);
        assert!(mended(&letter("log", &good), &[]).is_ok());
        assert!(mended(&letter("oversized", &good), &[]).unwrap_err().contains("beginning"));
        let mut in_log = letter("embed", &good);
        (in_log.letter.stream, in_log.letter.offset) = (Some("main".into()), Some(7));
        assert!(mended(&in_log, &[]).unwrap_err().contains("--from 7 --to 8"));
        let done = DeadLetter { state: DeadLetterState::Redriven, ..letter("log", &good) };
        assert!(mended(&done, &[]).unwrap_err().contains("before"));
    }
}

//! `thalweg segments cat`.

use std::{
    io::{self, BufWriter, IsTerminal, Write},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use serde_json::{Map, Value};

use super::segment_at;
use crate::{
    cli::{FOUND_WRONG, offline},
    config::Pipeline,
    frame::{FrameBatch, put_frame},
    log::Segment,
    record::{Id, RecordRef},
};

pub(super) fn cat(pipeline: &Pipeline, base: u64, jsonl: bool) -> Result<ExitCode> {
    let stdout = io::stdout();
    if !jsonl && stdout.is_terminal() {
        bail!("frames are binary: send them to a file or a program, or add --jsonl");
    }
    let (log, _) = offline::log(pipeline)?;
    let (_, segment) = segment_at(&log, base)?;
    let mut out = BufWriter::with_capacity(256 << 10, stdout.lock());
    let mut whole = true;
    let done = (|| {
        match segment {
            Segment::Raw(raw) => {
                for batch in raw.batches() {
                    put(&mut out, &batch?, jsonl)?;
                }
            }
            Segment::Sealed(reader) => {
                for batch in reader.batches_from(0) {
                    match batch {
                        Ok(batch) => put(&mut out, &batch, jsonl)?,
                        Err(error) => {
                            whole = false;
                            eprintln!("{error}");
                        }
                    }
                }
            }
        }
        out.flush()
    })();
    match done {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        done => done.context("writing to standard output")?,
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::from(FOUND_WRONG) })
}

fn put(out: &mut impl Write, batch: &FrameBatch, jsonl: bool) -> io::Result<()> {
    // Emptied frames stand for what was erased.
    for (offset, payload) in batch.payloads().filter(|(_, payload)| !payload.is_empty()) {
        if !jsonl {
            let mut frame = BytesMut::new();
            put_frame(&mut frame, &payload);
            out.write_all(&frame)?;
            continue;
        }
        let record = RecordRef::parse(&payload)
            .map_err(|fault| io::Error::other(format!("offset {offset} holds no record: {fault}")))?;
        serde_json::to_writer(&mut *out, &json_of(&record))?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// The record as its producer wrote it, so that it can be sent again.
fn json_of(record: &RecordRef<'_>) -> Value {
    let text = |value: Option<&str>| value.map(|s| Value::from(s.to_owned()));
    let id = record.id.as_ref().map(|id| match id {
        Id::Str(id) => Value::from((*id).to_owned()),
        Id::Uint(id) => Value::from(*id),
        Id::Int(id) => Value::from(*id),
    });
    let known = [
        ("id", id),
        ("ts", record.ts_ms.map(Value::from)),
        ("tenant", text(record.tenant)),
        ("session", text(record.session)),
        ("source", text(record.source)),
        ("tier", record.tier.map(|tier| Value::from(tier.name()))),
        ("text", text(Some(record.text))),
    ];
    let known = known.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(known.chain(record.attrs()).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{frame::Payloads, source::json::put_json};
    use bytes::BytesMut;

    #[test]
    fn a_record_comes_out_with_the_fields_it_was_sent_with() {
        let sent = r#"{"id":"m-1","ts":5,"tenant":"t","tier":"doc","text":"hi","lang":"en","n":{"a":[1]}}"#;
        let mut frame = BytesMut::new();
        put_json(&mut frame, sent.as_bytes()).unwrap();
        let bytes = frame.freeze();
        let mut out = Vec::new();
        let batch = FrameBatch { base_offset: 0, append_time_ms: 9, count: 1, bytes: bytes.clone() };
        put(&mut out, &batch, true).unwrap();
        let shown: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(shown, serde_json::from_str::<Value>(sent).unwrap());
        let mut again = BytesMut::new();
        put_json(&mut again, &out).unwrap();
        let parsed = |bytes| RecordRef::parse(&Payloads(bytes).next().unwrap()).unwrap().text.to_owned();
        assert_eq!(parsed(again.freeze()), parsed(bytes));
    }
}

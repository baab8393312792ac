//! `thalweg segments inspect`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::{raw_state, segment_at};
use crate::{
    api::Segment as Sealed,
    artifact::hex,
    cli::{
        Output,
        daemon::Daemon,
        offline,
        output::{count, facts, table, time},
    },
    config::Pipeline,
    log::{RawFile, Segment},
    segment::{BlockInfo, Reader},
    units::ByteSize,
};

pub(super) fn inspect(pipeline: &Pipeline, base: u64, output: Output) -> Result<ExitCode> {
    let (log, _) = offline::log(pipeline)?;
    let (base, segment) = segment_at(&log, base)?;
    match segment {
        Segment::Sealed(reader) => output.print(&sealed_json(&reader), |_| sealed_text(&reader))?,
        Segment::Raw(raw) => {
            let shown = raw_json(&raw, raw_state(&log, base))?;
            output.print(&shown, raw_text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the catalog of a daemon says of the sealed segment that holds `offset`.
pub(super) async fn inspect_there(daemon: &Daemon, offset: u64, output: Output) -> Result<ExitCode> {
    let sealed: Sealed = daemon.get(&format!("/api/v1/segments/{offset}")).await?;
    output.print(&sealed, catalog_text)?;
    Ok(ExitCode::SUCCESS)
}

fn catalog_text(sealed: &Sealed) -> String {
    facts(&[
        ("offsets", format!("{}..{}", sealed.base_offset, sealed.end_offset)),
        ("records", count(sealed.records)),
        ("frames", ByteSize(sealed.plain_bytes).to_string()),
        ("file", ByteSize(sealed.object_bytes).to_string()),
        ("content digest", sealed.content_digest.clone()),
        ("object digest", sealed.object_digest.clone()),
        ("record times", format!("{} to {}", time(sealed.first_time_ms), time(sealed.last_time_ms))),
        ("sealed", time(sealed.sealed_at_ms)),
        ("artifact", sealed.artifact.clone().unwrap_or_else(|| "not in the object store yet".into())),
    ])
}

fn sealed_json(reader: &Reader) -> Value {
    let info = reader.info();
    let block = |block: &BlockInfo| {
        json!({
            "position": block.position,
            "compressed_bytes": block.compressed_len,
            "plain_bytes": block.plain_len,
            "crc32c": format!("{:08x}", block.crc32c),
            "first_offset": block.first_offset,
            "end_offset": block.end_offset,
            "records": block.count,
            "first_time_ms": block.first_time_ms,
            "last_time_ms": block.last_time_ms,
        })
    };
    json!({
        "state": "sealed",
        "stream": info.stream,
        "segment_id": hex(&info.segment_id),
        "base_offset": info.base_offset,
        "end_offset": info.end_offset,
        "records": info.records,
        "plain_bytes": info.plain_bytes,
        "object_bytes": info.object_bytes,
        "content_digest": hex(&info.content_digest),
        "first_time_ms": info.first_time_ms,
        "last_time_ms": info.last_time_ms,
        "sealed_at_ms": info.sealed_at_ms,
        "level": info.level,
        "dictionary": info.dictionary.map(|dictionary| dictionary.hex()),
        "zstd_dictionary_id": info.dictionary.map(|dictionary| dictionary.zstd_id),
        "blocks": reader.blocks().iter().map(block).collect::<Vec<_>>(),
    })
}

fn sealed_text(reader: &Reader) -> String {
    let info = reader.info();
    #[expect(clippy::cast_precision_loss, reason = "shown with two decimals")]
    let ratio = info.plain_bytes as f64 / info.object_bytes.max(1) as f64;
    let facts = facts(&[
        ("stream", info.stream.clone()),
        ("segment id", hex(&info.segment_id)),
        ("offsets", format!("{}..{}", info.base_offset, info.end_offset)),
        ("records", count(info.records)),
        ("frames", ByteSize(info.plain_bytes).to_string()),
        ("file", format!("{}, {ratio:.2} to 1", ByteSize(info.object_bytes))),
        ("content digest", hex(&info.content_digest)),
        ("record times", format!("{} to {}", time(info.first_time_ms), time(info.last_time_ms))),
        ("sealed", time(info.sealed_at_ms)),
        ("level", info.level.to_string()),
        ("dictionary", info.dictionary.map_or_else(|| "none".into(), |dictionary| dictionary.to_string())),
    ]);
    let heading =
        ["block", "position", "bytes", "plain", "crc32c", "offsets", "records", "first time", "last time"];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    cells.extend(reader.blocks().iter().enumerate().map(|(n, block)| {
        vec![
            n.to_string(),
            block.position.to_string(),
            block.compressed_len.to_string(),
            block.plain_len.to_string(),
            format!("{:08x}", block.crc32c),
            format!("{}..{}", block.first_offset, block.end_offset),
            block.count.to_string(),
            time(block.first_time_ms),
            time(block.last_time_ms),
        ]
    }));
    format!("{facts}\n{}", table(&cells))
}

fn raw_json(raw: &RawFile, state: &str) -> Result<Value> {
    let (mut batches, mut records, mut bytes, mut times) = (0u64, 0u64, 0u64, None);
    for batch in raw.batches() {
        let batch = batch?;
        batches += 1;
        records += u64::from(batch.count);
        bytes += batch.bytes.len() as u64;
        let at = batch.append_time_ms;
        times = Some(times.map_or((at, at), |(first, _)| (first, at)));
    }
    Ok(json!({
        "state": state,
        "file": raw.path(),
        "segment_id": hex(raw.id()),
        "base_offset": raw.base_offset(),
        "batches": batches,
        "records": records,
        "plain_bytes": bytes,
        "proven_bytes": raw.proven(),
        "file_bytes": raw.capacity(),
        "first_append_ms": times.map(|(first, _)| first),
        "last_append_ms": times.map(|(_, last)| last),
    }))
}

fn raw_text(shown: &Value) -> String {
    let Some(fields) = shown.as_object() else { return String::new() };
    let fields: Vec<_> = fields
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str().map_or_else(|| value.to_string(), str::to_owned)))
        .collect();
    facts(&fields)
}

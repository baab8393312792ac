//! `thalweg segments list`.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Result;
use serde::Serialize;

use super::raw_state;
use crate::{
    artifact::hex,
    cli::{
        Output, offline,
        output::{count, short, table, time},
    },
    config::Pipeline,
    log::Segment,
    store::{Damage, DamageKind, SegmentRow},
    units::ByteSize,
};

#[derive(Debug, Serialize)]
struct Row {
    base_offset: u64,
    end_offset: u64,
    /// Frames; of what is lost or damaged, offsets that cannot be read.
    records: u64,
    /// `active`, `closed` or `sealed`; `expired` if it was older than segments
    /// are kept; `damaged` until it is repaired, `lost`
    /// for good.
    state: &'static str,
    /// The file of what is damaged or lost.
    file: Option<String>,
    /// Bytes of the frames; unknown before sealing.
    plain_bytes: Option<u64>,
    /// Bytes of the file.
    file_bytes: u64,
    first_time_ms: Option<i64>,
    last_time_ms: Option<i64>,
    content_digest: Option<String>,
    object_digest: Option<String>,
    /// Whether it is in the catalog and in the object store.
    archived: bool,
}

pub(super) async fn list(pipeline: &Pipeline, output: Output) -> Result<ExitCode> {
    let (log, recovery) = offline::log(pipeline)?;
    let mut catalog: BTreeMap<u64, SegmentRow> = BTreeMap::new();
    let store = offline::find_store(pipeline).await?;
    let damage = offline::damage(pipeline, &log, &recovery, store.as_ref()).await?;
    if let Some(store) = store {
        let rows = store.segments(&pipeline.stream).await?;
        store.close().await;
        catalog.extend(rows.into_iter().map(|row| (row.base_offset, row)));
    }
    let segments = log.segments();
    let end_of = |base| segments.range(base + 1..).next().map_or_else(|| log.end_offset(), |(next, _)| *next);
    let mut rows: Vec<Row> = segments
        .iter()
        .map(|(base, segment)| match segment {
            Segment::Raw(raw) => Row {
                base_offset: *base,
                end_offset: end_of(*base),
                records: end_of(*base) - base,
                state: raw_state(&log, *base),
                file: None,
                plain_bytes: None,
                file_bytes: raw.capacity(),
                first_time_ms: None,
                last_time_ms: None,
                content_digest: None,
                object_digest: None,
                archived: false,
            },
            Segment::Sealed(reader) => {
                let (info, row) = (reader.info(), catalog.get(base));
                Row {
                    base_offset: *base,
                    end_offset: info.end_offset,
                    records: info.records,
                    state: "sealed",
                    file: None,
                    plain_bytes: Some(info.plain_bytes),
                    file_bytes: info.object_bytes,
                    first_time_ms: Some(info.first_time_ms),
                    last_time_ms: Some(info.last_time_ms),
                    content_digest: Some(hex(&info.content_digest)),
                    object_digest: row.map(|row| row.object_digest.clone()),
                    archived: row.is_some_and(|row| row.artifact.is_some()),
                }
            }
        })
        .collect();
    rows.extend(damage.iter().filter(|damage| damage.lost() > 0).map(lost));
    rows.sort_by_key(|row| row.base_offset);
    output.print(&rows, |rows| text(rows))?;
    Ok(ExitCode::SUCCESS)
}

fn lost(damage: &Damage) -> Row {
    Row {
        base_offset: damage.first_offset,
        end_offset: damage.next_offset,
        records: damage.lost(),
        state: match (damage.kind, damage.settled_ms) {
            (DamageKind::Expired, _) => "expired",
            (_, Some(_)) => "lost",
            (_, None) => "damaged",
        },
        file: Some(damage.file.clone()),
        plain_bytes: None,
        file_bytes: 0,
        first_time_ms: None,
        last_time_ms: None,
        content_digest: None,
        object_digest: None,
        archived: false,
    }
}

fn text(rows: &[Row]) -> String {
    let heading = [
        "base",
        "end",
        "records",
        "state",
        "plain",
        "file",
        "ratio",
        "first time",
        "last time",
        "content",
        "archived",
    ];
    let mut cells = vec![heading.map(str::to_owned).to_vec()];
    for row in rows {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
        let ratio =
            row.plain_bytes.map(|plain| format!("{:.1}", plain as f64 / row.file_bytes.max(1) as f64));
        cells.push(vec![
            row.base_offset.to_string(),
            row.end_offset.to_string(),
            count(row.records),
            row.state.to_owned(),
            or_dash(row.plain_bytes.map(|bytes| ByteSize(bytes).to_string())),
            or_dash((row.file_bytes > 0).then(|| ByteSize(row.file_bytes).to_string())),
            or_dash(ratio),
            or_dash(row.first_time_ms.map(time)),
            or_dash(row.last_time_ms.map(time)),
            or_dash(row.content_digest.as_deref().map(|digest| short(digest).to_owned())),
            if row.archived { "yes" } else { "no" }.to_owned(),
        ]);
    }
    let lost = rows.iter().filter_map(|row| {
        let (first, next) = (row.base_offset, row.end_offset);
        Some(format!("{}: offsets {first}..{next}, of {}\n", row.state, row.file.as_ref()?))
    });
    table(&cells) + &lost.collect::<String>()
}

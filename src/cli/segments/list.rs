//! `thalweg segments list`.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Result;
use serde::Serialize;

use super::raw_state;
use crate::{
    api::Segment as Sealed,
    artifact::hex,
    cli::{
        Output, offline,
        output::{count, short, table, time},
        place::Found,
    },
    config::Pipeline,
    log::Segment,
    store::{Damage, DamageKind, SegmentRow},
    units::ByteSize,
};

/// A segment of any state: what the API says of a sealed one, and what can be
/// said of the others.
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
    object_bytes: u64,
    first_time_ms: Option<i64>,
    last_time_ms: Option<i64>,
    sealed_at_ms: Option<i64>,
    content_digest: Option<String>,
    object_digest: Option<String>,
    /// Digest of the artifact it became; none until it is in the catalog and
    /// in the object store.
    artifact: Option<String>,
}

impl From<Sealed> for Row {
    fn from(sealed: Sealed) -> Self {
        Self {
            base_offset: sealed.base_offset,
            end_offset: sealed.end_offset,
            records: sealed.records,
            state: "sealed",
            file: None,
            plain_bytes: Some(sealed.plain_bytes),
            object_bytes: sealed.object_bytes,
            first_time_ms: Some(sealed.first_time_ms),
            last_time_ms: Some(sealed.last_time_ms),
            sealed_at_ms: Some(sealed.sealed_at_ms),
            content_digest: Some(sealed.content_digest),
            object_digest: Some(sealed.object_digest),
            artifact: sealed.artifact,
        }
    }
}

pub(super) async fn list(found: Found, output: Output) -> Result<ExitCode> {
    let rows = match found {
        Found::Here(pipeline) => here(&pipeline).await?,
        Found::There(daemon) => {
            let sealed = daemon.list::<Sealed>("/api/v1/segments", &[], None, usize::MAX).await?;
            sealed.items.into_iter().map(Row::from).collect()
        }
    };
    output.print(&rows, |rows| text(rows))?;
    Ok(ExitCode::SUCCESS)
}

async fn here(pipeline: &Pipeline) -> Result<Vec<Row>> {
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
                object_bytes: raw.capacity(),
                first_time_ms: None,
                last_time_ms: None,
                sealed_at_ms: None,
                content_digest: None,
                object_digest: None,
                artifact: None,
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
                    object_bytes: info.object_bytes,
                    first_time_ms: Some(info.first_time_ms),
                    last_time_ms: Some(info.last_time_ms),
                    sealed_at_ms: Some(info.sealed_at_ms),
                    content_digest: Some(hex(&info.content_digest)),
                    object_digest: row.map(|row| row.object_digest.clone()),
                    artifact: row.and_then(|row| row.artifact.clone()),
                }
            }
        })
        .collect();
    rows.extend(damage.iter().filter(|damage| damage.lost() > 0).map(lost));
    rows.sort_by_key(|row| row.base_offset);
    Ok(rows)
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
        object_bytes: 0,
        first_time_ms: None,
        last_time_ms: None,
        sealed_at_ms: None,
        content_digest: None,
        object_digest: None,
        artifact: None,
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
            row.plain_bytes.map(|plain| format!("{:.1}", plain as f64 / row.object_bytes.max(1) as f64));
        cells.push(vec![
            row.base_offset.to_string(),
            row.end_offset.to_string(),
            count(row.records),
            row.state.to_owned(),
            or_dash(row.plain_bytes.map(|bytes| ByteSize(bytes).to_string())),
            or_dash((row.object_bytes > 0).then(|| ByteSize(row.object_bytes).to_string())),
            or_dash(ratio),
            or_dash(row.first_time_ms.map(time)),
            or_dash(row.last_time_ms.map(time)),
            or_dash(row.content_digest.as_deref().map(|digest| short(digest).to_owned())),
            if row.artifact.is_some() { "yes" } else { "no" }.to_owned(),
        ]);
    }
    let lost = rows.iter().filter_map(|row| {
        let (first, next) = (row.base_offset, row.end_offset);
        Some(format!("{}: offsets {first}..{next}, of {}\n", row.state, row.file.as_ref()?))
    });
    table(&cells) + &lost.collect::<String>()
}

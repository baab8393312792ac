//! How the catalog and the object store know a sealed segment.

use std::path::Path;

use crate::{
    artifact::{Description, hex},
    segment::SegmentInfo,
    store::SegmentRow,
    webhooks::{Event, EventKind},
};

/// Kind of the artifacts that are sealed segments.
pub(super) const KIND: &str = "segment";
/// Ending of their names.
pub(super) const EXTENSION: &str = "seg.zst";

/// The artifact that a sealed segment becomes.
pub(super) fn description(info: &SegmentInfo, now_ms: i64) -> Description<'static> {
    let mut meta = serde_json::json!({
        "stream": info.stream,
        "base_offset": info.base_offset,
        "end_offset": info.end_offset,
        "records": info.records,
        "content_digest": hex(&info.content_digest),
    });
    if let (Some(dictionary), Some(meta)) = (info.dictionary, meta.as_object_mut()) {
        // What keeps the dictionary: `Store::dictionary_users`.
        meta.insert("dictionary".into(), dictionary.hex().into());
    }
    let name = format!("{}/{:020}", info.stream, info.base_offset);
    Description { kind: KIND, name, extension: EXTENSION, meta, now_ms }
}

/// The row of the segment in the file at `path`, which has this object digest
/// and is kept as the artifact of the same digest.
pub(super) fn row(info: &SegmentInfo, path: &Path, object_digest: &str) -> SegmentRow {
    SegmentRow {
        stream: info.stream.clone(),
        base_offset: info.base_offset,
        end_offset: info.end_offset,
        segment_id: hex(&info.segment_id),
        records: info.records,
        plain_bytes: info.plain_bytes,
        object_bytes: info.object_bytes,
        content_digest: hex(&info.content_digest),
        object_digest: object_digest.to_owned(),
        first_time_ms: info.first_time_ms,
        last_time_ms: info.last_time_ms,
        sealed_at_ms: info.sealed_at_ms,
        file: path.display().to_string(),
        artifact: Some(object_digest.to_owned()),
    }
}

/// What is told of a segment that is in the object store and the catalog.
pub(super) fn sealed(row: &SegmentRow, now_ms: i64) -> Event {
    let data = serde_json::json!({
        "stream": row.stream,
        "base_offset": row.base_offset,
        "end_offset": row.end_offset,
        "records": row.records,
        "object_bytes": row.object_bytes,
        "content_digest": row.content_digest,
        "object_digest": row.object_digest,
    });
    Event { kind: EventKind::SegmentSealed, at_ms: now_ms, tenant: None, data }
}

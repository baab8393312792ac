//! `GET /api/v1/segments`: sealed segments, as the catalog has them.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Problem, Shared,
    extract::{Named, Params},
    page::{Page, PageOf},
};
use crate::store::SegmentRow;

/// A sealed segment.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Segment {
    /// Its first offset.
    pub base_offset: u64,
    /// Its end, excluded.
    pub end_offset: u64,
    /// Frames in it.
    pub records: u64,
    /// Bytes of the frames.
    pub plain_bytes: u64,
    /// Bytes of the file.
    pub object_bytes: u64,
    /// SHA-256 of the frames, in hex.
    pub content_digest: String,
    /// SHA-256 of the file, in hex.
    pub object_digest: String,
    /// Time of its first append, in milliseconds since the Unix epoch.
    pub first_time_ms: i64,
    /// Time of its last append, in milliseconds since the Unix epoch.
    pub last_time_ms: i64,
    /// When it was sealed, in milliseconds since the Unix epoch.
    pub sealed_at_ms: i64,
    /// Digest of the artifact it became; null until it is in the object store.
    pub artifact: Option<String>,
}

impl From<SegmentRow> for Segment {
    fn from(row: SegmentRow) -> Self {
        Self {
            base_offset: row.base_offset,
            end_offset: row.end_offset,
            records: row.records,
            plain_bytes: row.plain_bytes,
            object_bytes: row.object_bytes,
            content_digest: row.content_digest,
            object_digest: row.object_digest,
            first_time_ms: row.first_time_ms,
            last_time_ms: row.last_time_ms,
            sealed_at_ms: row.sealed_at_ms,
            artifact: row.artifact,
        }
    }
}

/// List the sealed segments of the stream, oldest first
#[utoipa::path(get, path = "/api/v1/segments", params(PageOf), responses((status = 200, body = Page<Segment>)))]
pub(super) async fn list(
    State(api): Shared,
    Params(page): Params<PageOf>,
) -> Result<Json<Page<Segment>>, Problem> {
    let (limit, after) = (page.limit()?, page.after::<u64>()?);
    let mut rows = api.searcher.store.segments(api.log.stream()).await?;
    rows.sort_unstable_by_key(|row| row.base_offset);
    rows.retain(|row| after.is_none_or(|after| row.base_offset > after));
    rows.truncate(limit as usize + 1);
    Ok(Json(Page::of(rows, limit, |row| row.base_offset)))
}

/// Show the sealed segment that holds an offset
#[utoipa::path(
    get,
    path = "/api/v1/segments/{offset}",
    params(("offset" = u64, Path, description = "An offset of the stream")),
    responses((status = 200, body = Segment))
)]
pub(super) async fn show(State(api): Shared, Named(offset): Named<u64>) -> Result<Json<Segment>, Problem> {
    let found = match i64::try_from(offset) {
        Ok(_) => api.searcher.store.segment_at(api.log.stream(), offset).await?,
        Err(_) => None,
    };
    found
        .map(|row| Json(row.into()))
        .ok_or_else(|| Problem::no_such(format!("no sealed segment holds offset {offset}")))
}

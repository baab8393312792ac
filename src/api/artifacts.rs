//! `GET /api/v1/artifacts`: the registry of immutable objects.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{
    Problem, Shared,
    extract::{Named, Params},
    page::{Page, PageOf},
};
use crate::store::ArtifactRow;

/// An immutable object in the object store.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Artifact {
    /// SHA-256 of its bytes, in hex.
    pub digest: String,
    /// `segment`, `pack`, `dictionary`, `model` and the like.
    pub kind: String,
    /// For people; need not be unique.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// Where it lies, as the object store names it.
    pub location: String,
    /// When it was registered, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Whatever belongs to its kind.
    pub meta: Value,
}

impl From<ArtifactRow> for Artifact {
    fn from(row: ArtifactRow) -> Self {
        Self {
            digest: row.digest,
            kind: row.kind,
            name: row.name,
            bytes: row.bytes,
            location: row.location,
            created_ms: row.created_ms,
            meta: serde_json::from_str(&row.meta).unwrap_or_default(),
        }
    }
}

/// List the artifacts, by location
#[utoipa::path(get, path = "/api/v1/artifacts", params(PageOf), responses((status = 200, body = Page<Artifact>)))]
pub(super) async fn list(
    State(api): Shared,
    Params(page): Params<PageOf>,
) -> Result<Json<Page<Artifact>>, Problem> {
    let (limit, after) = (page.limit()?, page.after::<String>()?);
    let rows = api.searcher.store.artifacts_after(after.as_deref().unwrap_or(""), limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.location.clone())))
}

/// Show an artifact
#[utoipa::path(
    get,
    path = "/api/v1/artifacts/{digest}",
    params(("digest" = String, Path, description = "Its SHA-256 in hex")),
    responses((status = 200, body = Artifact))
)]
pub(super) async fn show(
    State(api): Shared,
    Named(digest): Named<String>,
) -> Result<Json<Artifact>, Problem> {
    let found = api.searcher.store.artifacts().await?.into_iter().find(|row| row.digest == digest);
    found
        .map(|row| Json(row.into()))
        .ok_or_else(|| Problem::no_such("no artifact has this digest; write all 64 digits of it"))
}

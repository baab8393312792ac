//! `GET /api/v1/models`: embedding spaces, and which is searched.

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Problem, Shared};

/// The embedding spaces of the store.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Models {
    /// Oldest first.
    spaces: Vec<EmbeddingSpace>,
}

/// Vectors that can be compared with one another.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EmbeddingSpace {
    /// Its id.
    id: String,
    /// Who computes: `local`, `remote`, `hashing`.
    provider: String,
    /// The model's name.
    model: String,
    /// SHA-256 of the weights, in hex; empty where they cannot be seen.
    revision: String,
    /// Numbers in a vector.
    dimensions: usize,
    /// Numbers that the encoder computes with.
    element: String,
    /// Tokens kept of a text.
    max_tokens: usize,
    /// `building`, `shadow`, `live` or `retired`.
    state: &'static str,
    /// Vectors in it.
    vectors: u64,
    /// When it was first registered, in milliseconds since the Unix epoch.
    created_ms: i64,
}

/// List the embedding spaces
#[utoipa::path(get, path = "/api/v1/models", responses((status = 200, body = Models)))]
pub(super) async fn list(State(api): Shared) -> Result<Json<Models>, Problem> {
    let store = &api.searcher.store;
    let mut spaces = Vec::new();
    for row in store.spaces().await? {
        spaces.push(EmbeddingSpace {
            vectors: store.vectors_in(row.space_key).await?,
            id: row.space_id,
            provider: row.space.provider,
            model: row.space.model,
            revision: row.space.revision,
            dimensions: row.space.dimensions,
            element: row.space.element,
            max_tokens: row.space.max_tokens,
            state: row.state.as_str(),
            created_ms: row.created_ms,
        });
    }
    Ok(Json(Models { spaces }))
}

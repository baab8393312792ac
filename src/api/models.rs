//! `GET /api/v1/models`: embedding spaces, and which is searched.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Problem, Shared};
use crate::store::{Store, StoreError};

/// The embedding spaces of the store.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Models {
    /// Oldest first.
    pub spaces: Vec<EmbeddingSpace>,
}

/// Vectors that can be compared with one another.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EmbeddingSpace {
    /// Its id.
    pub id: String,
    /// Who computes: `local`, `remote`, `hashing`.
    pub provider: String,
    /// The model's name.
    pub model: String,
    /// SHA-256 of the weights, in hex; empty where they cannot be seen.
    pub revision: String,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// Numbers that the encoder computes with.
    pub element: String,
    /// Tokens kept of a text.
    pub max_tokens: usize,
    /// `building`, `shadow`, `live` or `retired`.
    pub state: String,
    /// Vectors in it.
    pub vectors: u64,
    /// When it was first registered, in milliseconds since the Unix epoch.
    pub created_ms: i64,
}

impl Models {
    /// Those that `store` knows.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn of(store: &Store) -> Result<Self, StoreError> {
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
                state: row.state.as_str().to_owned(),
                created_ms: row.created_ms,
            });
        }
        Ok(Self { spaces })
    }
}

/// List the embedding spaces
#[utoipa::path(get, path = "/api/v1/models", responses((status = 200, body = Models)))]
pub(super) async fn list(State(api): Shared) -> Result<Json<Models>, Problem> {
    Ok(Json(Models::of(&api.searcher.store).await?))
}

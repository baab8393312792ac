//! `GET /v1/models`: the one model that is served.

use axum::{
    Json,
    extract::{Path, State},
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{ApiError, Served, Shared};
use crate::embed::Embedder;

/// A model as OpenAI lists it, and below that what OpenAI does not tell.
#[derive(Serialize)]
struct Model<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: &'static str,
    dimensions: usize,
    max_tokens: usize,
    element: &'a str,
    device: &'a str,
    revision: &'a str,
    space: String,
}

impl Served {
    fn listed(&self) -> Value {
        let space = self.model.space();
        json!(Model {
            id: &self.name,
            object: "model",
            created: self.since,
            owned_by: "thalweg",
            dimensions: space.dimensions,
            max_tokens: space.max_tokens,
            element: &space.element,
            device: self.model.device(),
            revision: &space.revision,
            space: space.id(),
        })
    }
}

pub(super) async fn list(State(server): Shared) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"object": "list", "data": [server.served()?.listed()]})))
}

pub(super) async fn one(State(server): Shared, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let served = server.served()?;
    if id != served.name {
        return Err(ApiError::model_not_found(&id, &served.name));
    }
    Ok(Json(served.listed()))
}

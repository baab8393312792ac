//! `POST /api/v1/search`.

use axum::{
    Json,
    extract::{State, rejection::JsonRejection},
};

use super::{Problem, Shared};
use crate::pipeline::search::{SearchReply, SearchRequest};

pub(super) async fn search(
    State(api): Shared,
    request: Result<Json<SearchRequest>, JsonRejection>,
) -> Result<Json<SearchReply>, Problem> {
    let Json(request) = request?;
    Ok(Json(api.searcher.search(request).await?))
}

//! `POST /api/v1/search`.

use axum::{Json, extract::State};

use super::{
    Problem, Shared,
    extract::{Caller, Input},
};
use crate::{
    identity::Right,
    pipeline::search::{SearchReply, SearchRequest},
};

/// Find records of a tenant by meaning and by words
#[utoipa::path(
    post,
    path = "/api/v1/search",
    request_body = SearchRequest,
    responses((status = 200, body = SearchReply))
)]
pub(super) async fn search(
    State(api): Shared,
    Caller(principal, visit): Caller,
    Input(request): Input<SearchRequest>,
) -> Result<Json<SearchReply>, Problem> {
    let tenant = principal
        .tenant_of(request.tenant.as_deref())
        .map_err(|denied| api.access.denied(&principal, denied, &visit))?
        .ok_or_else(|| {
            Problem::bad_request("tenant_missing", "say whose records are searched, in `tenant`")
        })?;
    let mut reply = api.searcher.search(&tenant, request).await?;
    if let Some(why) = reply.without_vectors.as_mut().filter(|_| principal.require(Right::Observe).is_err()) {
        tracing::warn!(error = *why, "a query could not be embedded");
        *why = "the query could not be embedded just now".to_owned();
    }
    Ok(Json(reply))
}

//! `POST /api/v1/search`.

use axum::{Json, extract::State};

use super::{
    Problem, Shared,
    extract::{Caller, Input},
};
use crate::pipeline::search::{SearchReply, SearchRequest};

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
    Ok(Json(api.searcher.search(&tenant, request).await?))
}

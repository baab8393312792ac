//! `POST /api/v1/reload`: the pipeline file, taken anew.

use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    Problem, Shared,
    extract::{Caller, Input},
};
use crate::reload::{By, ReloadError, Reloaded};

/// How the pipeline file is to be taken anew.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct How {
    /// Only say what would change.
    dry_run: bool,
}

/// Take the pipeline file anew, as it is on the daemon's machine
///
/// The file is read and checked whole; what is different is applied, or
/// nothing is. Sources without a difference notice nothing of it.
#[utoipa::path(
    post,
    path = "/api/v1/reload",
    request_body = How,
    responses(
        (status = 200, body = Reloaded),
        (status = 409, description = "The file is wrong, or changes what cannot change now", body = super::problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn reload(
    State(api): Shared,
    caller: Caller,
    Input(how): Input<How>,
) -> Result<Json<Reloaded>, Problem> {
    if !how.dry_run {
        api.record(&caller, "pipeline.reload", &api.pipeline).await?;
    }
    Ok(Json(api.reloads.ask(how.dry_run, By::Request).await?))
}

impl From<ReloadError> for Problem {
    fn from(error: ReloadError) -> Self {
        match &error {
            ReloadError::Ending => Self::unavailable(error.code(), error.to_string(), 5),
            ReloadError::Refused(_) | ReloadError::NeedsRestart { .. } | ReloadError::NotUp { .. } => {
                Self::new(StatusCode::CONFLICT, error.code(), error.to_string())
            }
        }
    }
}

//! `GET /api/v1/trail`: who did what, and who was refused what.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Problem, Shared,
    extract::Params,
    page::{Page, PageOf},
};
use crate::identity::TrailRow;

/// An act that was done or refused.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Act {
    /// Its number; later ones have higher numbers.
    pub id: i64,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Whose: a key's id, a token's subject, or `unknown`.
    pub principal: String,
    /// How they proved who they are: `open` (nobody asked), `key`, `token`,
    /// `source` or `local`.
    #[schema(value_type = String)]
    pub scheme: crate::identity::Scheme,
    /// What was done: `keys.create`.
    pub act: String,
    /// What to.
    pub subject: String,
    /// `done` or `refused`.
    #[schema(value_type = String)]
    pub outcome: crate::identity::Outcome,
    /// The particulars; of a refusal its code.
    pub detail: String,
    /// Where they came from.
    pub peer: Option<String>,
    /// The request's id.
    pub request_id: Option<String>,
    /// How often, where the same was refused again and again.
    pub times: u64,
    /// The last time, in milliseconds since the Unix epoch.
    pub last_ms: i64,
}

impl From<TrailRow> for Act {
    fn from(row: TrailRow) -> Self {
        let TrailRow { id, entry, times, last_ms } = row;
        Self {
            id,
            at_ms: entry.at_ms,
            principal: entry.principal.to_string(),
            scheme: entry.scheme,
            act: entry.act.into_owned(),
            subject: entry.subject,
            outcome: entry.outcome,
            detail: entry.detail,
            peer: entry.peer,
            request_id: entry.request_id,
            times,
            last_ms,
        }
    }
}

/// List what was done and refused, the latest first
#[utoipa::path(get, path = "/api/v1/trail", params(PageOf), responses((status = 200, body = Page<Act>)))]
pub(super) async fn list(
    State(api): Shared,
    Params(page): Params<PageOf>,
) -> Result<Json<Page<Act>>, Problem> {
    let (limit, before) = (page.limit()?, page.after::<i64>()?);
    let rows = api.access.trail.rows(before, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id)))
}

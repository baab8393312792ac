//! `/api/v1/jobs` and `/api/v1/replays`: long work, which no request waits
//! for.

use std::path::{Component, Path};

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Problem, Shared,
    extract::{Caller, Input, Named, Params},
    page::PageOf,
};
use crate::{
    jobs::{Job, JobsError, Kind, Planned, Work, work::Replay},
    store::{JobFilter, JobState},
};

/// Which jobs are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Wanted {
    /// Only in this state.
    #[param(inline)]
    state: Option<JobState>,
    /// Only of this kind.
    #[param(inline)]
    kind: Option<Kind>,
    /// Items at most; 100 if left out.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before; the first page if left out.
    #[param(max_length = 1024)]
    cursor: Option<String>,
}

/// A part of the list of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobPage {
    /// The jobs, the latest first.
    items: Vec<Job>,
    /// Where the next page begins; null on the last.
    next_cursor: Option<String>,
}

/// The schedules in force.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Schedules {
    /// One by one.
    pub schedules: Vec<Planned>,
}

impl From<JobsError> for Problem {
    fn from(error: JobsError) -> Self {
        match error {
            JobsError::Unknown { .. } => Self::no_such(error.to_string()),
            JobsError::Ended { .. } => Self::new(StatusCode::CONFLICT, "job_ended", error.to_string()),
            JobsError::Store(error) => error.into(),
        }
    }
}

/// List the jobs, the latest first
#[utoipa::path(get, path = "/api/v1/jobs", params(Wanted), responses((status = 200, body = JobPage)))]
pub(super) async fn list(
    State(api): Shared,
    Params(wanted): Params<Wanted>,
) -> Result<Json<JobPage>, Problem> {
    let page = PageOf { limit: wanted.limit, cursor: wanted.cursor };
    let filter = JobFilter { state: wanted.state, kind: wanted.kind.map(|kind| kind.as_str().to_owned()) };
    let (limit, before) = (page.limit()?, page.after::<i64>()?);
    let page = api.jobs.list(&filter, before, limit).await?;
    Ok(Json(JobPage { items: page.jobs, next_cursor: page.next.map(|next| super::page::cursor(&next)) }))
}

/// Show a job: where it stands, and what came of it
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}",
    params(("id" = i64, Path, description = "Its number")),
    responses((status = 200, body = Job))
)]
pub(super) async fn show(State(api): Shared, Named(id): Named<i64>) -> Result<Json<Job>, Problem> {
    Ok(Json(api.jobs.get(id).await?))
}

/// Ask for a job
#[utoipa::path(post, path = "/api/v1/jobs", request_body = Work, responses((status = 202, body = Job)))]
pub(super) async fn ask(
    State(api): Shared,
    caller: Caller,
    Input(work): Input<Work>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    api.queue(&caller, &work).await
}

/// Ask for a replay: derive again what is in the log
#[utoipa::path(post, path = "/api/v1/replays", request_body = Replay, responses((status = 202, body = Job)))]
pub(super) async fn replay(
    State(api): Shared,
    caller: Caller,
    Input(replay): Input<Replay>,
) -> Result<(StatusCode, Json<Job>), Problem> {
    api.queue(&caller, &Work::Replay(replay)).await
}

/// Cancel a job; what is done by then stays done
#[utoipa::path(
    delete,
    path = "/api/v1/jobs/{id}",
    params(("id" = i64, Path, description = "Its number")),
    responses(
        (status = 200, body = Job),
        (status = 409, description = "It has ended already", body = super::problem::Body, content_type = "application/problem+json"),
    )
)]
pub(super) async fn cancel(
    State(api): Shared,
    caller: Caller,
    Named(id): Named<i64>,
) -> Result<Json<Job>, Problem> {
    api.jobs.get(id).await?;
    api.record(&caller, "jobs.cancel", id.to_string()).await?;
    Ok(Json(api.jobs.cancel(id).await?))
}

/// List the schedules, and when each comes next
#[utoipa::path(get, path = "/api/v1/schedules", responses((status = 200, body = Schedules)))]
pub(super) async fn schedules(State(api): Shared) -> Result<Json<Schedules>, Problem> {
    Ok(Json(Schedules { schedules: api.jobs.schedules().await? }))
}

impl super::Api {
    /// Who asked is written down before anything is done.
    async fn queue(&self, caller: &Caller, work: &Work) -> Result<(StatusCode, Json<Job>), Problem> {
        if let Work::Backup(backup) = work {
            check_folder(backup.to.as_deref())?;
        }
        self.record(caller, "jobs.ask", work.kind().as_str()).await?;
        Ok((StatusCode::ACCEPTED, Json(self.jobs.enqueue(work, &caller.0.id).await?)))
    }
}

/// Whoever may ask for a backup over the network may not choose any folder of
/// this machine for it.
fn check_folder(to: Option<&str>) -> Result<(), Problem> {
    let inside = |to: &str| Path::new(to).components().all(|part| matches!(part, Component::Normal(_)));
    match to.is_none_or(inside) {
        true => Ok(()),
        false => Err(Problem::bad_request(
            "path_forbidden",
            "`to` must be a folder within the data directory, such as `backups`; `thalweg jobs run backup` on the \
             machine itself takes any",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_over_the_network_stays_within_the_data_directory() {
        for to in [None, Some("backups"), Some("a/b")] {
            assert_eq!(check_folder(to), Ok(()), "{to:?}");
        }
        for to in ["/etc", "../x", "a/../../x", ".", "./x"] {
            assert_eq!(check_folder(Some(to)).unwrap_err().code, "path_forbidden", "{to}");
        }
    }
}

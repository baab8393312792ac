//! The queue of jobs: in a store, or as a daemon shows it.

use std::time::Duration;

use crate::{
    api::{Page, Schedules, cursor},
    cli::{daemon::Daemon, offline, place::Found},
    clock,
    jobs::{Job, Jobs, Kind, Planned, Work},
    store::{JobFilter, JobState, Store},
};
use anyhow::Result;

/// Where jobs are asked for.
pub(super) enum Queue {
    /// In a store.
    Here { store: Store, jobs: Jobs },
    /// At a daemon.
    There(Daemon),
}

/// Between two looks at a job in a store.
const LOOKING: Duration = Duration::from_millis(250);
/// Between two looks at a daemon's, once it takes long: half of what the
/// lowest rate tier may ask in a minute.
const LOOKING_AFAR: Duration = Duration::from_secs(2);
/// How long a daemon that was there may be away while a job is watched.
const MAY_BE_AWAY: Duration = Duration::from_secs(30);

impl Queue {
    /// Opens it.
    pub async fn open(found: Found) -> Result<Self> {
        match found {
            Found::There(daemon) => Ok(Self::There(daemon)),
            Found::Here(pipeline) => {
                let store = offline::store(&pipeline).await?;
                let names = (pipeline.name.as_str(), pipeline.stream.as_str());
                let jobs = Jobs::new(store.clone(), names, pipeline.schedules(), clock::system());
                Ok(Self::Here { store, jobs })
            }
        }
    }

    /// Queues `work`.
    pub async fn enqueue(&self, work: &Work) -> Result<Job> {
        match self {
            Self::Here { jobs, .. } => Ok(jobs.enqueue(work, "command line").await?),
            Self::There(daemon) => daemon.post("/api/v1/jobs", work).await,
        }
    }

    /// The latest jobs with numbers below `before`.
    pub async fn list(
        &self,
        (state, kind): (Option<JobState>, Option<Kind>),
        before: Option<i64>,
        limit: u32,
    ) -> Result<Page<Job>> {
        match self {
            Self::Here { jobs, .. } => {
                let filter = JobFilter { state, kind: kind.map(|kind| kind.as_str().to_owned()) };
                let page = jobs.list(&filter, before, limit).await?;
                Ok(Page { items: page.jobs, next_cursor: page.next.as_ref().map(cursor) })
            }
            Self::There(daemon) => {
                let of = [
                    ("state", state.map(|state| state.as_str().to_owned())),
                    ("kind", kind.map(|kind| kind.as_str().to_owned())),
                ];
                daemon.list("/api/v1/jobs", &of, before, limit as usize).await
            }
        }
    }

    /// One job.
    pub async fn get(&self, id: i64) -> Result<Job> {
        match self {
            Self::Here { jobs, .. } => Ok(jobs.get(id).await?),
            Self::There(daemon) => daemon.get(&format!("/api/v1/jobs/{id}")).await,
        }
    }

    /// Cancels a job.
    pub async fn cancel(&self, id: i64) -> Result<Job> {
        match self {
            Self::Here { jobs, .. } => Ok(jobs.cancel(id).await?),
            Self::There(daemon) => daemon.delete(&format!("/api/v1/jobs/{id}")).await,
        }
    }

    /// The schedules in force.
    pub async fn schedules(&self) -> Result<Vec<Planned>> {
        match self {
            Self::Here { jobs, .. } => Ok(jobs.schedules().await?),
            Self::There(daemon) => Ok(daemon.get::<Schedules>("/api/v1/schedules").await?.schedules),
        }
    }

    /// How long to wait for the next look, after one that was waited for so
    /// long.
    pub fn pause(&self, before: Duration) -> Duration {
        match self {
            Self::Here { .. } => LOOKING,
            Self::There(_) => (before * 2).clamp(LOOKING, LOOKING_AFAR),
        }
    }

    /// How long it may fail before watching a job ends.
    pub fn may_be_away(&self) -> Duration {
        match self {
            Self::Here { .. } => Duration::ZERO,
            Self::There(_) => MAY_BE_AWAY,
        }
    }

    /// Closes what was opened.
    pub async fn close(self) {
        if let Self::Here { store, .. } = self {
            store.close().await;
        }
    }
}

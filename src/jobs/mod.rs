//! Jobs: long work that is asked for, queued in the store, and done by a
//! daemon beside its streams.
//!
//! What a job does stands in [`work`]; which one may begin, in [`policy`]; when
//! one is due by itself, in [`schedule`]. [`Jobs`] is what commands and the
//! HTTP interface ask. Who does them is `worker`.

mod job;
pub mod policy;
pub mod schedule;
pub mod settings;
pub mod work;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use utoipa::ToSchema;

pub use self::{
    job::{Job, Progress},
    policy::{Claimant, WorkerId},
    schedule::{Due, Schedule},
    settings::{ScheduleSettings, Settings},
    work::{Kind, Work},
};
use crate::{
    clock::Clock,
    store::{JobFilter, JobState, NewJob, Store, StoreError},
};

/// Jobs that somebody asked for go before those of schedules.
const ASKED: i64 = 10;
const SCHEDULED: i64 = 0;

/// Why a job cannot be had, or not be cancelled.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// There is none with this number.
    #[error("there is no job {id}; `thalweg jobs list` shows them")]
    Unknown {
        /// The number asked for.
        id: i64,
    },
    /// Nothing is left to cancel.
    #[error("job {id} is {} already", state.as_str())]
    Ended {
        /// The job.
        id: i64,
        /// How it ended.
        state: JobState,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Some jobs, the latest first.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// Where the next page begins: jobs with numbers below it. None after the
    /// last page.
    pub next: Option<i64>,
}

/// A schedule, and when it comes again. Times are in milliseconds since the
/// Unix epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// What is done.
    pub work: Work,
    /// The cron expression.
    pub cron: String,
    /// The zone of its times.
    pub timezone: String,
    /// Whether a time that was missed is made up for.
    pub catch_up: bool,
    /// Whether it is there without being asked for.
    pub built_in: bool,
    /// When it is due next.
    pub next_ms: Option<i64>,
    /// The times after that, a few of them.
    pub then_ms: Vec<i64>,
    /// Its last job.
    pub last: Option<Job>,
}

/// How many due times [`Planned`] names beyond the next.
const TIMES_NAMED: usize = 4;
/// Jobs that are looked through for the last one of each schedule.
const LOOKED_THROUGH: u32 = 500;

/// The jobs of a store, as one pipeline sees them. Cheap to clone.
#[derive(Clone)]
pub struct Jobs {
    store: Store,
    pipeline: Arc<str>,
    stream: Arc<str>,
    schedules: Arc<[Schedule]>,
    clock: Clock,
    changed: Arc<Notify>,
}

impl Jobs {
    /// Of `store`, for the pipeline and its stream.
    pub fn new(
        store: Store,
        (pipeline, stream): (&str, &str),
        schedules: Vec<Schedule>,
        clock: Clock,
    ) -> Self {
        let (pipeline, stream) = (pipeline.into(), stream.into());
        Self { store, pipeline, stream, schedules: schedules.into(), clock, changed: Arc::default() }
    }

    /// Queues `work`, asked for by `by`: a principal's id.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn enqueue(&self, work: &Work, by: &str) -> Result<Job, JobsError> {
        let id = self.store.add_job(&self.new_job(work, by, ASKED)).await?;
        self.changed.notify_waiters();
        self.get(id).await
    }

    /// Jobs with numbers below `before`, the latest first, `limit` of them.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn list(&self, filter: &JobFilter, before: Option<i64>, limit: u32) -> Result<Page, JobsError> {
        let mut rows = self.store.jobs(filter, before, limit.saturating_add(1)).await?;
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        let next = rows.last().map(|row| row.job_id).filter(|_| more);
        let now_ms = (self.clock)();
        Ok(Page { jobs: rows.into_iter().map(|row| Job::new(row, now_ms)).collect(), next })
    }

    /// One job.
    ///
    /// # Errors
    /// [`JobsError::Unknown`], or if the store fails.
    pub async fn get(&self, id: i64) -> Result<Job, JobsError> {
        let row = self.store.job(id).await?.ok_or(JobsError::Unknown { id })?;
        Ok(Job::new(row, (self.clock)()))
    }

    /// Cancels a job: at once if it waits, else as soon as whoever works on it
    /// comes to the end of a step. What is done by then stays done.
    ///
    /// # Errors
    /// [`JobsError::Unknown`] and [`JobsError::Ended`], or if the store fails.
    pub async fn cancel(&self, id: i64) -> Result<Job, JobsError> {
        let cancelled = self.store.cancel_job(id, (self.clock)()).await?;
        self.changed.notify_waiters();
        let job = self.get(id).await?;
        match cancelled {
            Some(_) => Ok(job),
            None => Err(JobsError::Ended { id, state: job.state }),
        }
    }

    /// The schedules in force.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn schedules(&self) -> Result<Vec<Planned>, JobsError> {
        let latest = self.store.jobs(&JobFilter::default(), None, LOOKED_THROUGH).await?;
        let now_ms = (self.clock)();
        let planned = |schedule: &Schedule| {
            let last = latest.iter().find(|row| {
                row.schedule.as_ref() == Some(&schedule.name)
                    && row.stream.as_deref().is_none_or(|stream| *stream == *self.stream)
            });
            let mut times = std::iter::successors(schedule.when.next(now_ms), |ms| schedule.when.next(*ms));
            Planned {
                name: schedule.name.clone(),
                work: schedule.work.clone(),
                cron: schedule.when.to_string(),
                timezone: schedule.when.timezone().to_owned(),
                catch_up: schedule.catch_up,
                built_in: schedule.is_built_in,
                next_ms: times.next(),
                then_ms: times.take(TIMES_NAMED).collect(),
                last: last.map(|row| Job::new(row.clone(), now_ms)),
            }
        };
        Ok(self.schedules.iter().map(planned).collect())
    }

    /// Waits until a job was queued or cancelled through this or a clone.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What the scheduler keeps.
    pub fn in_force(&self) -> &[Schedule] {
        &self.schedules
    }

    /// Queues the job of `schedule` that is due now, unless another daemon did,
    /// or the one before is not done yet. `settled_ms` is up to when it was
    /// seen to; returned is up to when it is now.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn keep(&self, schedule: &Schedule, settled_ms: Option<i64>) -> Result<i64, StoreError> {
        let now_ms = (self.clock)();
        let name = schedule.name.as_str();
        let stream = if schedule.work.kind().is_of_a_stream() { &*self.stream } else { "" };
        let settled_ms = match settled_ms {
            Some(settled_ms) => settled_ms,
            None => self.store.schedule_seen(name, stream, now_ms).await?,
        };
        let (due_ms, job) = match schedule.due(settled_ms, now_ms) {
            Due::Not => return Ok(settled_ms),
            Due::Now(due_ms) => (due_ms, Some(self.new_job(&schedule.work, "schedule", SCHEDULED))),
            Due::Missed(due_ms) => {
                tracing::info!(schedule = name, due_ms, "a due time was missed and is passed over");
                (due_ms, None)
            }
        };
        let open = self.store.open_jobs().await?;
        let is_before = |row: &&crate::store::JobRow| {
            row.schedule.as_deref() == Some(name) && row.stream.as_deref().unwrap_or_default() == stream
        };
        let before = open.iter().find(is_before);
        if let Some(row) = before {
            tracing::warn!(
                schedule = name,
                due_ms,
                job = row.job_id,
                "the job before is not done yet; this time is left out"
            );
        }
        let job = job.filter(|_| before.is_none());
        if let Some(id) = self.store.settle_due(name, stream, due_ms, job.as_ref()).await? {
            tracing::info!(schedule = name, due_ms, job = id, "a job is due");
            self.changed.notify_waiters();
        }
        Ok(due_ms)
    }

    fn new_job(&self, work: &Work, by: &str, priority: i64) -> NewJob {
        let kind = work.kind();
        NewJob {
            kind: kind.as_str().to_owned(),
            work: serde_json::to_string(work).unwrap_or_default(),
            pipeline: self.pipeline.to_string(),
            stream: kind.is_of_a_stream().then(|| self.stream.to_string()),
            tenant: work.tenant().map(str::to_owned),
            asked_by: by.to_owned(),
            priority,
            asked_ms: (self.clock)(),
        }
    }
}

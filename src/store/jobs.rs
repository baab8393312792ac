//! Long work as it is stored. What it is and who may begin it is no concern
//! of the store.

use serde::{Deserialize, Serialize};
use sqlx::FromRow;
use utoipa::ToSchema;

use super::error::StoreError;

/// Where a job stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// A daemon works on it.
    Running,
    /// It came to its end.
    Done,
    /// It was given up.
    Failed,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Queued, Self::Running, Self::Done, Self::Failed, Self::Cancelled];

    /// The stored name, which is also the one that programs see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing more will happen to the job.
    pub fn is_end(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

impl TryFrom<String> for JobState {
    type Error = StoreError;

    fn try_from(name: String) -> Result<Self, StoreError> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == name)
            .ok_or_else(|| StoreError::Damaged { what: "job", reason: format!("unknown state `{name}`") })
    }
}

/// A job to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewJob {
    /// Its kind.
    pub kind: String,
    /// What it does, as JSON.
    pub work: String,
    /// The pipeline that asks for it.
    pub pipeline: String,
    /// The stream it is of; `None`: of none in particular.
    pub stream: Option<String>,
    /// The tenant it names, whose erasure takes it away.
    pub tenant: Option<String>,
    /// Who asked.
    pub asked_by: String,
    /// The higher goes first.
    pub priority: i64,
    /// When it was asked, in milliseconds since the Unix epoch.
    pub asked_ms: i64,
}

/// A job. Times are in milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct JobRow {
    /// Its number in this store.
    pub job_id: i64,
    /// Its kind.
    pub kind: String,
    /// What it does, as JSON.
    pub work: String,
    /// The pipeline that asked for it.
    pub pipeline: String,
    /// The stream it is of; `None`: of none in particular.
    pub stream: Option<String>,
    /// The tenant it names.
    pub tenant: Option<String>,
    /// Who asked.
    pub asked_by: String,
    /// The schedule that asked, if one did.
    pub schedule: Option<String>,
    /// The time that was due.
    pub due_ms: Option<i64>,
    /// Where it stands.
    #[sqlx(try_from = "String")]
    pub state: JobState,
    /// The higher goes first.
    pub priority: i64,
    /// When it was asked.
    pub asked_ms: i64,
    /// It is not begun before.
    pub not_before_ms: i64,
    /// When it was begun for the first time.
    pub started_ms: Option<i64>,
    /// When it was begun for the last time.
    pub claimed_ms: Option<i64>,
    /// When it came to its end.
    pub ended_ms: Option<i64>,
    /// When it was asked to be cancelled.
    pub cancel_ms: Option<i64>,
    /// How often it was claimed.
    #[sqlx(try_from = "i64")]
    pub epoch: u64,
    /// How often it was begun and not given back in good order.
    #[sqlx(try_from = "i64")]
    pub attempts: u32,
    /// Who works on it, or did last.
    pub worker: Option<String>,
    /// Who works on it is taken for dead after this.
    pub lease_ms: Option<i64>,
    /// Units that are done.
    #[sqlx(try_from = "i64")]
    pub done: u64,
    /// Of these, before it was claimed for the last time.
    #[sqlx(try_from = "i64")]
    pub done_before: u64,
    /// Units there are in all, where that is known.
    pub total: Option<i64>,
    /// What it is doing, for people.
    pub note: String,
    /// Where whoever takes it up again goes on, as JSON.
    pub place: Option<String>,
    /// What came of it, as JSON.
    pub result: Option<String>,
    /// Why it failed, or has to be tried again.
    pub error: Option<String>,
}

impl JobRow {
    /// The claim that this row is of.
    pub fn held(&self) -> HeldJob {
        HeldJob { job_id: self.job_id, epoch: self.epoch }
    }
}

/// The right to speak for a job, until another claims it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldJob {
    /// The job.
    pub job_id: i64,
    /// Of the claim.
    pub epoch: u64,
}

/// How far a job is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobProgress {
    /// Units that are done.
    pub done: u64,
    /// Units there are in all, where that is known.
    pub total: Option<u64>,
    /// What it is doing, for people.
    pub note: String,
    /// Where whoever takes it up again goes on, as JSON.
    pub place: Option<String>,
}

/// Who claims a job, when, and until when that holds without another word.
#[derive(Clone, Debug)]
pub struct JobClaim {
    /// Who.
    pub worker: String,
    /// Now.
    pub now_ms: i64,
    /// Until when.
    pub lease_ms: i64,
}

/// How a claim ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// With a result, as JSON.
    Done(String),
    /// For good, for this reason.
    Failed(String),
    /// As somebody asked.
    Cancelled,
    /// To be tried again at a time, for this reason. It counts as the first
    /// attempt if it got further than the one before.
    Again(i64, String),
    /// Given back unharmed; it does not count as an attempt.
    GivenBack,
}

impl JobEnd {
    /// The state it leaves the job in.
    pub fn state(&self) -> JobState {
        match self {
            Self::Done(_) => JobState::Done,
            Self::Failed(_) => JobState::Failed,
            Self::Cancelled => JobState::Cancelled,
            Self::Again(..) | Self::GivenBack => JobState::Queued,
        }
    }

    pub(super) fn result(&self) -> Option<&str> {
        match self {
            Self::Done(result) => Some(result),
            _ => None,
        }
    }

    pub(super) fn error(&self) -> Option<&str> {
        match self {
            Self::Failed(error) | Self::Again(_, error) => Some(error),
            _ => None,
        }
    }

    pub(super) fn not_before(&self) -> Option<i64> {
        match self {
            Self::Again(at, _) => Some(*at),
            _ => None,
        }
    }

    /// By how much the number of attempts changes.
    pub(super) fn attempts(&self) -> i64 {
        -i64::from(*self == Self::GivenBack)
    }
}

/// Which jobs are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only in this state.
    pub state: Option<JobState>,
    /// Only of this kind.
    pub kind: Option<String>,
}

/// Chooses one of the jobs that are queued or running, by its number.
pub type ChooseJob<'a> = &'a (dyn Fn(&[JobRow]) -> Option<i64> + Send + Sync);

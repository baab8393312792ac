//! A job as programs see it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{policy, work::Work};
use crate::store::{JobRow, JobState};

/// A job. Times are in milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Job {
    /// Its number.
    pub id: i64,
    /// Its kind: that of `work`.
    pub kind: String,
    /// What it does.
    #[schema(value_type = Work)]
    pub work: Value,
    /// The pipeline that asked for it.
    pub pipeline: String,
    /// The stream it is of; none if it is of all.
    pub stream: Option<String>,
    /// Who asked: a principal's id, or `schedule`.
    pub asked_by: String,
    /// The schedule that asked.
    pub schedule: Option<String>,
    /// The time that was due.
    pub due_ms: Option<i64>,
    /// Where it stands.
    pub state: JobState,
    /// Whether it was asked to be cancelled, and works still.
    pub cancelling: bool,
    /// When it was asked.
    pub asked_ms: i64,
    /// When it is tried again, where it failed for now.
    pub again_ms: Option<i64>,
    /// When it was begun.
    pub started_ms: Option<i64>,
    /// When it came to its end.
    pub ended_ms: Option<i64>,
    /// How often it was begun, but for what a stop in good order gave back.
    pub attempts: u32,
    /// Who works on it, or did last: a data directory's identity, and a start
    /// of its daemon.
    pub worker: Option<String>,
    /// How far it is.
    pub progress: Progress,
    /// What came of it, by kind.
    #[schema(value_type = Option<Object>)]
    pub result: Option<Value>,
    /// Why it failed, or is tried again.
    pub error: Option<String>,
}

/// How far a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Progress {
    /// Units that are done: records, chunks, or steps.
    pub done: u64,
    /// Units there are in all, where that is known.
    pub total: Option<u64>,
    /// What it is doing, for people.
    pub note: String,
    /// Milliseconds that it has still to go, where that can be told.
    pub left_ms: Option<i64>,
}

impl Job {
    /// What programs see of `row` now.
    pub fn new(row: JobRow, now_ms: i64) -> Self {
        let json = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
        Self {
            id: row.job_id,
            work: json(&row.work),
            cancelling: row.cancel_ms.is_some() && row.state == JobState::Running,
            again_ms: Some(row.not_before_ms)
                .filter(|at| row.state == JobState::Queued && *at > row.asked_ms),
            progress: Progress {
                done: row.done,
                total: row.total.map(i64::cast_unsigned),
                left_ms: policy::left_ms(&row, now_ms),
                note: row.note,
            },
            result: row.result.as_deref().map(json),
            kind: row.kind,
            pipeline: row.pipeline,
            stream: row.stream,
            asked_by: row.asked_by,
            schedule: row.schedule,
            due_ms: row.due_ms,
            state: row.state,
            asked_ms: row.asked_ms,
            started_ms: row.started_ms,
            ended_ms: row.ended_ms,
            attempts: row.attempts,
            worker: row.worker,
            error: row.error,
        }
    }
}

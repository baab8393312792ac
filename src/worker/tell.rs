//! What is told of jobs.

use serde_json::json;

use crate::{
    store::{JobEnd, JobRow},
    webhooks::{Event, EventKind},
};

/// What is told when the claim of the job `row` ends: nothing, unless the job
/// ends with it, and not because somebody cancelled it.
pub(super) fn of_end(row: &JobRow, end: &JobEnd, now_ms: i64) -> Option<Event> {
    let (kind, error) = match end {
        JobEnd::Done(_) => (EventKind::JobDone, None),
        JobEnd::Failed(why) => (EventKind::JobFailed, Some(why)),
        JobEnd::Cancelled | JobEnd::Again(..) | JobEnd::GivenBack => return None,
    };
    let data = json!({
        "job": row.job_id,
        "kind": row.kind,
        "stream": row.stream,
        "asked_by": row.asked_by,
        "schedule": row.schedule,
        "attempts": row.attempts,
        "asked_ms": row.asked_ms,
        "started_ms": row.started_ms,
        "ended_ms": now_ms,
        "error": error,
    });
    Some(Event { kind, at_ms: now_ms, tenant: row.tenant.clone(), data })
}

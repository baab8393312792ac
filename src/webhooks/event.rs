//! What happens that webhooks are told of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum EventKind {
    /// A job came to its end.
    #[serde(rename = "job.done")]
    JobDone,
    /// A job was given up.
    #[serde(rename = "job.failed")]
    JobFailed,
    /// A sealed segment is in the object store.
    #[serde(rename = "segment.sealed")]
    SegmentSealed,
    /// 80 % of a day's embedding quota are spent.
    #[serde(rename = "quota.warning")]
    QuotaWarning,
    /// A day's embedding quota is spent.
    #[serde(rename = "quota.spent")]
    QuotaSpent,
    /// Something has not been right for a while.
    #[serde(rename = "health.degraded")]
    HealthDegraded,
    /// Everything is right again.
    #[serde(rename = "health.ready")]
    HealthReady,
}

impl EventKind {
    /// The name that people write and receivers see.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JobDone => "job.done",
            Self::JobFailed => "job.failed",
            Self::SegmentSealed => "segment.sealed",
            Self::QuotaWarning => "quota.warning",
            Self::QuotaSpent => "quota.spent",
            Self::HealthDegraded => "health.degraded",
            Self::HealthReady => "health.ready",
        }
    }
}

/// Name of what `thalweg webhooks test` tells.
pub const TEST: &str = "webhook.test";

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The tenant it is about, if it is about one.
    pub tenant: Option<String>,
    /// The rest, by kind; `docs/webhooks.md` has the shapes.
    pub data: Value,
}

/// What is sent.
pub fn body(id: &str, event: &str, (at_ms, pipeline): (i64, &str), data: &Value) -> String {
    json!({"id": id, "event": event, "at_ms": at_ms, "pipeline": pipeline, "data": data}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_written_as_it_is_named() {
        for kind in [
            EventKind::JobDone,
            EventKind::JobFailed,
            EventKind::SegmentSealed,
            EventKind::QuotaWarning,
            EventKind::QuotaSpent,
            EventKind::HealthDegraded,
            EventKind::HealthReady,
        ] {
            assert_eq!(json!(kind), json!(kind.as_str()));
        }
    }
}

//! What can be seen of an endpoint.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use crate::breaker::Circuit;

/// The state of one endpoint, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct EndpointState {
    /// Its name in the pipeline file.
    pub name: String,
    /// Whether it is asked.
    pub circuit: Circuit,
    /// When it is asked again, in milliseconds since the Unix epoch, if it is
    /// left alone or has paused until a time that is known.
    pub retry_at: Option<i64>,
    /// Requests that may be sent at once; `None`: no limit is known.
    pub remaining_requests: Option<f64>,
    /// Tokens that may be sent at once; `None`: no limit is known.
    pub remaining_tokens: Option<f64>,
    /// Seconds that a request takes, going by the last ones; `None` before
    /// the first answer.
    pub expected_seconds: Option<f64>,
    /// How the last request that failed did so.
    pub last_failure: Option<LastFailure>,
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LastFailure {
    /// `rate`, `quota`, `too_large`, `input`, `transient` or `configuration`.
    pub class: Cow<'static, str>,
    /// What the service said, or what happened; never the key.
    pub reason: String,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
}

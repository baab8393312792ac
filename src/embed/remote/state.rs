//! What can be seen of an endpoint.

use serde::Serialize;

/// Whether an endpoint is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Circuit {
    /// It is in use.
    Closed,
    /// It has failed, and one request tries whether it works again.
    HalfOpen,
    /// It is left alone.
    Open,
}

impl Circuit {
    /// Its number in metrics: 0 closed, 1 half open, 2 open.
    pub fn number(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::HalfOpen => 1,
            Self::Open => 2,
        }
    }
}

/// The state of one endpoint, for people and programs.
#[derive(Clone, Debug, PartialEq, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastFailure {
    /// `rate`, `quota`, `too_large`, `input`, `transient` or `configuration`.
    pub class: &'static str,
    /// What the service said, or what happened; never the key.
    pub reason: String,
    /// When, in milliseconds since the Unix epoch.
    pub at: i64,
}

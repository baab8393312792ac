//! The trail as both databases keep it.

use sqlx::FromRow;

use super::error::StoreError;
use crate::identity::{Entry, Outcome, Scheme, TrailRow};

/// An act as both databases give it.
#[derive(FromRow)]
pub(super) struct ActRow {
    id: i64,
    at_ms: i64,
    last_ms: i64,
    times: i64,
    principal: String,
    scheme: String,
    act: String,
    subject: String,
    outcome: String,
    detail: String,
    peer: Option<String>,
    request_id: Option<String>,
}

impl ActRow {
    /// The act; texts that others chose as `f` gives them back.
    pub fn row(self, f: impl Fn(String) -> String) -> Result<TrailRow, StoreError> {
        let damaged = |found: &str| StoreError::Damaged {
            what: "row of the trail",
            reason: format!("`{found}` is neither a scheme nor an outcome"),
        };
        let entry = Entry {
            at_ms: self.at_ms,
            scheme: Scheme::named(&self.scheme).ok_or_else(|| damaged(&self.scheme))?,
            outcome: Outcome::named(&self.outcome).ok_or_else(|| damaged(&self.outcome))?,
            principal: f(self.principal).into(),
            act: f(self.act).into(),
            subject: f(self.subject),
            detail: f(self.detail),
            peer: self.peer.map(&f),
            request_id: self.request_id.map(&f),
        };
        Ok(TrailRow { id: self.id, entry, times: self.times.cast_unsigned(), last_ms: self.last_ms })
    }
}

/// An act that is to be written: how often it happened, and when last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTrailRow {
    /// What happened, the first time.
    pub entry: Entry,
    /// How often.
    pub times: u64,
    /// The last time, in milliseconds since the Unix epoch.
    pub last_ms: i64,
}

impl From<Entry> for NewTrailRow {
    fn from(entry: Entry) -> Self {
        Self { times: 1, last_ms: entry.at_ms, entry }
    }
}

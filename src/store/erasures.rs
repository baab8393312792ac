//! What was asked to be erased, and how far that is.

use serde::Serialize;
use sqlx::FromRow;

use super::forget::Subject;

/// Something that was asked to be erased.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Erasure {
    /// Its number in this store.
    pub erasure_id: i64,
    /// Whose records; forgotten once they are gone.
    pub subject: Option<Subject>,
    /// When it was asked, in milliseconds since the Unix epoch.
    pub asked_ms: i64,
    /// When nothing was left to do.
    pub done_ms: Option<i64>,
    /// Each stream's part.
    pub streams: Vec<ErasureOfStream>,
}

/// A stream's part of an erasure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ErasureOfStream {
    /// The stream.
    pub stream: String,
    /// Records before this offset; none until the stream's log was asked.
    pub until_offset: Option<u64>,
    /// What was done so far, as JSON.
    pub report: Option<String>,
    /// When nothing was left of it, in milliseconds since the Unix epoch.
    pub done_ms: Option<i64>,
}

/// An erasure as both databases give it.
#[derive(FromRow)]
pub(super) struct ErasureRow {
    pub erasure_id: i64,
    pub tenant: Option<String>,
    pub session: Option<String>,
    pub asked_ms: i64,
    pub done_ms: Option<i64>,
}

/// A stream's part as both databases give it.
#[derive(FromRow)]
pub(super) struct PartRow {
    pub stream: String,
    pub until_offset: Option<i64>,
    pub report: Option<String>,
    pub done_ms: Option<i64>,
}

impl From<PartRow> for ErasureOfStream {
    fn from(row: PartRow) -> Self {
        let until_offset = row.until_offset.map(i64::cast_unsigned);
        Self { stream: row.stream, until_offset, report: row.report, done_ms: row.done_ms }
    }
}

impl ErasureRow {
    /// With the streams' parts; names as `f` gives them back.
    pub fn with(self, parts: Vec<PartRow>, f: impl Fn(String) -> String) -> Erasure {
        let session = self.session.map(&f);
        Erasure {
            erasure_id: self.erasure_id,
            subject: self.tenant.map(|tenant| Subject { tenant: f(tenant), session }),
            asked_ms: self.asked_ms,
            done_ms: self.done_ms,
            streams: parts.into_iter().map(ErasureOfStream::from).collect(),
        }
    }
}

impl Erasure {
    /// The part of `stream`, if that is still to be done.
    pub fn open_part(&self, stream: &str) -> Option<&ErasureOfStream> {
        self.streams.iter().find(|part| part.stream == stream && part.done_ms.is_none())
    }

    /// Whether no stream's part is left.
    pub fn is_everywhere(&self) -> bool {
        self.streams.iter().all(|part| part.done_ms.is_some())
    }
}

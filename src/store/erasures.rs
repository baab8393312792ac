//! What was asked to be erased, and how far that is.

use serde::Serialize;

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

impl ErasureOfStream {
    /// From stream, offset, report and time as both databases keep them.
    pub(super) fn from_row(
        (stream, until, report, done_ms): (String, Option<i64>, Option<String>, Option<i64>),
    ) -> Self {
        Self { stream, until_offset: until.map(i64::cast_unsigned), report, done_ms }
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

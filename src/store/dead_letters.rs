//! What failed, kept to be looked at and sent again.

use sqlx::FromRow;

/// Something that failed. What never reached the log brings its payload;
/// what did is found there by stream and offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewDeadLetter {
    /// When it failed, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// The pipeline it failed in.
    pub pipeline: String,
    /// The source it came from; empty if it came from the log.
    pub source: String,
    /// Who sent it.
    pub peer: Option<String>,
    /// Stream, once in the log.
    pub stream: Option<String>,
    /// Offset, once in the log.
    pub offset: Option<u64>,
    /// Number of the frame within its connection or file, from 0.
    pub frame_index: Option<u64>,
    /// Byte of the connection or file at which it began.
    pub byte_offset: Option<u64>,
    /// A short, stable code.
    pub code: String,
    /// The particulars, for people.
    pub message: String,
    /// Its bytes, where the log does not hold them.
    pub payload: Option<Vec<u8>>,
}

/// Whether a dead letter still waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadLetterState {
    /// Nothing was done about it.
    Open,
    /// It was sent again.
    Redriven,
}

impl DeadLetterState {
    /// The stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Redriven => "redriven",
        }
    }
}

/// A stored dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its number in this store.
    pub id: i64,
    /// What failed.
    pub letter: NewDeadLetter,
    /// Whether it still waits.
    pub state: DeadLetterState,
    /// When it was sent again, in milliseconds since the Unix epoch.
    pub redriven_ms: Option<i64>,
}

/// A stored dead letter, as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterHead {
    /// The dead letter, without its payload.
    pub letter: DeadLetter,
    /// Bytes that are kept of it.
    pub payload_bytes: u64,
}

/// A dead letter without its payload, as both databases give it.
#[derive(FromRow)]
pub(super) struct DeadLetterHeadRow {
    #[sqlx(flatten)]
    row: DeadLetterRow,
    payload_bytes: Option<i64>,
}

impl DeadLetterHeadRow {
    /// See [`DeadLetterRow::map_texts`].
    pub fn map_texts(self, f: impl Fn(String) -> String) -> Self {
        Self { row: self.row.map_texts(f), ..self }
    }
}

impl From<DeadLetterHeadRow> for DeadLetterHead {
    fn from(head: DeadLetterHeadRow) -> Self {
        let payload_bytes = head.payload_bytes.unwrap_or(0).cast_unsigned();
        Self { letter: head.row.into(), payload_bytes }
    }
}

/// A dead letter as both databases give it.
#[derive(FromRow)]
pub(super) struct DeadLetterRow {
    id: i64,
    at_ms: i64,
    pipeline: String,
    source: String,
    peer: Option<String>,
    stream: Option<String>,
    offset: Option<i64>,
    frame_index: Option<i64>,
    byte_offset: Option<i64>,
    code: String,
    message: String,
    #[sqlx(default)]
    payload: Option<Vec<u8>>,
    state: String,
    redriven_ms: Option<i64>,
}

impl DeadLetterRow {
    /// The row with every text that others chose as `f` gives it back.
    pub fn map_texts(mut self, f: impl Fn(String) -> String) -> Self {
        for text in [&mut self.pipeline, &mut self.source, &mut self.code, &mut self.message] {
            *text = f(std::mem::take(text));
        }
        self.peer = self.peer.map(&f);
        self.stream = self.stream.map(&f);
        self
    }
}

impl From<DeadLetterRow> for DeadLetter {
    fn from(row: DeadLetterRow) -> Self {
        Self {
            id: row.id,
            letter: NewDeadLetter {
                at_ms: row.at_ms,
                pipeline: row.pipeline,
                source: row.source,
                peer: row.peer,
                stream: row.stream,
                offset: row.offset.map(i64::cast_unsigned),
                frame_index: row.frame_index.map(i64::cast_unsigned),
                byte_offset: row.byte_offset.map(i64::cast_unsigned),
                code: row.code,
                message: row.message,
                payload: row.payload,
            },
            // The schema admits these two only.
            state: if row.state == "open" { DeadLetterState::Open } else { DeadLetterState::Redriven },
            redriven_ms: row.redriven_ms,
        }
    }
}

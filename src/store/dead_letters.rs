//! What failed, kept to be looked at and sent again.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::error::{Doing, StoreError};
use super::sqlite::Store;

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

impl DeadLetter {
    fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let number = |column| row.try_get::<Option<i64>, _>(column).map(|n| n.map(i64::cast_unsigned));
        let state: String = row.try_get("state")?;
        Ok(Self {
            id: row.try_get("id")?,
            letter: NewDeadLetter {
                at_ms: row.try_get("at_ms")?,
                pipeline: row.try_get("pipeline")?,
                source: row.try_get("source")?,
                peer: row.try_get("peer")?,
                stream: row.try_get("stream")?,
                offset: number("offset")?,
                frame_index: number("frame_index")?,
                byte_offset: number("byte_offset")?,
                code: row.try_get("code")?,
                message: row.try_get("message")?,
                payload: row.try_get("payload")?,
            },
            // The schema admits these two only.
            state: if state == "open" { DeadLetterState::Open } else { DeadLetterState::Redriven },
            redriven_ms: row.try_get("redriven_ms")?,
        })
    }
}

impl Store {
    /// Keeps a dead letter and returns its id.
    pub async fn add_dead_letter(&self, letter: &NewDeadLetter) -> Result<i64, StoreError> {
        let mut transaction = self.begin().await?;
        let id = sqlx::query_scalar(
            "INSERT INTO dead_letters (at_ms, pipeline, source, peer, stream, \"offset\", frame_index,
                 byte_offset, code, message, payload)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(letter.at_ms)
        .bind(&letter.pipeline)
        .bind(&letter.source)
        .bind(&letter.peer)
        .bind(&letter.stream)
        .bind(letter.offset.map(u64::cast_signed))
        .bind(letter.frame_index.map(u64::cast_signed))
        .bind(letter.byte_offset.map(u64::cast_signed))
        .bind(&letter.code)
        .bind(&letter.message)
        .bind(&letter.payload)
        .fetch_one(&mut *transaction)
        .await
        .doing("keeping a dead letter")?;
        transaction.commit().await.doing("keeping a dead letter")?;
        Ok(id)
    }

    /// Dead letters with an id above `after`, in that order, `limit` at most;
    /// of one state if given.
    pub async fn dead_letters(
        &self,
        state: Option<DeadLetterState>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<DeadLetter>, StoreError> {
        sqlx::query(
            "SELECT * FROM dead_letters WHERE id > ?1 AND (?2 IS NULL OR state = ?2) ORDER BY id LIMIT ?3",
        )
        .bind(after)
        .bind(state.map(DeadLetterState::as_str))
        .bind(limit)
        .fetch_all(self.readers())
        .await
        .and_then(|rows| rows.iter().map(DeadLetter::read).collect())
        .doing("reading the dead letters")
    }

    /// The dead letter with this id.
    pub async fn dead_letter(&self, id: i64) -> Result<Option<DeadLetter>, StoreError> {
        sqlx::query("SELECT * FROM dead_letters WHERE id = ?")
            .bind(id)
            .fetch_optional(self.readers())
            .await
            .and_then(|row| row.as_ref().map(DeadLetter::read).transpose())
            .doing("reading a dead letter")
    }

    /// Marks an open dead letter as sent again. False if it is not open: of
    /// two who try, one wins.
    pub async fn mark_redriven(&self, id: i64, now_ms: i64) -> Result<bool, StoreError> {
        let mut transaction = self.begin().await?;
        let marked = sqlx::query(
            "UPDATE dead_letters SET state = 'redriven', redriven_ms = ? WHERE id = ? AND state = 'open'",
        )
        .bind(now_ms)
        .bind(id)
        .execute(&mut *transaction)
        .await
        .doing("marking a dead letter")?;
        transaction.commit().await.doing("marking a dead letter")?;
        Ok(marked.rows_affected() == 1)
    }
}

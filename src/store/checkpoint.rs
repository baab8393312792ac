//! How far a pipeline has read a stream, and who may move that on.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::error::{Doing, StoreError};
use super::sqlite::Store;

/// Where a pipeline stands in a stream, and what became of what it has read:
/// `next_offset - start_offset` is the sum of the other six numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Where the pipeline began to read.
    pub start_offset: u64,
    /// The next offset it will read.
    pub next_offset: u64,
    /// Records stored, with every vector they should have.
    pub indexed: u64,
    /// Refused by a rule of the pipeline.
    pub rejected: u64,
    /// Left out as already stored.
    pub deduplicated: u64,
    /// Waiting for their vectors.
    pub deferred: u64,
    /// Failed, to be looked at.
    pub dead_lettered: u64,
    /// Offsets whose bytes were damaged on disk.
    pub lost: u64,
}

impl Checkpoint {
    /// Offsets accounted for.
    pub fn total(&self) -> u64 {
        self.indexed + self.rejected + self.deduplicated + self.deferred + self.dead_lettered + self.lost
    }

    /// Whether every offset read is accounted for once.
    pub fn is_conserved(&self) -> bool {
        self.next_offset.checked_sub(self.start_offset) == Some(self.total())
    }

    fn read(row: &SqliteRow) -> Result<Self, sqlx::Error> {
        let number = |column| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
        Ok(Self {
            start_offset: number("start_offset")?,
            next_offset: number("next_offset")?,
            indexed: number("indexed")?,
            rejected: number("rejected")?,
            deduplicated: number("deduplicated")?,
            deferred: number("deferred")?,
            dead_lettered: number("dead_lettered")?,
            lost: number("lost")?,
        })
    }
}

/// The right to move one checkpoint, until someone else acquires it.
#[derive(Debug)]
pub struct Lease {
    pub(super) pipeline: String,
    pub(super) stream: String,
    pub(super) epoch: u64,
    pub(super) checkpoint: Checkpoint,
}

impl Lease {
    /// The pipeline that reads.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }
    /// The stream it reads.
    pub fn stream(&self) -> &str {
        &self.stream
    }
    /// Counts the owners so far; a lease of a lower epoch is void.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }
    /// The checkpoint as this lease's last commit left it.
    pub fn checkpoint(&self) -> Checkpoint {
        self.checkpoint
    }
}

impl Store {
    /// Takes over `stream` for `pipeline`: every older lease of the two is
    /// void from here on. A pair never seen before starts at `start_offset`.
    pub async fn acquire(
        &self,
        pipeline: &str,
        stream: &str,
        start_offset: u64,
        now_ms: i64,
    ) -> Result<Lease, StoreError> {
        let mut transaction = self.begin().await?;
        let row = sqlx::query(
            "INSERT INTO checkpoints (pipeline, stream, epoch, start_offset, next_offset, updated_ms)
             VALUES (?1, ?2, 1, ?3, ?3, ?4)
             ON CONFLICT DO UPDATE SET epoch = epoch + 1, updated_ms = excluded.updated_ms
             RETURNING *",
        )
        .bind(pipeline)
        .bind(stream)
        .bind(start_offset.cast_signed())
        .bind(now_ms)
        .fetch_one(&mut *transaction)
        .await
        .doing("acquiring a stream")?;
        transaction.commit().await.doing("acquiring a stream")?;
        Ok(Lease {
            pipeline: pipeline.to_owned(),
            stream: stream.to_owned(),
            epoch: row.try_get::<i64, _>("epoch").doing("reading an epoch")?.cast_unsigned(),
            checkpoint: Checkpoint::read(&row).doing("reading a checkpoint")?,
        })
    }

    /// The checkpoint of `pipeline` in `stream`, if it ever read it.
    pub async fn counts(&self, pipeline: &str, stream: &str) -> Result<Option<Checkpoint>, StoreError> {
        sqlx::query("SELECT * FROM checkpoints WHERE pipeline = ? AND stream = ?")
            .bind(pipeline)
            .bind(stream)
            .fetch_optional(self.readers())
            .await
            .and_then(|row| row.as_ref().map(Checkpoint::read).transpose())
            .doing("reading a checkpoint")
    }

    /// Every checkpoint, as (pipeline, stream, checkpoint) in that order.
    pub async fn checkpoints(&self) -> Result<Vec<(String, String, Checkpoint)>, StoreError> {
        sqlx::query("SELECT * FROM checkpoints ORDER BY pipeline, stream")
            .fetch_all(self.readers())
            .await
            .and_then(|rows| {
                rows.iter()
                    .map(|row| Ok((row.try_get("pipeline")?, row.try_get("stream")?, Checkpoint::read(row)?)))
                    .collect()
            })
            .doing("reading the checkpoints")
    }
}

//! How far a pipeline has read a stream, and who may move that on.

use sqlx::FromRow;

use super::rows::Tally;

/// Where a pipeline stands in a stream, and what became of what it has read:
/// `next_offset - start_offset` is the sum of the other six numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow)]
pub struct Checkpoint {
    /// Where the pipeline began to read.
    #[sqlx(try_from = "i64")]
    pub start_offset: u64,
    /// The next offset it will read.
    #[sqlx(try_from = "i64")]
    pub next_offset: u64,
    /// Records stored, with every vector they should have.
    #[sqlx(try_from = "i64")]
    pub indexed: u64,
    /// Refused by a rule of the pipeline.
    #[sqlx(try_from = "i64")]
    pub rejected: u64,
    /// Left out as already stored.
    #[sqlx(try_from = "i64")]
    pub deduplicated: u64,
    /// Waiting for their vectors.
    #[sqlx(try_from = "i64")]
    pub deferred: u64,
    /// Failed, to be looked at.
    #[sqlx(try_from = "i64")]
    pub dead_lettered: u64,
    /// Offsets whose bytes were damaged on disk.
    #[sqlx(try_from = "i64")]
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

    /// As a batch up to `next_offset` leaves it.
    pub(super) fn advanced(self, next_offset: u64, tally: Tally) -> Self {
        Self {
            start_offset: self.start_offset,
            next_offset,
            indexed: self.indexed + tally.indexed,
            rejected: self.rejected + tally.rejected,
            deduplicated: self.deduplicated + tally.deduplicated,
            deferred: self.deferred + tally.deferred,
            dead_lettered: self.dead_lettered + tally.dead_lettered,
            lost: self.lost + tally.lost,
        }
    }
}

/// The right to move one checkpoint, until someone else acquires it.
#[derive(Debug, FromRow)]
pub struct Lease {
    pub(super) pipeline: String,
    pub(super) stream: String,
    #[sqlx(try_from = "i64")]
    pub(super) epoch: u64,
    #[sqlx(flatten)]
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

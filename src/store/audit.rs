//! What is really stored of a stream, counted row by row.

use std::ops::Range;

use sqlx::FromRow;

use super::artifacts::ArtifactRow;
use super::checkpoint::Checkpoint;
use super::error::StoreError;
use super::rows::OutcomeKind;
use super::segments::SegmentRow;

/// Everything that an audit holds against the counters, of one snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// The counters.
    pub checkpoint: Checkpoint,
    /// Rows.
    pub rows: RowCounts,
    /// Outcomes of the offsets that were read, by kind.
    pub outcomes: Vec<OutcomeCount>,
    /// Ranges counted as lost.
    pub lost: Vec<Range<u64>>,
    /// Whether a space is live; if none is, what is counted of vectors says
    /// nothing.
    pub has_live_space: bool,
    /// The sealed segments of the stream, in order.
    pub segments: Vec<SegmentRow>,
    /// The artifacts of all streams that are sealed segments.
    pub artifacts: Vec<ArtifactRow>,
    /// Offsets of the stream at which damage is known.
    pub damaged: Vec<Range<u64>>,
}

/// How many rows there are of what. Streams share the index, so what is in it
/// is counted for all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromRow)]
pub struct RowCounts {
    /// Records of the offsets that were read.
    #[sqlx(try_from = "i64")]
    pub records: u64,
    /// Those at offsets that are counted as lost.
    #[sqlx(try_from = "i64")]
    pub records_lost: u64,
    /// Records at offsets that are still to be read, and outcomes of any that
    /// were not read.
    #[sqlx(try_from = "i64")]
    pub outside: u64,
    /// Records that count as indexed and lack a vector in the live space.
    #[sqlx(try_from = "i64")]
    pub without_vectors: u64,
    /// Chunks of all streams.
    #[sqlx(try_from = "i64")]
    pub chunks: u64,
    /// Chunks as the statistics of ranking count them.
    #[sqlx(try_from = "i64")]
    pub ranked: u64,
    /// Chunks whose record is gone.
    #[sqlx(try_from = "i64")]
    pub without_record: u64,
    /// Chunks that no keyword finds.
    #[sqlx(try_from = "i64")]
    pub without_keywords: u64,
    /// Vectors in the live space whose chunk is gone.
    #[sqlx(try_from = "i64")]
    pub without_chunk: u64,
}

/// Outcomes of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutcomeCount {
    /// The kind.
    pub kind: OutcomeKind,
    /// How many.
    pub outcomes: u64,
    /// Those whose record is stored all the same.
    pub with_record: u64,
}

/// Out of rows of kind, outcomes, and those with a record.
pub(super) fn outcome_counts(rows: Vec<(String, i64, i64)>) -> Result<Vec<OutcomeCount>, StoreError> {
    let parse = |(kind, outcomes, with_record): (String, i64, i64)| {
        Ok(OutcomeCount {
            kind: OutcomeKind::parse(&kind)?,
            outcomes: outcomes.cast_unsigned(),
            with_record: with_record.cast_unsigned(),
        })
    };
    rows.into_iter().map(parse).collect()
}

/// Out of rows of first and next offset.
pub(super) fn ranges(rows: Vec<(i64, i64)>) -> Vec<Range<u64>> {
    rows.into_iter().map(|(first, next)| first.cast_unsigned()..next.cast_unsigned()).collect()
}

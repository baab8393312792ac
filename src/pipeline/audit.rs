//! The audit: what the counters say against what was counted.
//!
//! The law of conservation itself is a constraint of the checkpoint's row, so
//! no write can break the sum. What the audit adds: each number of it is the
//! number of rows that are there, the index is whole, and the catalog of
//! sealed segments has neither hole nor overlap.

use std::ops::Range;

use serde::Serialize;

use super::Offsets;
use crate::store::{ArtifactRow, Counted, OutcomeKind, SegmentRow};

/// One thing that has to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Law {
    /// What is compared.
    pub law: &'static str,
    /// What it has to be.
    pub should: u64,
    /// What was counted.
    pub found: u64,
    /// Whether it is.
    pub ok: bool,
    /// What to do if it is not.
    pub remedy: &'static str,
}

const REPLAY: &str = "`thalweg replay` puts back what the log or the sealed segments still have";
const REPORT: &str =
    "rows were changed by another program; restore a backup, or rebuild the store from the log";
const SEGMENTS: &str = "`thalweg segments repair` rebuilds the catalog from files and objects";
const LOG: &str =
    "the log lost its end; the daemon reports it at its next start, `thalweg segments repair` settles it";

/// What an audit found.
#[derive(Clone, Debug, Serialize)]
pub struct Audited {
    /// The pipeline.
    pub pipeline: String,
    /// Its stream.
    pub stream: String,
    /// Where the pipeline began to read.
    pub start_offset: u64,
    /// The next offset it will read.
    pub next_offset: u64,
    /// The offsets that the log has; none where the log is not here.
    pub log: Option<Range<u64>>,
    /// Offsets that are durable and not derived yet.
    pub in_flight: Option<u64>,
    /// Everything that has to hold.
    pub laws: Vec<Law>,
    /// How many of them do not.
    pub wrong: usize,
}

impl Audited {
    /// Of what was counted for `pipeline` and `stream`; `log` as [`judge`]
    /// takes it, looked at after the store was counted.
    pub fn new((pipeline, stream): (&str, &str), counted: &Counted, log: Option<Range<u64>>) -> Self {
        let laws = judge(counted, log.as_ref());
        let next_offset = counted.checkpoint.next_offset;
        Self {
            pipeline: pipeline.to_owned(),
            stream: stream.to_owned(),
            start_offset: counted.checkpoint.start_offset,
            next_offset,
            in_flight: log.as_ref().map(|log| log.end.saturating_sub(next_offset)),
            log,
            wrong: laws.iter().filter(|law| !law.ok).count(),
            laws,
        }
    }
}

/// Judges what was counted; `log` are the offsets that the log has, where it
/// is at hand.
pub fn judge(counted: &Counted, log: Option<&Range<u64>>) -> Vec<Law> {
    let mut laws = conservation(counted);
    laws.extend(index(counted));
    laws.extend(catalog(counted));
    if let Some(log) = log {
        laws.push(none(
            "offsets read beyond the log's end",
            counted.checkpoint.next_offset.saturating_sub(log.end),
            LOG,
        ));
        let sealed = counted.segments.last().map_or(0, |last| last.end_offset);
        laws.push(none("offsets sealed beyond the log's end", sealed.saturating_sub(log.end), LOG));
    }
    laws
}

/// The counters.
fn conservation(counted: &Counted) -> Vec<Law> {
    let (checkpoint, rows) = (&counted.checkpoint, &counted.rows);
    let outcomes = |kind| {
        let of_kind = counted.outcomes.iter().filter(move |outcome| outcome.kind == kind);
        of_kind.map(|outcome| outcome.outcomes).sum::<u64>()
    };
    let with_record: u64 = counted.outcomes.iter().map(|outcome| outcome.with_record).sum();
    let lost: Offsets = counted.lost.iter().cloned().collect();
    vec![
        equal(
            "offsets read",
            checkpoint.next_offset.saturating_sub(checkpoint.start_offset),
            checkpoint.total(),
            REPORT,
        ),
        equal(
            "indexed",
            checkpoint.indexed,
            rows.records.saturating_sub(with_record + rows.records_lost),
            REPLAY,
        ),
        equal("rejected", checkpoint.rejected, outcomes(OutcomeKind::Rejected), REPORT),
        equal("deduplicated", checkpoint.deduplicated, outcomes(OutcomeKind::Deduplicated), REPORT),
        equal("deferred", checkpoint.deferred, outcomes(OutcomeKind::Deferred), REPORT),
        equal("dead-lettered", checkpoint.dead_lettered, outcomes(OutcomeKind::DeadLettered), REPORT),
        equal("lost", checkpoint.lost, lost.count(), REPORT),
        none("rows of offsets not read", rows.outside, REPORT),
    ]
}

/// What search is made of.
fn index(counted: &Counted) -> Vec<Law> {
    let rows = &counted.rows;
    let mut laws = vec![
        equal("chunks that ranking counts", rows.chunks, rows.ranked, REPORT),
        none("chunks without record", rows.without_record, REPORT),
        none("chunks without keywords", rows.without_keywords, REPORT),
    ];
    if counted.has_live_space {
        laws.push(none("indexed records without all vectors", rows.without_vectors, REPLAY));
        laws.push(none("vectors without chunk", rows.without_chunk, REPORT));
    }
    laws
}

/// The sealed segments.
fn catalog(counted: &Counted) -> Vec<Law> {
    let segments = &counted.segments;
    let mut known: Offsets = segments.iter().map(offsets).collect();
    let overlaps = segments.iter().map(|row| row.end_offset - row.base_offset).sum::<u64>() - known.count();
    let sealed = segments.first().map_or(0, |first| first.base_offset)
        ..segments.last().map_or(0, |last| last.end_offset);
    let registered = |row: &&SegmentRow| {
        row.artifact.as_ref().is_some_and(|digest| counted.artifacts.iter().any(|one| one.digest == *digest))
    };
    // An artifact is registered just before its segment is entered: one
    // beyond the catalog's end is on its way. One whose offsets the catalog
    // has in another segment was superseded by a repair.
    let stream = segments.first().map_or("", |first| first.stream.as_str());
    let forgotten = counted
        .artifacts
        .iter()
        .filter_map(|row| extent(row, stream))
        .filter(|extent| extent.start < sealed.end)
        .filter(|extent| known.missing(extent.clone()).contains(extent))
        .count() as u64;
    counted.damaged.iter().for_each(|range| known.insert(range.clone()));
    let holes = known.missing(sealed).iter().map(|hole| hole.end - hole.start).sum();
    vec![
        none("offsets missing between sealed segments", holes, SEGMENTS),
        none("offsets in two sealed segments", overlaps, SEGMENTS),
        equal(
            "sealed segments with artifact",
            segments.len() as u64,
            segments.iter().filter(registered).count() as u64,
            SEGMENTS,
        ),
        none("segment artifacts not in the catalog", forgotten, SEGMENTS),
    ]
}

fn offsets(row: &SegmentRow) -> Range<u64> {
    row.base_offset..row.end_offset
}

/// The offsets of an artifact that is a segment of `stream`.
fn extent(artifact: &ArtifactRow, stream: &str) -> Option<Range<u64>> {
    let meta: serde_json::Value = serde_json::from_str(&artifact.meta).ok()?;
    let offset = |name: &str| meta.get(name)?.as_u64();
    (meta.get("stream")?.as_str()? == stream).then_some(offset("base_offset")?..offset("end_offset")?)
}

fn equal(law: &'static str, should: u64, found: u64, remedy: &'static str) -> Law {
    Law { law, should, found, ok: should == found, remedy }
}

fn none(law: &'static str, found: u64, remedy: &'static str) -> Law {
    equal(law, 0, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Checkpoint, OutcomeCount, RowCounts};

    /// Ten offsets: 0..6 indexed, 6 and 7 deferred with their records, 8
    /// rejected, 9 lost.
    fn whole() -> Counted {
        let checkpoint = Checkpoint {
            next_offset: 10,
            indexed: 6,
            deferred: 2,
            rejected: 1,
            lost: 1,
            ..Checkpoint::default()
        };
        let outcome = |kind, outcomes, with_record| OutcomeCount { kind, outcomes, with_record };
        Counted {
            checkpoint,
            rows: RowCounts { records: 8, chunks: 9, ranked: 9, ..RowCounts::default() },
            outcomes: vec![outcome(OutcomeKind::Deferred, 2, 2), outcome(OutcomeKind::Rejected, 1, 0)],
            lost: vec![9..10],
            has_live_space: true,
            ..Counted::default()
        }
    }

    fn wrong(counted: &Counted, log: Range<u64>) -> Vec<&'static str> {
        judge(counted, Some(&log)).into_iter().filter(|law| !law.ok).map(|law| law.law).collect()
    }

    fn segment(base_offset: u64, end_offset: u64) -> SegmentRow {
        let artifact = Some(base_offset.to_string());
        SegmentRow { stream: "s".into(), base_offset, end_offset, artifact, ..SegmentRow::default() }
    }

    fn artifact(digest: &str, stream: &str, base: u64, end: u64) -> ArtifactRow {
        ArtifactRow {
            digest: digest.into(),
            kind: "segment".into(),
            name: String::new(),
            bytes: 1,
            location: String::new(),
            created_ms: 0,
            meta: format!(r#"{{"stream": "{stream}", "base_offset": {base}, "end_offset": {end}}}"#),
        }
    }

    #[test]
    fn a_whole_store_is_whole_and_every_row_too_few_is_named() {
        assert_eq!(wrong(&whole(), 0..12), [""; 0]);
        let mut one_less = whole();
        one_less.rows.records -= 1;
        assert_eq!(wrong(&one_less, 0..12), ["indexed"]);
        let mut no_outcome = whole();
        no_outcome.outcomes.pop();
        assert_eq!(wrong(&no_outcome, 0..12), ["rejected"]);
        let found = Counted { lost: Vec::new(), ..whole() };
        assert_eq!(wrong(&found, 0..9), ["lost", "offsets read beyond the log's end"]);
    }

    #[test]
    fn a_record_that_waits_counts_for_what_it_waits_for() {
        let mut settled = whole();
        settled.outcomes.remove(0);
        assert_eq!(wrong(&settled, 0..12), ["indexed", "deferred"]);
    }

    #[test]
    fn vectors_count_only_where_a_space_is_live() {
        let mut bare = whole();
        bare.rows.without_vectors = 3;
        assert_eq!(wrong(&bare, 0..12), ["indexed records without all vectors"]);
        bare.has_live_space = false;
        assert_eq!(wrong(&bare, 0..12), [""; 0]);
    }

    #[test]
    fn a_hole_between_sealed_segments_is_wrong_unless_the_damage_is_known() {
        let mut counted = whole();
        counted.segments = vec![segment(0, 3), segment(5, 8)];
        counted.artifacts = vec![artifact("0", "s", 0, 3), artifact("5", "s", 5, 8)];
        assert_eq!(wrong(&counted, 0..12), ["offsets missing between sealed segments"]);
        counted.damaged = vec![3..5];
        assert_eq!(wrong(&counted, 0..12), [""; 0]);
        counted.segments.insert(1, segment(2, 5));
        counted.artifacts.push(artifact("2", "s", 2, 5));
        assert_eq!(wrong(&counted, 0..12), ["offsets in two sealed segments"]);
    }

    #[test]
    fn segments_and_their_artifacts_know_each_other() {
        let mut counted = whole();
        counted.segments = vec![segment(0, 3), segment(3, 8)];
        counted.damaged = vec![8..9];
        counted.artifacts = vec![artifact("0", "s", 0, 3)];
        assert_eq!(wrong(&counted, 0..12), ["sealed segments with artifact"]);
        counted.artifacts = vec![
            artifact("0", "s", 0, 3),
            artifact("3", "s", 3, 8),
            artifact("before a repair", "s", 3, 8),
            artifact("on its way", "s", 8, 12),
            artifact("another's", "t", 0, 8),
        ];
        assert_eq!(wrong(&counted, 0..12), [""; 0]);
        counted.segments.remove(0);
        assert_eq!(wrong(&counted, 0..12), ["segment artifacts not in the catalog"]);
    }
}

//! What a commit writes, and the rule it must obey.

use crate::record::Tier;

use super::error::StoreError;

/// What became of the offsets `from..to` of one stream.
///
/// Each offset is either among `records`, or has an outcome, or is one of
/// `lost`. `Deferred` and `DeadLettered` may stand beside a record: it is
/// stored and found by keyword, and waits for vectors, or will never have all
/// of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// First offset; the checkpoint must stand here.
    pub from: u64,
    /// End, excluded; the checkpoint will stand here.
    pub to: u64,
    /// Offsets of the range whose bytes were damaged on disk.
    pub lost: u64,
    /// The ingestion batch these rows go by.
    pub batch_tag: String,
    /// Space of all vectors in the batch; not looked at if there are none.
    pub space_key: i64,
    /// Digest of the configuration that derived the rows, in hex.
    pub config_digest: String,
    /// Records to store.
    pub records: Vec<RecordRow>,
    /// Offsets not indexed, and why.
    pub outcomes: Vec<OutcomeRow>,
    /// Now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
}

/// A record to store.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordRow {
    /// Its offset in the stream.
    pub offset: u64,
    /// The producer's own id.
    pub record_id: Option<String>,
    /// When it happened, in milliseconds since the Unix epoch.
    pub ts_ms: i64,
    /// Whose it is; never empty.
    pub tenant: String,
    /// Session within the tenant.
    pub session: Option<String>,
    /// Where it came from.
    pub source: String,
    /// Which kind of memory it is.
    pub tier: Tier,
    /// Every other field, as a JSON object.
    pub attrs: String,
    /// Claims this content for the record; a second claim fails the commit.
    pub dedupe_key: Option<[u8; 32]>,
    /// Its text, in pieces.
    pub chunks: Vec<ChunkRow>,
}

impl RecordRow {
    /// Whether every chunk has its vector.
    pub fn is_embedded(&self) -> bool {
        self.chunks.iter().all(|chunk| chunk.vector.is_some())
    }
}

/// A piece of a record's text.
#[derive(Clone, Debug, PartialEq)]
pub struct ChunkRow {
    /// Number within the record, from 0.
    pub chunk: u32,
    /// First byte within the record's text.
    pub start: usize,
    /// End byte within the record's text, excluded.
    pub end: usize,
    /// Tokens, as the embedder counts.
    pub tokens: usize,
    /// What is searched and shown.
    pub text: String,
    /// SHA-256 of `text`.
    pub digest: [u8; 32],
    /// As many finite numbers as the space has dimensions, not all zero;
    /// none while the embedding is still to come.
    pub vector: Option<Vec<f32>>,
}

/// An offset that was read and not indexed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutcomeRow {
    /// Its offset in the stream.
    pub offset: u64,
    /// What became of it.
    pub kind: OutcomeKind,
    /// A short, stable code, such as the rule's name.
    pub reason: String,
    /// The particulars, for people.
    pub detail: String,
}

/// What became of an offset that is not indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OutcomeKind {
    /// Refused by a rule of the pipeline.
    Rejected,
    /// Left out as already stored.
    Deduplicated,
    /// Waiting for its vectors.
    Deferred,
    /// Failed; a dead letter says how.
    DeadLettered,
}

impl OutcomeKind {
    /// The stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Deduplicated => "deduplicated",
            Self::Deferred => "deferred",
            Self::DeadLettered => "dead_lettered",
        }
    }

    pub(super) fn parse(name: &str) -> Result<Self, StoreError> {
        [Self::Rejected, Self::Deduplicated, Self::Deferred, Self::DeadLettered]
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| StoreError::Damaged { what: "outcome", reason: format!("unknown kind `{name}`") })
    }
}

/// How a batch moves the counters of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub indexed: u64,
    pub rejected: u64,
    pub deduplicated: u64,
    pub deferred: u64,
    pub dead_lettered: u64,
    pub lost: u64,
}

impl Batch {
    /// Whether any chunk brings its vector.
    pub(super) fn has_vectors(&self) -> bool {
        self.records.iter().flat_map(|record| &record.chunks).any(|chunk| chunk.vector.is_some())
    }

    /// Counts what became of each offset, or says which one is missing or
    /// counted twice.
    pub(super) fn tally(&self) -> Result<Tally, StoreError> {
        let unbalanced = |reason: String| StoreError::Unbalanced { from: self.from, to: self.to, reason };
        let mut fates: Vec<(u64, Option<OutcomeKind>)> = self
            .records
            .iter()
            .map(|r| (r.offset, None))
            .chain(self.outcomes.iter().map(|o| (o.offset, Some(o.kind))))
            .collect();
        fates.sort_unstable();
        if let Some((offset, _)) = fates.iter().find(|(offset, _)| !(self.from..self.to).contains(offset)) {
            return Err(unbalanced(format!("offset {offset} lies outside")));
        }
        let mut tally = Tally { lost: self.lost, ..Tally::default() };
        for fate in fates.chunk_by(|a, b| a.0 == b.0) {
            match fate {
                [(_, None)] => tally.indexed += 1,
                [(_, Some(OutcomeKind::Rejected))] => tally.rejected += 1,
                [(_, Some(OutcomeKind::Deduplicated))] => tally.deduplicated += 1,
                [(_, Some(OutcomeKind::DeadLettered))]
                | [(_, None), (_, Some(OutcomeKind::DeadLettered))] => {
                    tally.dead_lettered += 1;
                }
                [(_, Some(OutcomeKind::Deferred))] | [(_, None), (_, Some(OutcomeKind::Deferred))] => {
                    tally.deferred += 1;
                }
                [(offset, _), ..] => {
                    return Err(unbalanced(format!("offset {offset} is accounted for twice")));
                }
                [] => {}
            }
        }
        let counted = tally.indexed
            + tally.rejected
            + tally.deduplicated
            + tally.deferred
            + tally.dead_lettered
            + tally.lost;
        match self.to.checked_sub(self.from) {
            Some(length) if length == counted => Ok(tally),
            length => Err(unbalanced(format!(
                "{counted} offsets are accounted for, {} were read",
                length.unwrap_or_default()
            ))),
        }
    }
}

/// The stored number of a tier; never renumbered.
pub(super) const fn tier_code(tier: Tier) -> i64 {
    match tier {
        Tier::Event => 0,
        Tier::Summary => 1,
        Tier::Doc => 2,
        Tier::Profile => 3,
        Tier::Artifact => 4,
    }
}

pub(super) fn tier_of(code: i64) -> Result<Tier, StoreError> {
    [Tier::Event, Tier::Summary, Tier::Doc, Tier::Profile, Tier::Artifact]
        .into_iter()
        .find(|tier| tier_code(*tier) == code)
        .ok_or_else(|| StoreError::Damaged { what: "tier", reason: format!("unknown code {code}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(offset: u64) -> RecordRow {
        RecordRow {
            offset,
            record_id: None,
            ts_ms: 0,
            tenant: "t".into(),
            session: None,
            source: "s".into(),
            tier: Tier::Event,
            attrs: "{}".into(),
            dedupe_key: None,
            chunks: Vec::new(),
        }
    }

    fn outcome(offset: u64, kind: OutcomeKind) -> OutcomeRow {
        OutcomeRow { offset, kind, reason: String::new(), detail: String::new() }
    }

    fn batch(records: &[u64], outcomes: &[(u64, OutcomeKind)], lost: u64) -> Batch {
        Batch {
            from: 10,
            to: 14,
            lost,
            records: records.iter().map(|o| record(*o)).collect(),
            outcomes: outcomes.iter().map(|(o, k)| outcome(*o, *k)).collect(),
            ..Batch::default()
        }
    }

    #[test]
    fn a_deferred_record_counts_once_and_not_as_indexed() {
        let tally = batch(&[10, 11], &[(11, OutcomeKind::Deferred), (13, OutcomeKind::Rejected)], 1).tally();
        let expected = Tally { indexed: 1, deferred: 1, rejected: 1, lost: 1, ..Tally::default() };
        assert_eq!(tally.unwrap(), expected);
    }

    #[test]
    fn offsets_missing_doubled_or_outside_are_refused() {
        for (batch, said) in [
            (batch(&[10, 11, 12], &[], 0), "3 offsets"),
            (batch(&[10, 11, 12, 12], &[], 0), "12 is accounted for twice"),
            (batch(&[10, 11, 12, 13], &[(13, OutcomeKind::Rejected)], 0), "13 is accounted for twice"),
            (batch(&[10, 11, 12, 14], &[], 0), "14 lies outside"),
            (batch(&[10, 11, 12, 13], &[], 1), "5 offsets"),
        ] {
            let error = batch.tally().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}

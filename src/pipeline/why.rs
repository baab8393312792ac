//! Where a record is, and what keeps it from being found.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::{OutcomeRow, SegmentRow, Store, StoreError, StoredRecord};

/// Where the log and its derivation stand.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The offset after the last durable frame.
    pub end_offset: u64,
    /// Next offset that derivation reads.
    pub next_offset: u64,
    /// What is not right at the moment, by component.
    pub trouble: BTreeMap<String, String>,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// No record has this offset yet.
    Unknown,
    /// It is durable, and waits to be derived.
    InFlight,
    /// It is found by meaning and by words.
    Indexed,
    /// It is found by words, and waits for vectors.
    Deferred,
    /// A rule of the pipeline refused it, or it was erased.
    Rejected,
    /// Its content was there already.
    Deduplicated,
    /// It could not be derived.
    DeadLettered,
    /// Damage took it.
    Lost,
}

/// Where one record is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Whereabouts {
    /// The stream.
    pub stream: String,
    /// The record's offset in it.
    pub offset: u64,
    /// What became of it.
    pub fate: Fate,
    /// The stable code of why, such as the rule's name.
    pub reason: Option<String>,
    /// What that means here, for people.
    pub detail: String,
    /// Records before it that are not derived yet.
    pub waits_for: u64,
    /// What is amiss that may block it.
    pub blocked_by: Vec<String>,
    /// Its chunks that are stored.
    pub chunks: u64,
    /// Those of them that have a vector in the live space.
    pub vectors: u64,
    /// The batch that wrote it.
    pub batch_tag: Option<String>,
    /// Content digest of the sealed segment that holds it; null while it is
    /// in none.
    pub segment: Option<String>,
    /// Digest of that segment's object; null until it is in the object store.
    pub artifact: Option<String>,
}

/// Everything that is known of one offset.
struct Known {
    record: Option<StoredRecord>,
    outcome: Option<OutcomeRow>,
    damaged: bool,
    segment: Option<SegmentRow>,
}

/// Where the record at `offset` of `stream` is; `space_key` is the live space.
pub async fn why(
    store: &Store,
    (pipeline, stream): (&str, &str),
    offset: u64,
    space_key: i64,
    standing: &Standing,
) -> Result<Whereabouts, StoreError> {
    // The store counts in what a database can count.
    if offset >= standing.end_offset {
        let nothing = Known { record: None, outcome: None, damaged: false, segment: None };
        return Ok(judged(stream, offset, nothing, standing));
    }
    let known = Known {
        record: store.stored(stream, offset, offset + 1, space_key).await?.pop(),
        outcome: store.outcomes(pipeline, stream, offset, offset + 1).await?.pop(),
        damaged: store.damage(stream).await?.iter().any(|damage| damage.offsets().contains(&offset)),
        segment: store.segment_at(stream, offset).await?,
    };
    Ok(judged(stream, offset, known, standing))
}

fn judged(stream: &str, offset: u64, known: Known, standing: &Standing) -> Whereabouts {
    let Known { record, outcome, damaged, segment } = known;
    let waits_for = offset.saturating_sub(standing.next_offset);
    let (fate, detail) = match (&outcome, &record) {
        _ if offset >= standing.end_offset => {
            (Fate::Unknown, format!("the log ends at offset {}", standing.end_offset))
        }
        (Some(outcome), _) => (fate_of(outcome), outcome.detail.clone()),
        (None, Some(_)) => (Fate::Indexed, "it is found by meaning and by words".to_owned()),
        (None, None) if damaged => (
            Fate::Lost,
            "what held it is damaged; `thalweg segments repair` saves what can be saved".to_owned(),
        ),
        (None, None) if offset >= standing.next_offset => {
            (Fate::InFlight, format!("{waits_for} records before it are derived first"))
        }
        (None, None) => (Fate::Lost, "neither a row nor a reason is there: run `thalweg audit`".to_owned()),
    };
    let waiting = matches!(fate, Fate::InFlight | Fate::Deferred);
    let trouble = standing.trouble.iter().filter(|_| waiting);
    let chunks = record.iter().flat_map(|record| &record.chunks);
    Whereabouts {
        stream: stream.to_owned(),
        offset,
        fate,
        reason: outcome.map(|outcome| outcome.reason),
        detail,
        waits_for: if fate == Fate::InFlight { waits_for } else { 0 },
        blocked_by: trouble.map(|(component, what)| format!("{component}: {what}")).collect(),
        chunks: chunks.clone().count() as u64,
        vectors: chunks.filter(|chunk| chunk.vector.is_some()).count() as u64,
        batch_tag: record.map(|record| record.batch_tag),
        artifact: segment.as_ref().and_then(|segment| segment.artifact.clone()),
        segment: segment.map(|segment| segment.content_digest),
    }
}

fn fate_of(outcome: &OutcomeRow) -> Fate {
    use crate::store::OutcomeKind::{DeadLettered, Deduplicated, Deferred, Rejected};
    match outcome.kind {
        Rejected => Fate::Rejected,
        Deduplicated => Fate::Deduplicated,
        Deferred => Fate::Deferred,
        DeadLettered => Fate::DeadLettered,
    }
}

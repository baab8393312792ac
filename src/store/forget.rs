//! Taking records away again: erased, or older than they are kept.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::FromRow;

use super::keywords::Terms;

/// Whose records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The tenant.
    pub tenant: String,
    /// Only this session of theirs.
    pub session: Option<String>,
}

/// Records that are kept whatever their age.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PinnedRecords {
    /// Those of these tenants.
    pub tenants: Vec<String>,
    /// Those of batches with these tags.
    pub batches: Vec<String>,
}

/// Why records were taken away; the reason of their outcome from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgetting {
    /// Somebody asked for it.
    Erased,
    /// They were older than they are kept.
    Expired,
}

impl Forgetting {
    /// The stored name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Erased => "erased",
            Self::Expired => "expired",
        }
    }
}

/// What was taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Records.
    pub records: u64,
    /// Their chunks.
    pub chunks: u64,
    /// Offsets that count as forgotten now, those without a record included.
    pub offsets: u64,
}

/// A chunk that is to go; a record without any has one row of nulls.
#[derive(FromRow)]
pub(super) struct GoingRow {
    pub record_key: i64,
    pub tenant_key: i64,
    pub tier: i64,
    pub chunk_key: Option<i64>,
    pub text: Option<String>,
}

/// What belongs to the records that are to go.
#[derive(Default)]
pub(super) struct Going {
    pub records: BTreeSet<i64>,
    /// Chunks and terms by tenant and tier.
    pub partitions: BTreeMap<(i64, i64), GoingChunks>,
}

#[derive(Default)]
pub(super) struct GoingChunks {
    pub keys: Vec<i64>,
    pub terms: i64,
}

impl Going {
    pub fn of(rows: Vec<GoingRow>) -> Self {
        let mut going = Self::default();
        for row in rows {
            going.records.insert(row.record_key);
            let (Some(key), Some(text)) = (row.chunk_key, row.text) else { continue };
            let chunks = going.partitions.entry((row.tenant_key, row.tier)).or_default();
            chunks.keys.push(key);
            chunks.terms += i64::try_from(Terms::of(&text).len()).unwrap_or(i64::MAX);
        }
        going
    }

    /// The keys of all chunks.
    pub fn chunks(&self) -> Vec<i64> {
        self.partitions.values().flat_map(|chunks| chunks.keys.iter().copied()).collect()
    }
}

/// How the counters of one pipeline move, offset by offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Resettled {
    /// Offsets whose outcome is a new one.
    pub offsets: Vec<u64>,
    pub indexed: i64,
    pub rejected: i64,
    pub deduplicated: i64,
    pub deferred: i64,
    pub dead_lettered: i64,
}

impl Resettled {
    /// Of the offsets that a pipeline has read, and what it noted of them:
    /// offset, kind and reason.
    pub fn of(
        offsets: impl IntoIterator<Item = u64>,
        noted: &[(i64, String, String)],
        why: Forgetting,
    ) -> Self {
        let noted: BTreeMap<u64, (&str, &str)> = noted
            .iter()
            .map(|(offset, kind, reason)| (offset.cast_unsigned(), (kind.as_str(), reason.as_str())))
            .collect();
        let mut moved = Self::default();
        for offset in offsets {
            match noted.get(&offset) {
                Some(("rejected", reason)) if *reason == why.as_str() => continue,
                Some(("rejected", _)) => moved.rejected += 1,
                Some(("deduplicated", _)) => moved.deduplicated += 1,
                Some(("deferred", _)) => moved.deferred += 1,
                Some(("dead_lettered", _)) => moved.dead_lettered += 1,
                _ => moved.indexed += 1,
            }
            moved.offsets.push(offset);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_offset_changes_sides_once() {
        let noted = |offset, kind: &str, reason: &str| (offset, kind.to_owned(), reason.to_owned());
        let noted = [
            noted(2, "rejected", "short"),
            noted(3, "rejected", "erased"),
            noted(4, "deferred", ""),
            noted(5, "dead_lettered", "embed_input"),
            noted(6, "deduplicated", "s@1"),
        ];
        let moved = Resettled::of([1, 2, 3, 4, 5, 6], &noted, Forgetting::Erased);
        let wanted = Resettled {
            offsets: vec![1, 2, 4, 5, 6],
            indexed: 1,
            rejected: 1,
            deduplicated: 1,
            deferred: 1,
            dead_lettered: 1,
        };
        assert_eq!(moved, wanted);
    }
}

//! The batches that are on their way from the log to their commit: how many,
//! where, and how old. For people; nothing is decided by it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Where a batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// It is judged, and held against what is stored.
    Judge,
    /// Its texts are embedded.
    Embed,
    /// It is embedded, and those before it are not committed.
    Wait,
    /// It is committed.
    Commit,
}

/// What a part has at hand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Batches.
    pub batches: u64,
    /// Their records.
    pub records: u64,
    /// When the oldest of them was appended to the log, in milliseconds since
    /// the Unix epoch.
    pub oldest_ms: Option<i64>,
}

/// All that is under way. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Flow(Arc<Mutex<Batches>>);

#[derive(Debug, Default)]
struct Batches {
    begun: u64,
    underway: BTreeMap<u64, (Part, u64, Option<i64>)>,
}

/// A batch that is under way until this is dropped.
#[derive(Debug)]
pub struct Underway {
    flow: Flow,
    number: u64,
}

impl Flow {
    fn batches(&self) -> MutexGuard<'_, Batches> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A batch of `records` is read, the oldest of which was appended at
    /// `oldest_ms`.
    pub fn begin(&self, records: u64, oldest_ms: Option<i64>) -> Underway {
        let mut batches = self.batches();
        batches.begun += 1;
        let number = batches.begun;
        batches.underway.insert(number, (Part::Judge, records, oldest_ms));
        Underway { flow: self.clone(), number }
    }

    /// What each part has at hand; nothing of those that are idle.
    pub fn loads(&self) -> BTreeMap<Part, Load> {
        let mut loads: BTreeMap<Part, Load> = BTreeMap::new();
        for (part, records, oldest_ms) in self.batches().underway.values() {
            let load = loads.entry(*part).or_default();
            load.batches += 1;
            load.records += records;
            load.oldest_ms = load.oldest_ms.into_iter().chain(*oldest_ms).min();
        }
        loads
    }
}

impl Underway {
    /// It has come to `part`.
    pub fn now(&self, part: Part) {
        if let Some(batch) = self.flow.batches().underway.get_mut(&self.number) {
            batch.0 = part;
        }
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.flow.batches().underway.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_where_it_came_to_until_it_is_dropped() {
        let flow = Flow::default();
        let [one, two] = [(10, Some(500)), (5, Some(300))].map(|(n, at)| flow.begin(n, at));
        one.now(Part::Embed);
        two.now(Part::Embed);
        let both = Load { batches: 2, records: 15, oldest_ms: Some(300) };
        assert_eq!(flow.loads(), [(Part::Embed, both)].into());
        two.now(Part::Wait);
        drop(one);
        let last = Load { batches: 1, records: 5, oldest_ms: Some(300) };
        assert_eq!(flow.loads(), [(Part::Wait, last)].into());
        drop(two);
        assert!(flow.loads().is_empty());
    }
}

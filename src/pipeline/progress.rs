//! Where a pipeline stands, for people and for `/api/v1/status`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::flow::Flow;
use crate::store::{Checkpoint, Moved, Store, StoreError};

/// What a pipeline counts while it runs.
#[derive(Debug)]
pub struct Progress {
    state: Mutex<State>,
    /// What is under way.
    pub flow: Flow,
}

#[derive(Debug)]
struct State {
    checkpoint: Checkpoint,
    reasons: BTreeMap<String, u64>,
    refused: BTreeMap<String, u64>,
    chunks: u64,
    searchable_ms: Histogram<u64>,
    trouble: BTreeMap<&'static str, String>,
}

/// Longest time from ack to searchable that is told apart, in milliseconds.
const LONGEST_MS: u64 = 3_600_000;

#[expect(clippy::expect_used, reason = "two digits up to an hour are within the bounds of the library")]
fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_max(LONGEST_MS, 2).expect("constant bounds")
}

/// A moment's view of [`Progress`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Snapshot {
    /// Next offset that derivation reads.
    pub next_offset: u64,
    /// Records stored and searchable.
    pub indexed: u64,
    /// Records that a filter rejected.
    pub rejected: u64,
    /// Records whose content was there already.
    pub deduplicated: u64,
    /// Records that are stored, found by keyword, and wait for vectors.
    pub deferred: u64,
    /// Records that could not be derived.
    pub dead_lettered: u64,
    /// Offsets lost to damage.
    pub lost: u64,
    /// Chunks indexed since the start of the process.
    pub chunks: u64,
    /// Records that were not indexed, by reason, since the start.
    pub reasons: BTreeMap<String, u64>,
    /// Frames refused at the door by code, since the start.
    pub refused: BTreeMap<String, u64>,
    /// Time from append to searchable in milliseconds, since the start.
    pub searchable_ms: Quantiles,
    /// What is not right at the moment, by component.
    pub trouble: BTreeMap<String, String>,
}

/// Quantiles of a time, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quantiles {
    /// How many were measured.
    pub count: u64,
    /// Half were faster.
    pub p50: u64,
    /// 95 % were faster.
    pub p95: u64,
    /// 99 % were faster.
    pub p99: u64,
    /// The slowest.
    pub max: u64,
}

impl Progress {
    /// Goes on from `checkpoint`.
    pub fn new(checkpoint: Checkpoint) -> Self {
        let state = Mutex::new(State {
            checkpoint,
            reasons: BTreeMap::new(),
            refused: BTreeMap::new(),
            chunks: 0,
            searchable_ms: empty_histogram(),
            trouble: BTreeMap::new(),
        });
        Self { state, flow: Flow::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame was refused at the door.
    pub fn refused(&self, code: &str) {
        *self.state().refused.entry(code.to_owned()).or_default() += 1;
    }

    /// A batch was committed: the checkpoint before and after it, its chunks,
    /// why records of it were not indexed, and when each of its appends
    /// happened.
    pub fn committed(
        &self,
        (before, after): (Checkpoint, Checkpoint),
        chunks: u64,
        reasons: impl IntoIterator<Item = String>,
        appended_ms: impl IntoIterator<Item = (i64, u64)>,
        now_ms: i64,
    ) {
        let mut state = self.state();
        // Back-fill moves the counters too, so what a batch adds is added.
        let now = &mut state.checkpoint;
        now.next_offset = after.next_offset;
        now.indexed += after.indexed - before.indexed;
        now.rejected += after.rejected - before.rejected;
        now.deduplicated += after.deduplicated - before.deduplicated;
        now.deferred += after.deferred - before.deferred;
        now.dead_lettered += after.dead_lettered - before.dead_lettered;
        now.lost += after.lost - before.lost;
        state.chunks += chunks;
        for reason in reasons {
            *state.reasons.entry(reason).or_default() += 1;
        }
        for (at_ms, records) in appended_ms {
            let took = u64::try_from(now_ms - at_ms).unwrap_or(0).min(LONGEST_MS);
            state.searchable_ms.saturating_record_n(took, records);
        }
    }

    /// Records that had waited for vectors were settled.
    pub fn settled(&self, moved: Moved) {
        let now = &mut self.state().checkpoint;
        now.deferred = now.deferred.saturating_sub(moved.indexed + moved.dead_lettered);
        now.indexed += moved.indexed;
        now.dead_lettered += moved.dead_lettered;
    }

    /// As [`Self::correct`], of a stream whose counters others have moved.
    pub async fn ask(&self, store: &Store, pipeline: &str, stream: &str) -> Result<(), StoreError> {
        store.counts(pipeline, stream).await?.into_iter().for_each(|counts| self.correct(counts));
        Ok(())
    }

    /// The counters as the store has them, if nothing was committed since.
    pub fn correct(&self, stored: Checkpoint) {
        let now = &mut self.state().checkpoint;
        if now.next_offset == stored.next_offset {
            *now = stored;
        }
    }

    /// Records that wait for vectors.
    pub fn deferred(&self) -> u64 {
        self.state().checkpoint.deferred
    }

    /// Share of the stored records that have no vector.
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    pub fn fallback_fraction(&self) -> f64 {
        let Checkpoint { indexed, deferred, .. } = self.state().checkpoint;
        deferred as f64 / (indexed + deferred).max(1) as f64
    }

    /// What is not right with `component`.
    pub fn trouble_of(&self, component: &str) -> Option<String> {
        self.state().trouble.get(component).cloned()
    }

    /// Something of `component` is not right; shown until [`Self::well`].
    pub fn trouble(&self, component: &'static str, what: impl Into<String>) {
        self.state().trouble.insert(component, what.into());
    }

    /// `component` is right again.
    pub fn well(&self, component: &'static str) {
        self.state().trouble.remove(component);
    }

    /// Nothing is known of what is not right, but of the components `known`:
    /// those who said so have ended.
    pub fn forget_trouble_but(&self, known: &[&str]) {
        self.state().trouble.retain(|component, _| known.contains(component));
    }

    /// Shows what is told of `component`, until `stop`.
    pub async fn follow(
        self: Arc<Self>,
        component: &'static str,
        mut told: watch::Receiver<Option<String>>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        loop {
            let trouble = told.borrow_and_update().clone();
            match trouble {
                Some(what) => self.trouble(component, what),
                None => self.well(component),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                changed = told.changed() => changed?,
            }
        }
    }

    /// The next offset that derivation reads.
    pub fn next_offset(&self) -> u64 {
        self.state().checkpoint.next_offset
    }

    /// The view of this moment.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.state();
        let at = |q| state.searchable_ms.value_at_quantile(q);
        Snapshot {
            next_offset: state.checkpoint.next_offset,
            indexed: state.checkpoint.indexed,
            rejected: state.checkpoint.rejected,
            deduplicated: state.checkpoint.deduplicated,
            deferred: state.checkpoint.deferred,
            dead_lettered: state.checkpoint.dead_lettered,
            lost: state.checkpoint.lost,
            chunks: state.chunks,
            reasons: state.reasons.clone(),
            refused: state.refused.clone(),
            searchable_ms: Quantiles {
                count: state.searchable_ms.len(),
                p50: at(0.5),
                p95: at(0.95),
                p99: at(0.99),
                max: state.searchable_ms.max(),
            },
            trouble: state.trouble.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_weigh_each_append_by_its_records() {
        let progress = Progress::new(Checkpoint::default());
        let checkpoints = (Checkpoint::default(), Checkpoint::default());
        progress.committed(checkpoints, 1, [], [(990, 98), (500, 2)], 1_000);
        let snapshot = progress.snapshot();
        assert_eq!((snapshot.searchable_ms.p50, snapshot.searchable_ms.count), (10, 100));
        assert!(snapshot.searchable_ms.p99 >= 490);
    }

    #[test]
    fn trouble_is_shown_until_it_is_over() {
        let progress = Progress::new(Checkpoint::default());
        progress.trouble("log", "full");
        assert_eq!(progress.snapshot().trouble["log"], "full");
        progress.well("log");
        assert!(progress.snapshot().trouble.is_empty());
    }
}

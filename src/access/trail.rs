//! What was done and refused.

use tokio::sync::mpsc;

use crate::{
    identity::{Entry, TrailRow},
    metrics,
    store::{Store, StoreError},
};

/// Refusals on their way to the writer. They are small, and the writer counts
/// equal ones without a write; so it is full only where the processor is.
const WAITING: usize = 1_024;

/// The trail of a store: who did what, and who was refused what. It is only
/// added to. Cheap to clone.
#[derive(Clone)]
pub struct Trail {
    store: Store,
    refusals: mpsc::Sender<Entry>,
}

/// A trail, and where its refusals come out.
pub(super) fn new(store: Store) -> (Trail, mpsc::Receiver<Entry>) {
    let (refusals, waiting) = mpsc::channel(WAITING);
    (Trail { store, refusals }, waiting)
}

impl Trail {
    /// Writes down an act. Once this returns it is durable; an act that cannot
    /// be written down should not be done, so write first or undo.
    pub async fn record(&self, entry: Entry) -> Result<(), StoreError> {
        self.store.append_trail(&[entry.into()]).await
    }

    /// Has a refusal written down, soon and in few rows: equal ones of a
    /// minute are counted in one, and a flood costs neither disk nor time.
    pub fn refused(&self, entry: Entry) {
        if self.refusals.try_send(entry).is_err() {
            metrics::trail_dropped(1);
        }
    }

    /// At most `limit` rows with numbers below `before`, the newest first.
    pub async fn rows(&self, before: Option<i64>, limit: u32) -> Result<Vec<TrailRow>, StoreError> {
        self.store.trail(before.unwrap_or(i64::MAX), limit).await
    }
}

//! Writing down what embedding costs, where a restart and other processes of
//! the pipeline see it.

use std::{sync::Arc, time::Duration};

use tokio::sync::Mutex;

use crate::{
    embed::{Budget, Spending},
    store::{Store, StoreError},
};

/// How often. What was spent since is forgotten by a crash.
const INTERVAL: Duration = Duration::from_secs(1);

/// One budget and where it is written down.
#[derive(Clone)]
pub struct Account {
    /// What is spent here.
    pub budget: Arc<Budget>,
    /// Where the table is.
    pub store: Store,
    /// Whose budget it is.
    pub pipeline: String,
    /// Held while it is written down: nothing is to be added twice.
    pub writing: Arc<Mutex<()>>,
}

impl Account {
    /// Writes down what was spent since the last time, and learns what others
    /// have spent.
    pub async fn settle(&self) -> Result<(), StoreError> {
        let _writing = self.writing.lock().await;
        let added = self.budget.unwritten();
        let total = self.store.add_spending(&self.pipeline, &added).await?;
        self.budget.written(&added, &total);
        Ok(())
    }

    /// Does so every second, for as long as it is polled.
    pub async fn keep(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            if !self.budget.is_limited() && !has_spent(&self.budget.unwritten()) {
                continue;
            }
            if let Err(error) = self.settle().await {
                tracing::warn!(%error, "what embedding costs is not written down yet");
            }
        }
    }
}

fn has_spent(spending: &Spending) -> bool {
    let Spending { live, backfill, .. } = *spending;
    (live, backfill) != Default::default()
}

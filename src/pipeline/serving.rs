//! Which embedding space is live, and who embeds for it.

use std::sync::{Arc, Mutex, PoisonError};

use super::canary::Guarded;
use crate::{
    embed::Embedder,
    store::{Store, StoreError},
};

/// An embedder and its space in the store.
#[derive(Clone)]
pub struct Served {
    /// The space's key.
    pub space_key: i64,
    /// Who gives its vectors, computed now or before.
    pub embedder: Arc<dyn Embedder>,
    /// Who computes each of them.
    pub model: Arc<Guarded>,
}

/// The embedders of a pipeline. The store says which is live; that may change
/// while the pipeline runs.
pub struct Serving {
    /// None where it does not matter what is live.
    store: Option<Store>,
    members: Vec<Served>,
    /// The live space, when it was looked at last.
    seen: Mutex<Option<i64>>,
}

impl Serving {
    /// One embedder at least, each of a space of its own.
    pub fn new(store: Store, members: Vec<Served>) -> Self {
        Self { store: Some(store), members, seen: Mutex::default() }
    }

    /// Always this one, whichever is live.
    pub fn only(served: Served) -> Self {
        Self { store: None, members: vec![served], seen: Mutex::default() }
    }

    /// All of them; the first is the pipeline's own.
    pub fn members(&self) -> &[Served] {
        &self.members
    }

    /// The one whose space is live.
    ///
    /// # Errors
    /// If the store cannot be read, or none of them is live.
    pub async fn now(&self) -> Result<Served, StoreError> {
        let live = match &self.store {
            Some(store) => store.live_space().await?,
            None => self.members.first().map(|served| served.space_key),
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = live;
        self.of(live).ok_or(StoreError::NotServed { live })
    }

    /// The one whose space was live when that was looked at last. For who learns
    /// by what he does then whether it [`is_live`](Self::is_live) still.
    ///
    /// # Errors
    /// As [`Self::now`], which is asked where nothing was seen yet.
    pub async fn last_seen(&self) -> Result<Served, StoreError> {
        let seen = *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match self.of(seen) {
            Some(served) => Ok(served),
            None => self.now().await,
        }
    }

    /// Whether `served` is whom [`Self::now`] would give if `live` is the live
    /// space.
    pub fn is_live(&self, served: &Served, live: Option<i64>) -> bool {
        self.store.is_none() || live == Some(served.space_key)
    }

    fn of(&self, space_key: Option<i64>) -> Option<Served> {
        self.members.iter().find(|served| Some(served.space_key) == space_key).cloned()
    }
}

//! Which embedding space is live, and who embeds for it.

use std::sync::Arc;

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
}

impl Serving {
    /// One embedder at least, each of a space of its own.
    pub fn new(store: Store, members: Vec<Served>) -> Self {
        Self { store: Some(store), members }
    }

    /// Always this one, whichever is live.
    pub fn only(served: Served) -> Self {
        Self { store: None, members: vec![served] }
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
        let served = self.members.iter().find(|served| Some(served.space_key) == live);
        served.cloned().ok_or(StoreError::NotServed { live })
    }
}

//! Vectors that were computed before are not computed again.
//!
//! A vector depends on its text and its space only, so the key is the SHA-256
//! of the text, within the space of one embedder. Memory, bounded in bytes,
//! is asked first, then one [`Shelf`] after the other where vectors outlive
//! the process: a Redis that several share, then the store, whose rows hold
//! them anyway. What one of them or the model had is offered to those that
//! had not. What another call is asking for at the moment is waited for.

#[cfg(test)]
mod tests;
mod under_way;

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
};

use futures::future::BoxFuture;
use quick_cache::{Weighter, sync::Cache as Memory};
use sha2::{Digest, Sha256};

use self::under_way::{Divided, UnderWay};
use super::{Budget, EmbedError, Embedder, EndpointState, Partial, Refused, Space, TokenSpans, Work};
use crate::metrics;

/// Where vectors of one space are kept longer than a process lives.
pub trait Shelf: Send + Sync {
    /// The vectors of the texts with these SHA-256 digests; texts that have
    /// none are left out.
    fn vectors<'a>(&'a self, digests: &'a [[u8; 32]]) -> BoxFuture<'a, Result<Known, ShelfError>>;

    /// A vector that it did not have. Whoever takes it does not keep the
    /// caller waiting.
    fn offer(&self, _: &[u8; 32], _: &[f32]) {}
}

/// A [`Shelf`] with its name in metrics.
pub struct Tier {
    /// `redis`, `store`.
    pub name: &'static str,
    /// What is there.
    pub shelf: Arc<dyn Shelf>,
}

/// Vectors by the SHA-256 of their texts.
pub type Known = HashMap<[u8; 32], Vec<f32>>;

/// The shelf cannot be reached.
#[derive(Clone, Debug, thiserror::Error)]
#[error("stored vectors cannot be looked up: {0}")]
pub struct ShelfError(pub String);

/// An embedder that computes only what is not known yet.
pub struct Cached {
    inner: Arc<dyn Embedder>,
    memory: Option<Memory<Key, Arc<[f32]>, Bytes>>,
    shelves: Vec<Tier>,
    under_way: UnderWay,
}

/// A query may have another prefix than a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    query: bool,
    digest: [u8; 32],
}

impl Key {
    fn of(text: &str, query: bool) -> Self {
        Self { query, digest: Sha256::digest(text).into() }
    }
}

/// Bytes of an entry, what the cache keeps beside it estimated.
#[derive(Clone)]
struct Bytes;

const ENTRY_BYTES: usize = 128;

impl Weighter<Key, Arc<[f32]>> for Bytes {
    fn weight(&self, _: &Key, vector: &Arc<[f32]>) -> u64 {
        (size_of_val::<[f32]>(vector) + ENTRY_BYTES) as u64
    }
}

impl Cached {
    /// Keeps vectors of `inner` in at most `memory_bytes` (0: none), and takes
    /// those that one of `shelves` has, asked in this order.
    pub fn new(inner: Arc<dyn Embedder>, memory_bytes: usize, shelves: Vec<Tier>) -> Self {
        let entry = inner.space().dimensions * size_of::<f32>() + ENTRY_BYTES;
        let memory = (memory_bytes >= entry)
            .then(|| Memory::with_weighter(memory_bytes / entry, memory_bytes as u64, Bytes));
        Self { inner, memory, shelves, under_way: UnderWay::default() }
    }

    fn remembered(&self, key: &Key) -> Option<Vec<f32>> {
        self.memory.as_ref()?.get(key).map(|vector| vector.to_vec())
    }

    fn remember(&self, key: Key, vector: &[f32]) {
        if let Some(memory) = &self.memory {
            memory.insert(key, vector.into());
        }
    }

    async fn each(&self, mut texts: Vec<String>, work: Work) -> Partial {
        let keys: Vec<Key> = texts.iter().map(|text| Key::of(text, false)).collect();
        let mut known: HashMap<Key, Vec<f32>> = HashMap::new();
        // In order of first appearance, each once.
        let mut wanted: Vec<(Key, usize)> = Vec::new();
        let mut met = HashSet::with_capacity(keys.len());
        for (index, key) in keys.iter().enumerate() {
            if met.insert(*key) {
                match self.remembered(key) {
                    Some(vector) => drop(known.insert(*key, vector)),
                    None => wanted.push((*key, index)),
                }
            }
        }
        let each_once = met.len() == keys.len();
        metrics::embed_cached("memory", known.len());
        if let Err(error) = self.look_up(&mut wanted, &mut known).await {
            let failed = Some(EmbedError::Transient { reason: error.to_string() });
            return spread(&keys, known, each_once, Partial { failed, ..Partial::default() });
        }
        let mut rest = Partial::default();
        while !wanted.is_empty() && rest.failed.is_none() {
            let divided = self.divide(mem::take(&mut wanted), work);
            metrics::embed_not_cached(divided.mine.len());
            self.ask(&divided.mine, &mut texts, work, &keys, &mut known, &mut rest).await;
            for (key, index) in divided.theirs().await {
                match self.remembered(&key) {
                    Some(vector) => {
                        metrics::embed_cached("memory", 1);
                        known.insert(key, vector);
                    }
                    // They were refused it, failed, or it is forgotten already.
                    None => wanted.push((key, index)),
                }
            }
        }
        spread(&keys, known, each_once, rest)
    }

    /// Without a memory, what others ask for would be forgotten when it is there.
    fn divide(&self, wanted: Vec<(Key, usize)>, work: Work) -> Divided<'_> {
        match self.memory {
            Some(_) => self.under_way.divide(wanted, work),
            None => self.under_way.undivided(wanted),
        }
    }

    /// Has `wanted`, whose texts are in `texts`, computed: what comes of it goes
    /// to `known` and `rest`. A refusal is told of every one of `keys` that it
    /// is about.
    async fn ask(
        &self,
        wanted: &[(Key, usize)],
        texts: &mut [String],
        work: Work,
        keys: &[Key],
        known: &mut HashMap<Key, Vec<f32>>,
        rest: &mut Partial,
    ) {
        if wanted.is_empty() {
            return;
        }
        let asked = wanted.iter().filter_map(|(_, index)| texts.get_mut(*index).map(mem::take)).collect();
        let partial = self.inner.embed_each(asked, work).await;
        for ((key, _), vector) in wanted.iter().zip(partial.vectors) {
            if let Some(vector) = vector {
                self.remember(*key, &vector);
                offer(&self.shelves, &key.digest, &vector);
                known.insert(*key, vector);
            }
        }
        if !partial.refused.is_empty() {
            let refused: HashMap<Key, String> = partial
                .refused
                .into_iter()
                .filter_map(|Refused { index, reason }| Some((wanted.get(index)?.0, reason)))
                .collect();
            let everywhere = keys.iter().enumerate().filter_map(|(index, key)| {
                refused.get(key).map(|reason| Refused { index, reason: reason.clone() })
            });
            rest.refused.extend(everywhere);
        }
        rest.failed = partial.failed;
    }

    /// Moves what the shelves have from `wanted` to `known`.
    async fn look_up(
        &self,
        wanted: &mut Vec<(Key, usize)>,
        known: &mut HashMap<Key, Vec<f32>>,
    ) -> Result<(), ShelfError> {
        for (index, tier) in self.shelves.iter().enumerate() {
            if wanted.is_empty() {
                break;
            }
            let digests: Vec<[u8; 32]> = wanted.iter().map(|(key, _)| key.digest).collect();
            let found = tier.shelf.vectors(&digests).await?;
            metrics::embed_cached(tier.name, found.len());
            wanted.retain(|(key, _)| !found.contains_key(&key.digest));
            let before = self.shelves.get(..index).unwrap_or_default();
            for (digest, vector) in found {
                let key = Key { query: false, digest };
                self.remember(key, &vector);
                offer(before, &digest, &vector);
                known.insert(key, vector);
            }
        }
        Ok(())
    }
}

fn offer(tiers: &[Tier], digest: &[u8; 32], vector: &[f32]) {
    for tier in tiers {
        tier.shelf.offer(digest, vector);
    }
}

/// The vector of each text where there is one, with what else came of them.
fn spread(keys: &[Key], mut known: HashMap<Key, Vec<f32>>, each_once: bool, rest: Partial) -> Partial {
    let vector = |key| if each_once { known.remove(key) } else { known.get(key).cloned() };
    Partial { vectors: keys.iter().map(vector).collect(), ..rest }
}

impl Embedder for Cached {
    fn space(&self) -> &Space {
        self.inner.space()
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), EmbedError>> {
        self.inner.prepare()
    }

    fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(async move { self.each(texts, Work::Live).await.all() })
    }

    fn embed_each(&self, texts: Vec<String>, work: Work) -> BoxFuture<'_, Partial> {
        Box::pin(self.each(texts, work))
    }

    fn embed_query(&self, text: String) -> BoxFuture<'_, Result<Vec<f32>, EmbedError>> {
        Box::pin(async move {
            let key = Key::of(&text, true);
            if let Some(vector) = self.remembered(&key) {
                metrics::embed_cached("memory", 1);
                return Ok(vector);
            }
            metrics::embed_not_cached(1);
            let vector = self.inner.embed_query(text).await?;
            self.remember(key, &vector);
            Ok(vector)
        })
    }

    fn tokens(&self) -> Arc<dyn TokenSpans> {
        self.inner.tokens()
    }

    fn budget(&self) -> Option<&Arc<Budget>> {
        self.inner.budget()
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        self.inner.endpoints()
    }
}

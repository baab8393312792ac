//! Vectors that were computed before are not computed again.
//!
//! A vector depends on its text and its space only, so the key is the SHA-256
//! of the text, within the space of one embedder. Memory, bounded in bytes,
//! is asked first, then one [`Shelf`] after the other where vectors outlive
//! the process: a Redis that several share, then the store, whose rows hold
//! them anyway. What one of them or the model had is offered to those that
//! had not. What another call is asking for at the moment is waited for.

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

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, time::Duration};

    use super::{
        super::{Hashing, testing},
        *,
    };

    /// Whoever waits for ever fails.
    fn block_on<F: Future>(future: F) -> F::Output {
        let ended = testing::block_on(async { tokio::time::timeout(Duration::from_secs(30), future).await });
        ended.expect("it ends within half a minute")
    }

    /// Notes what it is asked for; refuses `bad`, and fails after `most`.
    struct Noting {
        like: Hashing,
        asked: Mutex<Vec<String>>,
        most: usize,
    }

    impl Embedder for Noting {
        fn space(&self) -> &Space {
            self.like.space()
        }

        fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
            self.asked.lock().unwrap().extend(texts.iter().cloned());
            self.like.embed(texts)
        }

        fn embed_each(&self, texts: Vec<String>, _: Work) -> BoxFuture<'_, Partial> {
            Box::pin(async move {
                let mut partial = Partial::default();
                for (index, text) in texts.into_iter().enumerate() {
                    if self.asked.lock().unwrap().len() == self.most {
                        partial.failed = Some(EmbedError::Transient { reason: "enough".into() });
                        partial.vectors.push(None);
                    } else if text.starts_with("bad") {
                        partial.refused.push(Refused { index, reason: "bad".into() });
                        partial.vectors.push(None);
                    } else {
                        partial.vectors.extend(self.embed(vec![text]).await.unwrap().into_iter().map(Some));
                    }
                }
                partial
            })
        }

        fn tokens(&self) -> Arc<dyn TokenSpans> {
            self.like.tokens()
        }
    }

    fn cached(most: usize, memory: usize) -> (Arc<Noting>, Cached) {
        let noting = Arc::new(Noting { like: Hashing::default(), asked: Mutex::default(), most });
        (noting.clone(), Cached::new(noting, memory, Vec::new()))
    }

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn a_text_is_asked_for_once_however_often_it_comes() {
        let (noting, cached) = cached(usize::MAX, 1 << 20);
        let first = block_on(cached.embed(texts(&["a", "b", "a"]))).unwrap();
        let second = block_on(cached.embed(texts(&["b", "a", "c"]))).unwrap();
        assert_eq!(*noting.asked.lock().unwrap(), ["a", "b", "c"]);
        assert_eq!((&first[0], &first[0], &first[1]), (&first[2], &second[1], &second[0]));
        assert_eq!(second, block_on(Hashing::default().embed(texts(&["b", "a", "c"]))).unwrap());
    }

    #[test]
    fn a_refusal_is_told_of_every_place_and_what_failed_is_asked_for_again() {
        let (noting, cached) = cached(2, 1 << 20);
        let partial = block_on(cached.embed_each(texts(&["a", "bad", "b", "bad", "c"]), Work::Live));
        let refused: Vec<usize> = partial.refused.iter().map(|refused| refused.index).collect();
        assert_eq!(refused, [1, 3]);
        let there: Vec<bool> = partial.vectors.iter().map(Option::is_some).collect();
        assert_eq!(there, [true, false, true, false, false]);
        assert!(partial.failed.is_some());
        noting.asked.lock().unwrap().clear();
        block_on(cached.embed(texts(&["a", "b", "c"]))).unwrap();
        assert_eq!(*noting.asked.lock().unwrap(), ["c"]);
    }

    /// Computes one list after the other, each as soon as `turns` has one.
    struct InTurn {
        noting: Arc<Noting>,
        turns: tokio::sync::Semaphore,
    }

    impl Embedder for InTurn {
        fn space(&self) -> &Space {
            self.noting.space()
        }

        fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
            self.noting.embed(texts)
        }

        fn embed_each(&self, texts: Vec<String>, work: Work) -> BoxFuture<'_, Partial> {
            Box::pin(async move {
                self.turns.acquire().await.unwrap().forget();
                self.noting.embed_each(texts, work).await
            })
        }

        fn tokens(&self) -> Arc<dyn TokenSpans> {
            self.noting.tokens()
        }
    }

    fn in_turn(turns: usize, most: usize, memory: usize) -> (Arc<InTurn>, Cached) {
        let (noting, _) = cached(most, 0);
        let model = Arc::new(InTurn { noting, turns: tokio::sync::Semaphore::new(turns) });
        (model.clone(), Cached::new(model, memory, Vec::new()))
    }

    #[test]
    fn what_another_call_asks_for_at_the_moment_is_waited_for() {
        let (model, cached) = in_turn(0, usize::MAX, 1 << 20);
        let (first, second, third, ()) = block_on(async {
            tokio::join!(
                cached.embed(texts(&["a", "b"])),
                cached.embed(texts(&["b", "c", "a"])),
                cached.embed(texts(&["a"])),
                async { model.turns.add_permits(2) },
            )
        });
        let mut asked = model.noting.asked.lock().unwrap().clone();
        asked.sort();
        assert_eq!(asked, ["a", "b", "c"]);
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!((&first[1], &first[0]), (&second[0], &second[2]));
        assert_eq!(third.unwrap(), first[..1]);
    }

    #[test]
    fn a_call_that_fails_or_is_given_up_leaves_its_texts_to_those_who_waited() {
        let (model, cached) = in_turn(0, usize::MAX, 1 << 20);
        let given_up = cached.embed_each(texts(&["a", "bad"]), Work::Live);
        let waiting = cached.embed_each(texts(&["bad", "a"]), Work::Live);
        let partial = block_on(async {
            let mut waiting = waiting;
            {
                let mut given_up = given_up;
                assert!(futures::poll!(&mut given_up).is_pending());
                assert!(futures::poll!(&mut waiting).is_pending());
                model.turns.add_permits(1);
            }
            waiting.await
        });
        assert_eq!(*model.noting.asked.lock().unwrap(), ["a"]);
        assert!(partial.vectors[0].is_none() && partial.vectors[1].is_some());
        assert_eq!(partial.refused.iter().map(|refused| refused.index).collect::<Vec<_>>(), [0]);

        // The first fails after "x".
        let (model, cached) = in_turn(2, 1, 1 << 20);
        let (first, second) = block_on(async {
            tokio::join!(
                cached.embed_each(texts(&["x", "y"]), Work::Live),
                cached.embed_each(texts(&["x", "y"]), Work::Live),
            )
        });
        assert!(first.failed.is_some() && second.failed.is_some());
        assert!(first.vectors[0].is_some() && first.vectors[0] == second.vectors[0]);
        assert_eq!(model.turns.available_permits(), 0, "the second has tried, too");
    }

    #[test]
    fn live_work_does_not_wait_for_a_back_fill_nor_anybody_where_nothing_is_remembered() {
        for (first, memory) in [(Work::Backfill, 1 << 20), (Work::Live, 0)] {
            let (model, cached) = in_turn(0, usize::MAX, memory);
            let mut slow = cached.embed_each(texts(&["a"]), first);
            let live = block_on(async {
                assert!(futures::poll!(&mut slow).is_pending());
                let live = cached.embed_each(texts(&["a"]), Work::Live);
                // The semaphore is fair: the first turn is that of the other.
                model.turns.add_permits(2);
                live.await
            });
            assert!(live.vectors[0].is_some());
            drop(slow);
        }
        let (model, cached) = in_turn(1, usize::MAX, 1 << 20);
        let (live, backfill) = block_on(async {
            tokio::join!(
                cached.embed_each(texts(&["a"]), Work::Live),
                cached.embed_each(texts(&["a"]), Work::Backfill),
            )
        });
        assert_eq!((live.vectors.len(), live.vectors), (1, backfill.vectors));
        assert_eq!(*model.noting.asked.lock().unwrap(), ["a"]);
    }

    #[derive(Default)]
    struct Kept(Mutex<Known>);

    impl Shelf for Kept {
        fn vectors<'a>(&'a self, digests: &'a [[u8; 32]]) -> BoxFuture<'a, Result<Known, ShelfError>> {
            let kept = self.0.lock().unwrap();
            let found =
                digests.iter().filter_map(|digest| Some((*digest, kept.get(digest)?.clone()))).collect();
            Box::pin(async { Ok(found) })
        }

        fn offer(&self, digest: &[u8; 32], vector: &[f32]) {
            self.0.lock().unwrap().insert(*digest, vector.to_vec());
        }
    }

    #[test]
    fn what_a_later_tier_or_the_model_had_is_offered_to_the_earlier_ones_only() {
        let noting = Arc::new(Noting { like: Hashing::default(), asked: Mutex::default(), most: usize::MAX });
        let (first, second) = (Arc::new(Kept::default()), Arc::new(Kept::default()));
        let tiers =
            || vec![Tier { name: "a", shelf: first.clone() }, Tier { name: "b", shelf: second.clone() }];
        let cached = Cached::new(noting.clone(), 0, tiers());
        let vectors = block_on(cached.embed(texts(&["a", "b"]))).unwrap();
        let keys = ["a", "b"].map(|text| Key::of(text, false).digest);
        assert_eq!((first.0.lock().unwrap().len(), second.0.lock().unwrap().len()), (2, 2));
        first.0.lock().unwrap().clear();
        second.0.lock().unwrap().remove(&keys[1]);
        assert_eq!(block_on(cached.embed(texts(&["a"]))).unwrap(), vectors[..1]);
        assert_eq!(*noting.asked.lock().unwrap(), ["a", "b"], "the second tier had it");
        assert_eq!(first.0.lock().unwrap().get(&keys[0]), Some(&vectors[0]), "and the first has it now");
        first.0.lock().unwrap().insert(keys[1], vectors[1].clone());
        block_on(cached.embed(texts(&["b"]))).unwrap();
        assert!(!second.0.lock().unwrap().contains_key(&keys[1]), "a later tier is not offered anything");
        assert_eq!(noting.asked.lock().unwrap().len(), 2);
    }

    #[test]
    fn memory_is_bounded_and_a_query_is_not_taken_for_a_text() {
        let entry = Hashing::default().space().dimensions * 4 + ENTRY_BYTES;
        let (noting, cached) = cached(usize::MAX, 20 * entry);
        for n in (0..40).cycle().take(120) {
            block_on(cached.embed(vec![format!("text {n}")])).unwrap();
        }
        assert!(noting.asked.lock().unwrap().len() >= 40 + 2 * 20);
        assert!(cached.memory.as_ref().unwrap().len() <= 20);
        noting.asked.lock().unwrap().clear();
        block_on(cached.embed(texts(&["same"]))).unwrap();
        block_on(cached.embed_query("same".into())).unwrap();
        block_on(cached.embed_query("same".into())).unwrap();
        assert_eq!(*noting.asked.lock().unwrap(), ["same", "same"]);
    }
}

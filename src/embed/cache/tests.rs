//! The cache, above models that note what they are asked for.

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
        let found = digests.iter().filter_map(|digest| Some((*digest, kept.get(digest)?.clone()))).collect();
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
    let tiers = || vec![Tier { name: "a", shelf: first.clone() }, Tier { name: "b", shelf: second.clone() }];
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

//! Canaries: texts whose vectors are on record, to notice that a model has
//! changed under its name.
//!
//! A service may replace a model and say nothing; then new vectors cannot be
//! compared with those that are stored, and searches are quietly wrong. So a
//! model is asked for 64 texts before it is asked for anything else, and every
//! day. While one of them comes out different, it computes nothing.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::BoxFuture;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::progress::Progress;
use crate::{
    clock::Clock,
    embed::{Budget, EmbedError, Embedder, EndpointState, Partial, Space, TokenSpans, Work, cosine},
    metrics,
    store::Store,
};

const TEXTS: &str = include_str!("canaries.txt");
/// A vector that agrees with its record less than this is another model's.
/// Numbers that round differently on another machine agree better.
const LEAST_COSINE: f64 = 0.999;
/// How long a model is trusted.
const TRUSTED: Duration = Duration::from_hours(24);
/// How soon one is asked again that could not be asked, or has changed.
const AGAIN: Duration = Duration::from_mins(10);

/// A model that computes only while its canaries come out as they did.
pub struct Guarded {
    model: Arc<dyn Embedder>,
    store: Store,
    space_key: i64,
    clock: Clock,
    /// Held while the canaries are asked for; whether they have been.
    checked: tokio::sync::Mutex<bool>,
    halted: Mutex<Option<String>>,
}

impl Guarded {
    /// Guards the model of a space of `store`.
    pub fn new(model: Arc<dyn Embedder>, store: Store, space_key: i64, clock: Clock) -> Self {
        Self {
            model,
            store,
            space_key,
            clock,
            checked: tokio::sync::Mutex::default(),
            halted: Mutex::default(),
        }
    }

    /// Asks for the canaries now.
    ///
    /// # Errors
    /// If one has changed, or they could not be had.
    pub async fn check(&self) -> Result<(), EmbedError> {
        let mut checked = self.checked.lock().await;
        self.compare().await?;
        *checked = true;
        self.verdict()
    }

    /// Checks at once, then daily, until `stop`; `progress` shows a model that
    /// has changed.
    pub async fn watch(
        self: Arc<Self>,
        progress: Arc<Progress>,
        stop: CancellationToken,
    ) -> std::io::Result<()> {
        let mut failed = false;
        while !stop.is_cancelled() {
            let checked = tokio::select! {
                () = stop.cancelled() => break,
                checked = self.check() => checked,
            };
            let wait = match checked {
                Ok(()) => {
                    if std::mem::take(&mut failed) {
                        progress.well("embed");
                    }
                    TRUSTED
                }
                Err(error) => {
                    failed = true;
                    progress.trouble("embed", error.to_string());
                    AGAIN
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        Ok(())
    }

    /// Lets nothing through that has not been checked, or has changed.
    async fn admit(&self) -> Result<(), EmbedError> {
        let mut checked = self.checked.lock().await;
        if !*checked {
            self.compare().await?;
            *checked = true;
        }
        self.verdict()
    }

    fn verdict(&self) -> Result<(), EmbedError> {
        match self.halted.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            Some(reason) => Err(EmbedError::Configuration { reason }),
            None => Ok(()),
        }
    }

    async fn compare(&self) -> Result<(), EmbedError> {
        let lost = |error: crate::store::StoreError| EmbedError::Transient { reason: error.to_string() };
        let texts: Vec<String> = TEXTS.lines().map(str::to_owned).collect();
        let recorded = self.store.canaries(self.space_key).await.map_err(lost)?;
        let vectors = self.model.embed_each(texts, Work::Live).await.all()?;
        let now: Vec<([u8; 32], Vec<f32>)> =
            TEXTS.lines().map(|text| Sha256::digest(text).into()).zip(vectors).collect();
        let (cosine, text) = least_like(&recorded, &now);
        metrics::canary(&self.model.space().id(), cosine, cosine < LEAST_COSINE);
        let halted = (cosine < LEAST_COSINE).then(|| {
            format!(
                "the model gives other vectors than when its space was new (cosine {cosine:.4} for `{text}`, \
                 at least {LEAST_COSINE} is wanted), so they cannot be compared with those that are stored; \
                 bring the former model back, or migrate to the new one under a name of its own"
            )
        });
        if let Some(reason) = &halted {
            tracing::error!(space = %self.model.space(), reason, "embedding is halted");
        } else {
            self.store.record_canaries(self.space_key, &now, (self.clock)()).await.map_err(lost)?;
        }
        *self.halted.lock().unwrap_or_else(PoisonError::into_inner) = halted;
        Ok(())
    }
}

/// The smallest cosine between a vector and its record, and its text; 1 where
/// there is no record.
fn least_like(recorded: &HashMap<[u8; 32], Vec<f32>>, now: &[([u8; 32], Vec<f32>)]) -> (f64, &'static str) {
    let cosines = now
        .iter()
        .zip(TEXTS.lines())
        .filter_map(|((digest, vector), text)| Some((cosine(recorded.get(digest)?, vector), text)));
    cosines.fold((1.0, ""), |least, one| if one.0 < least.0 { one } else { least })
}

impl Embedder for Guarded {
    fn space(&self) -> &Space {
        self.model.space()
    }

    fn prepare(&self) -> BoxFuture<'_, Result<(), EmbedError>> {
        self.model.prepare()
    }

    fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
        Box::pin(async move {
            self.admit().await?;
            self.model.embed(texts).await
        })
    }

    fn embed_each(&self, texts: Vec<String>, work: Work) -> BoxFuture<'_, Partial> {
        Box::pin(async move {
            match self.admit().await {
                Ok(()) => self.model.embed_each(texts, work).await,
                Err(error) => {
                    Partial { vectors: vec![None; texts.len()], failed: Some(error), ..Partial::default() }
                }
            }
        })
    }

    /// A query is not kept, so it does not wait for the canaries.
    fn embed_query(&self, text: String) -> BoxFuture<'_, Result<Vec<f32>, EmbedError>> {
        Box::pin(async move {
            self.verdict()?;
            self.model.embed_query(text).await
        })
    }

    fn tokens(&self) -> Arc<dyn TokenSpans> {
        self.model.tokens()
    }

    fn budget(&self) -> Option<&Arc<Budget>> {
        self.model.budget()
    }

    fn endpoints(&self) -> Vec<EndpointState> {
        self.model.endpoints()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashSet,
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::*;
    use crate::{clock, embed::Hashing};

    /// Computes something else once it has changed.
    #[derive(Default)]
    struct Fickle {
        like: Hashing,
        changed: AtomicBool,
    }

    impl Embedder for Fickle {
        fn space(&self) -> &Space {
            self.like.space()
        }

        fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
            let changed = self.changed.load(Ordering::SeqCst);
            self.like
                .embed(texts.into_iter().map(|text| if changed { text + " indeed" } else { text }).collect())
        }

        fn tokens(&self) -> Arc<dyn TokenSpans> {
            self.like.tokens()
        }
    }

    #[test]
    fn there_are_64_texts_and_no_two_are_the_same() {
        let distinct: HashSet<&str> = TEXTS.lines().map(str::trim).collect();
        assert_eq!((TEXTS.lines().count(), distinct.len()), (64, 64));
    }

    /// A vector of length 1 with that cosine to `vector`, whose length is 1.
    fn turned(vector: &[f32], cosine: f32) -> Vec<f32> {
        let mut across: Vec<f32> = vector.iter().map(|x| -x * vector[0]).collect();
        across[0] += 1.0;
        let length = across.iter().map(|x| x * x).sum::<f32>().sqrt();
        let rest = (1.0 - cosine * cosine).sqrt() / length;
        vector.iter().zip(across).map(|(x, y)| cosine * x + rest * y).collect()
    }

    #[tokio::test]
    async fn one_canary_below_the_limit_halts_the_space_and_one_above_does_not() {
        for (cosine, halted) in [(0.9992, false), (0.9988, true)] {
            let folder = tempfile::tempdir().unwrap();
            let store = Store::open(&folder.path().join("s.sqlite")).await.unwrap();
            let model = Arc::new(Fickle::default());
            let space_key = store.register_space(model.space(), 0).await.unwrap();
            let vectors = model.embed(TEXTS.lines().map(str::to_owned).collect()).await.unwrap();
            let mut record: Vec<([u8; 32], Vec<f32>)> =
                TEXTS.lines().map(|text| Sha256::digest(text).into()).zip(vectors).collect();
            let (_, last) = record.last_mut().unwrap();
            *last = turned(last, cosine);
            store.record_canaries(space_key, &record, 0).await.unwrap();
            let guarded = Guarded::new(model, store, space_key, clock::system());
            let checked = guarded.check().await;
            assert_eq!(checked.is_err(), halted, "{cosine}: {checked:?}");
        }
    }

    #[tokio::test]
    async fn a_model_that_changed_computes_nothing_until_it_is_itself_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("s.sqlite")).await.unwrap();
        let model = Arc::new(Fickle::default());
        let space_key = store.register_space(model.space(), 0).await.unwrap();
        let guard = || Guarded::new(model.clone(), store.clone(), space_key, clock::system());
        let text = || vec!["water".to_owned()];
        guard().embed(text()).await.unwrap();
        guard().embed(text()).await.unwrap();
        model.changed.store(true, Ordering::SeqCst);
        let after = guard();
        for _ in 0..2 {
            let partial = after.embed_each(text(), Work::Backfill).await;
            assert!(matches!(partial.failed, Some(EmbedError::Configuration { .. })), "{partial:?}");
            assert_eq!(partial.vectors, [None]);
        }
        let error = after.embed_query("water".into()).await.unwrap_err().to_string();
        assert!(error.contains("other vectors than when its space was new (cosine 0."), "{error}");
        model.changed.store(false, Ordering::SeqCst);
        after.check().await.unwrap();
        after.embed(text()).await.unwrap();
    }
}

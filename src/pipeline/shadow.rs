//! Building an embedding space beside the live one, and keeping it as
//! complete as that one, so that it can go live at any moment and the former
//! one come back.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{
    backfill::{graceful, pace, pause},
    meter::Meter,
    progress::Progress,
    serving::Served,
};
use crate::{
    embed::{EmbedError, Embedder, Refused, Work},
    metrics,
    store::{SpaceState, Store, StoreError, WaitingChunk},
};

/// Chunks of one transaction.
const PAGE_CHUNKS: u32 = 256;
/// Failures in a row after which a space is not filled for now.
const PATIENCE: u32 = 5;
/// How often it is looked for new chunks.
const LOOKING: Duration = Duration::from_secs(1);

/// Fills one space while it is not live. Clones take turns, so that nothing is
/// embedded twice.
#[derive(Clone)]
pub struct Shadow {
    /// The space.
    pub served: Served,
    /// Where the chunks are.
    pub store: Store,
    /// Chunks a second at most; 0: no limit.
    pub rate: u32,
    /// Where it is shown if something is wrong.
    pub progress: Arc<Progress>,
    /// Held for a page.
    pub turn: Arc<Mutex<()>>,
}

/// Why a space could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The embedder failed.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// What came of filling a space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Filled {
    /// The space's id.
    pub space: String,
    /// Chunks that were embedded, or refused; those that live work embedded
    /// meanwhile are not among them.
    pub chunks: u64,
    /// Chunks that the live space has and this one lacks still: their texts
    /// were refused.
    pub lacking: u64,
}

/// The key after which the next page begins, and how large it is. A page of
/// which nothing comes is made smaller, until the chunk that fails is alone
/// and can be passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    after: i64,
    chunks: u32,
    /// Whether chunks before `after` were passed over.
    passed_over: bool,
    /// The key at which it was last counted what is lacking.
    counted_at: Option<i64>,
}

impl Place {
    const FIRST: Self = Self { after: 0, chunks: PAGE_CHUNKS, passed_over: false, counted_at: None };

    fn next(self, last: i64, done: usize, count: usize, failed: Option<&EmbedError>) -> Self {
        let whole = matches!(failed, Some(EmbedError::Quota { .. } | EmbedError::Configuration { .. }));
        match done {
            _ if done == count => Self { after: last, chunks: (4 * self.chunks).min(PAGE_CHUNKS), ..self },
            0 if whole => self,
            0 if self.chunks > 1 => Self { chunks: (self.chunks / 8).max(1), ..self },
            0 => Self { after: last, passed_over: true, ..self },
            _ => self,
        }
    }
}

impl Shadow {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut place = Place::FIRST;
        let (mut refused, mut attempts) = (BTreeSet::new(), 0);
        while !stop.is_cancelled() {
            let started = Instant::now();
            let page = tokio::select! {
                page = self.page(&mut place, &mut refused) => page,
                () = graceful(&stop) => return Ok(()),
            };
            let wait = match page {
                Ok((chunks, None)) => {
                    attempts = 0;
                    self.progress.well("migration");
                    if chunks == 0 {
                        LOOKING
                    } else {
                        pace(chunks, self.rate).saturating_sub(started.elapsed())
                    }
                }
                Ok((_, Some(error))) => {
                    self.progress.trouble("migration", error.to_string());
                    attempts += 1;
                    pause(&error, attempts)
                }
                Err(error) if error.is_transient() => {
                    self.progress.trouble("migration", error.to_string());
                    LOOKING
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
        Ok(())
    }

    /// Goes along all chunks once, until the space lacks nothing but what is
    /// refused; nothing, if it is live or retired.
    ///
    /// # Errors
    /// See [`FillError`]. What was had is kept.
    pub async fn fill(&self, mut told: impl Meter) -> Result<Filled, FillError> {
        let (mut place, mut refused) = (Place::FIRST, BTreeSet::new());
        let (mut done, mut attempts) = (0, 0);
        let total = self.store.missing_in(self.served.space_key).await?.chunks;
        loop {
            let at = (place.after, place.passed_over);
            match self.page(&mut place, &mut refused).await? {
                (_, Some(error)) if attempts >= PATIENCE => return Err(error.into()),
                (_, Some(error)) => {
                    attempts += 1;
                    tokio::time::sleep(pause(&error, attempts)).await;
                }
                (0, None) if at == (place.after, place.passed_over) => break,
                (chunks, None) => {
                    (done, attempts) = (done + chunks as u64, 0);
                    told.at(done, total.max(done)).await;
                }
            }
        }
        let lacking = self.store.behind_live(self.served.space_key).await?;
        Ok(Filled { space: self.served.model.space().id(), chunks: done, lacking })
    }

    /// Embeds the next chunks but those `refused` before. How many were looked
    /// at, and what went wrong.
    async fn page(
        &self,
        place: &mut Place,
        refused: &mut BTreeSet<i64>,
    ) -> Result<(usize, Option<EmbedError>), StoreError> {
        let _turn = self.turn.lock().await;
        let space_key = self.served.space_key;
        let state = self.store.space_state(space_key).await?;
        if matches!(state, SpaceState::Live | SpaceState::Retired) {
            // Live work fills it, from here on and until it is live no more.
            place.after = 0;
            return Ok((0, None));
        }
        let chunks = self.store.waiting_chunks(space_key, place.after, place.chunks).await?;
        if chunks.is_empty() {
            if std::mem::take(&mut place.passed_over) {
                place.after = 0;
            } else if state == SpaceState::Building
                && place.counted_at.replace(place.after) != Some(place.after)
                && self.store.behind_live(space_key).await? == 0
            {
                self.store.set_space_state(space_key, SpaceState::Shadow).await?;
                tracing::info!(space = %self.served.model.space(), "the space is complete: compare it, and switch");
            }
            return Ok((0, None));
        }
        let last = chunks.last().map_or(place.after, |chunk| chunk.chunk_key);
        let chunks: Vec<_> = chunks.into_iter().filter(|chunk| !refused.contains(&chunk.chunk_key)).collect();
        let count = chunks.len();
        if count == 0 {
            place.after = last;
            return Ok((0, None));
        }
        let texts = chunks.iter().map(|chunk| chunk.text.clone()).collect();
        let partial = self.served.embedder.embed_each(texts, Work::Backfill).await;
        for Refused { index, reason } in &partial.refused {
            tracing::warn!(reason, "a stored text has no vector in the new space");
            refused.extend(chunks.get(*index).map(|chunk| chunk.chunk_key));
        }
        let vectors: Vec<(WaitingChunk, Vec<f32>)> = chunks
            .into_iter()
            .zip(partial.vectors)
            .filter_map(|(chunk, vector)| Some((chunk, vector?)))
            .collect();
        self.store.put_vectors(space_key, &vectors).await?;
        metrics::shadowed(&self.served.model.space().id(), vectors.len(), partial.refused.len());
        let done = vectors.len() + partial.refused.len();
        *place = place.next(last, done, count, partial.failed.as_ref());
        Ok((count, partial.failed))
    }
}

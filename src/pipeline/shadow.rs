//! Building an embedding space beside the live one, and keeping it as
//! complete as that one, so that it can go live at any moment and the former
//! one come back.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{
    backfill::{pace, pause},
    progress::Progress,
    serving::Served,
};
use crate::{
    embed::{EmbedError, Embedder, Work},
    metrics,
    store::{SpaceState, Store, StoreError, WaitingChunk},
};

/// Chunks of one transaction.
const PAGE_CHUNKS: u32 = 256;
/// How often it is looked for new chunks.
const LOOKING: Duration = Duration::from_secs(1);

/// Fills one space while it is not live.
pub struct Shadow {
    /// The space.
    pub served: Served,
    /// Where the chunks are.
    pub store: Store,
    /// Chunks a second at most; 0: no limit.
    pub rate: u32,
    /// Where it is shown if something is wrong.
    pub progress: Arc<Progress>,
}

impl Shadow {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let (mut after, mut attempts) = (0, 0);
        while !stop.is_cancelled() {
            let started = Instant::now();
            let wait = match self.page(&mut after).await {
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
                    self.progress.trouble("store", error.to_string());
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

    /// Embeds the next chunks beyond `after`. How many were looked at, and
    /// what went wrong.
    async fn page(&self, after: &mut i64) -> Result<(usize, Option<EmbedError>), StoreError> {
        let space_key = self.served.space_key;
        let state = self.store.space_state(space_key).await?;
        if matches!(state, SpaceState::Live | SpaceState::Retired) {
            // Live work fills it, from here on and until it is live no more.
            *after = 0;
            return Ok((0, None));
        }
        let chunks = self.store.waiting_chunks(space_key, *after, PAGE_CHUNKS).await?;
        if chunks.is_empty() {
            if state == SpaceState::Building && self.store.behind_live(space_key).await? == 0 {
                self.store.set_space_state(space_key, SpaceState::Shadow).await?;
                tracing::info!(space = %self.served.model.space(), "the space is complete: compare it, and switch");
            }
            return Ok((0, None));
        }
        let count = chunks.len();
        let texts = chunks.iter().map(|chunk| chunk.text.clone()).collect();
        let partial = self.served.embedder.embed_each(texts, Work::Backfill).await;
        let last = chunks.last().map_or(*after, |chunk| chunk.chunk_key);
        let vectors: Vec<(WaitingChunk, Vec<f32>)> = chunks
            .into_iter()
            .zip(partial.vectors)
            .filter_map(|(chunk, vector)| Some((chunk, vector?)))
            .collect();
        self.store.put_vectors(space_key, &vectors).await?;
        metrics::shadowed(&self.served.model.space().id(), vectors.len(), partial.refused.len());
        for refused in &partial.refused {
            tracing::warn!(reason = refused.reason, "a stored text has no vector in the new space");
        }
        // Passed over only once each has its vector, or never will.
        if vectors.len() + partial.refused.len() == count {
            *after = last;
        }
        Ok((count, partial.failed))
    }
}

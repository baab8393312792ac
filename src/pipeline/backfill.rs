//! Giving vectors to records that were stored without: the oldest first, at a
//! rate, and as soon as the embedder takes them again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use super::{progress::Progress, serving::Serving};
use crate::{
    clock::Clock,
    embed::{EmbedError, Partial, Work},
    metrics,
    store::{Settled, Store, StoreError, WaitingRecord},
};

/// Records of one transaction.
const PAGE_RECORDS: u32 = 64;
/// How often it is looked for work, and whether a quota is spent no longer.
const LOOKING: Duration = Duration::from_secs(1);
/// Longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Sees to the deferred records of one stream.
pub struct Backfill {
    /// The embedder of the live space.
    pub serving: Arc<Serving>,
    /// Where the records are.
    pub store: Store,
    /// The pipeline that deferred them.
    pub pipeline: String,
    /// Their stream.
    pub stream: String,
    /// Records a second at most; 0: no limit.
    pub rate: u32,
    /// Where it is shown how far things are.
    pub progress: Arc<Progress>,
    /// What time it is.
    pub clock: Clock,
}

/// What a page came to.
struct Done {
    records: usize,
    failed: Option<EmbedError>,
}

impl Backfill {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let mut attempts = 0;
        while !stop.is_cancelled() {
            let started = Instant::now();
            let wait = match self.page().await {
                Ok(Done { records: 0, failed: None }) => {
                    attempts = 0;
                    LOOKING
                }
                Ok(Done { records, failed: None }) => {
                    attempts = 0;
                    self.progress.well("backfill");
                    pace(records, self.rate).saturating_sub(started.elapsed())
                }
                Ok(Done { failed: Some(error), .. }) => {
                    self.progress.trouble("backfill", error.to_string());
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

    /// Embeds the oldest records that wait, and settles those that are done.
    async fn page(&self) -> Result<Done, StoreError> {
        if self.progress.deferred() == 0 {
            return Ok(Done { records: 0, failed: None });
        }
        let serving = self.serving.now().await?;
        let records = self
            .store
            .waiting_records(&self.pipeline, &self.stream, serving.space_key, 0, PAGE_RECORDS)
            .await?;
        let texts =
            records.iter().flat_map(|record| &record.chunks).map(|chunk| chunk.text.clone()).collect();
        let partial = serving.embedder.embed_each(texts, Work::Backfill).await;
        let failed = partial.failed.clone();
        let (vectors, settled) = sort_out(records, partial);
        let names = (self.pipeline.as_str(), self.stream.as_str());
        let moved =
            self.store.settle_waiting(names, serving.space_key, &vectors, &settled, (self.clock)()).await?;
        self.progress.settled(moved);
        if moved.indexed > 0 {
            self.progress.well("embed");
        }
        metrics::backfilled("indexed", moved.indexed);
        metrics::backfilled("dead_lettered", moved.dead_lettered);
        metrics::fallback_fraction(self.progress.fallback_fraction());
        Ok(Done { records: settled.complete.len() + settled.refused.len(), failed })
    }
}

type Vectors = Vec<(crate::store::WaitingChunk, Vec<f32>)>;

/// Which vectors are there, and which records are done with.
fn sort_out(records: Vec<WaitingRecord>, partial: Partial) -> (Vectors, Settled) {
    let (mut vectors, mut settled) = (Vec::new(), Settled::default());
    let mut given = partial.vectors.into_iter().chain(std::iter::repeat(None));
    let mut index = 0;
    for WaitingRecord { offset, chunks } in records {
        let range = index..index + chunks.len();
        index = range.end;
        let mut complete = true;
        for (chunk, vector) in chunks.into_iter().zip(&mut given) {
            match vector {
                Some(vector) => vectors.push((chunk, vector)),
                None => complete = false,
            }
        }
        match partial.refused.iter().find(|refused| range.contains(&refused.index)) {
            Some(refused) => settled.refused.push((offset, refused.reason.clone())),
            None if complete => settled.complete.push(offset),
            None => {}
        }
    }
    (vectors, settled)
}

/// How long `records` take at a rate.
pub(super) fn pace(records: usize, rate: u32) -> Duration {
    #[expect(clippy::cast_precision_loss, reason = "a page is small")]
    let seconds = records as f64 / f64::from(rate);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::ZERO)
}

/// How long to leave the embedder alone. Asking while a quota is spent costs
/// nothing, and there is a new one at midnight.
pub(super) fn pause(error: &EmbedError, attempts: u32) -> Duration {
    let doubling = LOOKING.saturating_mul(1 << attempts.min(6)).min(LONGEST_WAIT);
    match error {
        EmbedError::Quota { .. } => LOOKING,
        EmbedError::Rate { retry_after, .. } => retry_after.unwrap_or(doubling).clamp(LOOKING, LONGEST_WAIT),
        EmbedError::Input { .. } | EmbedError::Transient { .. } | EmbedError::Configuration { .. } => {
            doubling
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_spreads_records_and_none_means_no_limit() {
        assert_eq!(pace(64, 128), Duration::from_millis(500));
        assert_eq!(pace(64, 0), Duration::ZERO);
    }

    #[test]
    fn failures_are_left_alone_for_longer_and_longer_and_a_quota_is_looked_at_every_second() {
        let transient = EmbedError::Transient { reason: String::new() };
        assert!(pause(&transient, 1) < pause(&transient, 2));
        assert_eq!(pause(&transient, 60), LONGEST_WAIT);
        assert_eq!(pause(&EmbedError::Quota { reason: String::new(), reset_at: None }, 60), LOOKING);
    }
}

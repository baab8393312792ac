//! Giving vectors to records that were stored without: the oldest first, at a
//! rate, and as soon as the embedder takes them again.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{progress::Progress, serving::Serving};
use crate::{
    clock::Clock,
    embed::{EmbedError, Partial, Work},
    metrics,
    store::{Store, StoreError, WaitingChunk, WaitingPage},
};

/// Most records of one transaction.
const PAGE_RECORDS: u32 = 64;
/// Chunks of a page, per record of it. A longer record takes several pages.
const CHUNKS_PER_RECORD: u32 = 4;
/// How often it is looked for work, and whether a quota is spent no longer.
const LOOKING: Duration = Duration::from_secs(1);
/// Longest wait between attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a stop waits for the page in progress.
const GRACE: Duration = Duration::from_secs(2);
/// How often it is asked what others have stored without vectors.
const ASKING: Duration = Duration::from_secs(60);
/// However often it is woken, so long it waits.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

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
    /// Ends a wait before its time: somebody knows that there is work.
    pub wake: Arc<Notify>,
    /// What time it is.
    pub clock: Clock,
}

/// What a page came to.
#[derive(Default)]
struct Done {
    /// Records that were looked at, and the last of them.
    records: usize,
    last: u64,
    /// Whether anything came of it.
    advanced: bool,
    failed: Option<EmbedError>,
}

/// Where the next page begins and how large it is. A page that fails as a
/// whole is made smaller, so that one record that always fails holds up
/// nobody: alone in its page, it is passed over until the others are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    from: u64,
    records: u32,
}

impl Place {
    const FIRST: Self = Self { from: 0, records: PAGE_RECORDS };

    fn after(self, done: &Done) -> Self {
        let whole = matches!(done.failed, Some(EmbedError::Quota { .. } | EmbedError::Configuration { .. }));
        match (&done.failed, done.advanced) {
            _ if done.records == 0 => Self { from: 0, ..self },
            (None, _) | (_, true) => Self { records: (4 * self.records).min(PAGE_RECORDS), ..self },
            (Some(_), false) if whole => self,
            (Some(_), false) if self.records > 1 => Self { records: (self.records / 8).max(1), ..self },
            (Some(_), false) => Self { from: done.last + 1, ..self },
        }
    }
}

impl Backfill {
    /// Works until `stop`.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let (mut attempts, mut place) = (0, Place::FIRST);
        let (mut asked, mut woken) = (Instant::now(), false);
        while !stop.is_cancelled() {
            let started = Instant::now();
            if woken || asked.elapsed() >= ASKING {
                asked = started;
                self.ask().await?;
            }
            let page = tokio::select! {
                page = self.page(place) => page,
                () = graceful(&stop) => return Ok(()),
            };
            let mut paced = false;
            let wait = match page {
                Ok(done) => {
                    place = place.after(&done);
                    match &done.failed {
                        None => {
                            attempts = 0;
                            self.progress.well("backfill");
                            let pace = pace(done.records, self.rate).saturating_sub(started.elapsed());
                            paced = done.records > 0;
                            if paced { pace } else { LOOKING }
                        }
                        Some(error) => {
                            attempts = if done.advanced { 0 } else { attempts + 1 };
                            self.progress.trouble("backfill", error.to_string());
                            pause(error, attempts)
                        }
                    }
                }
                Err(error) if error.is_transient() => {
                    self.progress.trouble("backfill", error.to_string());
                    LOOKING
                }
                Err(error) => return Err(error),
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(wait) => woken = false,
                () = self.woken(paced) => woken = true,
            }
        }
        Ok(())
    }

    /// Somebody wants it to go on, and a rate does not forbid it.
    async fn woken(&self, paced: bool) {
        if paced {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SHORTEST_WAIT).await;
        self.wake.notified().await;
    }

    /// Learns of records that others have stored without vectors.
    async fn ask(&self) -> Result<(), StoreError> {
        match self.store.counts(&self.pipeline, &self.stream).await {
            Ok(counts) => counts.into_iter().for_each(|counts| self.progress.correct(counts)),
            Err(error) if error.is_transient() => self.progress.trouble("backfill", error.to_string()),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Embeds some of the oldest records that wait, and settles those that are
    /// done.
    async fn page(&self, Place { from, records }: Place) -> Result<Done, StoreError> {
        if self.progress.deferred() == 0 {
            return Ok(Done::default());
        }
        let names = (self.pipeline.as_str(), self.stream.as_str());
        let serving = self.serving.now().await?;
        let space_key = serving.space_key;
        let most = (records, CHUNKS_PER_RECORD * records);
        let WaitingPage { offsets, chunks } =
            self.store.waiting_records(names, space_key, from, most).await?;
        let Some(last) = offsets.last().copied() else {
            if from == 0
                && let Some(counts) = self.store.counts(&self.pipeline, &self.stream).await?
            {
                // A replay has settled them.
                self.progress.correct(counts);
            }
            return Ok(Done::default());
        };
        let texts = chunks.iter().map(|(_, chunk)| chunk.text.clone()).collect();
        let partial = match chunks.is_empty() {
            true => Partial::default(),
            false => serving.embedder.embed_each(texts, Work::Backfill).await,
        };
        let failed = partial.failed.clone();
        let (vectors, refused) = sort_out(chunks, partial);
        let settled = (offsets.as_slice(), refused.as_slice());
        let now_ms = (self.clock)();
        let moved = match self.store.settle_waiting(names, space_key, &vectors, settled, now_ms).await {
            Err(StoreError::NotLive { .. }) => {
                // Another space went live; what was had is kept in this one.
                self.store.put_vectors(space_key, &vectors).await?;
                return Ok(Done { records: offsets.len(), last, advanced: true, failed });
            }
            moved => moved?,
        };
        self.progress.settled(moved);
        if !vectors.is_empty() {
            self.progress.well("embed");
        }
        metrics::backfilled("indexed", moved.indexed);
        metrics::backfilled("dead_lettered", moved.dead_lettered);
        metrics::fallback_fraction(self.progress.fallback_fraction());
        let advanced = !vectors.is_empty() || moved != crate::store::Moved::default();
        Ok(Done { records: offsets.len(), last, advanced, failed })
    }
}

/// Some time after `stop`.
pub(super) async fn graceful(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(GRACE).await;
}

type NewVector = (WaitingChunk, Vec<f32>);

/// The vectors that are there, and the records of which a text was refused.
fn sort_out(chunks: Vec<(u64, WaitingChunk)>, partial: Partial) -> (Vec<NewVector>, Vec<(u64, String)>) {
    let refused = partial.refused.into_iter().filter_map(|refused| {
        let (offset, _) = chunks.get(refused.index)?;
        Some((*offset, refused.reason))
    });
    let refused: BTreeMap<u64, String> = refused.collect();
    let vectors = chunks.into_iter().zip(partial.vectors);
    let vectors = vectors.filter_map(|((_, chunk), vector)| Some((chunk, vector?))).collect();
    (vectors, refused.into_iter().collect())
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
    fn a_record_that_always_fails_is_alone_in_its_page_and_then_passed_over() {
        let failed = Some(EmbedError::Transient { reason: String::new() });
        let nothing = Done { records: 9, last: 99, advanced: false, failed };
        let mut place = Place::FIRST;
        for records in [8, 1] {
            place = place.after(&nothing);
            assert_eq!(place, Place { from: 0, records });
        }
        place = place.after(&nothing);
        assert_eq!(place, Place { from: 100, records: 1 });
        let well = Done { records: 1, last: 100, advanced: true, failed: None };
        assert_eq!(place.after(&well), Place { from: 100, records: 4 });
        assert_eq!(place.after(&Done::default()).from, 0, "and tried again in the end");
        let spent = Some(EmbedError::Quota { reason: String::new(), reset_at: None });
        assert_eq!(place.after(&Done { failed: spent, ..nothing }), place);
    }

    #[test]
    fn failures_are_left_alone_for_longer_and_longer_and_a_quota_is_looked_at_every_second() {
        let transient = EmbedError::Transient { reason: String::new() };
        assert!(pause(&transient, 1) < pause(&transient, 2));
        assert_eq!(pause(&transient, 60), LONGEST_WAIT);
        assert_eq!(pause(&EmbedError::Quota { reason: String::new(), reset_at: None }, 60), LOOKING);
    }
}

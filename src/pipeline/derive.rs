//! Following the log: every durable frame becomes rows, or a reason why not,
//! once and in order.
//!
//! ```text
//! read ─► judge (threads) ─► deduplicate ─► embed ═╗   up to BATCHES_AHEAD side by side
//!                                                  ╚═► commit, in log order
//! ```
//!
//! How many records a batch has is [`batching`]'s to say.
//!
//! Records that the embedder does not take for now are stored without vectors
//! and deferred; [`backfill`](super::backfill) sees to them.
//!
//! Rows and checkpoint are one transaction, guarded by the lease's epoch: so
//! a crash repeats at most what was not committed, and a second daemon cannot
//! write at all.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::Instrument;

use super::{
    batching,
    damage::DamageRegister,
    defer::Outage,
    deriver::{Deriver, Frame, Judged},
    flow::{Part, Underway},
    progress::Progress,
    serving::{Served, Serving},
};
use crate::{
    clock::Clock,
    embed::EmbedError,
    log::{Cursor, LogReader, ReadError},
    metrics,
    store::{
        Analysed, Batch, Checkpoint, EMBED_INPUT, Lease, OutcomeKind, OutcomeRow, RecordRow, Store,
        StoreError,
    },
    transform::relax::{Relaxation, Tally},
};

/// Bytes of the log that are read at once.
const READ_BYTES: usize = 256 << 10;
/// Batches between reading and commit.
pub(super) const BATCHES_AHEAD: usize = 3;

/// Why following the log ended before its time.
#[derive(Debug, thiserror::Error)]
pub enum DeriveError {
    /// The log is shorter than what was derived from it.
    #[error(
        "pipeline `{pipeline}` has derived stream `{stream}` up to offset {next}, but its log ends at {end}: the data directory is not the one the store belongs to"
    )]
    LogIsBehind {
        /// The pipeline.
        pipeline: String,
        /// The stream.
        stream: String,
        /// The checkpoint.
        next: u64,
        /// The log's end.
        end: u64,
    },
    /// The store refused for good: another daemon took over.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Follows one stream into one store.
pub struct Derive {
    /// Reads the stream.
    pub log: LogReader,
    /// Turns frames into rows.
    pub deriver: Deriver,
    /// Takes the rows.
    pub store: Store,
    /// The right to move the checkpoint.
    pub lease: Lease,
    /// Who embeds.
    pub serving: Arc<Serving>,
    /// How long a record waits for an embedder that fails.
    pub patience: Duration,
    /// Name of this ingestion batch.
    pub batch_tag: String,
    /// Digest of the configuration.
    pub config_digest: String,
    /// Where it is shown how far things are.
    pub progress: Arc<Progress>,
    /// Where damage is reported.
    pub damage: Arc<DamageRegister>,
    /// What time it is.
    pub clock: Clock,
}

/// How following the log is ended.
#[derive(Clone, Debug, Default)]
pub struct Ends {
    /// Follow to the end that the log has at that moment.
    pub finish: CancellationToken,
    /// Commit what is read, and read no more: somebody else goes on.
    pub leave: CancellationToken,
    /// Let go of what is not committed.
    pub abandon: CancellationToken,
}

/// A batch on its way to its commit.
struct Prepared {
    appended_ms: Vec<(i64, u64)>,
    ready: AbortOnDropHandle<Result<Analysed, StoreError>>,
    underway: Arc<Underway>,
}

struct Embedded {
    space_key: i64,
    dimensions: usize,
    rows: Vec<RecordRow>,
    refused: Vec<(RecordRow, String)>,
    /// Why rows have no vectors, if some have none.
    failed: Option<EmbedError>,
}

impl Derive {
    /// Follows the log until one of `ends` is cancelled.
    pub async fn run(self, ends: Ends) -> Result<(), DeriveError> {
        let (next, end) = (self.lease.checkpoint().next_offset, self.log.end_offset());
        if next > end {
            return Err(DeriveError::LogIsBehind {
                pipeline: self.lease.pipeline().to_owned(),
                stream: self.lease.stream().to_owned(),
                next,
                end,
            });
        }
        let (queue, queued) = mpsc::channel(BATCHES_AHEAD);
        let embedding = Embedding {
            deriver: self.deriver.clone(),
            serving: self.serving.clone(),
            progress: self.progress.clone(),
            outage: Arc::new(Outage::new(self.patience)),
            nanos_per_record: Arc::default(),
        };
        let reader = Reading {
            log: self.log.clone(),
            labels: Labels { batch_tag: self.batch_tag.clone(), config_digest: self.config_digest.clone() },
            embedding: embedding.clone(),
            store: self.store.clone(),
            progress: self.progress.clone(),
            damage: self.damage.clone(),
            cursor: Cursor::at(next),
            next,
            waiting: VecDeque::new(),
            relaxation: Relaxation::default(),
            claimed: HashMap::new(),
        };
        let (reading, committing) = (reader.run(queue, &ends), self.commit_all(queued, embedding));
        tokio::pin!(reading, committing);
        tokio::select! {
            () = ends.abandon.cancelled() => Ok(()),
            // It failed, for instance by being fenced: what is read from here
            // on has nowhere to go. Or reading is just ending.
            committed = &mut committing => match committed {
                Ok(()) => reading.await,
                failed => failed,
            },
            read = &mut reading => committing.await.and(read),
        }
    }

    async fn commit_all(
        mut self,
        mut queued: mpsc::Receiver<Prepared>,
        embedding: Embedding,
    ) -> Result<(), DeriveError> {
        while let Some(prepared) = queued.recv().await {
            self.commit(prepared, &embedding).await?;
        }
        Ok(())
    }

    async fn commit(&mut self, prepared: Prepared, embedding: &Embedding) -> Result<(), DeriveError> {
        let Prepared { appended_ms, ready, underway } = prepared;
        let mut ready = match ready.await {
            Ok(ready) => ready?,
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        };
        underway.now(Part::Commit);
        let (started, before) = (Instant::now(), self.lease.checkpoint());
        loop {
            ready.set_time((self.clock)());
            match self.commit_each_content_once(&mut ready).await {
                // Another space went live in between.
                Err(DeriveError::Store(StoreError::NotLive { .. })) => {
                    ready = embedding.ready(without_vectors(ready.into_batch())).await?;
                }
                done => break done?,
            }
        }
        metrics::committed(started.elapsed());
        let batch = ready.into_batch();
        let chunks = batch.records.iter().map(|row| row.chunks.len() as u64).sum();
        let reasons = batch.outcomes.into_iter().map(|outcome| outcome.reason).collect();
        // Whoever looks in between sees its records not at all, rather than twice.
        drop(underway);
        self.show(before, chunks, reasons, appended_ms);
        Ok(())
    }

    /// As [`Self::commit_until_done`]; what another stream has stored since
    /// the batch was judged is left out as a duplicate.
    async fn commit_each_content_once(&mut self, ready: &mut Analysed) -> Result<(), DeriveError> {
        loop {
            match self.commit_until_done(ready).await {
                Err(DeriveError::Store(StoreError::Duplicate { .. })) => {
                    let records = &ready.batch().records;
                    let keys: Vec<[u8; 32]> = records.iter().filter_map(|record| record.dedupe_key).collect();
                    let held = self.store.known(&keys).await?;
                    ready.decide(duplicates(&ready.batch().records, &held));
                }
                done => return done,
            }
        }
    }

    /// A store that is away, or a disk that is full, delays; being fenced is
    /// final.
    async fn commit_until_done(&mut self, ready: &Analysed) -> Result<(), DeriveError> {
        let mut wait = Duration::from_millis(100);
        loop {
            match self.store.commit_analysed(&mut self.lease, ready).await {
                Ok(()) => {
                    self.progress.well("store");
                    return Ok(());
                }
                Err(error) if error.is_transient() => {
                    let (from, to) = (ready.batch().from, ready.batch().to);
                    tracing::error!(%error, from, to, "a commit failed; it is tried again");
                    self.progress.trouble("store", error.to_string());
                    tokio::time::sleep(wait).await;
                    wait = (2 * wait).min(Duration::from_secs(10));
                }
                Err(error) => {
                    self.progress.trouble("store", error.to_string());
                    return Err(error.into());
                }
            }
        }
    }

    fn show(&self, before: Checkpoint, chunks: u64, reasons: Vec<String>, appended_ms: Vec<(i64, u64)>) {
        let after = self.lease.checkpoint();
        let now = (self.clock)();
        for (at, records) in &appended_ms {
            let took = Duration::from_millis(u64::try_from(now - at).unwrap_or(0));
            metrics::searchable(took, *records);
        }
        for (outcome, was, is) in [
            ("indexed", before.indexed, after.indexed),
            ("rejected", before.rejected, after.rejected),
            ("deduplicated", before.deduplicated, after.deduplicated),
            ("deferred", before.deferred, after.deferred),
            ("dead_lettered", before.dead_lettered, after.dead_lettered),
            ("lost", before.lost, after.lost),
        ] {
            metrics::derived(outcome, is.saturating_sub(was));
        }
        self.progress.committed((before, after), chunks, reasons, appended_ms, now);
        metrics::derive_lag(self.log.end_offset().saturating_sub(after.next_offset));
        metrics::fallback_fraction(self.progress.fallback_fraction());
    }
}

/// What becomes of the records whose contents `held` names.
fn duplicates(records: &[RecordRow], held: &HashMap<[u8; 32], (String, u64)>) -> Vec<OutcomeRow> {
    let duplicate = |record: &RecordRow| {
        let (stream, offset) = held.get(&record.dedupe_key?)?;
        Some(OutcomeRow {
            offset: record.offset,
            kind: OutcomeKind::Deduplicated,
            reason: "duplicate".into(),
            detail: format!("{stream}/{offset}"),
        })
    };
    records.iter().filter_map(duplicate).collect()
}

/// A batch as it was before it was embedded. Outcomes that stand beside a
/// record are the embedder's.
fn without_vectors(mut batch: Batch) -> Batch {
    batch.records.iter_mut().flat_map(|row| &mut row.chunks).for_each(|chunk| chunk.vector = None);
    let kept: HashSet<u64> = batch.records.iter().map(|record| record.offset).collect();
    batch.outcomes.retain(|outcome| !kept.contains(&outcome.offset));
    batch
}

/// What the rows of all batches say of where they come from.
#[derive(Clone)]
struct Labels {
    batch_tag: String,
    config_digest: String,
}

/// The reading half.
struct Reading {
    log: LogReader,
    labels: Labels,
    embedding: Embedding,
    store: Store,
    progress: Arc<Progress>,
    damage: Arc<DamageRegister>,
    cursor: Cursor,
    /// The offset of the next batch.
    next: u64,
    /// Read, not yet judged.
    waiting: VecDeque<Frame>,
    relaxation: Relaxation,
    /// Contents of batches that are not committed yet, and whose they are.
    claimed: HashMap<[u8; 32], u64>,
}

impl Reading {
    async fn run(mut self, queue: mpsc::Sender<Prepared>, ends: &Ends) -> Result<(), DeriveError> {
        let mut durable = self.log.durable();
        let mut last = None;
        loop {
            if ends.leave.is_cancelled() {
                return Ok(());
            }
            if last.is_none() && ends.finish.is_cancelled() {
                last = Some(self.log.end_offset());
            }
            if last.is_some_and(|end| self.next >= end) {
                return Ok(());
            }
            let seen = durable.borrow_and_update().end_offset;
            let behind = seen.saturating_sub(self.next);
            let records = batching::records(behind, self.embedding.per_record());
            let gap = self.fill(records).await;
            if !self.waiting.is_empty() || gap > 0 {
                let prepared = self.prepare(records).await?;
                if queue.send(prepared).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            tokio::select! {
                () = ends.leave.cancelled() => {}
                () = ends.finish.cancelled(), if last.is_none() => {}
                changed = durable.wait_for(|d| d.end_offset != seen) => {
                    if changed.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Reads on unless there is enough for a batch of `records`. Returns how
    /// many offsets before the next readable frame are lost.
    async fn fill(&mut self, records: usize) -> u64 {
        while !self.has_enough(records) && self.read_on().await {}
        let reached = self.waiting.front().map_or(self.cursor.offset(), |frame| frame.offset);
        reached.saturating_sub(self.next)
    }

    /// Whether to go on with what was read.
    fn has_enough(&self, records: usize) -> bool {
        let bytes: usize = self.waiting.iter().map(|frame| frame.payload.len()).sum();
        let at_end = self.cursor.offset() >= self.log.end_offset();
        !self.waiting.is_empty() && (at_end || self.waiting.len() >= records || bytes >= batching::MOST_BYTES)
    }

    /// Reads some frames; whether there were any.
    async fn read_on(&mut self) -> bool {
        let (log, mut cursor) = (self.log.clone(), self.cursor.clone());
        let read = tokio::task::spawn_blocking(move || {
            let batches = log.read(&mut cursor, READ_BYTES);
            (batches, cursor)
        });
        match read.await {
            Ok((Ok(batches), cursor)) => {
                self.cursor = cursor;
                self.progress.well("log");
                let before = self.waiting.len();
                self.waiting.extend(batches.into_iter().flat_map(|batch| {
                    let appended_ms = batch.append_time_ms;
                    let frames: Vec<_> = batch.payloads().collect();
                    frames.into_iter().map(move |(offset, payload)| Frame { offset, appended_ms, payload })
                }));
                self.waiting.len() > before
            }
            Ok((Err(error), _)) => {
                self.unreadable(&error).await;
                false
            }
            Err(e) => std::panic::resume_unwind(e.into_panic()),
        }
    }

    /// Damage is passed over and counted as lost; anything else may pass.
    async fn unreadable(&mut self, error: &ReadError) {
        tracing::error!(%error, "the log cannot be read here");
        match error.resume_at() {
            Some(offset) => {
                self.damage.unreadable(error).await;
                self.cursor = Cursor::at(offset);
            }
            None => {
                self.progress.trouble("log", error.to_string());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// The next batch: what was waiting, up to `records` and up to the next
    /// gap.
    fn take(&mut self, records: usize) -> (Vec<Frame>, u64, u64) {
        let from = self.next;
        let first = self.waiting.front().map_or(self.cursor.offset(), |frame| frame.offset);
        let mut frames: Vec<Frame> = Vec::new();
        let mut next = first;
        while frames.len() < records
            && let Some(frame) = self.waiting.pop_front_if(|frame| frame.offset == next)
        {
            next += 1;
            frames.push(frame);
        }
        self.next = next;
        (frames, from, first - from)
    }

    async fn prepare(&mut self, records: usize) -> Result<Prepared, DeriveError> {
        let (frames, from, lost) = self.take(records);
        let to = self.next;
        if lost > 0 {
            self.damage.passed_over(from..from + lost).await;
        }
        let appended_ms = frames
            .chunk_by(|a, b| a.appended_ms == b.appended_ms)
            .filter_map(|run| Some((run.first()?.appended_ms, run.len() as u64)))
            .collect::<Vec<_>>();
        let oldest_ms = appended_ms.first().map(|(at, _)| *at);
        let underway = Arc::new(self.progress.flow.begin(to - from, oldest_ms));
        let (judged, tally) = self.embedding.deriver.judge(frames, self.relaxation.step).await;
        self.relax(tally);
        let (records, outcomes) = self.sort_out(judged).await?;
        let Labels { batch_tag, config_digest } = self.labels.clone();
        let batch = Batch { from, to, lost, batch_tag, config_digest, records, outcomes, ..Batch::default() };
        let embedding = self.embedding.clone();
        underway.now(Part::Embed);
        let shown = underway.clone();
        let ready = async move {
            let ready = embedding.ready(batch).await;
            shown.now(Part::Wait);
            ready
        };
        let ready = AbortOnDropHandle::new(tokio::spawn(ready.in_current_span()));
        Ok(Prepared { appended_ms, ready, underway })
    }

    fn relax(&mut self, tally: Tally) {
        let (relaxation, change) = self.relaxation.observe(&self.embedding.deriver.settings().quality, tally);
        self.relaxation = relaxation;
        if let Some(change) = change {
            tracing::warn!(stream = self.log.stream(), "quality filters: {change}");
        }
    }

    /// Rows to embed, and what became of the others.
    async fn sort_out(
        &mut self,
        judged: Vec<Judged>,
    ) -> Result<(Vec<RecordRow>, Vec<OutcomeRow>), DeriveError> {
        let keys: Vec<[u8; 32]> = judged
            .iter()
            .filter_map(|one| match one {
                Judged::Keep { row, .. } => row.dedupe_key,
                _ => None,
            })
            .collect();
        // What is committed is known to the store; only what is under way
        // must be remembered here. Pruned before asking, or a batch that is
        // committed in between would be seen by neither.
        let committed = self.progress.next_offset();
        self.claimed.retain(|_, offset| *offset >= committed);
        let known = self.known(&keys).await?;
        let (mut rows, mut outcomes) = (Vec::new(), Vec::new());
        for one in judged {
            match one {
                Judged::Keep { row, .. } => match self.duplicate_of(&row, &known) {
                    Some(detail) => outcomes.push(OutcomeRow {
                        offset: row.offset,
                        kind: OutcomeKind::Deduplicated,
                        reason: "duplicate".into(),
                        detail,
                    }),
                    None => rows.push(row),
                },
                Judged::Reject { offset, reason, detail } => {
                    let reason = reason.to_owned();
                    outcomes.push(OutcomeRow { offset, kind: OutcomeKind::Rejected, reason, detail });
                }
                Judged::Dead { offset, code, detail } => {
                    outcomes.push(OutcomeRow {
                        offset,
                        kind: OutcomeKind::DeadLettered,
                        reason: code.into(),
                        detail,
                    });
                }
            }
        }
        Ok((rows, outcomes))
    }

    /// Where the row's content was seen before; claims it if nowhere.
    fn duplicate_of(&mut self, row: &RecordRow, known: &HashMap<[u8; 32], (String, u64)>) -> Option<String> {
        let key = row.dedupe_key?;
        if let Some((stream, offset)) = known.get(&key) {
            return Some(format!("{stream}/{offset}"));
        }
        if let Some(offset) = self.claimed.get(&key) {
            return Some(format!("{}/{offset}", self.log.stream()));
        }
        self.claimed.insert(key, row.offset);
        None
    }

    async fn known(&self, keys: &[[u8; 32]]) -> Result<HashMap<[u8; 32], (String, u64)>, DeriveError> {
        loop {
            match self.store.known(keys).await {
                Ok(known) => return Ok(known),
                Err(error) if error.is_transient() => {
                    self.progress.trouble("store", error.to_string());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Embedded {
    /// What became of the records that have not all their vectors.
    fn outcomes(&self) -> Vec<OutcomeRow> {
        let refused = self.refused.iter().map(|(row, detail)| OutcomeRow {
            offset: row.offset,
            kind: OutcomeKind::DeadLettered,
            reason: EMBED_INPUT.into(),
            detail: detail.clone(),
        });
        let waiting = self.rows.iter().filter(|row| !row.is_embedded());
        let deferred = waiting.zip(std::iter::repeat(&self.failed)).filter_map(|(row, failed)| {
            let error = failed.as_ref()?;
            Some(OutcomeRow {
                offset: row.offset,
                kind: OutcomeKind::Deferred,
                reason: error.class().into(),
                detail: error.to_string(),
            })
        });
        refused.chain(deferred).collect()
    }
}

/// The embedding half: gives rows their vectors, or gives up on it for now.
#[derive(Clone)]
struct Embedding {
    deriver: Deriver,
    serving: Arc<Serving>,
    progress: Arc<Progress>,
    outage: Arc<Outage>,
    /// What embedding took lately; 0 until that is known.
    nanos_per_record: Arc<AtomicU64>,
}

impl Embedding {
    /// Embeds the records of `batch`, and makes it ready for its commit.
    async fn ready(&self, mut batch: Batch) -> Result<Analysed, StoreError> {
        let embedded = self.run(std::mem::take(&mut batch.records)).await?;
        batch.space_key = embedded.space_key;
        batch.outcomes.extend(embedded.outcomes());
        let refused = embedded.refused.into_iter().map(|(row, _)| row);
        batch.records = embedded.rows.into_iter().chain(refused).collect();
        Analysed::of(batch, Some(embedded.dimensions)).await
    }

    /// Embeds `rows`, trying again until it is time to give up.
    async fn run(&self, rows: Vec<RecordRow>) -> Result<Embedded, StoreError> {
        let (began, records) = (Instant::now(), rows.len() as u128);
        let embedded = self.try_until_given_up(rows).await;
        if let Some(nanos) = began.elapsed().as_nanos().checked_div(records) {
            let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
            self.nanos_per_record.store(nanos.max(1), Ordering::Relaxed);
        }
        embedded
    }

    /// What embedding a record took lately.
    fn per_record(&self) -> Option<Duration> {
        let nanos = self.nanos_per_record.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    async fn try_until_given_up(&self, mut rows: Vec<RecordRow>) -> Result<Embedded, StoreError> {
        let (began, mut refused) = (Instant::now(), Vec::new());
        let served = self.served().await?;
        let (space_key, dimensions) = (served.space_key, served.embedder.space().dimensions);
        let mut wait = Duration::from_millis(200);
        loop {
            let Err(error) = self.deriver.embed(&*served.embedder, &mut rows, &mut refused).await else {
                if !rows.is_empty() {
                    self.outage.over();
                    self.progress.well("embed");
                }
                return Ok(Embedded { space_key, dimensions, rows, refused, failed: None });
            };
            if self.progress.trouble_of("embed").is_none() {
                // Back-fill, or another batch, had its vectors meanwhile.
                self.outage.over();
            }
            self.progress.trouble("embed", error.to_string());
            let Some(left) = self.outage.seen(&error, began, Instant::now()) else {
                let records = rows.iter().filter(|row| !row.is_embedded()).count();
                tracing::error!(%error, records, "records are stored without vectors, to be embedded later");
                return Ok(Embedded { space_key, dimensions, rows, refused, failed: Some(error) });
            };
            tracing::error!(%error, "embedding failed; it is tried again");
            let asked = match error {
                EmbedError::Rate { retry_after, .. } => retry_after.unwrap_or_default(),
                _ => Duration::ZERO,
            };
            tokio::time::sleep(wait.max(asked).min(left)).await;
            wait = (2 * wait).min(Duration::from_secs(10));
        }
    }

    async fn served(&self) -> Result<Served, StoreError> {
        loop {
            match self.serving.now().await {
                Err(error) if error.is_transient() => {
                    self.progress.trouble("store", error.to_string());
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                served => return served,
            }
        }
    }
}

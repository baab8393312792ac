//! Replay: deriving again what is in the log, to compare it with what is
//! stored, or to put back what is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::Range,
};

use serde::{Deserialize, Serialize};

pub use crate::jobs::work::ReplayMode as Mode;

use super::{
    Offsets,
    deriver::{Deriver, Frame, Judged},
    frames::{FrameRun, Frames, FramesError},
    serving::Served,
};
use crate::{
    embed::{EmbedError, cosine},
    log::LogReader,
    record::Tier,
    store::{
        Batch, Damage, DamageKind, EMBED_INPUT, Forgetting, OutcomeKind, OutcomeRow, RecordRow, Replayed,
        Store, StoreError, StoredChunk, StoredRecord,
    },
};

/// Which records of a stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Selection {
    /// Their offsets.
    pub offsets: Range<u64>,
    /// Only this tenant's.
    pub tenant: Option<String>,
    /// Only this tier.
    pub tier: Option<Tier>,
    /// Only of this time, in milliseconds since the Unix epoch.
    pub time_ms: Option<Range<i64>>,
}

impl Selection {
    fn takes(&self, row: &RecordRow) -> bool {
        self.tenant.as_ref().is_none_or(|tenant| *tenant == row.tenant)
            && self.tier.is_none_or(|tier| tier == row.tier)
            && self.time_ms.as_ref().is_none_or(|time| time.contains(&row.ts_ms))
    }

    fn takes_all(&self) -> bool {
        self.tenant.is_none() && self.tier.is_none() && self.time_ms.is_none()
    }
}

/// Why a replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log could not be read.
    #[error(transparent)]
    Log(#[from] FramesError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The embedder failed.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

/// What a replay would do, found without embedding anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Frames that would be read.
    pub frames: u64,
    /// Records that would be kept.
    pub records: u64,
    /// Chunks that would be embedded.
    pub chunks: u64,
    /// Their tokens.
    pub tokens: u64,
}

/// How a derived record differs from what is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Offset of the record.
    pub offset: u64,
    /// What differs.
    pub what: String,
}

/// What a replay found or did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Frames read.
    pub frames: u64,
    /// Offsets in the range that the log no longer holds.
    pub lost: u64,
    /// Records whose rows agree with what is stored.
    pub records_agree: u64,
    /// Records not indexed, then as now, for the same reason.
    pub outcomes_agree: u64,
    /// Records that wait for vectors.
    pub waiting: u64,
    /// Vectors stored for the chunks that agree.
    pub vectors_present: u64,
    /// Vectors computed anew and compared.
    pub vectors: u64,
    /// Of these, equal to the last bit.
    pub vectors_identical: u64,
    /// Smallest cosine between a vector and what is stored.
    pub smallest_cosine: Option<f64>,
    /// What differs; at most [`MISMATCHES_KEPT`] of them.
    pub mismatches: Vec<Mismatch>,
    /// How many differ.
    pub mismatched: u64,
    /// Records put back.
    pub records_restored: u64,
    /// Vectors put back.
    pub vectors_restored: u64,
}

/// Mismatches that a report lists.
pub const MISMATCHES_KEPT: usize = 1_000;
/// Two vectors of one text agree from this cosine on: batches of another
/// make-up round differently in the last bits.
pub const AGREEING_COSINE: f64 = 0.9999;

impl Report {
    /// Whether everything derived agrees with what is stored.
    pub fn agrees(&self) -> bool {
        self.mismatched == 0 && self.lost == 0
    }

    /// Adds what was found in offsets that come after these.
    pub fn add(&mut self, next: Self) {
        self.frames += next.frames;
        self.lost += next.lost;
        self.records_agree += next.records_agree;
        self.outcomes_agree += next.outcomes_agree;
        self.waiting += next.waiting;
        self.vectors_present += next.vectors_present;
        self.vectors += next.vectors;
        self.vectors_identical += next.vectors_identical;
        self.smallest_cosine = match (self.smallest_cosine, next.smallest_cosine) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        self.mismatches.extend(next.mismatches);
        self.mismatches.truncate(MISMATCHES_KEPT);
        self.mismatched += next.mismatched;
        self.records_restored += next.records_restored;
        self.vectors_restored += next.vectors_restored;
    }

    fn mismatch(&mut self, offset: u64, what: impl Into<String>) {
        self.mismatched += 1;
        if self.mismatches.len() < MISMATCHES_KEPT {
            self.mismatches.push(Mismatch { offset, what: what.into() });
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "frames read        {}", self.frames)?;
        writeln!(f, "records that agree {}", self.records_agree)?;
        writeln!(f, "not indexed, as before {}", self.outcomes_agree)?;
        if self.waiting > 0 {
            writeln!(f, "wait for vectors   {} records", self.waiting)?;
        }
        if self.vectors_present > 0 {
            writeln!(f, "vectors present    {}", self.vectors_present)?;
        }
        if let Some(cosine) = self.smallest_cosine {
            writeln!(
                f,
                "vectors compared   {}, identical to the last bit {}, smallest cosine {cosine:.7}",
                self.vectors, self.vectors_identical
            )?;
        }
        if self.records_restored + self.vectors_restored > 0 {
            writeln!(
                f,
                "put back           {} records, {} vectors",
                self.records_restored, self.vectors_restored
            )?;
        }
        if self.lost > 0 {
            writeln!(f, "lost in the log    {}", self.lost)?;
        }
        for mismatch in self.mismatches.iter().take(20) {
            writeln!(f, "offset {}: {}", mismatch.offset, mismatch.what)?;
        }
        write!(f, "mismatches         {}", self.mismatched)
    }
}

/// Derives again from one stream.
pub struct Replay {
    /// Reads the stream.
    pub log: LogReader,
    /// Turns frames into rows.
    pub deriver: Deriver,
    /// What is stored.
    pub store: Store,
    /// The pipeline whose outcomes are compared.
    pub pipeline: String,
    /// The live space.
    pub served: Served,
    /// Digest of the configuration.
    pub config_digest: String,
    /// Batch tag of rows that are put back.
    pub batch_tag: String,
}

impl Replay {
    /// Counts what a replay of `selection` would read and embed.
    pub async fn plan(&self, selection: &Selection, mut told: impl FnMut(u64)) -> Result<Plan, ReplayError> {
        let mut plan = Plan::default();
        let mut frames = Frames::new(self.log.clone(), selection.offsets.clone());
        while let Some(batch) = frames.next().await? {
            told(batch.frames.len() as u64);
            plan.frames += batch.frames.len() as u64;
            for row in self.kept(batch.frames).await.0.values() {
                if selection.takes(row) {
                    plan.records += 1;
                    plan.chunks += row.chunks.len() as u64;
                    plan.tokens += row.chunks.iter().map(|c| c.tokens as u64).sum::<u64>();
                }
            }
        }
        Ok(plan)
    }

    /// Derives `selection` again. `told` hears of each batch of frames that is
    /// done. Nothing that live work writes is touched, and a replay that is
    /// broken off can be started again.
    pub async fn run(
        &self,
        selection: &Selection,
        mode: Mode,
        now_ms: i64,
        mut told: impl FnMut(u64),
    ) -> Result<Report, ReplayError> {
        let mut report = Report::default();
        let mut frames = Frames::new(self.log.clone(), selection.offsets.clone());
        while let Some(batch) = frames.next().await? {
            let read = batch.frames.len() as u64;
            report.frames += read;
            report.lost += batch.lost;
            match mode {
                Mode::Verify => self.verify(batch, selection, false, &mut report).await?,
                Mode::Recompute => self.verify(batch, selection, true, &mut report).await?,
                Mode::Restore => self.restore(batch, selection, now_ms, &mut report).await?,
            }
            told(read);
        }
        report.lost = report.lost.saturating_sub(self.expired(&selection.offsets).await?);
        Ok(report)
    }

    /// How many of `range` are of segments that were older than they are kept.
    async fn expired(&self, range: &Range<u64>) -> Result<u64, StoreError> {
        let damage = self.store.damage(self.log.stream()).await?;
        let expired: Offsets =
            damage.iter().filter(|one| one.kind == DamageKind::Expired).map(Damage::offsets).collect();
        let there: u64 = expired.missing(range.clone()).iter().map(|rest| rest.end - rest.start).sum();
        Ok(range.end.saturating_sub(range.start) - there)
    }

    /// What is kept of `frames`, by offset, and why the others are not.
    ///
    /// Judged with the filters as loose as they go: what passes says at which
    /// step, so that no step has to be remembered.
    async fn kept(&self, frames: Vec<Frame>) -> (BTreeMap<u64, RecordRow>, BTreeMap<u64, Verdict>) {
        let loosest = self.deriver.settings().quality.relax.max_steps;
        let (mut rows, mut verdicts) = (BTreeMap::new(), BTreeMap::new());
        for judged in self.deriver.judge(frames, loosest).await.0 {
            match judged {
                Judged::Keep { row, step } => {
                    verdicts.insert(row.offset, Verdict::Kept { step });
                    rows.insert(row.offset, row);
                }
                Judged::Reject { offset, reason, .. } => {
                    verdicts
                        .insert(offset, Verdict::Not { kind: OutcomeKind::Rejected, reason: reason.into() });
                }
                Judged::Dead { offset, code, .. } => {
                    verdicts.insert(
                        offset,
                        Verdict::Not { kind: OutcomeKind::DeadLettered, reason: code.into() },
                    );
                }
            }
        }
        (rows, verdicts)
    }

    async fn verify(
        &self,
        batch: FrameRun,
        selection: &Selection,
        recompute: bool,
        report: &mut Report,
    ) -> Result<(), ReplayError> {
        let stream = self.log.stream();
        let (from, to) = batch.bounds();
        let stored = self.store.stored(stream, from, to, self.served.space_key).await?;
        let stored: BTreeMap<u64, StoredRecord> = stored.into_iter().map(|r| (r.offset, r)).collect();
        let outcomes = self.store.outcomes(&self.pipeline, stream, from, to).await?;
        let outcomes: BTreeMap<u64, OutcomeRow> = outcomes.into_iter().map(|o| (o.offset, o)).collect();
        let (mut rows, verdicts) = self.kept(batch.frames).await;
        let bereft = self.bereft(&rows, outcomes.values()).await?;
        rows.retain(|offset, row| selection.takes(row) && stored.contains_key(offset));
        let mut rows: Vec<RecordRow> = rows.into_values().collect();
        let fate = |offset: &u64| outcomes.get(offset).map(|outcome| outcome.kind);
        let incomplete = |fate| matches!(fate, Some(OutcomeKind::Deferred | OutcomeKind::DeadLettered));
        if recompute {
            rows.retain(|row| !incomplete(fate(&row.offset)));
            let mut refused = Vec::new();
            self.deriver.embed(&*self.served.model, &mut rows, &mut refused).await?;
            for (row, reason) in refused {
                report.mismatch(row.offset, format!("the embedder refuses it now: {reason}"));
            }
        }
        for row in &rows {
            if let Some(stored) = stored.get(&row.offset) {
                compare(row, stored, fate(&row.offset), report);
            }
        }
        for (offset, verdict) in verdicts {
            if rows.iter().any(|row| row.offset == offset) || !selection.takes_all() {
                continue;
            }
            if bereft.contains(&offset) {
                report.mismatch(offset, "it was a duplicate, and what it was one of is gone");
                continue;
            }
            match disagreement(&verdict, outcomes.get(&offset), stored.contains_key(&offset)) {
                None => report.outcomes_agree += 1,
                Some(what) => report.mismatch(offset, what),
            }
        }
        Ok(())
    }

    /// Of `rows` those that were left out as duplicates of records that have
    /// been erased since; each content once.
    async fn bereft(
        &self,
        rows: &BTreeMap<u64, RecordRow>,
        outcomes: impl IntoIterator<Item = &OutcomeRow>,
    ) -> Result<BTreeSet<u64>, StoreError> {
        let duplicates = outcomes.into_iter().filter(|o| o.kind == OutcomeKind::Deduplicated);
        let mut first: BTreeMap<[u8; 32], (u64, String)> = BTreeMap::new();
        for duplicate in duplicates {
            if let Some(key) = rows.get(&duplicate.offset).and_then(|row| row.dedupe_key) {
                first.entry(key).or_insert_with(|| (duplicate.offset, duplicate.detail.clone()));
            }
        }
        let keys: Vec<[u8; 32]> = first.keys().copied().collect();
        let held = self.store.known(&keys).await?;
        first.retain(|key, _| !held.contains_key(key));
        let mut bereft = BTreeSet::new();
        for (offset, twin) in first.into_values() {
            if !self.has_expired(&twin).await? {
                bereft.insert(offset);
            }
        }
        Ok(bereft)
    }

    /// Whether the record at STREAM/OFFSET was older than records are kept:
    /// what it was the duplicate of is then as old.
    async fn has_expired(&self, place: &str) -> Result<bool, StoreError> {
        let Some((stream, Ok(offset))) = place.rsplit_once('/').map(|(s, offset)| (s, offset.parse::<u64>()))
        else {
            return Ok(false);
        };
        let outcomes = self.store.outcomes(&self.pipeline, stream, offset, offset + 1).await?;
        Ok(outcomes.iter().any(|outcome| outcome.reason == Forgetting::Expired.as_str()))
    }

    async fn restore(
        &self,
        batch: FrameRun,
        selection: &Selection,
        now_ms: i64,
        report: &mut Report,
    ) -> Result<(), ReplayError> {
        let stream = self.log.stream();
        let (from, to) = batch.bounds();
        let outcomes = self.store.outcomes(&self.pipeline, stream, from, to).await?;
        let stored = self.store.stored(stream, from, to, self.served.space_key).await?;
        let complete: Vec<u64> = stored
            .iter()
            .filter(|r| r.chunks.iter().all(|chunk| chunk.vector.is_some()))
            .map(|r| r.offset)
            .collect();
        let (mut rows, _) = self.kept(batch.frames).await;
        let bereft = self.bereft(&rows, &outcomes).await?;
        let is_open = |o: &OutcomeRow| o.kind == OutcomeKind::Deferred || bereft.contains(&o.offset);
        let decided: Vec<u64> = outcomes.iter().filter(|o| !is_open(o)).map(|o| o.offset).collect();
        rows.retain(|offset, row| {
            selection.takes(row) && !decided.contains(offset) && !complete.contains(offset)
        });
        report.records_agree += complete.len() as u64;
        let (mut records, mut refused): (Vec<RecordRow>, _) = (rows.into_values().collect(), Vec::new());
        let embedded = self.deriver.embed(&*self.served.embedder, &mut records, &mut refused).await;
        // What was had is kept, also where the rest is not to be had.
        records.retain(RecordRow::is_embedded);
        for (row, reason) in refused {
            report.mismatch(row.offset, format!("the embedder refuses it: {reason}"));
        }
        let put = Batch {
            from,
            to,
            lost: 0,
            batch_tag: self.batch_tag.clone(),
            space_key: self.served.space_key,
            config_digest: self.config_digest.clone(),
            records,
            outcomes: Vec::new(),
            now_ms,
        };
        let Replayed { records, vectors, differing, .. } =
            self.store.put_missing(&self.pipeline, stream, put).await?;
        report.records_restored += records;
        report.vectors_restored += vectors;
        report.mismatched += differing;
        Ok(embedded?)
    }
}

#[derive(Debug)]
enum Verdict {
    Kept { step: u32 },
    Not { kind: OutcomeKind, reason: String },
}

/// How a verdict differs from what the live run did with the offset.
fn disagreement(verdict: &Verdict, outcome: Option<&OutcomeRow>, stored: bool) -> Option<String> {
    match (verdict, outcome) {
        (Verdict::Not { kind, reason }, Some(then)) if *kind == then.kind && *reason == then.reason => None,
        // Its content was there already, which a frame alone can't tell.
        (Verdict::Kept { .. }, Some(then)) if then.kind == OutcomeKind::Deduplicated => None,
        // It was older than records are kept.
        (Verdict::Kept { .. }, Some(then)) if then.reason == Forgetting::Expired.as_str() => None,
        // It passes only relaxed filters, and they were not relaxed then.
        (Verdict::Kept { step: 1.. }, Some(then)) if then.kind == OutcomeKind::Rejected => None,
        // It waits for vectors.
        (Verdict::Kept { .. }, Some(then)) if then.kind == OutcomeKind::Deferred && stored => None,
        // The embedder refused it.
        (Verdict::Kept { .. }, Some(then)) if then.reason == EMBED_INPUT => None,
        (Verdict::Kept { .. }, None) if stored => None,
        (verdict, Some(then)) => {
            Some(format!("it was {} ({}), and is {verdict} now", then.kind.as_str(), then.reason))
        }
        (verdict, None) if stored => Some(format!("it was indexed, and is {verdict} now")),
        (Verdict::Kept { .. }, None) => Some("it is not stored".into()),
        (verdict, None) => Some(format!("nothing is stored about it; it is {verdict} now")),
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kept { .. } => f.write_str("kept"),
            Self::Not { kind, reason } => write!(f, "{} ({reason})", kind.as_str()),
        }
    }
}

fn compare(row: &RecordRow, stored: &StoredRecord, fate: Option<OutcomeKind>, report: &mut Report) {
    if row.tenant != stored.tenant || row.session != stored.session || row.tier != stored.tier {
        return report.mismatch(row.offset, "tenant, session or tier differ");
    }
    if row.chunks.len() != stored.chunks.len() {
        let what = format!("{} chunks are stored, {} are derived", stored.chunks.len(), row.chunks.len());
        return report.mismatch(row.offset, what);
    }
    for (chunk, stored) in row.chunks.iter().zip(&stored.chunks) {
        if chunk.digest.as_slice() != stored.digest || chunk.text != stored.text {
            return report.mismatch(row.offset, format!("the text of chunk {} differs", chunk.chunk));
        }
        if let Some(what) = compare_vectors(chunk.vector.as_deref(), stored, fate.is_some(), report) {
            return report.mismatch(row.offset, format!("chunk {}: {what}", chunk.chunk));
        }
    }
    report.waiting += u64::from(fate == Some(OutcomeKind::Deferred));
    report.records_agree += 1;
}

fn compare_vectors(
    derived: Option<&[f32]>,
    stored: &StoredChunk,
    may_lack: bool,
    report: &mut Report,
) -> Option<String> {
    let Some(stored) = &stored.vector else {
        return (!may_lack).then(|| "no vector is stored".into());
    };
    report.vectors_present += 1;
    let derived = derived?;
    report.vectors += 1;
    if derived == stored.as_slice() {
        report.vectors_identical += 1;
    }
    let cosine = cosine(derived, stored);
    report.smallest_cosine = Some(report.smallest_cosine.map_or(cosine, |least| least.min(cosine)));
    (cosine < AGREEING_COSINE).then(|| format!("the vectors' cosine is {cosine:.6}"))
}

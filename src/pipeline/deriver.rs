//! From frames to rows: the one path that live work, catch-up and replay
//! share.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use bytes::Bytes;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::{
    dataflow::Cpu,
    embed::{EmbedError, Embedder, Refused, Work},
    metrics,
    record::{Defaults, RecordRef, Tier},
    store::{ChunkRow, Forgetting, RecordRow},
    transform::{self, Outcome, TokenSpans, pii::Scanner, relax::Tally},
};

/// A frame to derive from.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Its offset.
    pub offset: u64,
    /// When it was appended, in milliseconds since the Unix epoch.
    pub appended_ms: i64,
    /// The payload.
    pub payload: Bytes,
}

/// What becomes of a frame, before deduplication.
#[derive(Clone, Debug)]
pub enum Judged {
    /// It is to be indexed. Its chunks have no vectors yet.
    Keep {
        /// The row.
        row: RecordRow,
        /// The first step of relaxation at which it passed.
        step: u32,
    },
    /// A filter rejected it.
    Reject {
        /// Its offset.
        offset: u64,
        /// Which filter.
        reason: &'static str,
        /// The particulars.
        detail: String,
    },
    /// It is no record. Admission proves frames, so only a log written by
    /// something else holds one.
    Dead {
        /// Its offset.
        offset: u64,
        /// What is wrong.
        code: &'static str,
        /// The particulars.
        detail: String,
    },
}

/// Derives rows from frames.
#[derive(Clone)]
pub struct Deriver {
    settings: Arc<transform::Settings>,
    defaults: Arc<Defaults>,
    scanner: Arc<Scanner>,
    tokens: Arc<dyn TokenSpans>,
    work: Work,
    cpu: Cpu,
}

impl Deriver {
    /// With these settings, chunks counted in these tokens, on these threads.
    pub fn new(
        settings: transform::Settings,
        defaults: Defaults,
        tokens: Arc<dyn TokenSpans>,
        cpu: Cpu,
    ) -> Self {
        Self {
            scanner: Arc::new(Scanner::new(&settings.pii)),
            settings: Arc::new(settings),
            defaults: Arc::new(defaults),
            tokens,
            work: Work::Live,
            cpu,
        }
    }

    /// The same, for work that can wait.
    #[must_use]
    pub fn for_backfill(self) -> Self {
        Self { work: Work::Backfill, ..self }
    }

    /// The settings in force.
    pub fn settings(&self) -> &transform::Settings {
        &self.settings
    }

    /// Judges frames in parallel, with the filters relaxed by `step` steps.
    /// Gives the results in the order of the frames, and what they add to the
    /// window that relaxation looks at.
    pub async fn judge(&self, frames: Vec<Frame>, step: u32) -> (Vec<Judged>, Tally) {
        let this = self.clone();
        let judged: Vec<(Judged, Tally)> =
            self.cpu.run(move || frames.par_iter().map(|frame| this.judge_one(frame, step)).collect()).await;
        let mut tally = Tally::default();
        judged.iter().for_each(|(_, one)| tally.add(*one));
        (judged.into_iter().map(|(judged, _)| judged).collect(), tally)
    }

    fn judge_one(&self, frame: &Frame, step: u32) -> (Judged, Tally) {
        let offset = frame.offset;
        if frame.payload.is_empty() {
            let reason = Forgetting::Erased.as_str();
            return (Judged::Reject { offset, reason, detail: String::new() }, Tally::default());
        }
        let (record, anonymous) = match RecordRef::parse(&frame.payload) {
            Ok(record) => {
                let anonymous = record.id.is_none() && record.ts_ms.is_none();
                (record.to_record(&self.defaults, frame.appended_ms), anonymous)
            }
            Err(fault) => {
                let dead = Judged::Dead { offset, code: fault.code(), detail: fault.to_string() };
                return (dead, Tally::default());
            }
        };
        let derived = transform::derive(&record, &self.settings, &self.scanner, step, &*self.tokens);
        let judged = match derived.outcome {
            Outcome::Rejected { reason, detail } => Judged::Reject { offset, reason, detail },
            Outcome::Kept(kept) => {
                let chunks = kept.chunks.iter().zip(0..).map(|(chunk, number)| {
                    let text = kept.text.get(chunk.range.clone()).unwrap_or_default().to_owned();
                    ChunkRow {
                        chunk: number,
                        start: chunk.range.start,
                        end: chunk.range.end,
                        tokens: chunk.tokens,
                        digest: Sha256::digest(&text).into(),
                        text,
                        vector: None,
                    }
                });
                let row = RecordRow {
                    offset,
                    chunks: chunks.collect(),
                    record_id: record.id,
                    ts_ms: record.ts_ms,
                    tenant: record.tenant,
                    session: record.session,
                    source: record.source,
                    tier: record.tier,
                    attrs: serde_json::Value::Object(record.attrs).to_string(),
                    // An event that brings neither id nor time says nothing by
                    // which it and its like could be told apart, and a turn
                    // must not be lost: it is never taken for a duplicate.
                    dedupe_key: kept.dedupe_key.filter(|_| !(anonymous && record.tier == Tier::Event)),
                };
                Judged::Keep { row, step: kept.step }
            }
        };
        (judged, derived.tally)
    }

    /// Gives every chunk that lacks one its vector. Rows with a text that the
    /// embedder will never take go to `refused`, with the reason and with the
    /// vectors that they have.
    ///
    /// # Errors
    /// When the embedder fails as a whole. What was done is kept: calling
    /// again goes on where it stopped.
    pub async fn embed(
        &self,
        embedder: &dyn Embedder,
        rows: &mut Vec<RecordRow>,
        refused: &mut Vec<(RecordRow, String)>,
    ) -> Result<(), EmbedError> {
        loop {
            let texts: Vec<String> = missing(rows).map(|chunk| chunk.text.clone()).collect();
            if texts.is_empty() {
                return Ok(());
            }
            let (started, count) = (Instant::now(), texts.len());
            let partial = embedder.embed_each(texts, self.work).await;
            let done = partial.vectors.iter().flatten().count();
            if done > 0 {
                metrics::embedded(started.elapsed(), done);
            }
            let mut dead: BTreeMap<usize, String> = BTreeMap::new();
            for Refused { index, reason } in partial.refused {
                let Some(row) = row_of(rows, index) else {
                    return Err(EmbedError::Configuration {
                        reason: format!("it refused text {index} of {count}: {reason}"),
                    });
                };
                dead.entry(row).or_insert(reason);
            }
            let idle = done == 0 && dead.is_empty();
            for (chunk, vector) in missing(rows).zip(partial.vectors) {
                chunk.vector = vector;
            }
            for (row, reason) in dead.into_iter().rev() {
                refused.push((rows.remove(row), reason));
            }
            match partial.failed {
                Some(error) => return Err(error),
                None if idle => {
                    return Err(EmbedError::Transient { reason: "it gave no vectors and no reason".into() });
                }
                None => {}
            }
        }
    }
}

fn missing(rows: &mut [RecordRow]) -> impl Iterator<Item = &mut ChunkRow> {
    rows.iter_mut().flat_map(|row| &mut row.chunks).filter(|chunk| chunk.vector.is_none())
}

/// Which row holds the `index`-th chunk without a vector.
fn row_of(rows: &[RecordRow], index: usize) -> Option<usize> {
    let mut before = 0;
    rows.iter().position(|row| {
        before += row.chunks.iter().filter(|chunk| chunk.vector.is_none()).count();
        index < before
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures::future::BoxFuture;

    use super::*;
    use crate::embed::{Hashing, Partial, Space};

    /// Embeds two texts a call, but for those that say otherwise, and
    /// remembers which it embedded.
    #[derive(Default)]
    struct Halting {
        like: Hashing,
        embedded: Mutex<Vec<String>>,
    }

    impl Embedder for Halting {
        fn space(&self) -> &Space {
            self.like.space()
        }

        fn embed(&self, _: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
            unreachable!("what was done would be lost")
        }

        fn embed_each(&self, texts: Vec<String>, work: Work) -> BoxFuture<'_, Partial> {
            assert_eq!(work, Work::Backfill);
            let mut partial = Partial { vectors: vec![None; texts.len()], ..Partial::default() };
            let mut embedded = self.embedded.lock().unwrap();
            for (index, text) in texts.into_iter().enumerate() {
                if text.contains("poison") {
                    partial.refused.push(Refused { index, reason: text });
                } else if partial.vectors.iter().flatten().count() < 2 {
                    partial.vectors[index] = Some(vec![1.0]);
                    embedded.push(text);
                } else {
                    partial.failed = Some(EmbedError::Transient { reason: "enough".into() });
                }
            }
            Box::pin(async { partial })
        }

        fn tokens(&self) -> Arc<dyn TokenSpans> {
            self.like.tokens()
        }
    }

    fn row(offset: u64, texts: &[&str]) -> RecordRow {
        let chunk = |(number, text): (u32, &&str)| ChunkRow {
            chunk: number,
            start: 0,
            end: text.len(),
            tokens: 1,
            digest: [0; 32],
            text: (*text).to_owned(),
            vector: None,
        };
        RecordRow {
            offset,
            record_id: None,
            ts_ms: 0,
            tenant: "t".into(),
            session: None,
            source: "s".into(),
            tier: Tier::Event,
            attrs: "{}".into(),
            dedupe_key: None,
            chunks: (0..).zip(texts).map(chunk).collect(),
        }
    }

    #[tokio::test]
    async fn what_was_embedded_before_a_failure_is_not_embedded_again() {
        let embedder = Arc::new(Halting::default());
        let (settings, defaults) = (transform::Settings::default(), Defaults::default());
        let deriver =
            Deriver::new(settings, defaults, embedder.tokens(), Cpu::new(1).unwrap()).for_backfill();
        let mut rows =
            vec![row(1, &["a", "b"]), row(2, &["c", "poison 1", "poison 2"]), row(3, &["d", "e", "f"])];
        let mut refused = Vec::new();
        assert!(deriver.embed(&*embedder, &mut rows, &mut refused).await.is_err());
        let [(row, reason)] = refused.as_slice() else { panic!("{refused:?}") };
        assert_eq!((row.offset, reason.as_str()), (2, "poison 1"));
        assert!(deriver.embed(&*embedder, &mut rows, &mut refused).await.is_err());
        deriver.embed(&*embedder, &mut rows, &mut refused).await.unwrap();
        assert_eq!(rows.iter().map(|row| row.offset).collect::<Vec<_>>(), [1, 3]);
        assert!(rows.iter().flat_map(|row| &row.chunks).all(|chunk| chunk.vector.is_some()));
        assert_eq!(*embedder.embedded.lock().unwrap(), ["a", "b", "d", "e", "f"]);
    }
}

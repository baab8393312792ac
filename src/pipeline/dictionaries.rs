//! Dictionaries of one stream: trained on its own segments, judged on others
//! of them, adopted if they win.
//!
//! Of the latest segments the newest quarter is held out: it is nearest to
//! what a dictionary will be used for, and whatever was learned from the older
//! ones must prove itself there. Everything is weighed as it would be stored,
//! whole segments with index and seek table.
//!
//! A trial that adopts leaves an artifact of kind `dictionary`, one that does
//! not an artifact of kind `report`; the figures stand in the registry row of
//! either.

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc};

use rayon::prelude::*;
use serde::Serialize;

use crate::{
    artifact::{ArtifactError, Artifacts, Description, hex},
    dataflow::Cpu,
    dictionary::{Contest, Dictionary, Entrant, Identity, Library, LoadError, Sampler, TrainError, Verdict},
    frame::PREFIX_BYTES,
    log::{LogReader, Segment},
    segment::{self, ReadError, Reader, SealError, SegmentHeader, weigh},
    store::ArtifactRow,
    units::ByteSize,
};

/// Samples have at most this many times the bytes of the largest dictionary;
/// zstd's manual asks for about a hundred times.
const SAMPLE_FACTOR: u64 = 100;
/// And never more than this.
const MAX_SAMPLE_BYTES: u64 = 64 << 20;
/// Fewest segments that can be divided into a part to train on and a part to
/// judge on.
const FEWEST_SEGMENTS: usize = 2;

/// What is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Training {
    /// How many of the latest sealed segments are looked at.
    pub segments: NonZeroUsize,
    /// Sizes of dictionary that are tried.
    pub sizes: Vec<ByteSize>,
    /// Decides which frames are samples.
    pub seed: u64,
}

impl Default for Training {
    fn default() -> Self {
        let segments = NonZeroUsize::MIN.saturating_add(7);
        Self { segments, sizes: [16, 64, 112].map(ByteSize::kib).to_vec(), seed: 0 }
    }
}

/// Why there is no new dictionary, nor a verdict on one.
#[derive(Debug, thiserror::Error)]
pub enum DictionariesError {
    /// There is nothing to judge on that was not trained on.
    #[error(
        "stream `{stream}` has {sealed} sealed segments, and a dictionary needs {FEWEST_SEGMENTS}: one to train on, one to judge on; `thalweg segments seal` seals what is active"
    )]
    TooFew {
        /// The stream.
        stream: String,
        /// Its sealed segments.
        sealed: usize,
    },
    /// A segment could not be read.
    #[error("a segment to train on cannot be read: {0}")]
    Read(#[from] ReadError),
    /// A segment could not be weighed.
    #[error("a held-out segment cannot be weighed: {0}")]
    Weigh(#[from] SealError),
    /// The trainer gave nothing, whatever the size.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A dictionary beside the log cannot be read.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A dictionary beside the log cannot be written.
    #[error("the dictionary cannot be kept in {folder}: {source}", folder = folder.display())]
    Keep {
        /// The folder.
        folder: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The object of a dictionary is not what its row says.
    #[error("the object {location} is not the dictionary {digest}; `thalweg artifacts verify` tells more")]
    Object {
        /// SHA-256 of the dictionary, in hex.
        digest: String,
        /// The object.
        location: String,
    },
    /// The object store or registry refused.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Writing beside the log panicked.
    #[error("keeping the dictionary failed: {0}")]
    Panicked(#[from] tokio::task::JoinError),
}

/// A segment of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Its first offset.
    pub base_offset: u64,
    /// SHA-256 of its frames, in hex.
    pub content_digest: String,
}

/// A dictionary of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// SHA-256 of its bytes, in hex.
    pub digest: String,
    /// The id zstd knows it by.
    pub zstd_id: u32,
    /// What it came to.
    #[serde(flatten)]
    pub entrant: Entrant,
}

/// What a training found and decided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The stream.
    pub stream: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Level of compression.
    pub level: i32,
    /// Plain bytes of a block with a dictionary, and of the same blocks without.
    pub dictionary_block_bytes: u64,
    /// Plain bytes of a block as they are without a dictionary.
    pub block_bytes: u64,
    /// By which share a dictionary must win.
    pub margin: f64,
    /// Decided which frames are samples.
    pub seed: u64,
    /// Segments that samples were drawn from.
    pub trained_on: Vec<Used>,
    /// Segments that were weighed.
    pub held_out: Vec<Used>,
    /// The offset after the newest of them.
    pub end_offset: u64,
    /// How many samples.
    pub samples: usize,
    /// Their bytes.
    pub sample_bytes: usize,
    /// Bytes of the frames of the held-out segments.
    pub plain_bytes: u64,
    /// Every dictionary that was tried, smallest first.
    pub tried: Vec<Tried>,
    /// Sizes that gave no dictionary, and why.
    pub failed: Vec<String>,
    /// The best of them.
    pub best: Tried,
    /// The dictionary that was adopted before, in hex.
    pub present: Option<String>,
    /// What the held-out segments came to.
    pub contest: Contest,
    /// What follows.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// The dictionaries of one stream.
#[derive(Clone)]
pub struct Dictionaries {
    /// The stream.
    pub stream: String,
    /// The copies beside its log.
    pub library: Library,
    /// How its segments are sealed.
    pub settings: segment::Settings,
    /// Where dictionaries and reports are kept.
    pub artifacts: Artifacts,
}

impl Dictionaries {
    /// Trains on the latest segments of `log` and decides, without adopting
    /// anything. Computes for seconds, on `cpu`.
    ///
    /// # Errors
    /// See [`DictionariesError`].
    pub async fn try_out(
        &self,
        log: &LogReader,
        training: Training,
        cpu: &Cpu,
        now_ms: i64,
    ) -> Result<(Trial, Dictionary), DictionariesError> {
        let mut readers: Vec<Arc<Reader>> = sealed(log).collect();
        if readers.len() < FEWEST_SEGMENTS {
            return Err(DictionariesError::TooFew { stream: self.stream.clone(), sealed: readers.len() });
        }
        let wanted = training.segments.get().max(FEWEST_SEGMENTS);
        readers.drain(..readers.len().saturating_sub(wanted));
        let this = self.clone();
        cpu.run(move || this.compute(&readers, &training, now_ms)).await
    }

    /// Trains, decides, records the verdict, and adopts the dictionary if it
    /// won: first the object, then the copy beside the log, then the pointer.
    ///
    /// # Errors
    /// See [`DictionariesError`].
    pub async fn train(
        &self,
        log: &LogReader,
        training: Training,
        cpu: &Cpu,
        now_ms: i64,
    ) -> Result<Trial, DictionariesError> {
        let (trial, dictionary) = self.try_out(log, training, cpu, now_ms).await?;
        let meta = serde_json::to_value(&trial).unwrap_or_default();
        if trial.verdict == Verdict::Adopted {
            let name = format!("{}/{}", self.stream, trial.best.zstd_id);
            let what = Description { kind: "dictionary", name, extension: "dict", meta, now_ms };
            self.artifacts.put_bytes(dictionary.bytes().to_vec(), what).await?;
            let library = self.library.clone();
            tokio::task::spawn_blocking(move || library.adopt(&dictionary))
                .await?
                .map_err(|source| DictionariesError::Keep { folder: self.library.folder(), source })?;
        } else {
            let name = format!("{}/dictionary trial", self.stream);
            let report = meta.to_string().into_bytes();
            let what = Description { kind: "report", name, extension: "json", meta, now_ms };
            self.artifacts.put_bytes(report, what).await?;
        }
        Ok(trial)
    }

    /// Whether `segments_due` segments were sealed since the last trial; never
    /// if that is 0.
    ///
    /// # Errors
    /// If the registry cannot be read.
    pub async fn due(&self, log: &LogReader, segments_due: u64) -> Result<bool, DictionariesError> {
        if segments_due == 0 {
            return Ok(false);
        }
        let rows = self.artifacts.list().await?;
        let trials = rows.iter().filter(|row| matches!(row.kind.as_str(), "dictionary" | "report"));
        let judged = trials.filter_map(|row| self.meta_of(row)?.get("end_offset")?.as_u64()).max();
        let since = sealed(log).filter(|reader| reader.info().base_offset >= judged.unwrap_or(0)).count();
        Ok(since as u64 >= segments_due.max(FEWEST_SEGMENTS as u64))
    }

    /// The registry rows of this stream's dictionaries, oldest first.
    ///
    /// # Errors
    /// If the registry cannot be read.
    pub async fn registered(&self) -> Result<Vec<ArtifactRow>, DictionariesError> {
        let mut rows = self.artifacts.list().await?;
        rows.retain(|row| row.kind == "dictionary" && self.meta_of(row).is_some());
        Ok(rows)
    }

    /// The meta of `row`, if that is about this stream.
    fn meta_of(&self, row: &ArtifactRow) -> Option<serde_json::Value> {
        let meta: serde_json::Value = serde_json::from_str(&row.meta).ok()?;
        (meta.get("stream")?.as_str()? == self.stream).then_some(meta)
    }

    /// Puts back the copies beside the log that are missing or altered, from
    /// the object store. Returns the digests, in hex.
    ///
    /// # Errors
    /// See [`DictionariesError`].
    pub async fn restore(&self) -> Result<Vec<String>, DictionariesError> {
        let mut restored = Vec::new();
        for row in self.registered().await? {
            let object =
                || DictionariesError::Object { digest: row.digest.clone(), location: row.location.clone() };
            let digest = Identity::digest_of_hex(&row.digest).ok_or_else(object)?;
            if self.library.holds(&digest)? {
                continue;
            }
            let bytes = self.artifacts.bytes(&row).await?;
            let dictionary = Dictionary::new(bytes.to_vec())
                .ok()
                .filter(|dictionary| dictionary.identity().digest == digest)
                .ok_or_else(object)?;
            let library = self.library.clone();
            tokio::task::spawn_blocking(move || library.keep(&dictionary))
                .await?
                .map_err(|source| DictionariesError::Keep { folder: self.library.folder(), source })?;
            restored.push(row.digest);
        }
        Ok(restored)
    }

    /// `readers`: in log order, at least [`FEWEST_SEGMENTS`].
    fn compute(
        &self,
        readers: &[Arc<Reader>],
        training: &Training,
        now_ms: i64,
    ) -> Result<(Trial, Dictionary), DictionariesError> {
        let (trained_on, held_out) = divided(readers);
        let largest = training.sizes.iter().map(|size| size.0).max().unwrap_or_default();
        let most = ByteSize(largest.saturating_mul(SAMPLE_FACTOR).min(MAX_SAMPLE_BYTES));
        let mut sampler = Sampler::new(training.seed, plain_bytes(trained_on), most.as_usize());
        trained_on.iter().try_for_each(|reader| draw(reader, &mut sampler))?;
        let samples = sampler.finish();
        let trained: Vec<_> = training.sizes.par_iter().map(|size| samples.train(size.as_usize())).collect();
        let (mut failed, mut candidates) = (Vec::new(), Vec::new());
        for result in trained {
            match result {
                Ok(dictionary) => candidates.push(self.weighed(held_out, dictionary)?),
                Err(error) => failed.push(error),
            }
        }
        candidates.sort_by_key(|(_, dictionary)| dictionary.bytes().len());
        let tried = candidates.iter().map(|(tried, _)| tried.clone()).collect();
        let Some((best, dictionary)) = candidates.into_iter().min_by_key(|(tried, _)| tried.entrant.total())
        else {
            let none = TrainError::NoSize;
            return Err(failed.into_iter().next().unwrap_or(none).into());
        };
        let present = self.library.adopted()?;
        let divided =
            segment::Settings { block_bytes: self.settings.dictionary_block_bytes, ..self.settings.clone() };
        let contest = Contest {
            entrant: best.entrant,
            without: weigh_all(held_out, &divided, None)?,
            undivided: weigh_all(held_out, &self.settings, None)?,
            present: present
                .as_deref()
                .map(|present| weigh_all(held_out, &self.settings, Some(present)))
                .transpose()?,
        };
        let trial = Trial {
            stream: self.stream.clone(),
            at_ms: now_ms,
            level: self.settings.level,
            dictionary_block_bytes: self.settings.dictionary_block_bytes.0,
            block_bytes: self.settings.block_bytes.0,
            margin: self.settings.dictionary_margin,
            seed: training.seed,
            trained_on: trained_on.iter().map(|reader| used(reader)).collect(),
            held_out: held_out.iter().map(|reader| used(reader)).collect(),
            end_offset: held_out.last().map_or(0, |reader| reader.info().end_offset),
            samples: samples.count(),
            sample_bytes: samples.bytes(),
            plain_bytes: plain_bytes(held_out),
            tried,
            failed: failed.iter().map(ToString::to_string).collect(),
            best,
            present: present.map(|present| present.identity().hex()),
            verdict: contest.verdict(self.settings.dictionary_margin),
            contest,
        };
        Ok((trial, dictionary))
    }

    fn weighed(
        &self,
        held_out: &[Arc<Reader>],
        dictionary: Dictionary,
    ) -> Result<(Tried, Dictionary), DictionariesError> {
        let entrant = Entrant {
            dictionary_bytes: dictionary.bytes().len() as u64,
            segment_bytes: weigh_all(held_out, &self.settings, Some(&dictionary))?,
        };
        let Identity { zstd_id, .. } = dictionary.identity();
        Ok((Tried { digest: dictionary.identity().hex(), zstd_id, entrant }, dictionary))
    }
}

fn sealed(log: &LogReader) -> impl Iterator<Item = Arc<Reader>> {
    log.segments().into_values().filter_map(|segment| match segment {
        Segment::Sealed(reader) => Some(reader),
        Segment::Raw(_) => None,
    })
}

/// What is trained on, and the newest quarter, at least one, that is held out.
fn divided<T>(segments: &[T]) -> (&[T], &[T]) {
    let held_out = (segments.len() / 4).max(1);
    segments.split_at(segments.len().saturating_sub(held_out))
}

fn draw(reader: &Reader, sampler: &mut Sampler) -> Result<(), ReadError> {
    for batch in reader.batches_from(0) {
        let mut rest = batch?;
        for (_, payload) in rest.clone().payloads() {
            sampler.push(&rest.bytes.split_to(PREFIX_BYTES + payload.len()));
        }
    }
    Ok(())
}

fn weigh_all(
    readers: &[Arc<Reader>],
    settings: &segment::Settings,
    dictionary: Option<&Dictionary>,
) -> Result<u64, SealError> {
    let weights = readers.iter().map(|reader| {
        let info = reader.info();
        let header = SegmentHeader {
            stream: info.stream.clone(),
            segment_id: info.segment_id,
            sealed_at_ms: info.sealed_at_ms,
        };
        weigh(reader.batches_from(0), header, settings, dictionary)
    });
    weights.sum()
}

fn plain_bytes(readers: &[Arc<Reader>]) -> u64 {
    readers.iter().map(|reader| reader.info().plain_bytes).sum()
}

fn used(reader: &Reader) -> Used {
    let info = reader.info();
    Used { base_offset: info.base_offset, content_digest: hex(&info.content_digest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_quarter_is_held_out() {
        let held_out = |n: usize| divided(&(0..n).collect::<Vec<_>>()).1.to_vec();
        assert_eq!(held_out(2), [1]);
        assert_eq!(held_out(7), [6]);
        assert_eq!(held_out(8), [6, 7]);
    }
}

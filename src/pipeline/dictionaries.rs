//! Dictionaries of one stream: trained on its own segments, judged on others
//! of them ([`trial`]), adopted if they win.
//!
//! A trial that adopts leaves an artifact of kind `dictionary`, one that does
//! not an artifact of kind `report`; the figures stand in the registry row of
//! either.

pub mod trial;

use std::{path::PathBuf, sync::Arc};

use trial::{FEWEST_SEGMENTS, Training, Trial};

use crate::{
    artifact::{ArtifactError, Artifacts, Description},
    dataflow::Cpu,
    dictionary::{Dictionary, Identity, Library, LoadError, TrainError, Verdict},
    log::{LogReader, Segment},
    segment::{self, ReadError, Reader, SealError},
    store::ArtifactRow,
};

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
        let (stream, settings) = (self.stream.clone(), self.settings.clone());
        let present = self.library.adopted()?;
        cpu.run(move || trial::run(stream, &settings, present.as_deref(), &readers, &training, now_ms)).await
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
}

fn sealed(log: &LogReader) -> impl Iterator<Item = Arc<Reader>> {
    log.segments().into_values().filter_map(|segment| match segment {
        Segment::Sealed(reader) => Some(reader),
        Segment::Raw(_) => None,
    })
}

//! Archiving: each closed segment is sealed, kept as an artifact, and entered
//! in the catalog.
//!
//! Every step is safe to repeat. A crash between two of them leaves a raw
//! segment (sealed again), a sealed one that the catalog lacks (entered at the
//! next start), or an object without a row (put again, which finds it there).

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{
    dictionaries::{Dictionaries, DictionariesError, trial::Training},
    progress::Progress,
};
use crate::{
    artifact::{ArtifactError, Artifacts, Description, hex},
    clock::Clock,
    dataflow::Cpu,
    dictionary::{Library, LoadError, Verdict},
    log::{LogReader, RawFile, Sealer, Segment},
    metrics,
    record::RecordRef,
    segment::{self, DictionaryUse, SealError, SegmentHeader},
    store::{SegmentRow, Store, StoreError},
};

/// Why a segment could not be archived. The raw segment stays until it is.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// Sealing failed.
    #[error("segment {base} could not be sealed: {source}")]
    Seal {
        /// Its first offset.
        base: u64,
        /// Why.
        source: SealError,
    },
    /// The adopted dictionary cannot be had.
    #[error(
        "segment {base} cannot be sealed: {source}; or seal without a dictionary: set `dictionary = \"off\"` in `[segment]`"
    )]
    Dictionary {
        /// Its first offset.
        base: u64,
        /// Why.
        source: LoadError,
    },
    /// The sealed file could not be read back.
    #[error("segment {base} was sealed but cannot be read back: {source}")]
    ReadBack {
        /// Its first offset.
        base: u64,
        /// Why.
        source: segment::ReadError,
    },
    /// The file system refused.
    #[error("segment {base}: {source}")]
    Io {
        /// Its first offset.
        base: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// The object store or registry refused.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The catalog refused.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Archives the closed segments of one stream.
#[derive(Clone)]
pub struct Archive {
    /// Reads the stream.
    pub log: LogReader,
    /// Puts sealed segments in the place of raw ones.
    pub sealer: Sealer,
    /// The stream's folder.
    pub folder: PathBuf,
    /// How segments are sealed.
    pub settings: segment::Settings,
    /// Where segments are kept.
    pub artifacts: Artifacts,
    /// The catalog.
    pub store: Store,
    /// What time it is.
    pub clock: Clock,
    /// Seals in the background: nobody waits for it, and a producer that
    /// waits for an acknowledgement goes first.
    pub cpu: Cpu,
}

/// First wait after a failure; doubled up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(60);

impl Archive {
    /// Archives segments as they are closed, until told to stop. A failure is
    /// shown and tried again; nothing is lost meanwhile, only disk space.
    pub async fn run(self, progress: Arc<Progress>, stop: CancellationToken) -> Result<(), ArchiveError> {
        let mut durable = self.log.durable();
        let mut wait = FIRST_WAIT;
        loop {
            let active = durable.borrow_and_update().active_base;
            let waited = match self.archive_closed().await {
                Ok(_) => {
                    progress.well("archive");
                    wait = FIRST_WAIT;
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = self.train_if_due() => {}
                    }
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        changed = durable.wait_for(|d| d.active_base != active) => changed.is_ok(),
                    }
                }
                Err(error) => {
                    tracing::error!(%error, stream = self.log.stream(), "archiving failed; it is tried again");
                    progress.trouble("archive", error.to_string());
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = tokio::time::sleep(wait) => {}
                    }
                    wait = (2 * wait).min(LONGEST_WAIT);
                    true
                }
            };
            if !waited {
                return Ok(());
            }
        }
    }

    /// Archives whatever is closed now, and enters sealed segments that the
    /// catalog lacks. Returns how many segments it worked on.
    pub async fn archive_closed(&self) -> Result<usize, ArchiveError> {
        let mut done = self.enter_sealed().await?;
        for raw in self.log.closed() {
            self.seal(raw).await?;
            done += 1;
        }
        Ok(done)
    }

    /// Trains a dictionary if enough segments were sealed since the last time.
    /// Nobody waits for one, so a failure is shown and tried again after the
    /// next segment.
    async fn train_if_due(&self) {
        match self.train().await {
            Ok(None) => {}
            Ok(Some((digest, adopted))) => {
                tracing::info!(stream = self.log.stream(), digest, adopted, "dictionary trained");
            }
            Err(error) => {
                tracing::error!(%error, stream = self.log.stream(), "training a dictionary failed");
            }
        }
    }

    /// The best dictionary's digest, and whether it was adopted; `None` if
    /// nothing was due.
    async fn train(&self) -> Result<Option<(String, bool)>, DictionariesError> {
        let dictionaries = Dictionaries {
            stream: self.log.stream().to_owned(),
            library: Library::of_segments(&self.folder),
            settings: self.settings.clone(),
            artifacts: self.artifacts.clone(),
        };
        if !dictionaries.due(&self.log, self.settings.train_after_segments).await? {
            return Ok(None);
        }
        let trial = dictionaries.train(&self.log, Training::default(), &self.cpu, (self.clock)()).await?;
        Ok(Some((trial.best.digest, trial.verdict == Verdict::Adopted)))
    }

    async fn seal(&self, raw: Arc<RawFile>) -> Result<(), ArchiveError> {
        let base = raw.base_offset();
        let started = std::time::Instant::now();
        let path = self.folder.join(format!("{base:020}.seg.zst"));
        let header = SegmentHeader {
            stream: self.log.stream().to_owned(),
            segment_id: *raw.id(),
            sealed_at_ms: (self.clock)(),
        };
        let (settings, to, from) = (self.settings.clone(), path.clone(), raw.clone());
        let seal = move || {
            let dictionary = match settings.dictionary {
                DictionaryUse::Off => None,
                DictionaryUse::Adopted => Library::beside(&to)
                    .adopted()
                    .map_err(|source| ArchiveError::Dictionary { base, source })?,
            };
            match segment::seal_with(from.batches(), header, &settings, dictionary.as_deref(), time_of, &to) {
                // All of it was lost. It would be tried for ever.
                Err(SealError::Empty) => Ok(None),
                sealed => sealed.map(Some).map_err(|source| ArchiveError::Seal { base, source }),
            }
        };
        let Some(sealed) = self.cpu.run(seal).await? else {
            return self.sealer.put_aside(raw).map_err(|source| ArchiveError::Io { base, source });
        };
        let reader =
            segment::Reader::open(&path).map_err(|source| ArchiveError::ReadBack { base, source })?;
        let object_digest = hex(&sealed.object_digest);
        self.enter(&reader, &path, &object_digest).await?;
        self.sealer.replace(raw, reader).map_err(|source| ArchiveError::Io { base, source })?;
        metrics::segment_sealed(started.elapsed(), sealed.plain_bytes, sealed.object_bytes);
        tracing::info!(
            stream = sealed.stream,
            base_offset = sealed.base_offset,
            end_offset = sealed.end_offset,
            plain_bytes = sealed.plain_bytes,
            object_bytes = sealed.object_bytes,
            content_digest = hex(&sealed.content_digest),
            "segment sealed"
        );
        Ok(())
    }

    /// Enters the sealed segments that the catalog lacks: those of a crash
    /// between sealing and entering.
    async fn enter_sealed(&self) -> Result<usize, ArchiveError> {
        let mut entered = 0;
        for (base, segment) in self.log.segments() {
            let Segment::Sealed(reader) = segment else { continue };
            let known = self.store.segment_at(self.log.stream(), base).await?;
            if known.is_some_and(|row| row.base_offset == base && row.artifact.is_some()) {
                continue;
            }
            let path = self.folder.join(format!("{base:020}.seg.zst"));
            let file = path.clone();
            let digest = tokio::task::spawn_blocking(move || file_digest(&file))
                .await
                .map_err(std::io::Error::other)
                .flatten()
                .map_err(|source| ArchiveError::Io { base, source })?;
            self.enter(&reader, &path, &digest).await?;
            entered += 1;
        }
        Ok(entered)
    }

    async fn enter(
        &self,
        reader: &segment::Reader,
        path: &std::path::Path,
        object_digest: &str,
    ) -> Result<(), ArchiveError> {
        let info = reader.info();
        let name = format!("{}/{:020}", info.stream, info.base_offset);
        let content_digest = hex(&info.content_digest);
        let mut meta = serde_json::json!({
            "stream": info.stream,
            "base_offset": info.base_offset,
            "end_offset": info.end_offset,
            "records": info.records,
            "content_digest": content_digest,
        });
        if let (Some(dictionary), Some(meta)) = (info.dictionary, meta.as_object_mut()) {
            // What keeps the dictionary: `Store::dictionary_users`.
            meta.insert("dictionary".into(), dictionary.hex().into());
        }
        let what = Description { kind: "segment", name, extension: "seg.zst", meta, now_ms: (self.clock)() };
        let artifact = self.artifacts.put_file(path, object_digest, what).await?;
        let row = SegmentRow {
            stream: info.stream.clone(),
            base_offset: info.base_offset,
            end_offset: info.end_offset,
            segment_id: hex(&info.segment_id),
            records: info.records,
            plain_bytes: info.plain_bytes,
            object_bytes: info.object_bytes,
            content_digest,
            object_digest: object_digest.to_owned(),
            first_time_ms: info.first_time_ms,
            last_time_ms: info.last_time_ms,
            sealed_at_ms: info.sealed_at_ms,
            file: path.display().to_string(),
            artifact: Some(artifact),
        };
        Ok(self.store.put_segment(&row).await?)
    }
}

/// The record's own time, for the block index.
fn time_of(payload: &[u8]) -> Option<i64> {
    RecordRef::parse(payload).ok()?.ts_ms
}

fn file_digest(path: &std::path::Path) -> std::io::Result<String> {
    use sha2::{Digest, Sha256};
    let mut file = std::fs::File::open(path)?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match std::io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

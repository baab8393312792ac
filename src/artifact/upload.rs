//! Uploads in parts that survive a crash.
//!
//! What the server needs to go on with an upload, its id and a receipt for
//! each part, is written to a small file before it is relied on, so after a
//! crash only the missing parts are sent. That file is a memory aid and nothing
//! more: without it, or if the server has forgotten the upload, it is begun
//! again.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{
    PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path as Location,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    bucket::Bucket,
    error::{ArtifactError, is_lost_upload},
    hex,
};
use crate::durable;

/// Parts of one upload under way at the same time, each held in memory.
const AT_ONCE: usize = 4;
/// Most parts of an object in S3.
const MOST_PARTS: u64 = 10_000;
/// How often an upload is begun that the server forgets.
const BEGINNINGS: u32 = 3;
/// An upload that was begun earlier is given up: whatever it was to become has
/// been put in another way or is gone.
const STALE_MS: i64 = 7 * 24 * 3600 * 1000;
const ENDING: &str = "upload.json";

/// How far an upload is; what is in its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Upload {
    /// Bucket and server, as people are told.
    place: String,
    key: String,
    /// Size of the whole.
    bytes: u64,
    part_bytes: u64,
    /// The server's name for it.
    id: String,
    started_ms: i64,
    /// What the server said to each part that it has, by number from 0.
    parts: BTreeMap<u64, String>,
}

impl Upload {
    fn count(&self) -> u64 {
        self.bytes.div_ceil(self.part_bytes)
    }

    fn missing(&self) -> Vec<u64> {
        (0..self.count()).filter(|part| !self.parts.contains_key(part)).collect()
    }

    /// Where part `n` begins, and how long it is.
    fn range(&self, n: u64) -> (u64, u64) {
        let from = n * self.part_bytes;
        (from, self.part_bytes.min(self.bytes - from))
    }
}

/// The size of parts for an object of `bytes`: `wanted`, or more where there
/// would be too many.
fn part_bytes(bytes: u64, wanted: u64) -> u64 {
    wanted.max(bytes.div_ceil(MOST_PARTS))
}

/// A file to be sent.
pub(super) struct Outgoing<'a> {
    pub path: &'a Path,
    /// SHA-256 of its bytes, in hex.
    pub digest: &'a str,
    /// The time now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
}

impl Bucket {
    /// Puts a file unless it is there already, or in any case if `again`.
    /// Returns its size.
    pub async fn put_file(
        &self,
        file: Outgoing<'_>,
        location: &Location,
        again: bool,
    ) -> Result<u64, ArtifactError> {
        let key = self.key(location);
        let there = self.size(&key).await?;
        let bytes = size_of(&file).await?;
        if !again && there == Some(bytes) {
            self.forget(file.digest)?;
            return Ok(bytes);
        }
        if bytes <= self.part_bytes {
            let content = Bytes::from(read(file.path, 0, bytes).await?);
            match there {
                None => self.put_once(&key, &content).await?,
                Some(_) => self.replace(&key, &content).await?,
            }
        } else {
            self.put_parts(&file, &key, bytes, again).await?;
        }
        match self.size(&key).await? {
            Some(found) if found == bytes => Ok(bytes),
            found => {
                let found = found.unwrap_or(0);
                Err(ArtifactError::Cut { location: location.to_string(), sent: bytes, found })
            }
        }
    }

    async fn put_parts(
        &self,
        file: &Outgoing<'_>,
        key: &Location,
        bytes: u64,
        again: bool,
    ) -> Result<(), ArtifactError> {
        for _ in 0..BEGINNINGS {
            let mut upload = match self.remembered(file.digest, key, bytes)? {
                Some(upload) => upload,
                None => self.begin(file, key, bytes).await?,
            };
            match self.go_on(file, key, &mut upload).await {
                // Also if the upload was completed and the answer got lost.
                Err(Failed::Lost) => {
                    self.forget(file.digest)?;
                    if !again && self.size(key).await? == Some(bytes) {
                        return Ok(());
                    }
                }
                Err(Failed::Otherwise(error)) => return Err(error),
                Ok(()) => return self.forget(file.digest),
            }
        }
        let (place, location) = (self.place.to_string(), key.to_string());
        Err(ArtifactError::UploadLost { place, location, times: BEGINNINGS })
    }

    async fn begin(&self, file: &Outgoing<'_>, key: &Location, bytes: u64) -> Result<Upload, ArtifactError> {
        let id = self.s3.create_multipart(key).await.map_err(|source| self.error(key.as_ref(), source))?;
        let upload = Upload {
            place: self.place.to_string(),
            key: key.to_string(),
            bytes,
            part_bytes: part_bytes(bytes, self.part_bytes),
            id,
            started_ms: file.now_ms,
            parts: BTreeMap::new(),
        };
        self.remember(file.digest, upload.clone()).await?;
        Ok(upload)
    }

    /// Sends what is missing and completes the upload.
    async fn go_on(&self, file: &Outgoing<'_>, key: &Location, upload: &mut Upload) -> Result<(), Failed> {
        let missing = upload.missing();
        tracing::info!(object = %key, parts = upload.count(), missing = missing.len(), "sending an object in parts");
        let failed = |source: object_store::Error| {
            if is_lost_upload(&source) {
                Failed::Lost
            } else {
                Failed::Otherwise(self.error(key.as_ref(), source))
            }
        };
        let sending: Vec<_> = missing.into_iter().map(|n| (n, upload.range(n))).collect();
        let id = upload.id.clone();
        let mut sent = stream::iter(sending)
            .map(async |(n, (from, length))| {
                let content = PutPayload::from(read(file.path, from, length).await?);
                let index = usize::try_from(n).unwrap_or(usize::MAX);
                let receipt = self.s3.put_part(key, &id, index, content).await.map_err(failed)?;
                Ok::<_, Failed>((n, receipt.content_id))
            })
            .buffer_unordered(AT_ONCE);
        while let Some((n, receipt)) = sent.try_next().await? {
            upload.parts.insert(n, receipt);
            self.remember(file.digest, upload.clone()).await?;
        }
        let parts = upload.parts.values().map(|receipt| PartId { content_id: receipt.clone() }).collect();
        self.s3.complete_multipart(key, &upload.id, parts).await.map_err(failed)?;
        Ok(())
    }

    /// Gives up the uploads that were begun long ago. Returns how many.
    pub async fn abandon_stale(&self, now_ms: i64) -> Result<usize, ArtifactError> {
        let failed = |source| ArtifactError::File { path: self.uploads.display().to_string(), source };
        let mut given_up = 0;
        for entry in fs::read_dir(&self.uploads).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let Some(upload) = load(&path) else { continue };
            if now_ms - upload.started_ms < STALE_MS {
                continue;
            }
            // Those of another bucket are for its owner's rules to clear.
            if upload.place == self.place.to_string() {
                let key = Location::from(upload.key.as_str());
                match self.s3.abort_multipart(&key, &upload.id).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(source) => return Err(self.error(&upload.key, source)),
                }
            }
            fs::remove_file(&path).map_err(failed)?;
            given_up += 1;
        }
        Ok(given_up)
    }

    fn file_of(&self, digest: &str) -> PathBuf {
        self.uploads.join(format!("{digest}.{ENDING}"))
    }

    /// The upload of this object that was begun, if it can be gone on with.
    fn remembered(&self, digest: &str, key: &Location, bytes: u64) -> Result<Option<Upload>, ArtifactError> {
        let path = self.file_of(digest);
        let found = load(&path);
        let fits = |upload: &Upload| {
            (upload.place == self.place.to_string() && upload.key == key.as_ref())
                && (upload.bytes == bytes && upload.part_bytes == part_bytes(bytes, self.part_bytes))
        };
        match found {
            Some(upload) if fits(&upload) => Ok(Some(upload)),
            _ => self.forget(digest).map(|()| None),
        }
    }

    async fn remember(&self, digest: &str, upload: Upload) -> Result<(), ArtifactError> {
        let path = self.file_of(digest);
        let shown = path.display().to_string();
        let write = move || {
            durable::publish(&path, |file| serde_json::to_writer(file, &upload).map_err(io::Error::from))
        };
        let failed = |source| ArtifactError::File { path: shown, source };
        blocking(write).await.map_err(failed)
    }

    fn forget(&self, digest: &str) -> Result<(), ArtifactError> {
        let path = self.file_of(digest);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(ArtifactError::File { path: path.display().to_string(), source })
            }
            _ => Ok(()),
        }
    }
}

/// Why an upload did not come to its end.
enum Failed {
    /// The server does not know it any more.
    Lost,
    Otherwise(ArtifactError),
}

impl From<ArtifactError> for Failed {
    fn from(error: ArtifactError) -> Self {
        Self::Otherwise(error)
    }
}

/// What the file at `path` says; nothing if it is torn or of another version.
fn load(path: &Path) -> Option<Upload> {
    let upload: Upload = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    (upload.part_bytes > 0).then_some(upload)
}

/// Its size, if its bytes have its digest.
async fn size_of(file: &Outgoing<'_>) -> Result<u64, ArtifactError> {
    let path = file.path.to_owned();
    let hash = move || {
        let mut hash = Sha256::new();
        let bytes = io::copy(&mut fs::File::open(path)?, &mut Hashing(&mut hash))?;
        Ok((bytes, hex(&hash.finalize())))
    };
    let shown = || file.path.display().to_string();
    let (bytes, found) =
        blocking(hash).await.map_err(|source| ArtifactError::File { path: shown(), source })?;
    if found != file.digest {
        return Err(ArtifactError::Altered { path: shown(), expected: file.digest.to_owned(), found });
    }
    Ok(bytes)
}

struct Hashing<'a>(&'a mut Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn read(path: &Path, from: u64, length: u64) -> Result<Vec<u8>, ArtifactError> {
    let file = path.to_owned();
    let read = move || {
        let mut content = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        fs::File::open(file)?.read_exact_at(&mut content, from)?;
        Ok(content)
    };
    blocking(read).await.map_err(|source| ArtifactError::File { path: path.display().to_string(), source })
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(bytes: u64, part_bytes: u64, parts: &[u64]) -> Upload {
        Upload {
            place: "s3://b".into(),
            key: "k".into(),
            bytes,
            part_bytes,
            id: "id".into(),
            started_ms: 0,
            parts: parts.iter().map(|n| (*n, "e".into())).collect(),
        }
    }

    #[test]
    fn parts_cover_the_file_without_gap_or_overlap() {
        for bytes in [11, 20, 21] {
            let upload = upload(bytes, 10, &[]);
            let ranges: Vec<_> = (0..upload.count()).map(|n| upload.range(n)).collect();
            let end = ranges.iter().fold(0, |end, (from, length)| {
                assert_eq!(*from, end);
                assert!(*length > 0);
                from + length
            });
            assert_eq!(end, bytes);
        }
    }

    #[test]
    fn only_what_the_server_lacks_is_sent() {
        assert_eq!(upload(45, 10, &[0, 3]).missing(), [1, 2, 4]);
        assert!(upload(20, 10, &[0, 1]).missing().is_empty());
    }

    #[test]
    fn no_object_has_more_parts_than_a_server_takes() {
        assert_eq!(part_bytes(100, 8), 8);
        let bytes = 8 * MOST_PARTS + 1;
        assert!(bytes.div_ceil(part_bytes(bytes, 8)) <= MOST_PARTS);
    }

    #[test]
    fn a_file_that_is_torn_is_as_good_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let whole = serde_json::to_vec(&upload(45, 10, &[1])).unwrap();
        fs::write(&path, &whole).unwrap();
        assert_eq!(load(&path), Some(upload(45, 10, &[1])));
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert_eq!(load(&path), None);
        assert_eq!(load(&folder.path().join("none")), None);
    }
}

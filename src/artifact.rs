//! Artifacts: immutable objects, named by their content.
//!
//! An object lies at `KIND/sha256/AB/DIGEST.EXT`, where DIGEST is the SHA-256
//! of its bytes in hex and AB its first two digits, in a local folder or below
//! the prefix of an S3 bucket. It is put first, and only if it is not there
//! yet; then its row makes it known. So a row always has its object, and
//! putting the same bytes twice costs nothing.

mod bucket;
mod check;
mod credentials;
mod error;
mod listing;
mod probe;
mod settings;
mod upload;

use std::{path::Path, sync::Arc, time::Instant};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart, local::LocalFileSystem,
    path::Path as Location,
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

pub use check::{Broken, CheckReport, Findings, Orphan, Unregistered};
pub use credentials::CredentialsError;
pub use error::ArtifactError;
pub use probe::Probe;
pub use settings::{S3Place, Settings};

use crate::{
    metrics,
    store::{ArtifactRow, Store},
};
use bucket::Bucket;
use upload::Outgoing;

/// How long it is known of an object in some daemon's local folder that it is
/// to be deleted: 30 days.
const AWAITED_MS: i64 = 30 * 24 * 3_600 * 1_000;

/// What verifying one artifact found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Verified {
    /// The object is there and its bytes have its digest.
    Intact,
    /// The row has no object.
    Missing,
    /// The bytes are others.
    Altered {
        /// SHA-256 of the bytes that are there.
        found: String,
    },
}

/// The artifacts of one data directory.
#[derive(Clone)]
pub struct Artifacts {
    objects: Arc<dyn ObjectStore>,
    /// If they are in S3.
    bucket: Option<Arc<Bucket>>,
    registry: Store,
}

/// An artifact to be.
#[derive(Clone, Debug)]
pub struct Description<'a> {
    /// `segment`, `model` and the like; the first part of its location.
    pub kind: &'a str,
    /// For people.
    pub name: String,
    /// Ending of the object's name.
    pub extension: &'a str,
    /// Whatever belongs to its kind.
    pub meta: serde_json::Value,
    /// The time now, in milliseconds since the Unix epoch.
    pub now_ms: i64,
}

impl Artifacts {
    /// Objects in the folder `path`, rows in `registry`.
    pub fn local(path: &Path, registry: Store) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(path)
            .map_err(|source| ArtifactError::File { path: path.display().to_string(), source })?;
        let objects = LocalFileSystem::new_with_prefix(path)
            .map_err(|source| ArtifactError::Objects { location: path.display().to_string(), source })?
            .with_fsync(true);
        Ok(Self { objects: Arc::new(objects), bucket: None, registry })
    }

    /// Objects where `settings` say, rows in `registry`. A local folder is
    /// `local`; how far uploads to S3 are is written down in the folder
    /// `uploads`. Sends nothing, and may block while it reads certificates.
    pub fn open(
        settings: &Settings,
        local: &Path,
        uploads: &Path,
        registry: Store,
    ) -> Result<Self, ArtifactError> {
        let Some(place) = settings.s3()? else {
            return Self::local(local, registry);
        };
        std::fs::create_dir_all(uploads)
            .map_err(|source| ArtifactError::File { path: uploads.display().to_string(), source })?;
        let bucket = Bucket::open(place, settings, uploads.to_owned())?;
        Ok(Self { objects: bucket.objects(), bucket: Some(Arc::new(bucket)), registry })
    }

    /// Removes what a crash left unfinished beside the uploads. For whoever
    /// has the log's lock: nobody else writes there.
    pub fn sweep(&self) -> Result<(), ArtifactError> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let swept = crate::durable::sweep_temporaries(&bucket.uploads);
        let failed = |source| ArtifactError::File { path: bucket.uploads.display().to_string(), source };
        swept.map(|_| ()).map_err(failed)
    }

    /// Asks whether the object store can be had. Says what to do where not.
    pub async fn reach(&self) -> Result<(), ArtifactError> {
        match &self.bucket {
            Some(bucket) => bucket.reach().await,
            None => Ok(()),
        }
    }

    fn failed(&self, location: &str, source: object_store::Error) -> ArtifactError {
        match &self.bucket {
            Some(bucket) => bucket.error(location, source),
            None => ArtifactError::Objects { location: location.to_owned(), source },
        }
    }

    /// Keeps `bytes`. Returns the digest.
    pub async fn put_bytes(&self, bytes: Vec<u8>, what: Description<'_>) -> Result<String, ArtifactError> {
        let digest = hex(&Sha256::digest(&bytes));
        let location = location(&what, &digest);
        let size = bytes.len() as u64;
        let bytes = Bytes::from(bytes);
        match &self.bucket {
            Some(bucket) => bucket.put_once(&bucket.key(&location), &bytes).await?,
            None => self.put_local(&location, bytes).await?,
        }
        self.register(digest, location, size, what).await
    }

    async fn put_local(&self, location: &Location, bytes: Bytes) -> Result<(), ArtifactError> {
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(location, PutPayload::from(bytes), options).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => Ok(()),
            Err(source) => Err(self.failed(location.as_ref(), source)),
        }
    }

    /// Keeps a copy of the file at `path`, whose SHA-256 is `digest`, without
    /// holding it in memory.
    pub async fn put_file(
        &self,
        path: &Path,
        digest: &str,
        what: Description<'_>,
    ) -> Result<String, ArtifactError> {
        self.keep_file(path, digest, what, false).await
    }

    /// As [`Self::put_file`], in the place of whatever the object store has
    /// under that name.
    pub async fn put_file_again(
        &self,
        path: &Path,
        digest: &str,
        what: Description<'_>,
    ) -> Result<String, ArtifactError> {
        self.keep_file(path, digest, what, true).await
    }

    async fn keep_file(
        &self,
        path: &Path,
        digest: &str,
        what: Description<'_>,
        again: bool,
    ) -> Result<String, ArtifactError> {
        let (started, location) = (Instant::now(), location(&what, digest));
        let size = match &self.bucket {
            Some(bucket) => {
                let file = Outgoing { path, digest, now_ms: what.now_ms };
                bucket.put_file(file, &location, again).await?
            }
            None if again => self.copy(path, &location).await?,
            None => match self.objects.head(&location).await {
                Ok(meta) => meta.size,
                Err(object_store::Error::NotFound { .. }) => self.copy(path, &location).await?,
                Err(source) => return Err(self.failed(location.as_ref(), source)),
            },
        };
        metrics::artifact_put(started.elapsed(), size);
        self.register(digest.to_owned(), location, size, what).await
    }

    /// Copies a file into the local folder.
    async fn copy(&self, path: &Path, location: &Location) -> Result<u64, ArtifactError> {
        let at = |source| self.failed(location.as_ref(), source);
        let failed = |source| ArtifactError::File { path: path.display().to_string(), source };
        let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
        let mut upload = WriteMultipart::new(self.objects.put_multipart(location).await.map_err(at)?);
        let (mut buffer, mut size) = (vec![0; 1 << 20], 0);
        loop {
            let n = file.read(&mut buffer).await.map_err(failed)?;
            if n == 0 {
                break;
            }
            upload.wait_for_capacity(4).await.map_err(at)?;
            upload.write(buffer.get(..n).unwrap_or_default());
            size += n as u64;
        }
        upload.finish().await.map_err(at)?;
        Ok(size)
    }

    async fn register(
        &self,
        digest: String,
        location: Location,
        bytes: u64,
        what: Description<'_>,
    ) -> Result<String, ArtifactError> {
        let row = ArtifactRow {
            digest: digest.clone(),
            kind: what.kind.to_owned(),
            name: what.name,
            bytes,
            location: location.to_string(),
            created_ms: what.now_ms,
            meta: what.meta.to_string(),
        };
        self.registry.put_artifact(&row).await?;
        Ok(digest)
    }

    /// Every artifact, oldest first.
    pub async fn list(&self) -> Result<Vec<ArtifactRow>, ArtifactError> {
        Ok(self.registry.artifacts().await?)
    }

    /// The artifact whose digest begins with `prefix`.
    pub async fn find(&self, prefix: &str) -> Result<ArtifactRow, ArtifactError> {
        let mut found = self.list().await?;
        found.retain(|row| row.digest.starts_with(prefix));
        match (found.len(), found.pop()) {
            (1, Some(row)) => Ok(row),
            (0, _) => Err(ArtifactError::Unknown { digest: prefix.to_owned() }),
            (count, _) => Err(ArtifactError::Ambiguous { digest: prefix.to_owned(), count }),
        }
    }

    /// Reads the object of `row` whole and compares its digest.
    pub async fn verify(&self, row: &ArtifactRow) -> Result<Verified, ArtifactError> {
        self.verify_object(&row.location, &row.digest).await
    }

    /// Reads the object at `location` whole and compares its digest.
    pub async fn verify_object(&self, location: &str, digest: &str) -> Result<Verified, ArtifactError> {
        let at = |source| self.failed(location, source);
        let object = match self.objects.get(&Location::from(location)).await.map_err(at) {
            Err(error) if error.is_not_found() => return Ok(Verified::Missing),
            object => object?,
        };
        let hash = async |hash: Sha256, bytes: Bytes| Ok(hash.chain_update(&bytes));
        let found = object.into_stream().try_fold(Sha256::new(), hash).await.map_err(at)?;
        let found = hex(&found.finalize());
        Ok(if found == digest { Verified::Intact } else { Verified::Altered { found } })
    }

    /// The objects of `kind`, with or without a row, as (location, digest):
    /// their names say what their digest should be.
    pub async fn objects(&self, kind: &str) -> Result<Vec<(String, String)>, ArtifactError> {
        let found: Vec<String> = self
            .objects
            .list(Some(&Location::from(kind)))
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .map_err(|source| self.failed(kind, source))?;
        Ok(found.into_iter().filter_map(|location| digest_of(&location).map(|d| (location, d))).collect())
    }

    /// Where an object of `kind` with this digest lies, if it is there.
    pub fn location(kind: &str, digest: &str, extension: &str) -> String {
        place(kind, digest, extension).to_string()
    }

    /// Reads the object of `row` whole, without comparing its digest.
    pub async fn bytes(&self, row: &ArtifactRow) -> Result<Bytes, ArtifactError> {
        self.object(&row.location).await
    }

    async fn object(&self, location: &str) -> Result<Bytes, ArtifactError> {
        let at = |source| self.failed(location, source);
        let object = self.objects.get(&Location::from(location)).await.map_err(at)?;
        object.bytes().await.map_err(at)
    }

    /// Writes the object of `row` to the file `path`, durably.
    pub async fn fetch(&self, row: &ArtifactRow, path: &Path) -> Result<(), ArtifactError> {
        self.fetch_object(&row.location, path).await
    }

    /// Writes the object at `location` to the file `path`, durably.
    pub async fn fetch_object(&self, location: &str, path: &Path) -> Result<(), ArtifactError> {
        let object = self.objects.get(&Location::from(location)).await;
        let mut bytes = object.map_err(|source| self.failed(location, source))?.into_stream();
        let (sender, mut chunks) = tokio::sync::mpsc::channel::<std::io::Result<Bytes>>(4);
        let to = path.to_owned();
        let writing = tokio::task::spawn_blocking(move || {
            crate::durable::publish(&to, |file| {
                while let Some(chunk) = chunks.blocking_recv() {
                    std::io::Write::write_all(file, &chunk?)?;
                }
                Ok(())
            })
        });
        let mut interrupted = None;
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|source| {
                interrupted = Some(self.failed(location, source));
                std::io::Error::other("the object could not be read to its end")
            });
            // A writer that has failed says why below.
            if sender.send(chunk).await.is_err() || interrupted.is_some() {
                break;
            }
        }
        drop(sender);
        let written = writing.await.map_err(std::io::Error::other).flatten();
        match interrupted {
            Some(error) => Err(error),
            None => {
                written.map_err(|source| ArtifactError::File { path: path.display().to_string(), source })
            }
        }
    }

    /// Deletes the objects of artifacts that [`Store::doom`] took out of the
    /// registry. Returns their locations; broken off, it can be called again.
    pub async fn delete_doomed(&self, now_ms: i64) -> Result<Vec<String>, ArtifactError> {
        let mut deleted = Vec::new();
        for (location, since_ms) in self.registry.doomed().await? {
            match self.objects.delete(&Location::from(location.as_str())).await {
                Ok(()) => deleted.push(location.clone()),
                // In the folder of another daemon, which has yet to come.
                Err(object_store::Error::NotFound { .. })
                    if self.bucket.is_none() && now_ms - since_ms < AWAITED_MS =>
                {
                    continue;
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(source) => return Err(self.failed(&location, source)),
            }
            self.registry.object_deleted(&location).await?;
        }
        Ok(deleted)
    }

    /// Objects that no row names. Those younger than a put that is under way
    /// may be among them.
    pub async fn orphans(&self) -> Result<Vec<String>, ArtifactError> {
        let known: std::collections::HashSet<String> =
            self.list().await?.into_iter().map(|row| row.location).collect();
        let found: Vec<_> = self
            .objects
            .list(None)
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .map_err(|source| self.failed("", source))?;
        Ok(found.into_iter().filter(|location| !known.contains(location)).collect())
    }
}

/// The digest in the name of an object that an artifact can have.
fn digest_of(location: &str) -> Option<String> {
    let (digest, _) = location.rsplit('/').next()?.split_once('.')?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    is_digest.then(|| digest.to_owned())
}

fn location(what: &Description<'_>, digest: &str) -> Location {
    place(what.kind, digest, what.extension)
}

fn place(kind: &str, digest: &str, extension: &str) -> Location {
    let (fan_out, _) = digest.split_at_checked(2).unwrap_or((digest, ""));
    Location::from(format!("{kind}/sha256/{fan_out}/{digest}.{extension}"))
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut s, b| {
        use std::fmt::Write;
        let _ = write!(s, "{b:02x}");
        s
    })
}

//! Artifacts: immutable objects, named by their content.
//!
//! An object lies at `KIND/sha256/AB/DIGEST.EXT`, where DIGEST is the SHA-256
//! of its bytes in hex and AB its first two digits. It is put first, and only
//! if it is not there yet; then its row makes it known. So a row always has
//! its object, and putting the same bytes twice costs nothing.

use std::{path::Path, sync::Arc};

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::{
    ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, WriteMultipart, local::LocalFileSystem,
    path::Path as Location,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use crate::{
    setting::SettingError,
    store::{ArtifactRow, Store, StoreError},
};

/// The `[artifacts]` section of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Folder of the local object store, relative to `data_dir`.
    pub path: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { path: "artifacts".into() }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(!self.path.is_empty(), "path", "must name a folder")
    }
}

/// Why an artifact could not be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The object store refused.
    #[error("the object store failed at {location}: {source}")]
    Objects {
        /// The object.
        location: String,
        /// What it said.
        source: object_store::Error,
    },
    /// A local file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The registry refused.
    #[error(transparent)]
    Registry(#[from] StoreError),
    /// No row has that digest.
    #[error("no artifact has a digest that begins with `{digest}`; `thalweg artifacts list` shows them")]
    Unknown {
        /// What was asked for.
        digest: String,
    },
    /// Several rows have a digest that begins like this.
    #[error("{count} artifacts have a digest that begins with `{digest}`; write more of it")]
    Ambiguous {
        /// What was asked for.
        digest: String,
        /// How many match.
        count: usize,
    },
}

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
        Ok(Self { objects: Arc::new(objects), registry })
    }

    /// Keeps `bytes`. Returns the digest.
    pub async fn put_bytes(&self, bytes: Vec<u8>, what: Description<'_>) -> Result<String, ArtifactError> {
        let digest = hex(&Sha256::digest(&bytes));
        let location = location(&what, &digest);
        let size = bytes.len() as u64;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        match self.objects.put_opts(&location, PutPayload::from(bytes), options).await {
            Ok(_) | Err(object_store::Error::AlreadyExists { .. }) => {}
            Err(source) => return Err(ArtifactError::Objects { location: location.to_string(), source }),
        }
        self.register(digest, location, size, what).await
    }

    /// Keeps a copy of the file at `path`, whose SHA-256 is `digest`, without
    /// holding it in memory.
    pub async fn put_file(
        &self,
        path: &Path,
        digest: &str,
        what: Description<'_>,
    ) -> Result<String, ArtifactError> {
        let location = location(&what, digest);
        let at = |source| ArtifactError::Objects { location: location.to_string(), source };
        let size = match self.objects.head(&location).await {
            Ok(meta) => meta.size,
            Err(object_store::Error::NotFound { .. }) => self.upload(path, &location).await?,
            Err(source) => return Err(at(source)),
        };
        self.register(digest.to_owned(), location, size, what).await
    }

    /// As [`Self::put_file`], in the place of whatever the object store has
    /// under that name.
    pub async fn put_file_again(
        &self,
        path: &Path,
        digest: &str,
        what: Description<'_>,
    ) -> Result<String, ArtifactError> {
        let location = location(&what, digest);
        let size = self.upload(path, &location).await?;
        self.register(digest.to_owned(), location, size, what).await
    }

    async fn upload(&self, path: &Path, location: &Location) -> Result<u64, ArtifactError> {
        let at = |source| ArtifactError::Objects { location: location.to_string(), source };
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
        let at = |source| ArtifactError::Objects { location: location.to_owned(), source };
        let found = match self.objects.get(&Location::from(location)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(Verified::Missing),
            Err(source) => return Err(at(source)),
            Ok(object) => object
                .into_stream()
                .try_fold(Sha256::new(), async |hash, bytes| Ok(hash.chain_update(&bytes)))
                .await
                .map_err(at)?,
        };
        let found = hex(&found.finalize());
        Ok(if found == digest { Verified::Intact } else { Verified::Altered { found } })
    }

    /// The objects of `kind`, with or without a row, as (location, digest):
    /// their names say what their digest should be.
    pub async fn objects(&self, kind: &str) -> Result<Vec<(String, String)>, ArtifactError> {
        let at = |source| ArtifactError::Objects { location: kind.to_owned(), source };
        let found: Vec<String> = self
            .objects
            .list(Some(&Location::from(kind)))
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .map_err(at)?;
        let digest = |location: &str| {
            let (digest, _) = location.rsplit('/').next()?.split_once('.')?;
            (digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit())).then(|| digest.to_owned())
        };
        Ok(found.into_iter().filter_map(|location| digest(&location).map(|d| (location, d))).collect())
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
        let at = |source| ArtifactError::Objects { location: location.to_owned(), source };
        let object = self.objects.get(&Location::from(location)).await.map_err(at)?;
        object.bytes().await.map_err(at)
    }

    /// Writes the object of `row` to the file `path`, durably.
    pub async fn fetch(&self, row: &ArtifactRow, path: &Path) -> Result<(), ArtifactError> {
        self.fetch_object(&row.location, path).await
    }

    /// Writes the object at `location` to the file `path`, durably.
    pub async fn fetch_object(&self, location: &str, path: &Path) -> Result<(), ArtifactError> {
        let bytes = self.object(location).await?;
        crate::durable::publish(path, |file| std::io::Write::write_all(file, &bytes))
            .map_err(|source| ArtifactError::File { path: path.display().to_string(), source })
    }

    /// Objects that no row names. Those younger than a put that is under way
    /// may be among them.
    pub async fn orphans(&self) -> Result<Vec<String>, ArtifactError> {
        let known: std::collections::HashSet<String> =
            self.list().await?.into_iter().map(|row| row.location).collect();
        let at = |source| ArtifactError::Objects { location: String::new(), source };
        let found: Vec<_> = self
            .objects
            .list(None)
            .map_ok(|meta| meta.location.to_string())
            .try_collect()
            .await
            .map_err(at)?;
        Ok(found.into_iter().filter(|location| !known.contains(location)).collect())
    }
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

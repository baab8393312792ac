//! Backups: one folder, whole or not there.
//!
//! ```text
//! MANIFEST.json        what the backup holds, with counts and digests
//! MANIFEST.json.sha256 of the manifest, as sha256sum writes it
//! store.sqlite         the database: SQLite's file, or
//! store.pgdump         the schema `thalweg`, as pg_dump writes it
//! objects/…            the objects of the registry, if asked for
//! ```
//!
//! The log is not in it: whatever is sealed is an object, and what is not
//! sealed yet is of the log alone. The manifest says up to where the rows go.

use std::{
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    artifact::{ArtifactError, Artifacts, Description, hex},
    durable::NewDirectory,
    store::{ArtifactRow, Engine, Store, StoreError, TableDigest},
};

/// The one format there is.
const FORMAT: u32 = 1;
const MANIFEST: &str = "MANIFEST.json";
const MANIFEST_DIGEST: &str = "MANIFEST.json.sha256";
const OBJECTS: &str = "objects";

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of the backup; this program knows 1.
    pub format: u32,
    /// Version of the program that wrote it.
    pub thalweg: String,
    /// The pipeline.
    pub pipeline: String,
    /// Its stream.
    pub stream: String,
    /// When it was begun, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Which database.
    pub engine: Engine,
    /// The file with the database.
    pub database: String,
    /// Number of the schema's last change.
    pub schema_version: i64,
    /// Whether the database it is restored to needs the extension pgvector.
    pub needs_pgvector: bool,
    /// The offset up to which rows are in it.
    pub next_offset: u64,
    /// The offsets that the log had afterwards; none where it was not at hand.
    pub log: Option<Range<u64>>,
    /// Every table of the database.
    pub tables: Vec<TableDigest>,
    /// The registry.
    pub artifacts: Vec<Artifact>,
    /// Whether the objects of the registry are in the backup.
    pub objects: bool,
    /// Every file but the manifest.
    pub files: Vec<FileDigest>,
}

/// A row of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// SHA-256 of its bytes, in hex.
    pub digest: String,
    /// `segment` and the like.
    pub kind: String,
    /// Its size.
    pub bytes: u64,
    /// Where it lies in the object store, and below `objects` in the backup.
    pub location: String,
}

/// A file of the backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Relative to the backup.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// SHA-256 of its bytes, in hex.
    pub sha256: String,
}

/// Why a backup cannot be made, read or trusted.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store failed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// It is no backup of a format known here.
    #[error("{} is no backup that this version of thalweg can read: {reason}", path.display())]
    Unknown {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It is not as it was written.
    #[error("the backup is damaged and was not used: {file} {reason}; take another one")]
    Damaged {
        /// Which file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> BackupError + '_ {
    |source| BackupError::Io { path: path.to_owned(), source }
}

/// What is backed up.
pub struct Backup<'a> {
    /// The database.
    pub store: &'a Store,
    /// The pipeline.
    pub pipeline: &'a str,
    /// Its stream.
    pub stream: &'a str,
    /// Folder of PostgreSQL's programs, if it is not to be looked for.
    pub pg_bin: Option<&'a Path>,
    /// Copies the objects as well.
    pub objects: Option<&'a Artifacts>,
}

impl Backup<'_> {
    /// Writes the folder `to`, which must not be there. `log` says which
    /// offsets the log has, when the database is copied.
    pub async fn write(
        &self,
        to: &Path,
        log: impl FnOnce() -> Option<Range<u64>>,
        now_ms: i64,
    ) -> Result<Manifest, BackupError> {
        let folder = NewDirectory::begin(to).map_err(at(to))?;
        let engine = self.store.engine();
        let database = match engine {
            Engine::Sqlite => "store.sqlite",
            Engine::Postgres => "store.pgdump",
        };
        let reader = (self.pipeline, self.stream);
        let copied = self.store.copy_to(&folder.partial().join(database), self.pg_bin, reader).await?;
        let log = log();
        let mut files = vec![digest(folder.partial(), database).await?];
        if let Some(artifacts) = self.objects {
            for row in &copied.artifacts {
                files.push(copy_object(artifacts, row, folder.partial()).await?);
            }
        }
        let manifest = Manifest {
            format: FORMAT,
            thalweg: env!("CARGO_PKG_VERSION").to_owned(),
            pipeline: self.pipeline.to_owned(),
            stream: self.stream.to_owned(),
            created_ms: now_ms,
            engine,
            database: database.to_owned(),
            schema_version: copied.schema_version,
            needs_pgvector: copied.needs_pgvector,
            next_offset: copied.checkpoint.map_or(0, |checkpoint| checkpoint.next_offset),
            log,
            tables: copied.tables,
            artifacts: copied.artifacts.into_iter().map(Artifact::from).collect(),
            objects: self.objects.is_some(),
            files,
        };
        manifest.write(folder.partial()).map_err(at(to))?;
        let publishing = tokio::task::spawn_blocking(|| folder.publish()).await;
        publishing.map_err(io::Error::other).flatten().map_err(at(to))?;
        Ok(manifest)
    }
}

impl From<ArtifactRow> for Artifact {
    fn from(row: ArtifactRow) -> Self {
        let ArtifactRow { digest, kind, bytes, location, .. } = row;
        Self { digest, kind, bytes, location }
    }
}

async fn copy_object(
    artifacts: &Artifacts,
    row: &ArtifactRow,
    folder: &Path,
) -> Result<FileDigest, BackupError> {
    let path = format!("{OBJECTS}/{}", row.location);
    let file = folder.join(&path);
    let parent = file.parent().unwrap_or(folder);
    fs::create_dir_all(parent).map_err(at(parent))?;
    artifacts.fetch(row, &file).await?;
    let copied = digest(folder, &path).await?;
    if copied.sha256 != row.digest {
        let (file, found) = (row.location.clone(), copied.sha256);
        let reason =
            format!("of the object store has other bytes (SHA-256 {found}); `thalweg artifacts verify`");
        return Err(BackupError::Damaged { file, reason });
    }
    Ok(copied)
}

/// Digest and size of the file `path` of `folder`.
async fn digest(folder: &Path, path: &str) -> Result<FileDigest, BackupError> {
    let file = folder.join(path);
    let hashing = move || {
        let mut hash = Sha256::new();
        let bytes = io::copy(&mut File::open(file)?, &mut HashWriter(&mut hash))?;
        Ok((bytes, hex(&hash.finalize())))
    };
    let hashed = tokio::task::spawn_blocking(hashing).await.map_err(io::Error::other).flatten();
    let (bytes, sha256) = hashed.map_err(at(&folder.join(path)))?;
    Ok(FileDigest { path: path.to_owned(), bytes, sha256 })
}

struct HashWriter<'a>(&'a mut Sha256);

impl Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Manifest {
    fn write(&self, folder: &Path) -> io::Result<()> {
        let json = serde_json::to_vec_pretty(self)?;
        fs::write(folder.join(MANIFEST), &json)?;
        let line = format!("{}  {MANIFEST}\n", hex(&Sha256::digest(&json)));
        fs::write(folder.join(MANIFEST_DIGEST), line)
    }

    /// Reads the manifest of the backup in `folder`, and compares the digest
    /// of every file: from here on the backup is known to be as it was
    /// written.
    pub async fn verified(folder: &Path) -> Result<Self, BackupError> {
        let unknown = |reason: String| BackupError::Unknown { path: folder.to_owned(), reason };
        let read = |name: &str| {
            let path = folder.join(name);
            fs::read(&path).map_err(|error| unknown(format!("{}: {error}", path.display())))
        };
        let (json, line) = (read(MANIFEST)?, read(MANIFEST_DIGEST)?);
        if !line.starts_with(hex(&Sha256::digest(&json)).as_bytes()) {
            let reason = "has another SHA-256 than was written down".to_owned();
            return Err(BackupError::Damaged { file: MANIFEST.into(), reason });
        }
        let format =
            serde_json::from_slice::<Format>(&json).map_err(|error| unknown(error.to_string()))?.format;
        if format != FORMAT {
            return Err(unknown(format!("it has format {format}, known is {FORMAT}")));
        }
        let manifest: Self = serde_json::from_slice(&json).map_err(|error| unknown(error.to_string()))?;
        for known in &manifest.files {
            let found = match digest(folder, &known.path).await {
                Ok(found) => found,
                Err(error) => {
                    let reason = format!("cannot be read ({error})");
                    return Err(BackupError::Damaged { file: known.path.clone(), reason });
                }
            };
            if found != *known {
                let reason = format!(
                    "has {} bytes of SHA-256 {} and should have {} of {}",
                    found.bytes, found.sha256, known.bytes, known.sha256
                );
                return Err(BackupError::Damaged { file: known.path.clone(), reason });
            }
        }
        Ok(manifest)
    }

    /// Puts the objects of the backup in `folder` back where they are missing.
    /// Returns how many the backup has.
    pub async fn put_objects(
        &self,
        folder: &Path,
        artifacts: &Artifacts,
        now_ms: i64,
    ) -> Result<usize, BackupError> {
        if !self.objects {
            return Ok(0);
        }
        for artifact in &self.artifacts {
            let name = artifact.location.rsplit('/').next().unwrap_or_default();
            let what = Description {
                kind: &artifact.kind,
                // The row is there already and keeps what it says.
                name: String::new(),
                extension: name.split_once('.').map_or("", |(_, extension)| extension),
                meta: serde_json::Value::Null,
                now_ms,
            };
            let file = folder.join(OBJECTS).join(&artifact.location);
            artifacts.put_file(&file, &artifact.digest, what).await?;
        }
        Ok(self.artifacts.len())
    }
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// One table, as it was backed up and as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The table.
    pub table: String,
    /// As the manifest has it.
    pub backed_up: Option<TableDigest>,
    /// As it is.
    pub restored: Option<TableDigest>,
    /// Whether the two are the same.
    pub same: bool,
}

/// Table by table, by name.
pub fn compare(backed_up: &[TableDigest], restored: &[TableDigest]) -> Vec<Compared> {
    let mut names: Vec<&str> = backed_up.iter().chain(restored).map(|one| one.table.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let find = |tables: &[TableDigest], name: &str| tables.iter().find(|one| one.table == name).cloned();
    names
        .into_iter()
        .map(|name| {
            let (backed_up, restored) = (find(backed_up, name), find(restored, name));
            Compared { table: name.to_owned(), same: backed_up == restored, backed_up, restored }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(table: &str, rows: u64, digest: &str) -> TableDigest {
        TableDigest { table: table.into(), rows, digest: digest.into() }
    }

    #[test]
    fn tables_that_differ_or_are_on_one_side_only_are_told() {
        let before = [table("a", 1, "x"), table("b", 2, "y"), table("c", 3, "z")];
        let after = [table("a", 1, "x"), table("b", 2, "z"), table("d", 3, "z")];
        let compared = compare(&before, &after);
        let same: Vec<_> = compared.iter().map(|one| (one.table.as_str(), one.same)).collect();
        assert_eq!(same, [("a", true), ("b", false), ("c", false), ("d", false)]);
    }
}

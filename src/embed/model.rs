//! Model folders: what is in them, and that it is what it should be.
//!
//! A model is a folder as sentence-transformers lays it out ([`layout`]). The
//! files of a [`known`] model are compared with digests written down here
//! before anything in them is believed: it does not matter where they were
//! downloaded from. Of any other model the digests are computed, so that its
//! vectors are never taken for those of another.

pub mod known;
mod layout;
pub mod pull;
mod wheel;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use known::{DEFAULT, is_known, known, known_names};

use self::{known::Known, layout::Layout};
use super::{
    bert::{Config, DeviceError, Pooling, WeightsError},
    tokenizer::TokenizerError,
};

const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";

/// What is found out about a folder without computing anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// Of the files that are read.
    pub bytes: u64,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// Whether the digests are those of a known model.
    pub pinned: bool,
}

/// Checks that `dir` holds the files of the model called `name`: by digest if
/// it is a known one, else that they are there and can be used. Reads files a
/// piece at a time.
pub fn verify(name: &str, dir: &Path) -> Result<Checked, ModelError> {
    let mut folder = Folder::of(name, dir);
    let layout = Layout::read(&mut folder)?;
    for path in [WEIGHTS, TOKENIZER] {
        folder.check(path)?;
    }
    Ok(Checked {
        bytes: folder.files.iter().map(|file| file.size).sum(),
        dimensions: layout.config.hidden_size,
        pinned: folder.known.is_some(),
    })
}

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// There is no model of that name.
    #[error("`{name}` is not a known model (known: {known}); say where its folder is with embed.model_dir")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A file is not there.
    #[error("{} is missing: run `thalweg models pull`", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is not the one that belongs to the model.
    #[error(
        "{} has SHA-256 {found}, but the model's has {expected}: remove it and run `thalweg models pull`",
        path.display()
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// In hex.
        expected: String,
        /// In hex.
        found: String,
    },
    /// A configuration file does not hold what it should.
    #[error("{} cannot be understood: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: serde_json::Error,
    },
    /// A configuration file asks for something that is not implemented.
    #[error("{}: {reason}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it asks for, and what there is.
        reason: String,
    },
    /// The weights do not fit the configuration.
    #[error("{WEIGHTS} cannot be used: {0}")]
    Weights(#[from] WeightsError),
    /// The device that should compute does not.
    #[error(transparent)]
    Device(DeviceError),
    /// The tokenizer is not one.
    #[error("{TOKENIZER} cannot be used: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// Each file is sound, but they do not belong together.
    #[error("the files in {} do not fit together: {reason}", dir.display())]
    Mismatch {
        /// The folder.
        dir: PathBuf,
        /// What does not fit.
        reason: String,
    },
}

impl From<DeviceError> for ModelError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Weights(error) => Self::Weights(error),
            error => Self::Device(error),
        }
    }
}

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFile {
    /// Path in the model's folder.
    pub path: String,
    /// Its length in bytes.
    pub size: u64,
    /// In hex.
    pub sha256: String,
}

/// Everything by which a model can be recognised and checked later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelDescription {
    /// Such as `all-MiniLM-L6-v2`.
    pub name: String,
    /// SHA-256 of the weights, in hex.
    pub revision: String,
    /// SHA-256 of the tokenizer, in hex.
    pub tokenizer: String,
    /// Every file that is read.
    pub files: Vec<ModelFile>,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// Tokens kept of a text, special tokens included.
    pub max_tokens: usize,
    /// How token states become one vector: `mean` or `cls`.
    pub pooling: String,
    /// Put before each text.
    pub prefix: String,
    /// Put before each query.
    pub query_prefix: String,
    /// SPDX name of the weights' licence; empty where it is not known.
    pub licence: String,
}

impl ModelDescription {
    /// Checks that `dir` holds exactly the files described. Reads all of them,
    /// a piece at a time.
    pub fn verify(&self, dir: &Path) -> Result<(), ModelError> {
        for file in &self.files {
            let path = dir.join(&file.path);
            let found = digest_of_file(&path).map_err(|source| unreadable(&path, source))?;
            same_digest(path, &file.sha256, found)?;
        }
        Ok(())
    }
}

/// A model's folder, read and verified but for the weights.
pub(super) struct ModelFiles {
    pub description: ModelDescription,
    pub config: Config,
    pub pooling: Pooling,
    pub tokenizer: Vec<u8>,
    pub weights: WeightsFile,
}

/// Weights that are there, with the digest that they are to have.
pub(super) struct WeightsFile {
    path: PathBuf,
    sha256: String,
}

impl WeightsFile {
    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Their bytes, if their digest is right.
    pub fn read(&self) -> Result<Vec<u8>, ModelError> {
        let bytes = std::fs::read(&self.path).map_err(|source| unreadable(&self.path, source))?;
        same_digest(self.path.clone(), &self.sha256, hex(&Sha256::digest(&bytes)))?;
        Ok(bytes)
    }
}

impl ModelFiles {
    /// Reads the model called `name` from `dir`. The digest of a known model's
    /// weights is written down, so they are not read; that of any other's is
    /// computed.
    pub fn read(name: &str, dir: &Path) -> Result<Self, ModelError> {
        let mut folder = Folder::of(name, dir);
        let Layout { config, pooling, max_tokens, prompts } = Layout::read(&mut folder)?;
        let (tokenizer, tokenizer_digest) = folder.required(TOKENIZER)?;
        let revision = folder.look(WEIGHTS)?;
        let weights = WeightsFile { path: dir.join(WEIGHTS), sha256: revision.clone() };
        let description = ModelDescription {
            name: name.to_owned(),
            revision,
            tokenizer: tokenizer_digest,
            files: folder.files,
            dimensions: config.hidden_size,
            max_tokens,
            pooling: pooling.name().to_owned(),
            prefix: prompts.document,
            query_prefix: prompts.query,
            licence: folder.known.map_or("", |known| known.licence).to_owned(),
        };
        Ok(Self { description, config, pooling, tokenizer, weights })
    }
}

/// A folder that is being read, and what was read of it.
struct Folder<'a> {
    dir: &'a Path,
    known: Option<&'static Known>,
    files: Vec<ModelFile>,
}

impl<'a> Folder<'a> {
    fn of(name: &str, dir: &'a Path) -> Self {
        Self { dir, known: Known::of(name), files: Vec::new() }
    }

    /// A file and its digest, if it is there. To a known model belong the
    /// files with a digest, and no others.
    fn optional(&mut self, path: &str) -> Result<Option<(Vec<u8>, String)>, ModelError> {
        if self.known.is_some_and(|known| known.sha256(path).is_none()) {
            return Ok(None);
        }
        match self.required(path) {
            Err(ModelError::Missing { .. }) if self.known.is_none() => Ok(None),
            other => other.map(Some),
        }
    }

    /// A file and its digest.
    fn required(&mut self, path: &str) -> Result<(Vec<u8>, String), ModelError> {
        let at = self.dir.join(path);
        let bytes = std::fs::read(&at).map_err(|source| unreadable(&at, source))?;
        let sha256 = hex(&Sha256::digest(&bytes));
        self.note(path, bytes.len() as u64, &sha256)?;
        Ok((bytes, sha256))
    }

    /// As [`required`](Self::required), of a file that is not needed now.
    /// Returns its digest.
    fn check(&mut self, path: &str) -> Result<String, ModelError> {
        let at = self.dir.join(path);
        let size = std::fs::metadata(&at).map_err(|source| unreadable(&at, source))?.len();
        let sha256 = digest_of_file(&at).map_err(|source| unreadable(&at, source))?;
        self.note(path, size, &sha256)?;
        Ok(sha256)
    }

    /// The digest that a file has, or has to have if its length is the one
    /// written down: it is to be compared by whoever reads the file.
    fn look(&mut self, path: &str) -> Result<String, ModelError> {
        let at = self.dir.join(path);
        let size = std::fs::metadata(&at).map_err(|source| unreadable(&at, source))?.len();
        let Some(sha256) = self.known.and_then(|known| known.sha256_of_length(path, size)) else {
            return self.check(path);
        };
        self.note(path, size, sha256)?;
        Ok(sha256.to_owned())
    }

    fn note(&mut self, path: &str, size: u64, sha256: &str) -> Result<(), ModelError> {
        if let Some(expected) = self.known.and_then(|known| known.sha256(path)) {
            same_digest(self.dir.join(path), expected, sha256.to_owned())?;
        }
        self.files.push(ModelFile { path: path.to_owned(), size, sha256: sha256.to_owned() });
        Ok(())
    }
}

fn unreadable(path: &Path, source: io::Error) -> ModelError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => ModelError::Missing { path },
        _ => ModelError::Read { path, source },
    }
}

fn same_digest(path: PathBuf, expected: &str, found: String) -> Result<(), ModelError> {
    if found == expected {
        return Ok(());
    }
    Err(ModelError::Digest { path, expected: expected.to_owned(), found })
}

/// SHA-256 of a file, in hex, read a piece at a time.
pub fn digest_of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut piece)?;
        let (read, _) = piece.split_at(length);
        if read.is_empty() {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(read);
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing,
        layout::{CONFIG, LIMITS, POOLING},
        *,
    };

    /// A folder with all files but the weights, which would take long to read.
    fn folder_without_weights() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("1_Pooling")).unwrap();
        for path in [TOKENIZER, CONFIG, POOLING, LIMITS] {
            std::fs::write(dir.path().join(path), testing::model_file(path)).unwrap();
        }
        dir
    }

    #[test]
    fn a_folder_is_described_and_verified_by_that_description() {
        let dir = testing::model_dir();
        let description = ModelFiles::read(DEFAULT, &dir).unwrap().description;
        assert_eq!((description.dimensions, description.max_tokens), (384, 256));
        let file = |path: &str| description.files.iter().find(|file| file.path == path).unwrap();
        assert_eq!((description.files.len(), file(WEIGHTS).size), (5, 90_868_376));
        assert_eq!(description.revision, file(WEIGHTS).sha256);
        assert_eq!(description.tokenizer, file(TOKENIZER).sha256);
        let json = serde_json::to_string(&description).unwrap();
        let description: ModelDescription = serde_json::from_str(&json).unwrap();
        description.verify(&dir).unwrap();
    }

    #[test]
    fn a_missing_file_says_what_to_run() {
        let dir = folder_without_weights();
        let error = ModelFiles::read(DEFAULT, dir.path()).err().unwrap();
        assert!(matches!(error, ModelError::Missing { .. }));
        assert!(
            error.to_string().ends_with("model.safetensors is missing: run `thalweg models pull`"),
            "{error}"
        );
    }

    #[test]
    fn weights_of_another_length_are_refused_at_once_and_others_when_they_are_read() {
        let dir = folder_without_weights();
        let weights = File::create(dir.path().join(WEIGHTS)).unwrap();
        weights.set_len(1_000).unwrap();
        assert!(matches!(ModelFiles::read(DEFAULT, dir.path()), Err(ModelError::Digest { .. })));
        weights.set_len(90_868_376).unwrap();
        let files = ModelFiles::read(DEFAULT, dir.path()).unwrap();
        assert_eq!(files.description, ModelFiles::read(DEFAULT, &testing::model_dir()).unwrap().description);
        assert!(matches!(files.weights.read(), Err(ModelError::Digest { .. })));
        // Nobody wrote down what belongs to this one; what it is now, it stays.
        let own = ModelFiles::read("own", dir.path()).unwrap();
        assert_ne!(own.description.revision, files.description.revision);
        own.weights.read().unwrap();
        weights.set_len(90_868_375).unwrap();
        assert!(matches!(own.weights.read(), Err(ModelError::Digest { .. })));
    }

    #[test]
    fn a_file_that_is_not_the_models_is_refused() {
        let dir = folder_without_weights();
        let path = dir.path().join(CONFIG);
        let config = ModelFile {
            path: CONFIG.into(),
            size: 612,
            sha256: Known::of(DEFAULT).unwrap().sha256(CONFIG).unwrap().into(),
        };
        let description = ModelDescription {
            name: DEFAULT.into(),
            revision: String::new(),
            tokenizer: String::new(),
            files: vec![config],
            dimensions: 384,
            max_tokens: 256,
            pooling: "mean".into(),
            prefix: String::new(),
            query_prefix: String::new(),
            licence: String::new(),
        };
        description.verify(dir.path()).unwrap();
        let altered = String::from_utf8(std::fs::read(&path).unwrap()).unwrap().replace("1e-12", "1e-13");
        std::fs::write(&path, altered).unwrap();
        assert!(matches!(description.verify(dir.path()), Err(ModelError::Digest { .. })));
        assert!(matches!(ModelFiles::read(DEFAULT, dir.path()), Err(ModelError::Digest { .. })));
        assert!(matches!(verify(DEFAULT, dir.path()), Err(ModelError::Digest { .. })));
    }

    #[test]
    fn a_file_that_was_put_beside_a_known_models_is_not_believed() {
        let dir = folder_without_weights();
        std::fs::write(dir.path().join("modules.json"), "[{\"path\": \"\", \"type\": \"Dense\"}]").unwrap();
        let error = ModelFiles::read(DEFAULT, dir.path()).err().unwrap();
        assert!(error.to_string().contains("model.safetensors is missing"), "{error}");
    }
}

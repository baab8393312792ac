//! Model folders: what is in them, and that it is what it should be.
//!
//! A model is a folder of five files as sentence-transformers lays them out.
//! Every file is read once, hashed, and compared with the digest written down
//! here before anything in it is believed: it does not matter where the files
//! were downloaded from.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    bert::{Config, WeightsError},
    tokenizer::TokenizerError,
};

/// The model used unless another is named.
pub const DEFAULT: &str = "all-MiniLM-L6-v2";

const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "config.json";
const POOLING: &str = "1_Pooling/config.json";
const LIMITS: &str = "sentence_bert_config.json";

/// A model that the encoder computes faithfully, by test.
struct Known {
    name: &'static str,
    licence: &'static str,
    /// Path in the folder and SHA-256, in hex.
    files: [(&'static str, &'static str); 5],
}

const KNOWN: [Known; 1] = [Known {
    name: DEFAULT,
    licence: "Apache-2.0",
    files: [
        (WEIGHTS, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        (TOKENIZER, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
        (CONFIG, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
        (POOLING, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
        (LIMITS, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    ],
}];

/// Names and licences of all models.
pub fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
    KNOWN.iter().map(|known| (known.name, known.licence))
}

/// Checks that `dir` holds the files of the model called `name`, by digest.
/// Reads all of them, a piece at a time. Returns their bytes.
pub fn verify(name: &str, dir: &Path) -> Result<u64, ModelError> {
    let known = KNOWN
        .iter()
        .find(|known| known.name == name)
        .ok_or_else(|| ModelError::Unknown { name: name.to_owned(), known: known_names() })?;
    let mut bytes = 0;
    for (file, sha256) in known.files {
        let path = dir.join(file);
        bytes += std::fs::metadata(&path).map_err(|source| unreadable(&path, source))?.len();
        let found = digest_of_file(&path).map_err(|source| unreadable(&path, source))?;
        same_digest(path, sha256, found)?;
    }
    Ok(bytes)
}

/// Whether there is a model of that name.
pub fn is_known(name: &str) -> bool {
    KNOWN.iter().any(|known| known.name == name)
}

/// The names of all models, for messages.
pub fn known_names() -> String {
    KNOWN.each_ref().map(|known| known.name).join(", ")
}

/// Why a model folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// There is no model of that name.
    #[error("`{name}` is not a known model; known: {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// A file is not there.
    #[error("{} is missing: run `scripts/fetch-model`", path.display())]
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
        "{} has SHA-256 {found}, but the model's has {expected}: remove it and run `scripts/fetch-model`",
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
    /// The weights do not fit the configuration.
    #[error("{WEIGHTS} cannot be used: {0}")]
    Weights(#[from] WeightsError),
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
    /// How token states become one vector: `mean`.
    pub pooling: String,
    /// SPDX name of the weights' licence.
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

/// A model's folder, read and verified.
pub(super) struct ModelFiles {
    pub description: ModelDescription,
    pub config: Config,
    pub weights: Vec<u8>,
    pub tokenizer: Vec<u8>,
}

#[derive(Deserialize)]
struct Limits {
    max_seq_length: usize,
}

#[derive(Deserialize)]
struct Pooling {
    pooling_mode_mean_tokens: bool,
}

impl ModelFiles {
    /// Reads the model called `name` from `dir`.
    pub fn read(name: &str, dir: &Path) -> Result<Self, ModelError> {
        let known = KNOWN
            .iter()
            .find(|known| known.name == name)
            .ok_or_else(|| ModelError::Unknown { name: name.to_owned(), known: known_names() })?;
        let mut files = Vec::new();
        let [weights, tokenizer, config, pooling, limits] = known.files.map(|(path, sha256)| {
            let bytes = read_verified(&dir.join(path), sha256)?;
            files.push(ModelFile {
                path: path.to_owned(),
                size: bytes.len() as u64,
                sha256: sha256.to_owned(),
            });
            Ok::<_, ModelError>(bytes)
        });
        let (weights, tokenizer) = (weights?, tokenizer?);
        let config: Config = parse(&config?, dir.join(CONFIG))?;
        let pooling: Pooling = parse(&pooling?, dir.join(POOLING))?;
        let limits: Limits = parse(&limits?, dir.join(LIMITS))?;
        let mismatch = |reason: &str| ModelError::Mismatch { dir: dir.to_owned(), reason: reason.to_owned() };
        if !pooling.pooling_mode_mean_tokens {
            return Err(mismatch("the pooling is not `mean`"));
        }
        if !(2..=config.max_position_embeddings).contains(&limits.max_seq_length) {
            return Err(mismatch("there are fewer positions than the longest text has tokens"));
        }
        let digest_at = |n: usize| known.files.get(n).map_or("", |(_, sha256)| sha256).to_owned();
        let description = ModelDescription {
            name: name.to_owned(),
            revision: digest_at(0),
            tokenizer: digest_at(1),
            files,
            dimensions: config.hidden_size,
            max_tokens: limits.max_seq_length,
            pooling: "mean".into(),
            licence: known.licence.into(),
        };
        Ok(Self { description, config, weights, tokenizer })
    }
}

fn read_verified(path: &Path, sha256: &str) -> Result<Vec<u8>, ModelError> {
    let bytes = std::fs::read(path).map_err(|source| unreadable(path, source))?;
    same_digest(path.to_owned(), sha256, hex(&Sha256::digest(&bytes)))?;
    Ok(bytes)
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

fn parse<T: DeserializeOwned>(bytes: &[u8], path: PathBuf) -> Result<T, ModelError> {
    serde_json::from_slice(bytes).map_err(|source| ModelError::Malformed { path, source })
}

fn digest_of_file(path: &Path) -> io::Result<String> {
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::testing, *};

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
        assert_eq!(description.files[0].size, 90_868_376);
        assert_eq!(description.revision, description.files[0].sha256);
        assert_eq!(description.tokenizer, description.files[1].sha256);
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
            error.to_string().ends_with("model.safetensors is missing: run `scripts/fetch-model`"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_not_the_models_is_refused() {
        let dir = folder_without_weights();
        let path = dir.path().join(CONFIG);
        let config = ModelFile { path: CONFIG.into(), size: 612, sha256: KNOWN[0].files[2].1.into() };
        let description = ModelDescription {
            name: DEFAULT.into(),
            revision: String::new(),
            tokenizer: String::new(),
            files: vec![config],
            dimensions: 384,
            max_tokens: 256,
            pooling: "mean".into(),
            licence: String::new(),
        };
        description.verify(dir.path()).unwrap();
        let altered = String::from_utf8(std::fs::read(&path).unwrap()).unwrap().replace("1e-12", "1e-13");
        std::fs::write(&path, altered).unwrap();
        assert!(matches!(description.verify(dir.path()), Err(ModelError::Digest { .. })));
        assert!(matches!(read_verified(&path, KNOWN[0].files[2].1), Err(ModelError::Digest { .. })));
    }

    #[test]
    fn an_unknown_model_is_refused_by_name() {
        let error = ModelFiles::read("all-mpnet", Path::new(".")).err().unwrap();
        assert_eq!(error.to_string(), "`all-mpnet` is not a known model; known: all-MiniLM-L6-v2");
    }
}

//! What turns texts into vectors.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Space,
    bert::Element,
    model,
    remote::settings::{self as remote, Endpoint, Quota},
};
use crate::{
    setting::SettingError,
    units::{ByteSize, Period},
};

/// Tokens a batch may have at least: as many as the longest text.
const LEAST_BATCH_TOKENS: usize = 256;
/// Beyond this a batch only takes memory and keeps queries waiting.
const MOST_BATCH_TOKENS: usize = 65_536;
/// The provider of the local model's [`Space`]s.
pub(super) const LOCAL: &str = "local";
const MOST_THREADS: usize = 1_024;
const MOST_DIMENSIONS: usize = 16_384;
const LEAST_MAX_TOKENS: usize = 16;
const MOST_MAX_TOKENS: usize = 131_072;

/// The section `embed` of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Who computes the vectors.
    pub provider: Provider,
    /// Name of the model: of a local one, or as the endpoints know it.
    pub model: String,
    /// Folder of the local model's files; empty means the folder of that name
    /// in `$THALWEG_MODELS`, or in `models` where that is not set. With a
    /// folder, `model` may be any name: it holds a BERT-family sentence model
    /// as sentence-transformers saves it.
    pub model_dir: String,
    /// Numbers that the local model computes with.
    pub element: ElementChoice,
    /// Threads that compute vectors; 0 means one per core.
    pub threads: usize,
    /// Tokens computed together at most. More does not compute faster: a live
    /// query waits until a batch in progress is done.
    pub batch_tokens: usize,
    /// How long records wait for an embedder that fails. After that they are
    /// stored without vectors, found by keyword, and embedded later; when a
    /// quota is spent, at once.
    pub patience: Period,
    /// Records a second that get their vectors later, at most; 0 means no
    /// limit.
    pub backfill_rate: u32,
    /// Memory for the vectors of texts seen lately; 0 turns it off.
    pub cache_memory: ByteSize,
    /// Numbers in a vector of a remote model.
    pub dimensions: usize,
    /// Tokens kept of a text by a remote model, special tokens included; the
    /// rest is cut.
    pub max_tokens: usize,
    /// The remote model's `tokenizer.json`, to count tokens exactly; without
    /// it they are estimated, on the side of too many.
    pub tokenizer: String,
    /// Put before each text for a remote model, where the model wants it.
    pub prefix: String,
    /// Put before each query for a remote model, where the model wants it.
    pub query_prefix: String,
    /// Services that compute the model's vectors, in the order in which they
    /// are tried.
    pub endpoint: Vec<Endpoint>,
    /// What all endpoints together may spend in a day.
    pub quota: Quota,
}

/// Who computes the vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The model, in this process.
    Local,
    /// The model, by way of the endpoints in `[[embed.endpoint]]`.
    Remote,
    /// Hashes of words and trigrams: no model and no meaning, for tests.
    Hashing,
}

/// Numbers that the local model computes with. Vectors of different numbers
/// are of different spaces and never compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ElementChoice {
    /// Those of the vectors that are stored already; where there are none,
    /// `bf16` if the processor multiplies it faster, else `fp32`.
    Auto,
    /// 32-bit floats, as the weights come.
    Fp32,
    /// 16-bit floats with 32-bit sums: practically the same vectors.
    Bf16,
    /// 8-bit integers with exact sums: the fastest where the processor has
    /// AVX-512 VNNI, nearly the same vectors.
    Int8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            provider: Provider::Local,
            model: model::DEFAULT.to_owned(),
            model_dir: String::new(),
            element: ElementChoice::Auto,
            threads: 0,
            batch_tokens: 2_048,
            patience: Period::secs(10),
            backfill_rate: 500,
            cache_memory: ByteSize::mib(32),
            dimensions: 0,
            max_tokens: 512,
            tokenizer: String::new(),
            prefix: String::new(),
            query_prefix: String::new(),
            endpoint: Vec::new(),
            quota: Quota::default(),
        }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(
            self.provider != Provider::Local || model::is_known(&self.model) || !self.model_dir.is_empty(),
            "model",
            format!(
                "`{}` is not a known model (known: {}); for one of your own set model_dir, too",
                self.model,
                model::known_names()
            ),
        )?;
        SettingError::unless(
            self.provider != Provider::Local || !self.model.trim().is_empty(),
            "model",
            "give the model a name",
        )?;
        SettingError::unless(
            self.threads <= MOST_THREADS,
            "threads",
            format!("{} threads are too many; write 0 for one per core", self.threads),
        )?;
        SettingError::unless(
            (LEAST_BATCH_TOKENS..=MOST_BATCH_TOKENS).contains(&self.batch_tokens),
            "batch_tokens",
            format!(
                "{} is out of range; write {LEAST_BATCH_TOKENS} to {MOST_BATCH_TOKENS}",
                self.batch_tokens
            ),
        )?;
        self.validate_remote()
    }

    fn validate_remote(&self) -> Result<(), SettingError> {
        if self.provider != Provider::Remote {
            let message = "endpoints are asked by provider \"remote\" only; set it, or leave them out";
            return SettingError::unless(self.endpoint.is_empty(), "endpoint", message);
        }
        let unnamed = "name the model as the endpoints know it";
        SettingError::unless(!self.model.trim().is_empty(), "model", unnamed)?;
        SettingError::unless(
            (1..=MOST_DIMENSIONS).contains(&self.dimensions),
            "dimensions",
            format!("provider \"remote\" needs the numbers in a vector; write 1 to {MOST_DIMENSIONS}"),
        )?;
        SettingError::unless(
            (LEAST_MAX_TOKENS..=MOST_MAX_TOKENS).contains(&self.max_tokens),
            "max_tokens",
            format!("{} is out of range; write {LEAST_MAX_TOKENS} to {MOST_MAX_TOKENS}", self.max_tokens),
        )?;
        remote::validate(&self.endpoint, &self.quota, self.max_tokens)
    }

    /// The folder of the model's files; `models` is the value of
    /// `THALWEG_MODELS`.
    pub fn model_folder(&self, models: Option<&OsStr>) -> PathBuf {
        if self.model_dir.is_empty() {
            models.map_or(Path::new("models"), Path::new).join(&self.model)
        } else {
            PathBuf::from(&self.model_dir)
        }
    }

    /// Threads to start on a machine with `cores` cores.
    /// The numbers to compute with, where vectors of the spaces `stored`
    /// exist.
    pub(super) fn element(&self, stored: &[Space]) -> Element {
        let of_stored = |space: &Space| {
            let same = space.provider == LOCAL && space.model == self.model;
            Element::ALL.into_iter().find(|element| same && element.name() == space.element)
        };
        match self.element {
            ElementChoice::Auto => {
                stored.iter().rev().find_map(of_stored).unwrap_or_else(Element::fastest_faithful)
            }
            ElementChoice::Fp32 => Element::Fp32,
            ElementChoice::Bf16 => Element::Bf16,
            ElementChoice::Int8 => Element::Int8,
        }
    }

    pub(super) fn worker_threads(&self, cores: usize) -> usize {
        if self.threads == 0 { cores } else { self.threads }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_element_is_that_of_the_stored_vectors_unless_one_is_asked_for() {
        let stored = |provider: &str, element: &str| Space {
            provider: provider.into(),
            model: model::DEFAULT.into(),
            revision: String::new(),
            tokenizer: String::new(),
            dimensions: 384,
            pooling: "mean".into(),
            normalised: true,
            prefix: String::new(),
            element: element.into(),
            max_tokens: 256,
        };
        let auto = Settings::default();
        assert_eq!(auto.element(&[]), Element::fastest_faithful());
        assert_eq!(auto.element(&[stored("hashing", "int8")]), Element::fastest_faithful());
        for element in Element::ALL {
            let older = stored("local", if element == Element::Int8 { "fp32" } else { "int8" });
            assert_eq!(auto.element(&[older.clone(), stored("local", element.name())]), element);
            let other_model = Settings { model: "another".into(), ..auto.clone() };
            assert_eq!(other_model.element(std::slice::from_ref(&older)), Element::fastest_faithful());
        }
        let int8 = Settings { element: ElementChoice::Int8, ..auto };
        assert_eq!(int8.element(&[stored("local", "fp32")]), Element::Int8);
    }

    #[test]
    fn defaults_are_valid_and_survive_a_pipeline_file() {
        let settings: Settings = toml::from_str("").unwrap();
        assert_eq!(settings, Settings::default());
        settings.validate().unwrap();
        assert_eq!(toml::from_str::<Settings>(&toml::to_string(&settings).unwrap()).unwrap(), settings);
        assert!(toml::from_str::<Settings>("batch = 3").unwrap_err().to_string().contains("batch_tokens"));
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused_by_key() {
        let refused = |settings: Settings| settings.validate().unwrap_err();
        let unknown = refused(Settings { model: "bert".into(), ..Settings::default() });
        assert_eq!(unknown.key, "model");
        assert!(unknown.message.contains("all-MiniLM-L6-v2"));
        assert_eq!(refused(Settings { threads: 5_000, ..Settings::default() }).key, "threads");
        assert_eq!(refused(Settings { batch_tokens: 10, ..Settings::default() }).key, "batch_tokens");
        let own = Settings { model: "own".into(), model_dir: "/m".into(), ..Settings::default() };
        own.validate().unwrap();
        assert_eq!(refused(Settings { model: " ".into(), ..own }).key, "model");
        let hashing = Settings { provider: Provider::Hashing, model: String::new(), ..Settings::default() };
        hashing.validate().unwrap();
    }

    #[test]
    fn a_remote_model_needs_dimensions_and_an_endpoint() {
        let read = |more: &str| {
            let text = format!("provider = 'remote'\nmodel = 'm'\n{more}");
            toml::from_str::<Settings>(&text).unwrap()
        };
        let key = |more: &str| read(more).validate().unwrap_err().key;
        let endpoint = "[[endpoint]]\nname = 'a'\napi = 'tei'\nurl = 'http://127.0.0.1:8080'";
        assert_eq!(key(""), "dimensions");
        assert_eq!(key("dimensions = 384"), "endpoint");
        assert_eq!(key(&format!("dimensions = 384\nmax_tokens = 15\n{endpoint}")), "max_tokens");
        let complete = read(&format!("dimensions = 384\n{endpoint}"));
        complete.validate().unwrap();
        assert_eq!(toml::from_str::<Settings>(&toml::to_string(&complete).unwrap()).unwrap(), complete);
        let local = Settings { provider: Provider::Hashing, ..complete };
        assert_eq!(local.validate().unwrap_err().key, "endpoint");
    }

    #[test]
    fn the_model_folder_is_the_one_named_else_below_the_models_folder() {
        let settings = Settings::default();
        assert_eq!(settings.model_folder(None), Path::new("models/all-MiniLM-L6-v2"));
        assert_eq!(settings.model_folder(Some(OsStr::new("/m"))), Path::new("/m/all-MiniLM-L6-v2"));
        let named = Settings { model_dir: "/elsewhere".into(), ..settings };
        assert_eq!(named.model_folder(Some(OsStr::new("/m"))), Path::new("/elsewhere"));
    }
}

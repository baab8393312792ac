//! Text in, vectors out.
//!
//! [`Embedder`] is the seam; behind it stand the local model ([`local`]),
//! services that are asked over HTTP ([`remote`]) and the hashing embedder for
//! tests ([`hashing`]). [`open`] makes the one that the [`Settings`] name.
//! [`cache`] wraps any of them.
//!
//! The local model is [`model`] (its files, verified), [`tokenizer`] (text to
//! token ids), [`bert`] (token ids to vectors), `late` (reading the weights
//! when they are needed), [`pool`] (the threads) and [`gather`] (small requests
//! that share a batch).

pub mod bert;
pub mod cache;
pub mod gather;
pub mod hashing;
mod late;
pub mod local;
pub mod model;
pub mod pool;
pub mod remote;
pub mod settings;
mod shared;
pub mod tokenizer;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{fmt, io, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::{
    bert::{DeviceChoice, Element},
    cache::{Cached, Known, Shelf, ShelfError, Tier},
    hashing::Hashing,
    local::{Counted, LocalModel},
    model::{ModelDescription, ModelError},
    remote::{Budget, Circuit, EndpointState, QuotaKind, QuotaState, Remote, Spending, Spent},
    settings::{ElementChoice, Provider, Settings},
    shared::SharedVectors,
};

/// The cosine of the angle between two vectors, -1..1; -1, the least there is,
/// also where one is zero or not finite, or their lengths differ.
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product =
        |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum() };
    let cosine = product(a, b) / (product(a, a) * product(b, b)).sqrt();
    if a.len() == b.len() && cosine.is_finite() { cosine } else { -1.0 }
}

/// What makes vectors comparable. Two vectors may be compared only if their
/// spaces are equal in every field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Who computes: `local`, `remote`, `hashing`.
    pub provider: String,
    /// The model's name, such as `all-MiniLM-L6-v2`.
    pub model: String,
    /// SHA-256 of the weights, in hex (the algorithm's version where there
    /// are none; empty where they cannot be seen).
    pub revision: String,
    /// SHA-256 of the tokenizer, in hex; empty where there is none.
    pub tokenizer: String,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// `mean` or `cls`; empty where a service does not tell.
    pub pooling: String,
    /// Whether vectors have length 1.
    pub normalised: bool,
    /// Put before each text.
    pub prefix: String,
    /// Numbers that the encoder computes with: `fp32`, `bf16` or `int8`.
    pub element: String,
    /// Tokens kept of a text, special tokens included; the rest is cut.
    pub max_tokens: usize,
}

impl Space {
    /// The space's identity: the first 16 hex digits of the SHA-256 of its
    /// fields as JSON.
    pub fn id(&self) -> String {
        let json = serde_json::to_vec(self).unwrap_or_default();
        let digest = Sha256::digest(json);
        digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
    }
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} {}d {} ({})", self.provider, self.model, self.dimensions, self.element, self.id())
    }
}

/// Why texts could not be embedded, by what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EmbedError {
    /// One input can never be embedded; the others can.
    #[error("input {index} cannot be embedded: {reason}")]
    Input {
        /// Which of the texts passed in.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many requests, nothing else is wrong: later it goes on.
    #[error("the embedder wants to be asked less often: {reason}")]
    Rate {
        /// What happened.
        reason: String,
        /// When to come again at the earliest, if that is known.
        retry_after: Option<Duration>,
    },
    /// What may be spent is spent.
    #[error("the embedding quota is spent: {reason}")]
    Quota {
        /// Whose quota.
        reason: String,
        /// When there is a new one, in milliseconds since the Unix epoch, if
        /// that is known.
        reset_at: Option<i64>,
    },
    /// Trying again later may help.
    #[error("the embedder failed for now: {reason}")]
    Transient {
        /// What happened.
        reason: String,
    },
    /// Nothing will help but a change of configuration.
    #[error("the embedder cannot work as configured: {reason}")]
    Configuration {
        /// What to change.
        reason: String,
    },
}

impl EmbedError {
    /// The error's class, in one word.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Input { .. } => "input",
            Self::Rate { .. } => "rate",
            Self::Quota { .. } => "quota",
            Self::Transient { .. } => "transient",
            Self::Configuration { .. } => "configuration",
        }
    }
}

/// Why there is no embedder.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The endpoints cannot be used.
    #[error(transparent)]
    Remote(#[from] remote::RemoteError),
    /// The worker threads could not be started.
    #[error("cannot start a thread for the model: {source}")]
    Threads {
        /// What the system says.
        source: io::Error,
    },
}

/// Makes the embedder that `settings` name, for a store that holds vectors of
/// the spaces `stored`, the newest last. Looks at a local model's files and
/// blocks meanwhile; the environment may say where they are (`THALWEG_MODELS`).
/// See [`Embedder::prepare`].
pub fn open(settings: &Settings, stored: &[Space]) -> Result<Arc<dyn Embedder>, OpenError> {
    match settings.provider {
        Provider::Hashing => Ok(Arc::new(Hashing::default())),
        Provider::Remote => Ok(Arc::new(Remote::open(settings)?)),
        Provider::Local => Ok(Arc::new(LocalModel::open(settings, stored)?)),
    }
}

/// For whom something is embedded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// Records as they come in, and queries.
    #[default]
    Live,
    /// What can wait: replays and re-embedding.
    Backfill,
}

/// What came of texts, each by itself.
#[derive(Clone, Debug, Default)]
pub struct Partial {
    /// In the order of the texts; `None` where there is no vector (yet).
    pub vectors: Vec<Option<Vec<f32>>>,
    /// Texts that can never be embedded.
    pub refused: Vec<Refused>,
    /// Why others have no vector. Without it, and without a vector or a
    /// refusal, a text was not looked at: it is to be passed in again.
    pub failed: Option<EmbedError>,
}

/// A text that can never be embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which of the texts passed in.
    pub index: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl Partial {
    /// What came of `count` texts that are embedded together or not at all.
    pub fn of_all(count: usize, vectors: Result<Vec<Vec<f32>>, EmbedError>) -> Self {
        let (refused, failed) = match vectors {
            Ok(vectors) => {
                return Self { vectors: vectors.into_iter().map(Some).collect(), ..Self::default() };
            }
            Err(EmbedError::Input { index, reason }) => (vec![Refused { index, reason }], None),
            Err(error) => (Vec::new(), Some(error)),
        };
        Self { vectors: vec![None; count], refused, failed }
    }

    /// All vectors.
    ///
    /// # Errors
    /// If one is missing.
    pub fn all(self) -> Result<Vec<Vec<f32>>, EmbedError> {
        if let Some(Refused { index, reason }) = self.refused.into_iter().next() {
            return Err(EmbedError::Input { index, reason });
        }
        if let Some(error) = self.failed {
            return Err(error);
        }
        let missing = || EmbedError::Transient { reason: "a vector is missing".to_owned() };
        self.vectors.into_iter().map(|vector| vector.ok_or_else(missing)).collect()
    }
}

/// Turns texts into vectors of one [`Space`].
pub trait Embedder: Send + Sync {
    /// The space of every vector this embedder returns.
    fn space(&self) -> &Space;

    /// Makes ready whatever is otherwise made ready by the first call: the
    /// local model reads its weights. Finds out whether that can be done, so
    /// a service calls this before it says that it is there.
    fn prepare(&self) -> BoxFuture<'_, Result<(), EmbedError>> {
        Box::pin(async { Ok(()) })
    }

    /// One vector of `space().dimensions` finite numbers per text, in the
    /// order of the texts. Never blocks the calling thread with computation.
    fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>>;

    /// As [`embed`](Self::embed), but what could be done is kept where part of
    /// it fails.
    fn embed_each(&self, texts: Vec<String>, work: Work) -> BoxFuture<'_, Partial> {
        let _ = work;
        Box::pin(async move {
            let count = texts.len();
            Partial::of_all(count, self.embed(texts).await)
        })
    }

    /// The vector of one text that someone is waiting for: it goes before the
    /// texts of [`embed`](Self::embed) that have not been begun.
    fn embed_query(&self, text: String) -> BoxFuture<'_, Result<Vec<f32>, EmbedError>> {
        Box::pin(async move {
            let vectors = self.embed(vec![text]).await?;
            Ok(vectors.into_iter().flatten().collect())
        })
    }

    /// The tokenizer that counts as this embedder counts.
    fn tokens(&self) -> Arc<dyn TokenSpans>;

    /// What this embedder may spend; `None` if it costs nothing.
    fn budget(&self) -> Option<&Arc<Budget>> {
        None
    }

    /// The state of each service that this embedder asks; none if it asks none.
    fn endpoints(&self) -> Vec<EndpointState> {
        Vec::new()
    }
}

pub use crate::transform::TokenSpans;

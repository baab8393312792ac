//! Text in, vectors out.
//!
//! [`Embedder`] is the seam; behind it stand the local model ([`local`]) and
//! the hashing embedder for tests ([`hashing`]). [`open`] makes the one that
//! the [`Settings`] name.
//!
//! The local model is [`model`] (its files, verified), [`tokenizer`] (text to
//! token ids), [`bert`] (token ids to vectors) and [`pool`] (the threads).

pub mod bert;
pub mod hashing;
pub mod local;
pub mod model;
pub mod pool;
pub mod settings;
pub mod tokenizer;

#[cfg(test)]
mod testing;

use std::{fmt, io, sync::Arc};

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::{
    bert::Element,
    hashing::Hashing,
    local::LocalModel,
    model::{ModelDescription, ModelError},
    settings::{ElementChoice, Provider, Settings},
};

/// What makes vectors comparable. Two vectors may be compared only if their
/// spaces are equal in every field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Who computes: `local`, `hashing`, later a provider's name.
    pub provider: String,
    /// The model's name, such as `all-MiniLM-L6-v2`.
    pub model: String,
    /// SHA-256 of the weights, in hex (the algorithm's version where there
    /// are none).
    pub revision: String,
    /// SHA-256 of the tokenizer, in hex; empty where there is none.
    pub tokenizer: String,
    /// Numbers in a vector.
    pub dimensions: usize,
    /// `mean` or `cls`.
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

/// Why there is no embedder.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The model cannot be used.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The worker threads could not be started.
    #[error("cannot start a thread for the model: {source}")]
    Threads {
        /// What the system says.
        source: io::Error,
    },
}

/// Makes the embedder that `settings` name, for a store that holds vectors of
/// the spaces `stored`, the newest last. Reads the model's files and blocks
/// meanwhile; the environment may say where they are (`THALWEG_MODELS`).
pub fn open(settings: &Settings, stored: &[Space]) -> Result<Arc<dyn Embedder>, OpenError> {
    match settings.provider {
        Provider::Hashing => Ok(Arc::new(Hashing::default())),
        Provider::Local => {
            let dir = settings.model_folder(std::env::var_os("THALWEG_MODELS").as_deref());
            Ok(Arc::new(LocalModel::load(&dir, settings, settings.element(stored))?))
        }
    }
}

/// Turns texts into vectors of one [`Space`].
pub trait Embedder: Send + Sync {
    /// The space of every vector this embedder returns.
    fn space(&self) -> &Space;

    /// One vector of `space().dimensions` finite numbers per text, in the
    /// order of the texts. Never blocks the calling thread with computation.
    fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>>;

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
}

pub use crate::transform::TokenSpans;

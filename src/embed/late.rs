//! The encoder of the local model, made from its weights when it is first
//! needed.
//!
//! Reading, verifying and packing the weights takes a good part of a second of
//! processor time, which whoever finds nothing to embed need not spend. What
//! vectors will be comparable with is known before ([`ModelFiles`]), and
//! weights that turn out to be others are never computed with.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::{
    bert::{Config, Element, Encoder, Pooling},
    model::{ModelError, WeightsFile},
};

/// An encoder that may not have been read yet.
pub(super) struct LateEncoder {
    weights: WeightsFile,
    config: Config,
    pooling: Pooling,
    element: Element,
    encoder: OnceLock<Encoder>,
    /// Held by whoever reads, so that it is done once.
    reading: Mutex<()>,
}

impl LateEncoder {
    pub fn new(weights: WeightsFile, config: Config, pooling: Pooling, element: Element) -> Self {
        let (encoder, reading) = (OnceLock::new(), Mutex::new(()));
        Self { weights, config, pooling, element, encoder, reading }
    }

    /// The encoder. Blocks while the weights are read, by this thread or
    /// another. After an error the next call tries again.
    pub fn get(&self) -> Result<&Encoder, ModelError> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let weights = self.weights.read()?;
        let encoder = Encoder::read(&weights, self.config.clone(), self.pooling, self.element)?;
        let (element, weights) = (self.element, self.weights.path().display());
        tracing::info!(%weights, %element, kernel = element.kernel(), "the local model is ready");
        Ok(self.encoder.get_or_init(|| encoder))
    }
}

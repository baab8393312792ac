//! The encoder of the local model, made from its weights when it is first
//! needed.
//!
//! Reading, verifying and packing the weights takes a good part of a second of
//! processor time, which whoever finds nothing to embed need not spend. What
//! vectors will be comparable with is known before ([`ModelFiles`]), and
//! weights that turn out to be others are never computed with. Whether there is
//! a device to compute on is found out before, too.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::{
    bert::{
        self, Accelerator, Config, DeviceChoice, DeviceEncoder, DeviceError, Element, Encoder, Pooling,
        Scratch,
    },
    model::{ModelError, WeightsFile},
    settings::{ElementChoice, Settings},
};

/// The device that `choice` names, for a model of that configuration, and the
/// element to compute with. Where there is no such device, that is said in the
/// log, and there is none.
pub(super) fn device(
    choice: DeviceChoice,
    config: &Config,
    settings: &Settings,
) -> Result<(Option<Box<dyn Accelerator>>, Element), ModelError> {
    let device = match bert::device::open(choice, config) {
        Err(DeviceError::Missing { reason }) => {
            tracing::warn!("no CUDA device: {reason}; computing on the CPU");
            None
        }
        opened => opened?,
    };
    let element = match (&device, settings.element) {
        (Some(_), ElementChoice::Auto) => Element::Bf16,
        _ => settings.element(&[]),
    };
    Ok((device, element))
}

/// An encoder that may not have been read yet.
pub(super) struct LateEncoder {
    weights: WeightsFile,
    config: Config,
    pooling: Pooling,
    element: Element,
    device: Option<Box<dyn Accelerator>>,
    encoder: OnceLock<AnyEncoder>,
    /// Held by whoever reads, so that it is done once.
    reading: Mutex<()>,
}

/// An encoder here or there.
#[expect(clippy::large_enum_variant, reason = "a model has one of it")]
pub(super) enum AnyEncoder {
    /// On the processor: any thread with room of its own uses it.
    Processor(Encoder),
    /// On a device.
    Device(OnDevice),
}

/// An encoder on a device: one thread at a time uses it.
pub(super) struct OnDevice {
    encoder: Mutex<Box<dyn DeviceEncoder>>,
    /// Why it will not compute any more, once that is so.
    lost: OnceLock<String>,
}

impl AnyEncoder {
    /// As [`Encoder::encode`].
    pub fn encode(&self, batch: &[Vec<u32>], scratch: &mut Scratch) -> Result<Vec<Vec<f32>>, DeviceError> {
        match self {
            Self::Processor(encoder) => Ok(encoder.encode(batch, scratch)),
            Self::Device(device) => device.encode(batch),
        }
    }

    /// Why it will not compute any more, if that is so.
    fn lost(&self) -> Option<&str> {
        match self {
            Self::Processor(_) => None,
            Self::Device(device) => device.lost.get().map(String::as_str),
        }
    }
}

impl OnDevice {
    fn new(encoder: Box<dyn DeviceEncoder>) -> Self {
        Self { encoder: Mutex::new(encoder), lost: OnceLock::new() }
    }

    fn encode(&self, batch: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, DeviceError> {
        let mut encoder = self.encoder.lock().unwrap_or_else(PoisonError::into_inner);
        let vectors = encoder.encode(batch);
        if let Err(error) = &vectors {
            tracing::error!(%error, texts = batch.len(), "not computed");
            // Too little memory for a batch is no more than that; most of what
            // else goes wrong on a device ends all work on it.
            if let Err(error) = encoder.encode(&[vec![0]]) {
                self.lost.get_or_init(|| error.to_string());
            }
        }
        vectors
    }
}

impl LateEncoder {
    /// On `device`, or on the processor if there is none.
    pub fn new(
        weights: WeightsFile,
        config: Config,
        pooling: Pooling,
        element: Element,
        device: Option<Box<dyn Accelerator>>,
    ) -> Self {
        let (encoder, reading) = (OnceLock::new(), Mutex::new(()));
        Self { weights, config, pooling, element, device, encoder, reading }
    }

    /// The device that computes, if it is not the processor.
    pub fn device(&self) -> Option<&str> {
        self.device.as_deref().map(Accelerator::name)
    }

    /// Why it will not compute any more, if that is so.
    pub fn lost(&self) -> Option<&str> {
        self.encoder.get()?.lost()
    }

    /// The encoder. Blocks while the weights are read, by this thread or
    /// another. After an error the next call tries again.
    pub fn get(&self) -> Result<&AnyEncoder, ModelError> {
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(encoder) = self.encoder.get() {
            return Ok(encoder);
        }
        let weights = self.weights.read()?;
        let (config, pooling, element) = (&self.config, self.pooling, self.element);
        let encoder = match &self.device {
            None => AnyEncoder::Processor(Encoder::read(&weights, config.clone(), pooling, element)?),
            Some(device) => {
                AnyEncoder::Device(OnDevice::new(device.load(&weights, config, pooling, element)?))
            }
        };
        let kernel = self.device().unwrap_or_else(|| element.kernel());
        let weights = self.weights.path().display();
        tracing::info!(%weights, %element, kernel, "the local model is ready");
        Ok(self.encoder.get_or_init(|| encoder))
    }
}

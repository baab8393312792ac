//! Where the encoder computes: on the processor, or on a device beside it.

use super::{
    encoder::Pooling,
    kernel::Element,
    weights::{Config, WeightsError},
};

/// What computes vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceChoice {
    /// The processor
    #[default]
    Cpu,
    /// A GPU with CUDA, if there is one; else the processor
    Cuda,
}

impl DeviceChoice {
    /// Why this build never computes there, if it does not.
    pub fn missing(self) -> Option<&'static str> {
        (self == Self::Cuda && cfg!(not(feature = "cuda"))).then_some(
            "this build has no CUDA: build one that has, with `cargo build --release --features cuda`, \
             or leave --device out",
        )
    }
}

/// A device that can be given a model.
pub trait Accelerator: Send + Sync {
    /// What it calls itself.
    fn name(&self) -> &str;

    /// An encoder there, from the bytes of a safetensors file, that was found
    /// to compute what the processor computes.
    fn load(
        &self,
        weights: &[u8],
        config: &Config,
        pooling: Pooling,
        element: Element,
    ) -> Result<Box<dyn DeviceEncoder>, DeviceError>;
}

/// An encoder on a device. One thread at a time uses it.
pub trait DeviceEncoder: Send {
    /// As [`Encoder::encode`](super::Encoder::encode).
    fn encode(&mut self, batch: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, DeviceError>;
}

/// Why a device does not compute.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There is none that can be used.
    #[error("{reason}")]
    Missing {
        /// What is missing.
        reason: String,
    },
    /// It is not made for this model.
    #[error("{reason}")]
    Unsupported {
        /// What it cannot compute, and what to do.
        reason: String,
    },
    /// The weights cannot be used anywhere.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// It did not do what it was asked for.
    #[error("the CUDA device failed: {reason}")]
    Failed {
        /// What it says.
        reason: String,
    },
    /// It computes something else than the processor.
    #[error(
        "the CUDA device is not used: of {texts} texts, one has a vector whose cosine with the processor's is {cosine:.6}, and {least} is the least that is accepted with {element}; --device cpu computes right"
    )]
    Disagrees {
        /// Texts that were computed by both.
        texts: usize,
        /// The smallest cosine.
        cosine: f64,
        /// The least accepted.
        least: f64,
        /// What it computed with.
        element: Element,
    },
}

/// The device that `choice` names, for models with heads of so many numbers;
/// `None` for the processor.
pub fn open(choice: DeviceChoice, config: &Config) -> Result<Option<Box<dyn Accelerator>>, DeviceError> {
    match choice {
        DeviceChoice::Cpu => Ok(None),
        #[cfg(feature = "cuda")]
        DeviceChoice::Cuda => super::cuda::open(config).map(Some),
        #[cfg(not(feature = "cuda"))]
        DeviceChoice::Cuda => {
            let _ = config;
            Err(DeviceError::Missing { reason: choice.missing().unwrap_or_default().to_owned() })
        }
    }
}

//! A BERT encoder of our own: token ids in, one unit vector per text out.
//!
//! The tokens of all texts of a batch lie one after another, without padding:
//! matrix products run over all rows at once, attention within each text. A
//! batch is computed by one thread; parallelism lies between batches.
//!
//! [`Encoder`] computes on the processor, with the arithmetic of [`kernel`];
//! `cuda` on a device beside it ([`device`]), if this build has it. These two
//! are the only places with unsafe code.

#[cfg(any(test, feature = "cuda"))]
mod cuda;
pub mod device;
mod encoder;
mod kernel;
mod weights;

#[cfg(test)]
pub use cuda::Emulated;
pub use device::{Accelerator, DeviceChoice, DeviceEncoder, DeviceError};
pub use encoder::{Encoder, Pooling, Scratch};
pub use kernel::Element;
pub use weights::{Config, WeightsError};

//! A BERT encoder of our own: token ids in, one unit vector per text out.
//!
//! The tokens of all texts of a batch lie one after another, without padding:
//! matrix products run over all rows at once, attention within each text. A
//! batch is computed by one thread; parallelism lies between batches.

mod encoder;
mod kernel;
mod weights;

pub use encoder::{Encoder, Pooling, Scratch};
pub use kernel::Element;
pub use weights::{Config, WeightsError};

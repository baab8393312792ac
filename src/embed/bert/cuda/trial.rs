//! Whether a device computes what the processor computes.
//!
//! A device that computes something else gives vectors that look like right
//! ones. So before it is used it embeds a few texts, and so does the processor
//! from the same weights in fp32.

use super::{
    super::{Encoder as OnProcessor, Scratch},
    Config, Device, DeviceEncoder, DeviceError, Element, Pooling,
    encoder::Encoder,
};
use crate::embed::cosine;

/// Tokens of the texts: one, around the limits of tiles and blocks, and many.
const LENGTHS: [usize; 8] = [1, 2, 7, 31, 33, 64, 65, 300];

/// The least cosine that rounding can explain: bf16 has 8 bits of precision,
/// and fp32 sums in another order.
fn least(element: Element) -> f64 {
    match element {
        Element::Fp32 => 0.999_9,
        Element::Bf16 | Element::Int8 => 0.999,
    }
}

/// Compares `encoder` with the processor.
pub(super) fn agrees<D: Device>(
    encoder: &mut Encoder<D>,
    weights: &[u8],
    config: &Config,
    pooling: Pooling,
    element: Element,
) -> Result<(), DeviceError> {
    let texts = texts(config);
    let ours = encoder.encode(&texts)?;
    let processor = OnProcessor::read(weights, config.clone(), pooling, Element::Fp32)?;
    let theirs = processor.encode(&texts, &mut Scratch::default());
    let cosine = ours.iter().zip(&theirs).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
    let least = least(element);
    tracing::info!(cosine, least, texts = texts.len(), "compared the CUDA device with the processor");
    if ours.len() == theirs.len() && cosine >= least {
        return Ok(());
    }
    Err(DeviceError::Disagrees { texts: texts.len(), cosine, least, element })
}

/// Token ids spread over the vocabulary, and always the same.
fn texts(config: &Config) -> Vec<Vec<u32>> {
    let vocabulary = u32::try_from(config.vocab_size).unwrap_or(u32::MAX).max(1);
    let mut state = 1_u32;
    let mut id = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    let lengths = LENGTHS.map(|length| length.min(config.max_position_embeddings));
    lengths.into_iter().map(|length| (0..length).map(&mut id).collect()).collect()
}

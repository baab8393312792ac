//! The arithmetic of the encoder, and the only place in it with unsafe code.
//!
//! Everything above hands over whole row-major buffers and knows nothing of
//! instruction sets, so a faster kernel (another element type, a
//! register-blocked product) replaces what is in here and nothing else. Its
//! element type then goes into the [`Space`](crate::embed::Space), because
//! vectors of different arithmetic are not the same vectors.

mod elementwise;
mod linear;
#[cfg(target_arch = "x86_64")]
mod panels;
mod product;

pub(super) use elementwise::{add_and_normalise, gelu, softmax_rows};
pub(super) use linear::Linear;
pub(super) use product::{View, ViewMut, product};

/// Arithmetic of these kernels, as a [`Space`](crate::embed::Space) names it.
pub(super) const ELEMENT: &str = "fp32";

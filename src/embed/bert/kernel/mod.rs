//! The arithmetic of the encoder on the processor; all of its unsafe code.
//!
//! Everything above hands over whole row-major buffers and knows nothing of
//! instruction sets. [`round`] defines what an [`Element`] does to operands;
//! [`linear`] picks the fastest product that gives the same: a kernel for
//! operands of that format ([`bf16`], [`int8`]) where the processor has one,
//! else the fp32 product ([`fp32`], or [`product`] anywhere) of the rounded
//! numbers. The element goes into the [`Space`](crate::embed::Space), because
//! vectors of different arithmetic are not the same vectors.

mod attention;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod elementwise;
#[cfg(target_arch = "x86_64")]
mod fp32;
#[cfg(target_arch = "x86_64")]
mod int8;
mod linear;
mod peak;
mod product;
mod round;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod transpose;

pub(super) use attention::{Attention, Room, grown};
pub(super) use elementwise::{add_and_normalise, gelu};
pub(super) use linear::{Linear, Operands};
pub use round::Element;
#[cfg(any(test, feature = "cuda"))]
pub(super) use round::bf16;

//! What each [`Element`] does to the operands of a product.
//!
//! This is the definition; faster kernels compute the same. An element says
//! how the numbers are rounded, and the fp32 product of the rounded numbers is
//! what comes out, up to the rounding of its sums.

use std::fmt;

/// The numbers that products are computed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// As the checkpoint holds them.
    Fp32,
    /// The upper half of an fp32: 8 bits of precision, its whole range.
    Bf16,
    /// Integers: weights -127..127 times a scale for each output, activations
    /// 0..255 times a scale, plus an offset, for each row.
    Int8,
}

impl Element {
    /// Every element.
    pub const ALL: [Self; 3] = [Self::Fp32, Self::Bf16, Self::Int8];

    /// As a [`Space`](crate::embed::Space) names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Rounds the weights of one output.
    pub(super) fn round_weights(self, weights: &mut [f32]) {
        match self {
            Self::Fp32 => {}
            Self::Bf16 => weights.iter_mut().for_each(|x| *x = from_bf16(bf16(*x))),
            Self::Int8 => {
                let (column, numbers) = Column::quantise(weights);
                for (x, number) in weights.iter_mut().zip(numbers) {
                    *x = column.scale * f32::from(number);
                }
            }
        }
    }

    /// Rounds one row of activations.
    pub(super) fn round_row(self, row: &mut [f32]) {
        match self {
            Self::Fp32 => {}
            Self::Bf16 => row.iter_mut().for_each(|x| *x = from_bf16(bf16(*x))),
            Self::Int8 => {
                let Row { scale, low } = Row::of(row);
                for x in row {
                    *x = low + scale * f32::from(quantised(*x, scale, low));
                }
            }
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The nearest bf16, ties to even.
#[inline(always)]
pub fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    (nearest >> 16) as u16
}

fn from_bf16(upper: u16) -> f32 {
    f32::from_bits(u32::from(upper) << 16)
}

/// How the weights of one output are stored: number = scale · integer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub scale: f32,
    /// Sum of the rounded weights.
    pub sum: f32,
}

impl Column {
    /// The largest weight becomes ±127.
    pub fn quantise(weights: &[f32]) -> (Self, Vec<i8>) {
        let largest = weights.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()));
        let scale = if largest > 0.0 { largest / 127.0 } else { 1.0 };
        #[expect(clippy::cast_possible_truncation, reason = "between -127 and 127")]
        let numbers: Vec<i8> = weights.iter().map(|x| (x / scale).round_ties_even() as i8).collect();
        let sum: i64 = numbers.iter().map(|n| i64::from(*n)).sum();
        #[expect(clippy::cast_precision_loss, reason = "a sum of a few thousand bytes")]
        let sum = scale * sum as f32;
        (Self { scale, sum }, numbers)
    }
}

/// How one row of activations is stored: number = low + scale · integer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Row {
    pub scale: f32,
    pub low: f32,
}

impl Row {
    /// The smallest number becomes 0, the largest 255.
    pub fn of(row: &[f32]) -> Self {
        let low = row.iter().copied().fold(f32::INFINITY, f32::min);
        let high = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Self::between(low, high)
    }

    /// For numbers from `low` to `high`.
    pub fn between(low: f32, high: f32) -> Self {
        let scale = (high - low) * (1.0 / 255.0);
        Self { scale: if scale > 0.0 { scale } else { 1.0 }, low }
    }
}

/// The integer for `x` in a row of that scale: 0..255.
#[inline(always)]
pub(super) fn quantised(x: f32, scale: f32, low: f32) -> u8 {
    /// Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let steps = (x - low) * (1.0 / scale);
    #[expect(clippy::cast_possible_truncation, reason = "the lowest byte is the integer")]
    let integer = (steps + ROUND).to_bits() as u8;
    integer
}

//! What happens between the products: gelu, softmax, layer norm, and the
//! rounding of operands.
//!
//! Written as plain loops over rows with 16 independent lanes, which the
//! compiler turns into vector instructions; [`run`] compiles each loop once
//! per instruction set and chooses when called. A multiplication and addition
//! that may be one instruction are written as one, and nothing is reordered,
//! so every instruction set gives the same bits.

use super::round::{Row, bf16, quantised};

/// Lanes of a reduction: one AVX-512 register of `f32`.
const LANES: usize = 16;

/// A loop to be compiled for several instruction sets. `run` must be
/// `#[inline(always)]`, or it is compiled for the baseline only.
trait Loop {
    fn run(self);
}

#[cfg(target_arch = "x86_64")]
fn run(work: impl Loop) {
    #[target_feature(enable = "avx512f")]
    fn avx512(work: impl Loop) {
        work.run();
    }
    #[target_feature(enable = "avx2,fma")]
    fn avx2(work: impl Loop) {
        work.run();
    }
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has just been found to have AVX-512F.
        unsafe { avx512(work) }
    } else if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has just been found to have AVX2 and FMA.
        unsafe { avx2(work) }
    } else {
        work.run();
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn run(work: impl Loop) {
    work.run();
}

/// Replaces each value by `x · Φ(x)`, Φ the normal distribution function.
pub fn gelu(values: &mut [f32]) {
    run(Gelu(values));
}

/// Replaces the first `columns` numbers of each row by their softmax times a
/// factor, whose inverse goes to `shares`, one for each row: to multiply by it
/// what is computed from a row takes fewer multiplications. Rows are `stride`
/// numbers apart.
pub fn softmax_rows(values: &mut [f32], columns: usize, stride: usize, shares: &mut Vec<f32>) {
    shares.clear();
    run(Softmax { values, columns, stride, shares });
}

/// The same, but rounded to bf16 into `rounded`, in rows of an even number of
/// columns; one more than `columns` is 0. The factor is that of the numbers
/// before they were rounded.
#[cfg(target_arch = "x86_64")]
pub(super) fn softmax_rows_to_bf16(
    values: &mut [f32],
    columns: usize,
    stride: usize,
    rounded: &mut [u16],
    shares: &mut Vec<f32>,
) {
    softmax_rows(values, columns, stride, shares);
    run(RoundRows { values, columns, stride, rounded });
}

/// The bf16 nearest to each of `values`, in place of what `rounded` holds.
#[cfg(target_arch = "x86_64")]
pub(super) fn round_to_bf16(values: &[f32], rounded: &mut Vec<u16>) {
    rounded.resize(values.len(), 0);
    run(RoundToBf16 { values, rounded });
}

/// The integers of one row, and what turns them back into numbers. Both have
/// the same length.
#[cfg(target_arch = "x86_64")]
pub(super) fn quantise(row: &[f32], integers: &mut [u8]) -> Row {
    let mut form = Row { scale: 1.0, low: 0.0 };
    run(Quantise { row, integers, form: &mut form });
    form
}

/// `rows = norm(rows + residual)`: each row is brought to mean 0 and variance
/// 1, then scaled by `gain` and shifted by `bias`, one number per column.
pub fn add_and_normalise(rows: &mut [f32], residual: &[f32], gain: &[f32], bias: &[f32], epsilon: f32) {
    debug_assert_eq!(rows.len(), residual.len());
    run(AddAndNormalise { rows, residual, gain, bias, epsilon });
}

struct Gelu<'a>(&'a mut [f32]);

impl Loop for Gelu<'_> {
    #[inline(always)]
    fn run(self) {
        for x in self.0 {
            let half = 0.5 * *x;
            *x = half.mul_add(erf(*x * std::f32::consts::FRAC_1_SQRT_2), half);
        }
    }
}

#[cfg(target_arch = "x86_64")]
struct RoundToBf16<'a> {
    values: &'a [f32],
    rounded: &'a mut [u16],
}

#[cfg(target_arch = "x86_64")]
impl Loop for RoundToBf16<'_> {
    #[inline(always)]
    fn run(self) {
        for (rounded, x) in self.rounded.iter_mut().zip(self.values) {
            *rounded = bf16(*x);
        }
    }
}

#[cfg(target_arch = "x86_64")]
struct RoundRows<'a> {
    values: &'a [f32],
    columns: usize,
    stride: usize,
    rounded: &'a mut [u16],
}

#[cfg(target_arch = "x86_64")]
impl Loop for RoundRows<'_> {
    #[inline(always)]
    fn run(self) {
        let rows = self.rounded.chunks_exact_mut(self.columns.next_multiple_of(2));
        for (rounded, row) in rows.zip(self.values.chunks(self.stride)) {
            let (rounded, odd) = rounded.split_at_mut(self.columns);
            odd.fill(0);
            for (rounded, x) in rounded.iter_mut().zip(row) {
                *rounded = bf16(*x);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
struct Quantise<'a> {
    row: &'a [f32],
    integers: &'a mut [u8],
    form: &'a mut Row,
}

#[cfg(target_arch = "x86_64")]
impl Loop for Quantise<'_> {
    #[inline(always)]
    fn run(self) {
        let low = reduce(self.row, f32::INFINITY, |a, b| if b < a { b } else { a });
        let high = reduce(self.row, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
        let form = Row::between(low, high);
        for (integer, x) in self.integers.iter_mut().zip(self.row) {
            *integer = quantised(*x, form.scale, form.low);
        }
        *self.form = form;
    }
}

struct Softmax<'a> {
    values: &'a mut [f32],
    columns: usize,
    stride: usize,
    shares: &'a mut Vec<f32>,
}

impl Loop for Softmax<'_> {
    #[inline(always)]
    fn run(self) {
        for row in self.values.chunks_mut(self.stride) {
            let (row, _) = row.split_at_mut(self.columns);
            let largest = reduce(row, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
            let mut lanes = [0.0; LANES];
            let (whole, rest) = row.as_chunks_mut::<LANES>();
            for chunk in whole {
                for (lane, x) in lanes.iter_mut().zip(chunk) {
                    *x = exp(*x - largest);
                    *lane += *x;
                }
            }
            for (lane, x) in lanes.iter_mut().zip(rest) {
                *x = exp(*x - largest);
                *lane += *x;
            }
            self.shares.push(1.0 / lanes.iter().sum::<f32>());
        }
    }
}

struct AddAndNormalise<'a> {
    rows: &'a mut [f32],
    residual: &'a [f32],
    gain: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
}

impl Loop for AddAndNormalise<'_> {
    #[inline(always)]
    fn run(self) {
        let columns = self.gain.len();
        #[expect(clippy::cast_precision_loss, reason = "a row has far fewer than 2^24 columns")]
        let share = 1.0 / columns as f32;
        let rows = self.rows.chunks_exact_mut(columns);
        for (row, residual) in rows.zip(self.residual.chunks_exact(columns)) {
            for (x, r) in row.iter_mut().zip(residual) {
                *x += r;
            }
            let mean = reduce(row, 0.0, |a, b| a + b) * share;
            for x in row.iter_mut() {
                *x -= mean;
            }
            let variance = reduce(row, 0.0, |a, b| b.mul_add(b, a)) * share;
            let scale = 1.0 / (variance + self.epsilon).sqrt();
            for ((x, gain), bias) in row.iter_mut().zip(self.gain).zip(self.bias) {
                *x = (*x * scale).mul_add(*gain, *bias);
            }
        }
    }
}

/// Folds `step` over a row in [`LANES`] independent lanes, each beginning with
/// `start`, then folds the lanes: adds them up where `start` is 0, or takes
/// the largest or smallest where it is the infinity below or above.
#[inline(always)]
fn reduce(row: &[f32], start: f32, step: impl Fn(f32, f32) -> f32 + Copy) -> f32 {
    let mut lanes = [start; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = step(*lane, *x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = step(*lane, *x);
    }
    if start == 0.0 {
        lanes.iter().sum()
    } else if start > 0.0 {
        lanes.iter().fold(start, |a, b| a.min(*b))
    } else {
        lanes.iter().fold(start, |a, b| a.max(*b))
    }
}

/// e^x for x ≤ 0, to 2 units in the last place; 1e-38 below about -87.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by the polynomial of degree 5 with
/// the smallest greatest relative error, 7.5e-8; 2^n by its exponent bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with trailing zeros: n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.3 { x } else { -87.3 };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
    let mut series = 8.297_655e-3;
    series = r.mul_add(series, 4.191_538_3e-2);
    series = r.mul_add(series, 1.666_757_5e-1);
    series = r.mul_add(series, 4.999_889_4e-1);
    series = r.mul_add(series, 9.999_997e-1);
    series = r.mul_add(series, 1.000_000_1);
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    series * f32::from_bits(exponent << 23)
}

/// The error function to 4e-6, and exactly ±1 beyond 3.4 (where it is ±1 to
/// 1.5e-6).
///
/// erf(x) = x·P(s), with s = 2·x²/3.4² - 1 in -1..1 and P of degree 11 with
/// the smallest greatest error of x·P(s), raised by 2.5e-6 so that it passes 1
/// before the end.
#[inline(always)]
fn erf(x: f32) -> f32 {
    const END: f32 = 3.4;
    let z = if x > END { END } else { x };
    let z = if z < -END { -END } else { z };
    let s = (z * z).mul_add(2.0 / (END * END), -1.0);
    let mut series = -2.304_859e-3;
    series = s.mul_add(series, 6.114_786_7e-3);
    series = s.mul_add(series, -7.067_095_5e-3);
    series = s.mul_add(series, 1.138_204_7e-2);
    series = s.mul_add(series, -2.500_019e-2);
    series = s.mul_add(series, 4.231_385e-2);
    series = s.mul_add(series, -6.178_658_5e-2);
    series = s.mul_add(series, 8.621_474e-2);
    series = s.mul_add(series, -1.148_786_1e-1);
    series = s.mul_add(series, 1.495_557_8e-1);
    series = s.mul_add(series, -2.060_917_8e-1);
    series = s.mul_add(series, 4.156_656e-1);
    let erf = z * series;
    let erf = if erf > 1.0 { 1.0 } else { erf };
    if erf < -1.0 { -1.0 } else { erf }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Maclaurin series, in double precision: exact to 1e-9 up to 4.
    fn reference_erf(x: f64) -> f64 {
        let mut term = x;
        let mut sum = x;
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn gelu_follows_the_exact_error_function() {
        let mut values: Vec<f32> = (-5_000..=5_000).map(|i| i as f32 * 1e-3).collect();
        let exact: Vec<f64> = values
            .iter()
            .map(|x| 0.5 * f64::from(*x) * (1.0 + reference_erf(f64::from(*x) / 2f64.sqrt())))
            .collect();
        gelu(&mut values);
        for (ours, exact) in values.iter().zip(exact) {
            assert!((f64::from(*ours) - exact).abs() < 1e-5, "{ours} is not {exact}");
        }
    }

    #[test]
    fn gelu_is_finite_far_out() {
        let mut values = [-1e4, -30.0, 0.0, 30.0, 1e4];
        gelu(&mut values);
        assert_eq!(values, [0.0, 0.0, 0.0, 30.0, 1e4]);
    }

    #[test]
    fn softmax_rows_sum_to_one_and_follow_the_definition() {
        for columns in [1, 2, 15, 16, 17, 40, 255] {
            let scores: Vec<f32> = (0..3 * columns).map(|i| ((i * 37) % 101) as f32 * 0.4 - 100.0).collect();
            let mut values = scores.clone();
            let mut shares = Vec::new();
            softmax_rows(&mut values, columns, columns, &mut shares);
            for ((row, scores), share) in values.chunks(columns).zip(scores.chunks(columns)).zip(shares) {
                let largest = f64::from(scores.iter().copied().fold(f32::MIN, f32::max));
                let powers: Vec<f64> = scores.iter().map(|x| (f64::from(*x) - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                for (ours, power) in row.iter().zip(powers) {
                    assert!(
                        (f64::from(*ours * share) - power / sum).abs() < 5e-7,
                        "{ours} is not {}",
                        power / sum
                    );
                }
            }
        }
    }

    #[test]
    fn normalised_rows_have_the_mean_and_spread_of_bias_and_gain() {
        let columns = 37;
        let mut rows: Vec<f32> = (0..2 * columns).map(|i| ((i * i) % 23) as f32).collect();
        let residual: Vec<f32> = (0..2 * columns).map(|i| (i % 5) as f32).collect();
        add_and_normalise(&mut rows, &residual, &vec![2.0; columns], &vec![3.0; columns], 1e-12);
        for row in rows.chunks(columns) {
            let mean = row.iter().sum::<f32>() / columns as f32;
            let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / columns as f32;
            assert!((mean - 3.0).abs() < 1e-5 && (variance - 4.0).abs() < 1e-4, "{mean} {variance}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let values: Vec<f32> = (0..1_000).map(|i| ((i * 7_919) % 1_013) as f32 * 0.01 - 5.0).collect();
        let mut dispatched = values.clone();
        gelu(&mut dispatched);
        let mut baseline = values;
        Gelu(&mut baseline).run();
        assert_eq!(dispatched, baseline);
    }
}

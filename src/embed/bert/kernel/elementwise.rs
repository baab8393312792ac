//! What happens between the products: gelu, softmax, layer norm.
//!
//! Written as plain loops over rows with 16 independent lanes, which the
//! compiler turns into vector instructions; [`run`] compiles each loop once
//! per instruction set and chooses when called. No operation is contracted or
//! reordered, so every instruction set gives the same bits.

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
    #[target_feature(enable = "avx2")]
    fn avx2(work: impl Loop) {
        work.run();
    }
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: the processor has just been found to have AVX-512F.
        unsafe { avx512(work) }
    } else if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been found to have AVX2.
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

/// Replaces each row of `columns` numbers by its softmax.
pub fn softmax_rows(values: &mut [f32], columns: usize) {
    run(Softmax { values, columns });
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
            *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

struct Softmax<'a> {
    values: &'a mut [f32],
    columns: usize,
}

impl Loop for Softmax<'_> {
    #[inline(always)]
    fn run(self) {
        for row in self.values.chunks_exact_mut(self.columns) {
            let largest = reduce(row, f32::NEG_INFINITY, |a, b| if b > a { b } else { a });
            for x in row.iter_mut() {
                *x = exp(*x - largest);
            }
            let scale = 1.0 / reduce(row, 0.0, |a, b| a + b);
            for x in row.iter_mut() {
                *x *= scale;
            }
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
            let variance = reduce(row, 0.0, |a, b| a + b * b) * share;
            let scale = 1.0 / (variance + self.epsilon).sqrt();
            for ((x, gain), bias) in row.iter_mut().zip(self.gain).zip(self.bias) {
                *x = *x * scale * gain + bias;
            }
        }
    }
}

/// Folds `step` over a row in [`LANES`] independent lanes, then adds the lanes
/// up, or takes their largest where `start` is not 0.
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
    if start == 0.0 { lanes.iter().sum() } else { lanes.iter().fold(start, |a, b| a.max(*b)) }
}

/// e^x for x ≤ 0, to 2 units in the last place; 0 below about -87.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; e^r by its Taylor series to r^7, whose
/// remainder is below 1e-8; 2^n by its exponent bits.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Adding 1.5 · 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with trailing zeros: n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > -87.3 { x } else { -87.3 };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let mut series = 1.0 / 5_040.0;
    series = series * r + 1.0 / 720.0;
    series = series * r + 1.0 / 120.0;
    series = series * r + 1.0 / 24.0;
    series = series * r + 1.0 / 6.0;
    series = series * r + 0.5;
    series = series * r + 1.0;
    series = series * r + 1.0;
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    series * f32::from_bits(exponent << 23)
}

/// The error function to 2e-7: Abramowitz and Stegun, *Handbook of
/// Mathematical Functions*, 7.1.26.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let z = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let mut series = 1.061_405_4;
    series = series * t - 1.453_152;
    series = series * t + 1.421_413_7;
    series = series * t - 0.284_496_74;
    series = series * t + 0.254_829_6;
    (1.0 - series * t * exp(-z * z)).copysign(x)
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
            assert!((f64::from(*ours) - exact).abs() < 1e-6, "{ours} is not {exact}");
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
            softmax_rows(&mut values, columns);
            for (row, scores) in values.chunks(columns).zip(scores.chunks(columns)) {
                let largest = f64::from(scores.iter().copied().fold(f32::MIN, f32::max));
                let powers: Vec<f64> = scores.iter().map(|x| (f64::from(*x) - largest).exp()).collect();
                let sum: f64 = powers.iter().sum();
                for (ours, power) in row.iter().zip(powers) {
                    assert!((f64::from(*ours) - power / sum).abs() < 5e-7, "{ours} is not {}", power / sum);
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

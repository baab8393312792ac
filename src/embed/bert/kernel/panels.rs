//! The register-blocked fp32 product: weights in panels, for x86-64.
//!
//! A panel is 32 columns of the weights, laid out in the order in which the
//! innermost loop reads them. A tile is a few rows of the input times one
//! panel; its sums stay in registers from the first weight to the last.

use std::arch::x86_64::{
    __m256, __m512, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_set1_ps, _mm512_storeu_ps,
};

/// Columns of a panel: two AVX-512 registers.
const COLUMNS: usize = 32;

/// Rows that go through all panels together, so that they stay in the
/// second-level cache meanwhile. A multiple of every tile's height.
const BLOCK_ROWS: usize = 96;

/// A number for each column of a panel, on two cache lines.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; COLUMNS]);

/// Which instructions the tiles use. A value is made only where the processor
/// has them: [`Isa::detect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Isa {
    Avx512,
    Avx2,
}

impl Isa {
    /// Every set that this processor has, the fastest first.
    pub(super) fn detect() -> impl Iterator<Item = Self> {
        let avx512 = is_x86_feature_detected!("avx512f");
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        [(Self::Avx512, avx512), (Self::Avx2, avx2)].into_iter().filter_map(|(isa, has)| has.then_some(isa))
    }
}

/// The weights and bias of a dense layer.
pub(super) struct Panels {
    /// Panel after panel: the bias of its columns, then a line per input.
    lines: Vec<Line>,
    inputs: usize,
    outputs: usize,
    isa: Isa,
}

impl Panels {
    /// From `weights`, outputs × inputs, row-major; `None` if the outputs do
    /// not fill panels.
    pub(super) fn new(weights: &[f32], bias: &[f32], isa: Isa) -> Option<Self> {
        let inputs = weights.len().checked_div(bias.len())?;
        if inputs == 0 || !bias.len().is_multiple_of(COLUMNS) || inputs * bias.len() != weights.len() {
            return None;
        }
        let mut lines = Vec::with_capacity((weights.len() + bias.len()) / COLUMNS);
        let panels = weights.chunks_exact(inputs * COLUMNS);
        for (panel, bias) in panels.zip(bias.as_chunks().0) {
            lines.push(Line(*bias));
            for input in 0..inputs {
                let mut line = [0.0; COLUMNS];
                for (cell, weight) in line.iter_mut().zip(panel.iter().skip(input).step_by(inputs)) {
                    *cell = *weight;
                }
                lines.push(Line(line));
            }
        }
        Some(Self { lines, inputs, outputs: bias.len(), isa })
    }

    /// `output = input · weights + bias`. Panics unless both hold the same
    /// number of whole rows.
    pub(super) fn apply(&self, input: &[f32], output: &mut [f32]) {
        let outputs = self.outputs;
        let rows = input.len() / self.inputs;
        assert!(rows * self.inputs == input.len() && rows * outputs == output.len(), "rows do not match");
        let blocks = input.chunks(BLOCK_ROWS * self.inputs).zip(output.chunks_mut(BLOCK_ROWS * outputs));
        for (input, output) in blocks {
            for (n, panel) in self.lines.chunks_exact(self.inputs + 1).enumerate() {
                self.multiply(input, panel, output, n * COLUMNS);
            }
        }
    }

    /// All rows of a block times one panel, into the columns from `column` on.
    fn multiply(&self, input: &[f32], panel: &[Line], output: &mut [f32], column: usize) {
        let outputs = self.outputs;
        let mut row = 0;
        let rows = input.len() / self.inputs;
        while row < rows {
            let tile = Tile { input, panel, output, outputs, row, column };
            // SAFETY: `self.isa` was detected on this processor, and `apply`
            // passes whole rows: the tile's rows, from `row` on and no more
            // than `rows - row`, lie inside input and output, and `column` is
            // the start of a panel, so 32 columns of each output row exist.
            row += unsafe {
                match (self.isa, rows - row) {
                    (Isa::Avx512, 12..) => tile.avx512::<12>(),
                    (Isa::Avx512, 4..) => tile.avx512::<4>(),
                    (Isa::Avx512, _) => tile.avx512::<1>(),
                    (Isa::Avx2, 6..) => tile.avx2::<6>(),
                    (Isa::Avx2, 2..) => tile.avx2::<2>(),
                    (Isa::Avx2, _) => tile.avx2::<1>(),
                }
            };
        }
    }
}

/// Where a tile lies.
struct Tile<'a> {
    input: &'a [f32],
    panel: &'a [Line],
    output: &'a mut [f32],
    outputs: usize,
    row: usize,
    column: usize,
}

impl Tile<'_> {
    /// Computes `R` rows and returns `R`. The processor has AVX-512F; rows
    /// `row..row + R` exist in input and output, and columns
    /// `column..column + 32` in the output. The panel is one of [`Panels`]:
    /// it has a bias.
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const R: usize>(self) -> usize {
        let Some((Line(bias), weights)) = self.panel.split_first() else {
            return R;
        };
        let inputs = weights.len();
        // SAFETY: the caller's promise keeps every address below inside its
        // slice: reads at `(row + r) * inputs + k` with k < inputs, writes of
        // 16 numbers at `(row + r) * outputs + column` and 16 further.
        unsafe {
            let start = [_mm512_loadu_ps(bias.as_ptr()), _mm512_loadu_ps(bias.as_ptr().add(16))];
            let mut sums: [[__m512; 2]; R] = [start; R];
            let input = self.input.as_ptr().add(self.row * inputs);
            for (k, Line(line)) in weights.iter().enumerate() {
                let (low, high) = (_mm512_loadu_ps(line.as_ptr()), _mm512_loadu_ps(line.as_ptr().add(16)));
                for (r, [left, right]) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*input.add(r * inputs + k));
                    *left = _mm512_fmadd_ps(x, low, *left);
                    *right = _mm512_fmadd_ps(x, high, *right);
                }
            }
            let output = self.output.as_mut_ptr().add(self.row * self.outputs + self.column);
            for (r, [left, right]) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(output.add(r * self.outputs), left);
                _mm512_storeu_ps(output.add(r * self.outputs + 16), right);
            }
        }
        R
    }

    /// As [`Tile::avx512`], for a processor with AVX2 and FMA: it has half the
    /// registers of half the size, so each half of the panel has its turn.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize>(self) -> usize {
        let Some((Line(bias), weights)) = self.panel.split_first() else {
            return R;
        };
        let inputs = weights.len();
        for half in [0, COLUMNS / 2] {
            // SAFETY: as in `avx512`, with writes of 8 numbers.
            unsafe {
                let bias = bias.as_ptr().add(half);
                let start = [_mm256_loadu_ps(bias), _mm256_loadu_ps(bias.add(8))];
                let mut sums: [[__m256; 2]; R] = [start; R];
                let input = self.input.as_ptr().add(self.row * inputs);
                for (k, Line(line)) in weights.iter().enumerate() {
                    let line = line.as_ptr().add(half);
                    let (low, high) = (_mm256_loadu_ps(line), _mm256_loadu_ps(line.add(8)));
                    for (r, [left, right]) in sums.iter_mut().enumerate() {
                        let x = _mm256_broadcast_ss(&*input.add(r * inputs + k));
                        *left = _mm256_fmadd_ps(x, low, *left);
                        *right = _mm256_fmadd_ps(x, high, *right);
                    }
                }
                let output = self.output.as_mut_ptr().add(self.row * self.outputs + self.column + half);
                for (r, [left, right]) in sums.into_iter().enumerate() {
                    _mm256_storeu_ps(output.add(r * self.outputs), left);
                    _mm256_storeu_ps(output.add(r * self.outputs + 8), right);
                }
            }
        }
        R
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_instruction_set_agrees_with_the_definition(
            rows in 1usize..130, inputs in 1usize..40, panels in 1usize..4, seed in 0u32..1_000,
        ) {
            let outputs = panels * COLUMNS;
            // Small integers: exact in any order of summation.
            let number = |i: usize| (((i as u32).wrapping_mul(2_654_435_761) ^ seed) >> 7) as f32 % 17.0 - 8.0;
            let weights: Vec<f32> = (0..outputs * inputs).map(number).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| number(i + 3)).collect();
            let input: Vec<f32> = (0..rows * inputs).map(|i| number(i + 7)).collect();
            for isa in Isa::detect() {
                let mut output = vec![f32::NAN; rows * outputs];
                Panels::new(&weights, &bias, isa).unwrap().apply(&input, &mut output);
                for (i, x) in output.into_iter().enumerate() {
                    let (row, column) = (i / outputs, i % outputs);
                    let products = (0..inputs).map(|k| input[row * inputs + k] * weights[column * inputs + k]);
                    prop_assert_eq!(x, products.sum::<f32>() + bias[column], "{:?} {} {}", isa, row, column);
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "rows do not match")]
    fn an_output_of_too_few_rows_is_refused() {
        let isa = Isa::detect().next().expect("a processor with AVX2");
        Panels::new(&[1.0; 64], &[0.0; 32], isa).unwrap().apply(&[1.0; 6], &mut [0.0; 64]);
    }

    #[test]
    fn outputs_that_do_not_fill_panels_are_left_to_the_portable_product() {
        for isa in Isa::detect() {
            assert!(Panels::new(&[0.0; 66], &[0.0; 33], isa).is_none());
        }
    }
}

//! The register-blocked fp32 product, for x86-64.
//!
//! A panel is 32 columns of the right operand. A tile is a few rows of the
//! left one times one panel; its sums stay in registers from the first
//! product to the last. Weights are laid out once, panel after panel, in the
//! order in which the innermost loop reads them.

use std::arch::x86_64::{
    __m256, __m512, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
    _mm256_storeu_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{
    product::{View, ViewMut},
    tile::{BLOCK_ROWS, COLUMNS, HALF, of_height, tiles},
};

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

    /// Most rows of a tile: its sums and one line fill the registers.
    pub(super) fn most_rows(self) -> usize {
        match self {
            Self::Avx512 => 12,
            Self::Avx2 => 6,
        }
    }
}

/// The weights and bias of a dense layer.
pub(super) struct Panels {
    /// Panel after panel, a line per input.
    lines: Vec<Line>,
    bias: Vec<Line>,
    inputs: usize,
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
        let mut lines = Vec::with_capacity(weights.len() / COLUMNS);
        for panel in weights.chunks_exact(inputs * COLUMNS) {
            for input in 0..inputs {
                let mut line = [0.0; COLUMNS];
                for (cell, weight) in line.iter_mut().zip(panel.iter().skip(input).step_by(inputs)) {
                    *cell = *weight;
                }
                lines.push(Line(line));
            }
        }
        let bias = bias.as_chunks().0.iter().map(|line| Line(*line)).collect();
        Some(Self { lines, bias, inputs, isa })
    }

    /// `output = input · weights + bias`. Panics unless both hold the same
    /// number of whole rows.
    pub(super) fn apply(&self, input: &[f32], output: &mut [f32]) {
        let (inputs, outputs) = (self.inputs, self.bias.len() * COLUMNS);
        let rows = input.len() / inputs;
        assert!(rows * inputs == input.len() && rows * outputs == output.len(), "rows do not match");
        let blocks = input.chunks(BLOCK_ROWS * inputs).zip(output.chunks_mut(BLOCK_ROWS * outputs));
        for (input, output) in blocks {
            let panels = self.lines.chunks_exact(inputs).zip(&self.bias);
            for (n, (lines, Line(bias))) in panels.enumerate() {
                for (row, rows) in tiles(input.len() / inputs, self.isa.most_rows()) {
                    let tile = Tile {
                        // SAFETY: rows `row..row + rows` lie in the block.
                        input: unsafe { input.as_ptr().add(row * inputs) },
                        input_stride: inputs,
                        lines: lines.as_ptr().cast(),
                        line_stride: COLUMNS,
                        depth: inputs,
                        start: Some(bias),
                        // SAFETY: as above; `n` is a panel, so its first
                        // column is one of the row's.
                        output: unsafe { output.as_mut_ptr().add(row * outputs + n * COLUMNS) },
                        output_stride: outputs,
                        columns: COLUMNS,
                    };
                    // SAFETY: the processor has `isa`; `rows` rows of `inputs`
                    // and of `outputs` numbers exist from `row` on, a line is
                    // `COLUMNS` numbers, and there are `inputs` of them.
                    unsafe { tile.run(self.isa, rows) };
                }
            }
        }
    }
}

/// `out = left · right`, where the elements of each row of `left` and `right`
/// lie beside each other. Panics unless the shapes fit and the columns fill
/// panels, the last of which may be half of one.
pub(super) fn multiply(isa: Isa, left: View<'_>, right: View<'_>, mut out: ViewMut<'_>) {
    let (l, r, o) = (left.shape(), right.shape(), out.shape());
    assert!(l.cols == r.rows && o.rows == l.rows && o.cols == r.cols, "{l:?} · {r:?} is not {o:?}");
    assert!(l.col_stride == 1 && r.col_stride == 1 && r.cols.is_multiple_of(HALF), "no panels in {r:?}");
    for column in (0..r.cols).step_by(COLUMNS) {
        let columns = COLUMNS.min(r.cols - column);
        for (row, rows) in tiles(l.rows, isa.most_rows()) {
            // SAFETY: `row` and `column` are inside the views, whose elements
            // all lie inside their slices; so do the `rows` rows of the tile
            // and the `columns` columns of its panel. `isa` was detected.
            unsafe {
                let tile = Tile {
                    input: left.as_ptr().add(row * l.row_stride),
                    input_stride: l.row_stride,
                    lines: right.as_ptr().add(column),
                    line_stride: r.row_stride,
                    depth: l.cols,
                    start: None,
                    output: out.as_mut_ptr().add(row * o.row_stride + column),
                    output_stride: o.row_stride,
                    columns,
                };
                tile.run(isa, rows);
            }
        }
    }
}

/// Some rows times one panel, or half of one. Strides are counted in numbers.
struct Tile<'a> {
    input: *const f32,
    input_stride: usize,
    /// Line after line, one for each number in an input row.
    lines: *const f32,
    line_stride: usize,
    /// Numbers in an input row.
    depth: usize,
    /// What the sums begin with; 0 if it is not given.
    start: Option<&'a [f32; COLUMNS]>,
    output: *mut f32,
    output_stride: usize,
    /// [`COLUMNS`] or [`HALF`].
    columns: usize,
}

impl Tile<'_> {
    /// Computes `rows` rows, at most as many as `isa` takes.
    ///
    /// # Safety
    /// The processor has `isa`. `rows` input rows of `depth` numbers, `depth`
    /// lines and `rows` output rows of `columns` numbers can be accessed;
    /// nothing else refers to the output.
    unsafe fn run(&self, isa: Isa, rows: usize) {
        // SAFETY: the same promise.
        unsafe {
            match (isa, self.columns) {
                (Isa::Avx512, COLUMNS) => of_height!(rows, self.avx512(), 1 2 3 4 5 6 7 8 9 10 11 12),
                (Isa::Avx512, _) => of_height!(rows, self.avx512_half(), 1 2 3 4 5 6 7 8 9 10 11 12),
                (Isa::Avx2, _) => of_height!(rows, self.avx2(), 1 2 3 4 5 6),
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`] for `R` rows and whole panels.
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const R: usize>(&self) {
        // SAFETY: the caller's promise covers every address below.
        unsafe {
            let start = match self.start {
                Some(start) => [_mm512_loadu_ps(start.as_ptr()), _mm512_loadu_ps(start.as_ptr().add(16))],
                None => [_mm512_setzero_ps(); 2],
            };
            let mut sums: [[__m512; 2]; R] = [start; R];
            for k in 0..self.depth {
                let line = self.lines.add(k * self.line_stride);
                let (low, high) = (_mm512_loadu_ps(line), _mm512_loadu_ps(line.add(16)));
                for (r, [left, right]) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*self.input.add(r * self.input_stride + k));
                    *left = _mm512_fmadd_ps(x, low, *left);
                    *right = _mm512_fmadd_ps(x, high, *right);
                }
            }
            for (r, [left, right]) in sums.into_iter().enumerate() {
                let output = self.output.add(r * self.output_stride);
                _mm512_storeu_ps(output, left);
                _mm512_storeu_ps(output.add(16), right);
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`] for `R` rows and half a panel without a start.
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_half<const R: usize>(&self) {
        // SAFETY: the caller's promise covers every address below.
        unsafe {
            let mut sums: [__m512; R] = [_mm512_setzero_ps(); R];
            for k in 0..self.depth {
                let line = _mm512_loadu_ps(self.lines.add(k * self.line_stride));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*self.input.add(r * self.input_stride + k));
                    *sum = _mm512_fmadd_ps(x, line, *sum);
                }
            }
            for (r, sum) in sums.into_iter().enumerate() {
                _mm512_storeu_ps(self.output.add(r * self.output_stride), sum);
            }
        }
    }

    /// Half the registers of half the size: each half of the panel has its
    /// turn.
    ///
    /// # Safety
    /// As [`Tile::run`] for `R` rows.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const R: usize>(&self) {
        for half in (0..self.columns).step_by(HALF) {
            // SAFETY: the caller's promise covers every address below.
            unsafe {
                let start = match self.start {
                    Some(start) => {
                        let start = start.as_ptr().add(half);
                        [_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(8))]
                    }
                    None => [_mm256_setzero_ps(); 2],
                };
                let mut sums: [[__m256; 2]; R] = [start; R];
                for k in 0..self.depth {
                    let line = self.lines.add(k * self.line_stride + half);
                    let (low, high) = (_mm256_loadu_ps(line), _mm256_loadu_ps(line.add(8)));
                    for (r, [left, right]) in sums.iter_mut().enumerate() {
                        let x = _mm256_broadcast_ss(&*self.input.add(r * self.input_stride + k));
                        *left = _mm256_fmadd_ps(x, low, *left);
                        *right = _mm256_fmadd_ps(x, high, *right);
                    }
                }
                for (r, [left, right]) in sums.into_iter().enumerate() {
                    let output = self.output.add(r * self.output_stride + half);
                    _mm256_storeu_ps(output, left);
                    _mm256_storeu_ps(output.add(8), right);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Small integers: exact in any order of summation.
    fn number(i: usize, seed: u32) -> f32 {
        (((i as u32).wrapping_mul(2_654_435_761) ^ seed) >> 7) as f32 % 17.0 - 8.0
    }

    proptest! {
        #[test]
        fn every_instruction_set_agrees_with_the_definition(
            rows in 1usize..130, inputs in 1usize..40, panels in 1usize..4, seed in 0u32..1_000,
        ) {
            let outputs = panels * COLUMNS;
            let weights: Vec<f32> = (0..outputs * inputs).map(|i| number(i, seed)).collect();
            let bias: Vec<f32> = (0..outputs).map(|i| number(i + 3, seed)).collect();
            let input: Vec<f32> = (0..rows * inputs).map(|i| number(i + 7, seed)).collect();
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

        #[test]
        fn windows_multiply_as_the_definition_says(
            m in 1usize..60, halves in 1usize..6, k in 1usize..40, gap in 0usize..5, seed in 0u32..1_000,
        ) {
            let n = halves * HALF;
            let left: Vec<f32> = (0..m * (k + gap)).map(|i| number(i, seed)).collect();
            let right: Vec<f32> = (0..k * (n + gap)).map(|i| number(i + 7, seed)).collect();
            for isa in Isa::detect() {
                let mut out = vec![f32::NAN; m * (n + gap)];
                multiply(
                    isa,
                    View::new(&left, m, k, k + gap),
                    View::new(&right, k, n, n + gap),
                    ViewMut::new(&mut out, m, n, n + gap),
                );
                for (i, x) in out.into_iter().enumerate() {
                    let (row, column) = (i / (n + gap), i % (n + gap));
                    if column < n {
                        let products = (0..k).map(|j| left[row * (k + gap) + j] * right[j * (n + gap) + column]);
                        prop_assert_eq!(x, products.sum::<f32>());
                    } else {
                        prop_assert!(x.is_nan(), "written beyond column {}", n);
                    }
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

//! The register-blocked product of 8-bit operands with exact 32-bit sums, by
//! AVX-512 VNNI: one instruction multiplies and adds four products in each of
//! 16 lanes.
//!
//! With x = low + scale · q for a row of the input and w = scale' · q' for a
//! column of the weights, Σ x·w = scale · scale' · Σ q·q' + low · Σ w: the sum
//! over integers is the instruction's, and Σ w is known beforehand.

use std::arch::x86_64::{
    __m512i, _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_si512, _mm512_storeu_ps,
};

use super::{
    elementwise::quantise,
    round::{Column, Row},
    tile::{BLOCK_ROWS, COLUMNS, of_height, tiles},
};

/// Most rows of a tile: 24 registers of sums, two of a line, one of an input.
const MOST_ROWS: usize = 12;
/// Products that one lane adds up in one instruction.
const GROUP: usize = 4;

/// Four neighbouring inputs' weights for each column of a panel.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([[i8; GROUP]; COLUMNS]);

/// What turns the integer sums of a panel's columns into numbers.
struct Columns {
    scale: [f32; COLUMNS],
    /// Sum of the column's weights.
    sum: [f32; COLUMNS],
    bias: [f32; COLUMNS],
}

/// The weights and bias of a dense layer.
pub(super) struct Panels {
    /// Panel after panel, a line for every four inputs.
    lines: Vec<Line>,
    columns: Vec<Columns>,
    inputs: usize,
}

/// Room for the operands of a block.
#[derive(Default)]
pub(super) struct Quantised {
    numbers: Vec<u8>,
    rows: Vec<Row>,
}

/// Whether this processor has the instruction.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
}

impl Panels {
    /// From `weights`, outputs × inputs, row-major; `None` if the outputs do
    /// not fill panels, the inputs do not fill groups, or the processor lacks
    /// the instruction.
    pub(super) fn new(weights: &[f32], bias: &[f32]) -> Option<Self> {
        let inputs = weights.len().checked_div(bias.len())?;
        let (bias, []) = bias.as_chunks() else { return None };
        let fits =
            inputs > 0 && inputs.is_multiple_of(GROUP) && inputs * bias.len() * COLUMNS == weights.len();
        if !fits || !is_available() {
            return None;
        }
        let mut lines = Vec::with_capacity(weights.len() / GROUP / COLUMNS);
        let mut columns = Vec::with_capacity(bias.len());
        for (panel, bias) in weights.chunks_exact(inputs * COLUMNS).zip(bias) {
            let quantised: Vec<(Column, Vec<i8>)> =
                panel.chunks_exact(inputs).map(Column::quantise).collect();
            let mut of = Columns { scale: [0.0; COLUMNS], sum: [0.0; COLUMNS], bias: *bias };
            for ((scale, sum), (column, _)) in of.scale.iter_mut().zip(&mut of.sum).zip(&quantised) {
                (*scale, *sum) = (column.scale, column.sum);
            }
            columns.push(of);
            for input in (0..inputs).step_by(GROUP) {
                let mut line = [[0; GROUP]; COLUMNS];
                for (group, (_, numbers)) in line.iter_mut().zip(&quantised) {
                    for (cell, number) in group.iter_mut().zip(numbers.iter().skip(input)) {
                        *cell = *number;
                    }
                }
                lines.push(Line(line));
            }
        }
        Some(Self { lines, columns, inputs })
    }

    /// `output = input · weights + bias`. Panics unless both hold the same
    /// number of whole rows.
    pub(super) fn apply(&self, input: &[f32], output: &mut [f32], quantised: &mut Quantised) {
        let (inputs, outputs) = (self.inputs, self.columns.len() * COLUMNS);
        let rows = input.len() / inputs;
        assert!(rows * inputs == input.len() && rows * outputs == output.len(), "rows do not match");
        let blocks = input.chunks(BLOCK_ROWS * inputs).zip(output.chunks_mut(BLOCK_ROWS * outputs));
        for (input, output) in blocks {
            quantised.fill(input, inputs);
            for (n, (lines, columns)) in
                self.lines.chunks_exact(inputs / GROUP).zip(&self.columns).enumerate()
            {
                for (row, rows) in tiles(input.len() / inputs, MOST_ROWS) {
                    // SAFETY: rows `row..row + rows` lie in the block, `n` is
                    // a panel, and panels were only made where the processor
                    // has the instruction.
                    unsafe {
                        let tile = Tile {
                            input: quantised.numbers.as_ptr().add(row * inputs).cast(),
                            rows: quantised.rows.as_ptr().add(row),
                            lines,
                            columns,
                            output: output.as_mut_ptr().add(row * outputs + n * COLUMNS),
                            output_stride: outputs,
                        };
                        of_height!(rows, tile.avx512(), 1 2 3 4 5 6 7 8 9 10 11 12);
                    }
                }
            }
        }
    }
}

impl Quantised {
    fn fill(&mut self, input: &[f32], inputs: usize) {
        self.rows.clear();
        self.numbers.resize(input.len(), 0);
        for (row, numbers) in input.chunks_exact(inputs).zip(self.numbers.chunks_exact_mut(inputs)) {
            self.rows.push(quantise(row, numbers));
        }
    }
}

/// Some rows times one panel.
struct Tile<'a> {
    /// Rows of as many groups as there are lines, of any alignment.
    input: *const i32,
    rows: *const Row,
    lines: &'a [Line],
    columns: &'a Columns,
    output: *mut f32,
    output_stride: usize,
}

impl Tile<'_> {
    /// # Safety
    /// The processor has AVX-512 VNNI; `R` rows of input, their scales and
    /// `R` rows of [`COLUMNS`] numbers of output can be accessed.
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn avx512<const R: usize>(&self) {
        let groups = self.lines.len();
        // SAFETY: the caller's promise covers every address below.
        unsafe {
            let mut sums: [[__m512i; 2]; R] = [[_mm512_setzero_si512(); 2]; R];
            for (k, Line(line)) in self.lines.iter().enumerate() {
                let line: *const __m512i = line.as_ptr().cast();
                let (low, high) = (_mm512_loadu_si512(line), _mm512_loadu_si512(line.add(1)));
                for (r, [left, right]) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(self.input.add(r * groups + k).read_unaligned());
                    *left = _mm512_dpbusd_epi32(*left, x, low);
                    *right = _mm512_dpbusd_epi32(*right, x, high);
                }
            }
            for half in [0, 1] {
                let at = half * COLUMNS / 2;
                let scale = _mm512_loadu_ps(self.columns.scale.as_ptr().add(at));
                let sum = _mm512_loadu_ps(self.columns.sum.as_ptr().add(at));
                let bias = _mm512_loadu_ps(self.columns.bias.as_ptr().add(at));
                for (r, [left, right]) in sums.iter().enumerate() {
                    let Row { scale: of_row, low } = *self.rows.add(r);
                    let integers = _mm512_cvtepi32_ps(if half == 0 { *left } else { *right });
                    let scale = _mm512_mul_ps(scale, _mm512_set1_ps(of_row));
                    let rest = _mm512_fmadd_ps(sum, _mm512_set1_ps(low), bias);
                    let number = _mm512_fmadd_ps(integers, scale, rest);
                    _mm512_storeu_ps(self.output.add(r * self.output_stride + at), number);
                }
            }
        }
    }
}

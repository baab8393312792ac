//! The register-blocked product of bf16 operands with fp32 sums, by AVX-512
//! BF16: one instruction multiplies and adds two products in each of 16 lanes.
//!
//! AMD's processors do that at twice the rate of fp32. Intel's with the same
//! instruction set take it at half the rate of fp32 (their fast way is AMX),
//! so there the fp32 product computes the rounded operands: [`is_fast`].

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_set1_epi32,
    _mm512_storeu_ps,
};

use super::{
    elementwise::round_to_bf16,
    round::bf16,
    tile::{BLOCK_ROWS, COLUMNS, of_height, tiles},
};

/// Most rows of a tile: 24 registers of sums, two of a line, one of an input.
const MOST_ROWS: usize = 12;

/// Two neighbouring inputs' weights for each column of a panel.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([[u16; 2]; COLUMNS]);

/// The weights and bias of a dense layer.
pub(super) struct Panels {
    /// Panel after panel, a line for every two inputs.
    lines: Vec<Line>,
    bias: Vec<[f32; COLUMNS]>,
    inputs: usize,
}

/// Whether this processor has the instruction.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bf16")
}

/// Whether it is the fastest way to multiply bf16 operands here.
pub(super) fn is_fast() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    let amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
    amd && is_available()
}

impl Panels {
    /// From `weights`, outputs × inputs, row-major; `None` if the outputs do
    /// not fill panels, the inputs do not pair up, or the processor lacks the
    /// instruction.
    pub(super) fn new(weights: &[f32], bias: &[f32]) -> Option<Self> {
        let inputs = weights.len().checked_div(bias.len())?;
        let (bias, []) = bias.as_chunks() else { return None };
        let fits = inputs > 0 && inputs.is_multiple_of(2) && inputs * bias.len() * COLUMNS == weights.len();
        if !fits || !is_available() {
            return None;
        }
        let mut lines = Vec::with_capacity(weights.len() / 2 / COLUMNS);
        for panel in weights.chunks_exact(inputs * COLUMNS) {
            for input in (0..inputs).step_by(2) {
                let mut line = [[0; 2]; COLUMNS];
                for (pair, row) in line.iter_mut().zip(panel.chunks_exact(inputs)) {
                    for (cell, weight) in pair.iter_mut().zip(row.iter().skip(input)) {
                        *cell = bf16(*weight);
                    }
                }
                lines.push(Line(line));
            }
        }
        Some(Self { lines, bias: bias.to_vec(), inputs })
    }

    /// `output = input · weights + bias`; `rounded` is room for the operands
    /// of a block. Panics unless both hold the same number of whole rows.
    pub(super) fn apply(&self, input: &[f32], output: &mut [f32], rounded: &mut Vec<u16>) {
        let (inputs, outputs) = (self.inputs, self.bias.len() * COLUMNS);
        let rows = input.len() / inputs;
        assert!(rows * inputs == input.len() && rows * outputs == output.len(), "rows do not match");
        let blocks = input.chunks(BLOCK_ROWS * inputs).zip(output.chunks_mut(BLOCK_ROWS * outputs));
        for (input, output) in blocks {
            round_to_bf16(input, rounded);
            for (n, (lines, bias)) in self.lines.chunks_exact(inputs / 2).zip(&self.bias).enumerate() {
                for (row, rows) in tiles(input.len() / inputs, MOST_ROWS) {
                    // SAFETY: rows `row..row + rows` lie in the block, `n` is
                    // a panel, and panels were only made where the processor
                    // has the instruction.
                    unsafe {
                        let tile = Tile {
                            input: rounded.as_ptr().add(row * inputs).cast(),
                            lines,
                            start: bias,
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

/// Some rows times one panel.
struct Tile<'a> {
    /// Rows of as many pairs as there are lines, aligned to two bytes.
    input: *const i32,
    lines: &'a [Line],
    start: &'a [f32; COLUMNS],
    output: *mut f32,
    output_stride: usize,
}

impl Tile<'_> {
    /// # Safety
    /// The processor has AVX-512 BF16; `R` rows of input and of output, the
    /// latter of [`COLUMNS`] numbers, can be accessed.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn avx512<const R: usize>(&self) {
        let pairs = self.lines.len();
        // SAFETY: the caller's promise covers every address below; the types
        // of a register differ in name only.
        unsafe {
            let start = [_mm512_loadu_ps(self.start.as_ptr()), _mm512_loadu_ps(self.start.as_ptr().add(16))];
            let mut sums: [[__m512; 2]; R] = [start; R];
            for (k, Line(line)) in self.lines.iter().enumerate() {
                let line: *const __m512i = line.as_ptr().cast();
                let low = bf16_lanes(_mm512_loadu_si512(line));
                let high = bf16_lanes(_mm512_loadu_si512(line.add(1)));
                for (r, [left, right]) in sums.iter_mut().enumerate() {
                    let x = bf16_lanes(_mm512_set1_epi32(self.input.add(r * pairs + k).read_unaligned()));
                    *left = _mm512_dpbf16_ps(*left, x, low);
                    *right = _mm512_dpbf16_ps(*right, x, high);
                }
            }
            for (r, [left, right]) in sums.into_iter().enumerate() {
                let output = self.output.add(r * self.output_stride);
                _mm512_storeu_ps(output, left);
                _mm512_storeu_ps(output.add(16), right);
            }
        }
    }
}

/// # Safety
/// None beyond the processor having the type: all bits are kept.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_lanes(bits: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without invalid values.
    unsafe { std::mem::transmute(bits) }
}

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
    tile::{BLOCK_ROWS, COLUMNS, HALF, of_height, tiles},
};

/// Most rows of a tile: 24 registers of sums, two of a line, one of an input.
pub(super) const MOST_ROWS: usize = 12;

/// Two neighbouring inputs' weights for each column of a panel.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub [[u16; 2]; COLUMNS]);

/// The weights and bias of a dense layer.
pub(super) struct Panels {
    /// Panel after panel, a line for every two inputs.
    lines: Vec<Line>,
    bias: Vec<[f32; COLUMNS]>,
    inputs: usize,
}

/// Whether this processor has the instruction.
pub(super) fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512bf16")
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
                            input_stride: inputs / 2,
                            lines,
                            start: bias,
                            output: output.as_mut_ptr().add(row * outputs + n * COLUMNS),
                            output_stride: outputs,
                            columns: COLUMNS,
                        };
                        tile.run(rows);
                    }
                }
            }
        }
    }
}

/// Some rows times one panel, or its first half.
pub(super) struct Tile<'a> {
    /// Rows of as many pairs as there are lines, aligned to two bytes.
    pub input: *const i32,
    /// Pairs from one row to the next.
    pub input_stride: usize,
    pub lines: &'a [Line],
    /// What the sums begin with.
    pub start: &'a [f32; COLUMNS],
    pub output: *mut f32,
    pub output_stride: usize,
    /// [`COLUMNS`] or [`HALF`].
    pub columns: usize,
}

impl Tile<'_> {
    /// Computes `rows` rows, at most [`MOST_ROWS`].
    ///
    /// # Safety
    /// [`is_available`]; `rows` rows of input and of output, the latter of
    /// `columns` numbers, can be accessed; nothing else refers to the output.
    pub(super) unsafe fn run(&self, rows: usize) {
        // SAFETY: the same promise.
        unsafe {
            match self.columns {
                HALF => of_height!(rows, self.half(), 1 2 3 4 5 6 7 8 9 10 11 12),
                _ => of_height!(rows, self.whole(), 1 2 3 4 5 6 7 8 9 10 11 12),
            }
        }
    }

    /// # Safety
    /// As [`Tile::run`] for `R` rows and whole panels.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn whole<const R: usize>(&self) {
        // SAFETY: the same promise.
        unsafe { self.avx512::<R, 2>() }
    }

    /// # Safety
    /// As [`Tile::run`] for `R` rows and half panels.
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn half<const R: usize>(&self) {
        // SAFETY: the same promise.
        unsafe { self.avx512::<R, 1>() }
    }

    /// # Safety
    /// As [`Tile::run`] for `R` rows of `N` registers.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    unsafe fn avx512<const R: usize, const N: usize>(&self) {
        // SAFETY: the caller's promise covers every address below; the types
        // of a register differ in name only.
        unsafe {
            let start: [__m512; N] =
                std::array::from_fn(|n| _mm512_loadu_ps(self.start.as_ptr().add(n * HALF)));
            let mut sums: [[__m512; N]; R] = [start; R];
            for (k, Line(line)) in self.lines.iter().enumerate() {
                let line: *const __m512i = line.as_ptr().cast();
                let line: [__m512bh; N] =
                    std::array::from_fn(|n| bf16_lanes(_mm512_loadu_si512(line.add(n))));
                for (r, row) in sums.iter_mut().enumerate() {
                    let x = self.input.add(r * self.input_stride + k).read_unaligned();
                    let x = bf16_lanes(_mm512_set1_epi32(x));
                    for (sum, line) in row.iter_mut().zip(line) {
                        *sum = _mm512_dpbf16_ps(*sum, x, line);
                    }
                }
            }
            for (r, row) in sums.into_iter().enumerate() {
                for (n, sum) in row.into_iter().enumerate() {
                    _mm512_storeu_ps(self.output.add(r * self.output_stride + n * HALF), sum);
                }
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

//! Attention in bf16 tiles: queries, keys, values and what softmax gives are
//! rounded to bf16; sums and softmax are fp32.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_permutexvar_epi16,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_storeu_si512,
};

use super::super::{
    bf16::{Line, MOST_ROWS, Tile},
    elementwise::softmax_rows_to_bf16,
    product::View,
    tile::{COLUMNS, HALF, tiles},
    transpose::{SIDE, transposed},
};
use super::{Head, grown};

/// Room for one head of one text.
#[derive(Default)]
pub(super) struct Room {
    /// The queries, row after row.
    queries: Vec<u16>,
    /// The keys, panel after panel; in a panel a line for each pair of their
    /// numbers.
    keys: Vec<Line>,
    /// The values, panel after panel of their numbers; in a panel a line for
    /// each pair of tokens.
    values: Vec<Line>,
    /// What each query of a tile (row) makes of each key (column).
    scores: Vec<f32>,
    /// The same after softmax, in pairs.
    weights: Vec<u16>,
    /// One over the sum of each row.
    shares: Vec<f32>,
}

/// # Safety
/// A row of `head` has whole panels of numbers, and the processor has the
/// instructions ([`is_available`](super::super::bf16::is_available)).
pub(super) unsafe fn attend(mut head: Head<'_>, room: &mut Room) {
    let (tokens, size) = (head.query.shape().rows, head.query.shape().cols);
    let pairs_of_tokens = tokens.div_ceil(2);
    let columns = tokens.next_multiple_of(HALF);
    // SAFETY: the same promise.
    unsafe { room.lay_out(&head) };
    let Room { queries, keys, values, scores, weights, shares } = room;
    let start = &[0.0; COLUMNS];
    for (row, rows) in tiles(tokens, MOST_ROWS) {
        let scores = grown(scores, rows * columns);
        let weights = grown(weights, rows * 2 * pairs_of_tokens);
        let mut out = head.out.window(row, rows);
        let output_stride = out.shape().row_stride;
        // SAFETY: `rows` queries of `size` numbers follow `row`; each panel of
        // keys has as many lines as these have pairs, and its columns begin
        // inside a row of scores, which goes on for as many as are written.
        unsafe {
            for (n, lines) in keys.chunks_exact(size / 2).enumerate().take(tokens.div_ceil(COLUMNS)) {
                let tile = Tile {
                    input: queries.as_ptr().add(row * size).cast(),
                    input_stride: size / 2,
                    lines,
                    start,
                    output: scores.as_mut_ptr().add(n * COLUMNS),
                    output_stride: columns,
                    columns: COLUMNS.min(columns - n * COLUMNS),
                };
                tile.run(rows);
            }
        }
        softmax_rows_to_bf16(scores, tokens, columns, weights, shares);
        // SAFETY: a row of weights has a pair for each line of the values;
        // `out` has `rows` rows of `size` numbers, in whole panels.
        unsafe {
            for (n, lines) in values.chunks_exact(pairs_of_tokens).enumerate().take(size / COLUMNS) {
                let tile = Tile {
                    input: weights.as_ptr().cast(),
                    input_stride: pairs_of_tokens,
                    lines,
                    start,
                    output: out.as_mut_ptr().add(n * COLUMNS),
                    output_stride,
                    columns: COLUMNS,
                };
                tile.run(rows);
            }
        }
        out.scale_rows(shares);
    }
}

impl Room {
    /// # Safety
    /// As [`attend`].
    unsafe fn lay_out(&mut self, head: &Head<'_>) {
        let (tokens, size) = (head.query.shape().rows, head.query.shape().cols);
        let empty = Line([[0; 2]; COLUMNS]);
        let lines = |lines: &mut Vec<Line>, count| {
            if lines.len() < count {
                lines.resize(count, empty);
            }
        };
        lines(&mut self.keys, tokens.div_ceil(COLUMNS) * (size / 2));
        lines(&mut self.values, tokens.div_ceil(2) * (size / COLUMNS));
        let queries = grown(&mut self.queries, tokens * size);
        // SAFETY: the processor has the instructions; room for every row, line
        // and pair has just been made, and rows are whole panels.
        unsafe {
            lay_out_queries(head.query, queries.as_mut_ptr());
            lay_out_keys(head.key, self.keys.as_mut_ptr());
            lay_out_values(head.value, self.values.as_mut_ptr());
        }
    }
}

/// # Safety
/// A row has whole panels; `queries` has room for all rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn lay_out_queries(rows: View<'_>, queries: *mut u16) {
    let size = rows.shape().cols;
    for (r, row) in rows.rows().enumerate() {
        for number in (0..size).step_by(COLUMNS) {
            // SAFETY: the caller's promise.
            unsafe {
                let pairs = rounded(row.as_ptr().add(number));
                _mm512_storeu_si512(queries.add(r * size + number).cast(), pairs);
            }
        }
    }
}

/// # Safety
/// A row has whole panels; `lines` has room for a line for each pair of
/// numbers, for every panel of rows that is begun.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn lay_out_keys(keys: View<'_>, lines: *mut Line) {
    let (tokens, size) = (keys.shape().rows, keys.shape().cols);
    let mut rows = keys.rows();
    for first in (0..tokens).step_by(SIDE) {
        let block: [Option<&[f32]>; SIDE] = std::array::from_fn(|_| rows.next());
        let panel = first / COLUMNS * (size / 2);
        for number in (0..size).step_by(COLUMNS) {
            // SAFETY: the caller's promise; half a line is 16 pairs.
            unsafe {
                let pairs = block.map(|row| match row {
                    Some(row) => rounded(row.as_ptr().add(number)),
                    None => _mm512_setzero_si512(),
                });
                for (n, line) in transposed(pairs).into_iter().enumerate() {
                    let line_of: *mut u16 = lines.add(panel + number / 2 + n).cast();
                    _mm512_storeu_si512(line_of.add(first % COLUMNS * 2).cast(), line);
                }
            }
        }
    }
}

/// # Safety
/// A row has whole panels; `lines` has room for a line for each pair of rows,
/// for every panel of numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn lay_out_values(values: View<'_>, lines: *mut Line) {
    /// From 16 numbers of each of two rows to pairs.
    const PAIRS: [u16; COLUMNS] = [
        0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29,
        14, 30, 15, 31,
    ];
    let pairs_of_tokens = values.shape().rows.div_ceil(2);
    let mut rows = values.rows();
    for pair in 0..pairs_of_tokens {
        let (upper, lower) = (rows.next(), rows.next());
        for number in (0..values.shape().cols).step_by(HALF) {
            // SAFETY: the caller's promise; half a line is 16 pairs.
            unsafe {
                let order = _mm512_loadu_si512(PAIRS.as_ptr().cast());
                let half = |row: Option<&[f32]>| match row {
                    Some(row) => _mm512_loadu_ps(row.as_ptr().add(number)),
                    None => _mm512_setzero_ps(),
                };
                let both =
                    std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(half(lower), half(upper)));
                let line: *mut u16 = lines.add(number / COLUMNS * pairs_of_tokens + pair).cast();
                let line = line.add(number % COLUMNS * 2);
                _mm512_storeu_si512(line.cast(), _mm512_permutexvar_epi16(order, both));
            }
        }
    }
}

/// The bf16 nearest to each of [`COLUMNS`] numbers.
///
/// # Safety
/// `numbers` can be read.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rounded(numbers: *const f32) -> __m512i {
    // SAFETY: the caller's promise; both types are 512 bits without invalid
    // values.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(numbers), _mm512_loadu_ps(numbers.add(HALF)));
        std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
    }
}

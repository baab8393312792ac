//! Attention in fp32 tiles.

use std::arch::x86_64::{__m512i, _mm512_loadu_si512, _mm512_storeu_si512};

use super::super::{
    elementwise::softmax_rows,
    fp32::{Isa, multiply},
    product::{View, ViewMut},
    tile::{COLUMNS, HALF, tiles},
    transpose::{SIDE, transposed},
};
use super::{Head, grown};

/// Room for one head of one text.
#[derive(Default)]
pub(super) struct Room {
    /// The keys, panel after panel of [`COLUMNS`]; in a panel a line for each
    /// of their numbers.
    keys: Vec<f32>,
    /// The values, row after row.
    values: Vec<f32>,
    /// What each query of a tile (row) makes of each key (column).
    scores: Vec<f32>,
    /// One over the sum of each row.
    shares: Vec<f32>,
}

pub(super) fn attend(isa: Isa, mut head: Head<'_>, room: &mut Room) {
    let (tokens, size) = (head.query.shape().rows, head.query.shape().cols);
    let columns = tokens.next_multiple_of(HALF);
    let panel = size * COLUMNS;
    let keys = grown(&mut room.keys, tokens.div_ceil(COLUMNS) * panel);
    for (n, panel) in keys.chunks_exact_mut(panel).enumerate() {
        let of = head.key.window(n * COLUMNS, COLUMNS.min(tokens - n * COLUMNS));
        lay_out(isa, of, panel);
    }
    let values = grown(&mut room.values, tokens * size);
    for (row, value) in values.chunks_exact_mut(size).zip(head.value.rows()) {
        row.copy_from_slice(value);
    }
    let values = View::new(values, tokens, size, size);
    for (row, rows) in tiles(tokens, isa.most_rows()) {
        let scores = grown(&mut room.scores, rows * columns);
        let query = head.query.window(row, rows);
        for (n, panel) in keys.chunks_exact(panel).enumerate() {
            let width = COLUMNS.min(columns - n * COLUMNS);
            let (_, scores) = scores.split_at_mut(n * COLUMNS);
            let panel = View::new(panel, size, width, COLUMNS);
            multiply(isa, query, panel, ViewMut::new(scores, rows, width, columns));
        }
        softmax_rows(scores, tokens, columns, &mut room.shares);
        let mut out = head.out.window(row, rows);
        multiply(isa, View::new(scores, rows, tokens, columns), values, out.reborrow());
        out.scale_rows(&room.shares);
    }
}

/// Up to [`COLUMNS`] keys become the columns of a panel. What is left of the
/// panel keeps what it holds.
fn lay_out(isa: Isa, keys: View<'_>, panel: &mut [f32]) {
    let size = keys.shape().cols;
    let mut rows = keys.rows();
    let mut column = 0;
    if isa == Isa::Avx512 && size.is_multiple_of(SIDE) {
        while column + SIDE <= keys.shape().rows {
            let block: [&[f32]; SIDE] = std::array::from_fn(|_| rows.next().unwrap_or_default());
            for number in (0..size).step_by(SIDE) {
                // SAFETY: the processor has AVX-512; a row has `size` numbers,
                // of which 16 follow `number`, and the panel `size` lines.
                unsafe { transpose(&block, number, panel.as_mut_ptr().add(number * COLUMNS + column)) };
            }
            column += SIDE;
        }
    }
    for row in rows {
        for (cell, x) in panel.iter_mut().skip(column).step_by(COLUMNS).zip(row) {
            *cell = *x;
        }
        column += 1;
    }
}

/// Sixteen numbers of each of sixteen rows, as sixteen lines.
///
/// # Safety
/// Each row has 16 numbers from `from` on, and 16 numbers on each of 16 lines
/// of [`COLUMNS`] can be written.
#[target_feature(enable = "avx512f")]
unsafe fn transpose(rows: &[&[f32]; SIDE], from: usize, lines: *mut f32) {
    // SAFETY: the caller's promise covers every address.
    unsafe {
        let rows: [__m512i; SIDE] = rows.map(|row| _mm512_loadu_si512(row.as_ptr().add(from).cast()));
        for (n, line) in transposed(rows).into_iter().enumerate() {
            _mm512_storeu_si512(lines.add(n * COLUMNS).cast(), line);
        }
    }
}

//! Rows become columns, 16 by 16.

use std::arch::x86_64::{
    __m512i, _mm512_shuffle_i32x4, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64, _mm512_unpacklo_epi32,
    _mm512_unpacklo_epi64,
};

/// Rows and columns of what is transposed at a time.
pub(super) const SIDE: usize = 16;

/// The columns of 16 rows of 32-bit cells.
///
/// Pairs of rows are interleaved, then pairs of pairs: each 128-bit lane then
/// holds one column of four rows. The rest moves whole lanes.
#[inline]
#[target_feature(enable = "avx512f")]
#[expect(clippy::indexing_slicing, reason = "`n` is below 4")]
pub(super) fn transposed(rows: [__m512i; SIDE]) -> [__m512i; SIDE] {
    let mut fours = rows;
    for group in fours.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *group;
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        *group = [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ];
    }
    let mut columns = rows;
    for n in 0..4 {
        /// Of each operand lanes 0 and 2, or 1 and 3.
        const EVEN: i32 = 0x88;
        const ODD: i32 = 0xdd;
        let [a, b, c, d] = [fours[n], fours[4 + n], fours[8 + n], fours[12 + n]];
        let (even, even_below) = (_mm512_shuffle_i32x4::<EVEN>(a, b), _mm512_shuffle_i32x4::<EVEN>(c, d));
        let (odd, odd_below) = (_mm512_shuffle_i32x4::<ODD>(a, b), _mm512_shuffle_i32x4::<ODD>(c, d));
        columns[n] = _mm512_shuffle_i32x4::<EVEN>(even, even_below);
        columns[4 + n] = _mm512_shuffle_i32x4::<EVEN>(odd, odd_below);
        columns[8 + n] = _mm512_shuffle_i32x4::<ODD>(even, even_below);
        columns[12 + n] = _mm512_shuffle_i32x4::<ODD>(odd, odd_below);
    }
    columns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        if !is_x86_feature_detected!("avx512f") {
            println!("SKIPPED: this processor has no AVX-512");
            return;
        }
        let cells: [[u32; SIDE]; SIDE] =
            std::array::from_fn(|row| std::array::from_fn(|column| (row * SIDE + column) as u32));
        // SAFETY: registers and arrays of 16 numbers have the same size and no
        // invalid values, and the processor has AVX-512F.
        let columns = unsafe {
            let rows = std::mem::transmute::<[[u32; SIDE]; SIDE], [__m512i; SIDE]>(cells);
            std::mem::transmute::<[__m512i; SIDE], [[u32; SIDE]; SIDE]>(transposed(rows))
        };
        for (column, cells) in columns.iter().enumerate() {
            for (row, cell) in cells.iter().enumerate() {
                assert_eq!(*cell as usize, row * SIDE + column);
            }
        }
    }
}

//! Products of matrices of any size and layout, single-threaded: parallelism
//! lies between batches, never inside one.

use gemm::{Parallelism, gemm};

/// A matrix somewhere in a slice: element (r, c) is
/// `data[r * row_stride + c * col_stride]`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    data: &'a [f32],
    shape: Shape,
}

/// A [`View`] that can be written. Rows lie `row_stride` apart, the elements
/// of a row beside each other.
pub(super) struct ViewMut<'a> {
    data: &'a mut [f32],
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub rows: usize,
    pub cols: usize,
    pub row_stride: usize,
    pub col_stride: usize,
}

impl Shape {
    /// Panics unless every element lies inside a slice of `len` elements:
    /// [`product`] relies on it.
    fn checked(self, len: usize) -> Self {
        assert!(self.rows > 0 && self.cols > 0, "a matrix has rows and columns");
        let end = (self.rows - 1)
            .checked_mul(self.row_stride)
            .zip((self.cols - 1).checked_mul(self.col_stride))
            .and_then(|(r, c)| r.checked_add(c));
        assert!(end.is_some_and(|last| last < len), "{self:?} reaches beyond {len} elements");
        self
    }
}

impl<'a> View<'a> {
    /// `rows` rows of `cols` elements, `row_stride` apart. Panics if they do
    /// not lie inside `data`.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let shape = Shape { rows, cols, row_stride, col_stride: 1 }.checked(data.len());
        Self { data, shape }
    }

    /// Where its elements lie.
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// Row after row. Panics if the elements of a row are not beside each other.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn rows(&self) -> impl Iterator<Item = &'a [f32]> {
        let Shape { rows, cols, row_stride, col_stride } = self.shape;
        assert!(col_stride == 1 && row_stride >= cols, "{:?} has no rows to walk", self.shape);
        self.data.chunks(row_stride).take(rows).map(move |row| row.split_at(cols).0)
    }

    /// `rows` rows from `row` on. Panics if they are not all there.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn window(self, row: usize, rows: usize) -> Self {
        let Shape { cols, row_stride, col_stride, .. } = self.shape;
        assert!(row + rows <= self.shape.rows, "{rows} rows from {row} of {:?}", self.shape);
        let (_, data) = self.data.split_at(row * row_stride);
        let shape = Shape { rows, cols, row_stride, col_stride }.checked(data.len());
        Self { data, shape }
    }

    /// The first element.
    pub(super) fn as_ptr(&self) -> *const f32 {
        self.data.as_ptr()
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let Shape { rows, cols, row_stride, col_stride } = self.shape;
        let shape = Shape { rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride };
        Self { shape, ..self }
    }
}

impl<'a> ViewMut<'a> {
    /// As [`View::new`]; rows must not overlap.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(row_stride >= cols, "rows that are written must not overlap");
        let shape = Shape { rows, cols, row_stride, col_stride: 1 }.checked(data.len());
        Self { data, shape }
    }

    /// The same, for a while.
    pub(super) fn reborrow(&mut self) -> ViewMut<'_> {
        ViewMut { data: self.data, shape: self.shape }
    }

    /// `rows` rows from `row` on, for a while. Panics if they are not all
    /// there.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn window(&mut self, row: usize, rows: usize) -> ViewMut<'_> {
        let Shape { cols, row_stride, .. } = self.shape;
        assert!(row + rows <= self.shape.rows, "{rows} rows from {row} of {:?}", self.shape);
        let (_, data) = self.data.split_at_mut(row * row_stride);
        ViewMut::new(data, rows, cols, row_stride)
    }

    /// Multiplies each row by its factor.
    pub(super) fn scale_rows(&mut self, factors: &[f32]) {
        let Shape { rows, cols, row_stride, .. } = self.shape;
        for (row, factor) in self.data.chunks_mut(row_stride).take(rows).zip(factors) {
            row.split_at_mut(cols).0.iter_mut().for_each(|x| *x *= factor);
        }
    }

    /// Where its elements lie.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn shape(&self) -> Shape {
        self.shape
    }

    /// The first element.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn as_mut_ptr(&mut self) -> *mut f32 {
        self.data.as_mut_ptr()
    }
}

/// What happens to the numbers already in the output of a [`product`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Output {
    /// They are replaced.
    Set,
    /// The product is added to them.
    Add,
}

/// `out = left · right`. Panics unless the shapes fit.
pub(super) fn product(left: View<'_>, right: View<'_>, out: ViewMut<'_>) {
    multiply(left, right, out, Output::Set);
}

pub(super) fn multiply(left: View<'_>, right: View<'_>, out: ViewMut<'_>, output: Output) {
    let (l, r, o) = (left.shape, right.shape, out.shape);
    assert!(l.cols == r.rows && o.rows == l.rows && o.cols == r.cols, "{l:?} · {r:?} is not {o:?}");
    // SAFETY: every `Shape` was checked to lie inside its slice when the view
    // was made and the three shapes fit one another, so all elements that
    // gemm addresses exist; `out` is borrowed mutably, so it overlaps neither
    // operand, and its rows do not overlap one another. A stride fits `isize`
    // because it is no longer than a slice, unless its axis has one element
    // and the stride is never taken.
    unsafe {
        gemm(
            o.rows,
            o.cols,
            l.cols,
            out.data.as_mut_ptr(),
            o.col_stride.cast_signed(),
            o.row_stride.cast_signed(),
            output == Output::Add,
            left.data.as_ptr(),
            l.col_stride.cast_signed(),
            l.row_stride.cast_signed(),
            right.data.as_ptr(),
            r.col_stride.cast_signed(),
            r.row_stride.cast_signed(),
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    #[should_panic(expected = "reaches beyond 5 elements")]
    fn a_view_beyond_its_data_is_refused() {
        View::new(&[0.0; 5], 2, 3, 3);
    }

    #[test]
    #[should_panic(expected = "is not")]
    fn shapes_that_do_not_fit_are_refused() {
        let data = [0.0; 6];
        let mut out = [0.0; 4];
        product(View::new(&data, 2, 3, 3), View::new(&data, 2, 3, 3), ViewMut::new(&mut out, 2, 2, 2));
    }

    proptest! {
        #[test]
        fn products_of_windows_agree_with_the_definition(
            m in 1usize..40, n in 1usize..40, k in 1usize..70, gap in 0usize..5, seed in 0u32..1000,
        ) {
            let number = |i: usize| (((i as u32).wrapping_mul(2_654_435_761) ^ seed) % 17) as f32 - 8.0;
            let left: Vec<f32> = (0..m * (k + gap)).map(number).collect();
            let right: Vec<f32> = (0..n * (k + gap)).map(|i| number(i + 7)).collect();
            let mut out = vec![f32::NAN; m * (n + gap)];
            product(
                View::new(&left, m, k, k + gap),
                View::new(&right, n, k, k + gap).transposed(),
                ViewMut::new(&mut out, m, n, n + gap),
            );
            for r in 0..m {
                for c in 0..n {
                    // Small integers: exact in any order of summation.
                    let expected: f32 = (0..k).map(|i| left[r * (k + gap) + i] * right[c * (k + gap) + i]).sum();
                    prop_assert_eq!(out[r * (n + gap) + c], expected);
                }
            }
        }
    }
}

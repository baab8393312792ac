//! How products are cut into tiles, whatever the element.

/// Columns of a panel: two AVX-512 registers of sums.
pub(super) const COLUMNS: usize = 32;

/// Columns of the narrower panel that a product may end with.
pub(super) const HALF: usize = COLUMNS / 2;

/// Rows that go through all panels together, so that they stay in the
/// second-level cache meanwhile.
pub(super) const BLOCK_ROWS: usize = 96;

/// Cuts `rows` rows into tiles of at most `most`, all of nearly the same
/// height: the first row of each, and how many it has.
pub(super) fn tiles(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut row = 0;
    std::iter::from_fn(move || {
        let left = rows - row;
        let height = left.div_ceil(left.div_ceil(most).max(1));
        let tile = (row, height);
        row += height;
        (height > 0).then_some(tile)
    })
}

/// Calls a method that is generic over the number of rows with that number.
macro_rules! of_height {
    ($rows:expr, $tile:ident.$method:ident(), $($height:literal)*) => {
        match $rows {
            $($height => $tile.$method::<$height>(),)*
            rows => unreachable!("a tile of {rows} rows"),
        }
    };
}
pub(super) use of_height;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_every_row_once_and_are_of_like_height() {
        for rows in 0..200 {
            let all: Vec<_> = tiles(rows, 12).collect();
            let mut next = 0;
            for (row, height) in &all {
                assert_eq!(*row, next);
                assert!((1..=12).contains(height));
                next += height;
            }
            assert_eq!(next, rows);
            assert_eq!(all.len(), rows.div_ceil(12));
            let heights = all.iter().map(|(_, height)| height);
            assert!(heights.clone().max().unwrap_or(&0) - heights.min().unwrap_or(&0) <= 1);
        }
    }
}

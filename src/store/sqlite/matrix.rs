//! Vectors of large partitions, held in memory.
//!
//! SQLite hands rows out one by one, which for a scan costs far more than
//! comparing them: 100,000 vectors of 384 numbers took sqlite-vec's function
//! within SQLite three to five times as long as this. So a partition with many vectors is read once, kept, and
//! topped up with what was committed since: keys rise with commits, so that
//! is whatever lies beyond the last key held. Vectors that come or go
//! elsewhere move the partition's generation, and it is read anew.

use crate::store::vector::make_unit;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use tokio::sync::RwLock;

/// Rows per block. Blocks are never grown beyond this, so topping up does not
/// copy what is held.
const BLOCK_ROWS: usize = 1_024;

/// Blocks worth another thread: about a millisecond's.
const MIN_BLOCKS_PER_THREAD: usize = 8;

/// Which vectors belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PartitionId {
    pub space_key: i64,
    pub tenant_key: i64,
    pub tier: i64,
}

/// The vectors of one partition, each of length 1, in order of their keys.
#[derive(Default)]
pub(super) struct Matrix {
    dimensions: usize,
    generation: i64,
    keys: Vec<i64>,
    blocks: Vec<Vec<f32>>,
}

impl Matrix {
    /// Forgets everything; from here on holds vectors of this generation.
    pub fn restart(&mut self, dimensions: usize, generation: i64) {
        *self = Self { dimensions, generation, ..Self::default() };
    }

    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// The last key held; 0, which no chunk has, when empty.
    pub fn last_key(&self) -> i64 {
        self.keys.last().copied().unwrap_or(0)
    }

    /// Adds a vector; its key must be above every key held.
    pub fn push(&mut self, key: i64, vector: impl Iterator<Item = f32>) {
        if self.keys.len().is_multiple_of(BLOCK_ROWS) {
            self.blocks.push(Vec::with_capacity(BLOCK_ROWS * self.dimensions));
        }
        let Some(block) = self.blocks.last_mut() else {
            return;
        };
        let start = block.len();
        block.extend(vector.take(self.dimensions));
        // A shorter one cannot come from this space; keep rows aligned.
        block.resize(start + self.dimensions, 0.0);
        if let Some(row) = block.get_mut(start..) {
            make_unit(row);
        }
        self.keys.push(key);
    }

    /// The `depth` vectors nearest to `query` (length 1), nearest first, with
    /// their cosine similarity.
    pub fn nearest(&self, query: &[f32], depth: usize) -> Vec<(i64, f32)> {
        self.keys
            .par_chunks(BLOCK_ROWS)
            .zip(&self.blocks)
            .with_min_len(MIN_BLOCKS_PER_THREAD)
            .fold(
                || Best::new(depth),
                |mut best, (keys, block)| {
                    let mut similarities = [0.0; BLOCK_ROWS];
                    products(block, query, &mut similarities);
                    for (key, similarity) in keys.iter().zip(&similarities) {
                        best.offer(*key, *similarity);
                    }
                    best
                },
            )
            .reduce(|| Best::new(depth), Best::with)
            .into_sorted()
    }
}

/// The inner product of each row of `rows` with `query`, into the first
/// places of `out`. Left to a library that picks its instructions by the
/// processor it finds: the bare loop, built for any processor, is bound by
/// arithmetic, this one by memory.
fn products(rows: &[f32], query: &[f32], out: &mut [f32]) {
    let columns = query.len();
    let count = rows.len().checked_div(columns).unwrap_or(0).min(out.len());
    let (Ok(row_stride), true) = (isize::try_from(columns), count > 0) else {
        return;
    };
    // SAFETY: `rows` holds at least `count` rows of `columns` numbers, one
    // after the other, `query` holds `columns` and `out` at least `count`;
    // `out` is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            count,
            1,
            columns,
            out.as_mut_ptr(),
            1,
            1,
            false,
            rows.as_ptr(),
            1,
            row_stride,
            query.as_ptr(),
            1,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The highest scores seen.
struct Best {
    depth: usize,
    kept: Vec<(i64, f32)>,
    /// What a score must exceed, once there are enough.
    threshold: f32,
}

impl Best {
    fn new(depth: usize) -> Self {
        Self { depth, kept: Vec::with_capacity(2 * depth), threshold: f32::NEG_INFINITY }
    }

    fn offer(&mut self, key: i64, score: f32) {
        if score <= self.threshold {
            return;
        }
        self.kept.push((key, score));
        // Sorting only every `depth` rows keeps the common case one comparison.
        if self.kept.len() >= 2 * self.depth {
            self.trim();
        }
    }

    fn trim(&mut self) {
        self.kept.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        self.kept.truncate(self.depth);
        if let (Some(last), true) = (self.kept.last(), self.kept.len() == self.depth) {
            self.threshold = last.1;
        }
    }

    fn with(mut self, other: Self) -> Self {
        other.kept.into_iter().for_each(|(key, score)| self.offer(key, score));
        self
    }

    fn into_sorted(mut self) -> Vec<(i64, f32)> {
        self.trim();
        self.kept
    }
}

/// Matrices within a budget of memory; the least recently used give way.
pub(super) struct Matrices {
    budget_bytes: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// Counts uses; stands in for a clock.
    uses: u64,
    entries: HashMap<PartitionId, Entry>,
}

struct Entry {
    matrix: Arc<RwLock<Matrix>>,
    bytes: usize,
    last_use: u64,
}

impl Matrices {
    pub fn new(budget_bytes: usize) -> Self {
        Self { budget_bytes, held: Mutex::default() }
    }

    /// The matrix of a partition that needs about `bytes`, empty if it was
    /// not held; none if it would not fit.
    pub fn matrix(&self, id: PartitionId, bytes: usize) -> Option<Arc<RwLock<Matrix>>> {
        if bytes > self.budget_bytes {
            return None;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.uses += 1;
        let now = held.uses;
        let entry =
            held.entries.entry(id).or_insert_with(|| Entry { matrix: Arc::default(), bytes, last_use: now });
        entry.bytes = bytes;
        entry.last_use = now;
        let matrix = Arc::clone(&entry.matrix);
        held.shrink_to(self.budget_bytes);
        Some(matrix)
    }
}

impl Held {
    fn shrink_to(&mut self, budget_bytes: usize) {
        while self.entries.values().map(|e| e.bytes).sum::<usize>() > budget_bytes {
            let Some(oldest) = self.entries.iter().min_by_key(|(_, e)| e.last_use).map(|(id, _)| *id) else {
                return;
            };
            self.entries.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(tenant_key: i64) -> PartitionId {
        PartitionId { space_key: 1, tenant_key, tier: 0 }
    }

    /// Directions around a circle: the row with the nearest angle is nearest.
    fn circle(rows: i32) -> Matrix {
        let mut matrix = Matrix::default();
        matrix.restart(2, 0);
        for i in 0..rows {
            let angle = i as f32 / rows as f32 * 3.0;
            matrix.push(i64::from(i) + 1, [angle.cos() * 5.0, angle.sin() * 5.0].into_iter());
        }
        matrix
    }

    #[test]
    fn nearest_across_blocks_is_the_same_as_sorting_all() {
        let rows = 3 * BLOCK_ROWS as i32 + 17;
        let matrix = circle(rows);
        let query = [2.0f32.cos(), 2.0f32.sin()];
        let found = matrix.nearest(&query, 50);
        let mut expected: Vec<i64> = (1..=i64::from(rows)).collect();
        let distance = |key: i64| ((key - 1) as f32 / rows as f32 * 3.0 - 2.0).abs();
        expected.sort_by(|a, b| distance(*a).total_cmp(&distance(*b)));
        let expected: std::collections::BTreeSet<_> = expected[..40].iter().copied().collect();
        let found_keys: std::collections::BTreeSet<_> = found.iter().map(|(key, _)| *key).collect();
        assert_eq!(found.len(), 50);
        assert!(expected.is_subset(&found_keys));
        assert!(found.is_sorted_by(|a, b| a.1 >= b.1));
        assert!((found[0].1 - 1.0).abs() < 1e-5, "lengths must not count");
    }

    #[test]
    fn fewer_rows_than_asked_for_are_all_found() {
        assert_eq!(circle(3).nearest(&[1.0, 0.0], 50).len(), 3);
        assert!(circle(0).nearest(&[1.0, 0.0], 50).is_empty());
    }

    #[test]
    fn the_least_recently_used_gives_way() {
        let matrices = Matrices::new(100);
        let first = matrices.matrix(id(1), 40).unwrap();
        let second = matrices.matrix(id(2), 40).unwrap();
        assert!(Arc::ptr_eq(&first, &matrices.matrix(id(1), 40).unwrap()));
        matrices.matrix(id(3), 40).unwrap();
        assert!(Arc::ptr_eq(&first, &matrices.matrix(id(1), 40).unwrap()));
        assert!(!Arc::ptr_eq(&second, &matrices.matrix(id(2), 40).unwrap()));
        assert!(matrices.matrix(id(4), 101).is_none());
    }
}

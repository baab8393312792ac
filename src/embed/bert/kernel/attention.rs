//! Attention within one text, head by head, in fp32.

use super::{
    elementwise::softmax_rows,
    product::{View, ViewMut, product},
};
#[cfg(target_arch = "x86_64")]
use super::{
    fp32::{self, Isa},
    tile::{COLUMNS, HALF},
};

/// How the states of a token are divided among heads.
pub struct Attention {
    heads: usize,
    head_size: usize,
    #[cfg(target_arch = "x86_64")]
    isa: Option<Isa>,
}

/// Room of one thread, for one head of one text.
#[derive(Default)]
pub struct Room {
    /// The keys, one in each column.
    #[cfg(target_arch = "x86_64")]
    keys: Vec<f32>,
    /// What each token (row) makes of each (column).
    scores: Vec<f32>,
    /// One over the sum of each row.
    shares: Vec<f32>,
}

impl Attention {
    /// `heads` heads of `head_size` numbers.
    pub fn new(heads: usize, head_size: usize) -> Self {
        Self {
            heads,
            head_size,
            #[cfg(target_arch = "x86_64")]
            isa: Isa::detect().next().filter(|_| head_size.is_multiple_of(COLUMNS)),
        }
    }

    /// Every token of a text looks at every one. A row of `states` is a
    /// token's query, key and value, the query already divided by the square
    /// root of the head size; a row of `context` is what it gets. Panics
    /// unless both have as many rows.
    pub fn apply(&self, states: &[f32], context: &mut [f32], room: &mut Room) {
        let hidden = self.heads * self.head_size;
        let tokens = context.len() / hidden;
        assert!(tokens * hidden == context.len() && 3 * context.len() == states.len(), "rows do not match");
        for head in 0..self.heads {
            let from = head * self.head_size;
            let part = |of: usize| {
                let (_, part) = states.split_at(of * hidden + from);
                View::new(part, tokens, self.head_size, 3 * hidden)
            };
            let (_, context) = context.split_at_mut(from);
            let out = ViewMut::new(context, tokens, self.head_size, hidden);
            self.head(part(0), part(1), part(2), out, room);
        }
    }

    fn head(&self, query: View<'_>, key: View<'_>, value: View<'_>, mut out: ViewMut<'_>, room: &mut Room) {
        let tokens = query.shape().rows;
        #[cfg(target_arch = "x86_64")]
        if let Some(isa) = self.isa {
            let columns = tokens.next_multiple_of(HALF);
            let keys = grown(&mut room.keys, columns * self.head_size);
            transpose(key, keys, columns);
            let scores = grown(&mut room.scores, tokens * columns);
            let keys = View::new(keys, self.head_size, columns, columns);
            fp32::multiply(isa, query, keys, ViewMut::new(scores, tokens, columns, columns));
            softmax_rows(scores, tokens, columns, &mut room.shares);
            fp32::multiply(isa, View::new(scores, tokens, tokens, columns), value, out.reborrow());
            out.scale_rows(&room.shares);
            return;
        }
        let scores = grown(&mut room.scores, tokens * tokens);
        product(query, key.transposed(), ViewMut::new(scores, tokens, tokens, tokens));
        softmax_rows(scores, tokens, tokens, &mut room.shares);
        product(View::new(scores, tokens, tokens, tokens), value, out.reborrow());
        out.scale_rows(&room.shares);
    }
}

/// Row `r` of `matrix` becomes column `r` of `out`, whose rows are `columns`
/// numbers apart. Columns beyond the last row keep what they hold.
#[cfg(target_arch = "x86_64")]
fn transpose(matrix: View<'_>, out: &mut [f32], columns: usize) {
    for (r, row) in matrix.rows().enumerate() {
        for (cell, x) in out.iter_mut().skip(r).step_by(columns).zip(row) {
            *cell = *x;
        }
    }
}

/// The first `len` numbers of a buffer that only ever grows: left over from
/// earlier use, to be overwritten.
pub fn grown(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    buffer.split_at_mut(len).0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_kernel_agrees_with_the_definition(
            tokens in 1usize..100, heads in 1usize..4, wide in any::<bool>(), seed in 0u32..1_000,
        ) {
            let size = if wide { 64 } else { 32 };
            let hidden = heads * size;
            let number = |i: usize| (((i as u32).wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / 2e7 - 0.4;
            let states: Vec<f32> = (0..tokens * 3 * hidden).map(number).collect();
            let fastest = Attention::new(heads, size);
            let portable = Attention {
                #[cfg(target_arch = "x86_64")]
                isa: None,
                ..Attention::new(heads, size)
            };
            // A text before, so that there are leftovers.
            let mut room = Room { scores: vec![f32::NAN; 9_000], ..Room::default() };
            #[cfg(target_arch = "x86_64")]
            room.keys.resize(9_000, f32::NAN);
            for attention in [fastest, portable] {
                let mut context = vec![f32::NAN; tokens * hidden];
                attention.apply(&states, &mut context, &mut room);
                let at = |token: usize, part: usize, i: usize| f64::from(states[token * 3 * hidden + part * hidden + i]);
                for (n, x) in context.into_iter().enumerate().step_by(7) {
                    let (token, i) = (n / hidden, n % hidden);
                    let head = i / size * size..i / size * size + size;
                    let weight = |other: usize| head.clone().map(|i| at(token, 0, i) * at(other, 1, i)).sum::<f64>().exp();
                    let total: f64 = (0..tokens).map(weight).sum();
                    let expected: f64 = (0..tokens).map(|other| weight(other) / total * at(other, 2, i)).sum();
                    prop_assert!((f64::from(x) - expected).abs() < 1e-5, "{} and {}", x, expected);
                }
            }
        }
    }
}

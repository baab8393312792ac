//! Attention within one text, head by head.
//!
//! A few queries at a time go through all three steps: scores of every key,
//! softmax, the mean of the values. What lies between the steps then never
//! leaves the first-level cache. Keys and values of a head are laid out once
//! for all its queries.

#[cfg(target_arch = "x86_64")]
mod bf16;
#[cfg(target_arch = "x86_64")]
mod fp32;

use super::{
    elementwise::softmax_rows,
    product::{View, ViewMut, product},
    round::Element,
};
#[cfg(target_arch = "x86_64")]
use super::{fp32::Isa, tile::COLUMNS};

/// How the states of a token are divided among heads.
pub struct Attention {
    heads: usize,
    head_size: usize,
    kernel: Kernel,
}

/// What computes it. An [`Element`] shorter than fp32 leaves the choice: what
/// it promises is how the operands of dense layers are rounded. Attention is a
/// tenth of the work, so its operands are rounded, to bf16, only where that
/// makes it faster, though then two processors give a model's vectors a little
/// differently, by less than rounding the operands of its dense layers does.
#[derive(Clone, Copy, Debug)]
enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Bf16,
    #[cfg(target_arch = "x86_64")]
    Fp32(Isa),
    Portable,
}

/// Room of one thread, for one head of one text.
#[derive(Default)]
pub struct Room {
    #[cfg(target_arch = "x86_64")]
    bf16: bf16::Room,
    #[cfg(target_arch = "x86_64")]
    fp32: fp32::Room,
    /// What each token (row) makes of each (column).
    scores: Vec<f32>,
    /// One over the sum of each row.
    shares: Vec<f32>,
}

/// One head of one text: a row for each token.
struct Head<'a> {
    query: View<'a>,
    key: View<'a>,
    value: View<'a>,
    out: ViewMut<'a>,
}

impl Attention {
    /// `heads` heads of `head_size` numbers, in a model of `element`s.
    pub fn new(heads: usize, head_size: usize, element: Element) -> Self {
        Self { heads, head_size, kernel: Kernel::fastest(head_size, element) }
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
            let head = Head { query: part(0), key: part(1), value: part(2), out };
            match self.kernel {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: it is chosen for whole panels, where the processor
                // has the instructions.
                Kernel::Bf16 => unsafe { bf16::attend(head, &mut room.bf16) },
                #[cfg(target_arch = "x86_64")]
                Kernel::Fp32(isa) => fp32::attend(isa, head, &mut room.fp32),
                Kernel::Portable => head.attend(room),
            }
        }
    }
}

impl Kernel {
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables, reason = "there is one kernel"))]
    fn fastest(head_size: usize, element: Element) -> Self {
        #[cfg(target_arch = "x86_64")]
        if head_size.is_multiple_of(COLUMNS) {
            if element != Element::Fp32 && super::bf16::is_fast() {
                return Self::Bf16;
            }
            if let Some(isa) = Isa::detect().next() {
                return Self::Fp32(isa);
            }
        }
        Self::Portable
    }
}

impl Head<'_> {
    /// As the definition says.
    fn attend(mut self, room: &mut Room) {
        let tokens = self.query.shape().rows;
        let scores = grown(&mut room.scores, tokens * tokens);
        product(self.query, self.key.transposed(), ViewMut::new(scores, tokens, tokens, tokens));
        softmax_rows(scores, tokens, tokens, &mut room.shares);
        product(View::new(scores, tokens, tokens, tokens), self.value, self.out.reborrow());
        self.out.scale_rows(&room.shares);
    }
}

/// The first `len` numbers of a buffer that only ever grows: left over from
/// earlier use, to be overwritten.
pub fn grown<T: Clone + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    buffer.split_at_mut(len).0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every kernel that this processor has for heads of whole panels, and how
    /// far from the definition it may be.
    fn kernels() -> Vec<(Kernel, f64)> {
        let mut kernels = vec![(Kernel::Portable, 1e-5)];
        #[cfg(target_arch = "x86_64")]
        {
            kernels.extend(Isa::detect().map(|isa| (Kernel::Fp32(isa), 1e-5)));
            // Scores and values below 1 with 8 bits each.
            kernels.extend(super::super::bf16::is_available().then_some((Kernel::Bf16, 5e-3)));
        }
        kernels
    }

    proptest! {
        #[test]
        fn every_kernel_agrees_with_the_definition(
            tokens in 1usize..100, heads in 1usize..4, wide in any::<bool>(), seed in 0u32..1_000,
        ) {
            let size = if wide { 64 } else { 32 };
            let hidden = heads * size;
            let number = |i: usize| (((i as u32).wrapping_mul(2_654_435_761) ^ seed) >> 8) as f32 / 2e7 - 0.4;
            let states: Vec<f32> = (0..tokens * 3 * hidden).map(number).collect();
            // A text before, so that there are leftovers.
            let mut room = Room { scores: vec![f32::NAN; 9_000], ..Room::default() };
            let before = vec![f32::NAN; 100 * 3 * hidden];
            for (kernel, bound) in kernels() {
                let attention = Attention { heads, head_size: size, kernel };
                attention.apply(&before, &mut vec![0.0; 100 * hidden], &mut room);
                let mut context = vec![f32::NAN; tokens * hidden];
                attention.apply(&states, &mut context, &mut room);
                let at = |token: usize, part: usize, i: usize| f64::from(states[token * 3 * hidden + part * hidden + i]);
                for (n, x) in context.into_iter().enumerate().step_by(7) {
                    let (token, i) = (n / hidden, n % hidden);
                    let head = i / size * size..i / size * size + size;
                    let weight = |other: usize| head.clone().map(|i| at(token, 0, i) * at(other, 1, i)).sum::<f64>().exp();
                    let total: f64 = (0..tokens).map(weight).sum();
                    let expected: f64 = (0..tokens).map(|other| weight(other) / total * at(other, 2, i)).sum();
                    prop_assert!((f64::from(x) - expected).abs() < bound, "{:?}: {} and {}", kernel, x, expected);
                }
            }
        }
    }

    #[test]
    fn heads_that_do_not_fill_panels_and_numbers_not_to_be_rounded_get_the_kernel_that_takes_them() {
        assert!(matches!(Kernel::fastest(48, Element::Int8), Kernel::Portable));
        #[cfg(target_arch = "x86_64")]
        {
            assert!(!matches!(Kernel::fastest(64, Element::Fp32), Kernel::Bf16));
            let fast = super::super::bf16::is_fast();
            assert_eq!(matches!(Kernel::fastest(64, Element::Int8), Kernel::Bf16), fast);
        }
    }
}

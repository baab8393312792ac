//! The forward pass over a packed batch.

use std::ops::Range;

use super::{
    kernel::{Attention, Element, Linear, Operands, Room, add_and_normalise, gelu, grown},
    weights::{Config, Layer, LayerNorm, Weights, WeightsError},
};

/// Rows that go through everything after attention together: their widened
/// states (1,536 numbers each) then stay in the second-level cache, beside the
/// weights that they are multiplied with.
const BLOCK_ROWS: usize = 72;

/// Rows whose queries, keys and values (1,152 numbers each) are computed before
/// any of them is used: so that these are still in the second-level cache.
const GROUP_ROWS: usize = 96;

/// How the states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// That of the first.
    Cls,
}

impl Pooling {
    /// As a [`Space`](crate::embed::Space) names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::Cls => "cls",
        }
    }
}

/// A BERT encoder with vectors of length 1.
pub struct Encoder {
    config: Config,
    pooling: Pooling,
    weights: Weights<Linear>,
    attention: Attention,
}

/// Buffers of one thread, reused from batch to batch. A batch of `n` tokens
/// needs about `8 · n · hidden_size` bytes, and some for a group and a block.
#[derive(Default)]
pub struct Scratch {
    /// States of all tokens: tokens × hidden size.
    states: Vec<f32>,
    /// Of one group of texts: tokens × 3 · hidden size.
    query_key_value: Vec<f32>,
    /// What attention gives: tokens × hidden size.
    context: Vec<f32>,
    attention: Room,
    operands: Operands,
    /// Block rows × intermediate size.
    wide: Vec<f32>,
    /// Block rows × hidden size.
    block: Vec<f32>,
}

impl Encoder {
    /// From the bytes of a safetensors file and its configuration; products
    /// are computed with `element`.
    pub fn read(
        file: &[u8],
        config: Config,
        pooling: Pooling,
        element: Element,
    ) -> Result<Self, WeightsError> {
        let make = |weights: &[f32], bias: &[f32]| Linear::new(weights, bias, element);
        let weights = Weights::read(file, &config, &make)?;
        let attention = Attention::new(config.num_attention_heads, config.head_size(), element);
        Ok(Self { config, pooling, weights, attention })
    }

    /// One vector of `hidden_size` numbers for each text of `batch`. A text is
    /// the ids of its tokens: at least one, at most `max_position_embeddings`,
    /// each below `vocab_size`. Panics otherwise.
    pub fn encode(&self, batch: &[impl AsRef<[u32]>], scratch: &mut Scratch) -> Vec<Vec<f32>> {
        let texts = row_ranges(batch);
        if texts.is_empty() {
            return Vec::new();
        }
        let groups = grouped(&texts);
        self.embed_tokens(batch, scratch);
        for layer in &self.weights.layers {
            for texts in &groups {
                self.attend(layer, texts, scratch);
            }
            self.feed_forward(layer, scratch);
        }
        let hidden = self.config.hidden_size;
        let pooled = |rows: Range<usize>| {
            let rows = match self.pooling {
                Pooling::Mean => rows,
                Pooling::Cls => rows.start..rows.start + 1,
            };
            mean_of_length_1(rows_of(&scratch.states, rows, hidden), hidden)
        };
        texts.into_iter().map(pooled).collect()
    }

    /// Word and position embeddings, summed and normalised, into the states.
    fn embed_tokens(&self, batch: &[impl AsRef<[u32]>], scratch: &mut Scratch) {
        let hidden = self.config.hidden_size;
        scratch.states.clear();
        scratch.context.clear();
        for ids in batch {
            for (position, id) in ids.as_ref().iter().enumerate() {
                let word = *id as usize;
                scratch.states.extend_from_slice(rows_of(&self.weights.words, word..word + 1, hidden));
                let place = rows_of(&self.weights.positions, position..position + 1, hidden);
                scratch.context.extend_from_slice(place);
            }
        }
        self.normalise(&mut scratch.states, &scratch.context, &self.weights.embedding_norm);
    }

    /// Every token looks at every token of its own text: one group of texts.
    fn attend(&self, layer: &Layer<Linear>, texts: &[Range<usize>], scratch: &mut Scratch) {
        let Scratch { states, query_key_value, context, attention, operands, .. } = scratch;
        let hidden = self.config.hidden_size;
        let first = texts.first().map_or(0, |rows| rows.start);
        let group = first..texts.last().map_or(0, |rows| rows.end);
        let room = grown(query_key_value, group.len() * 3 * hidden);
        layer.query_key_value.apply(rows_of(states, group, hidden), room, operands);
        for rows in texts {
            let states = rows_of(room, rows.start - first..rows.end - first, 3 * hidden);
            let context = rows_of_mut(context, rows.clone(), hidden);
            self.attention.apply(states, context, attention);
        }
    }

    /// Everything after attention, which no longer mixes rows: in blocks, so
    /// that a block passes through all of it while it is in cache.
    fn feed_forward(&self, layer: &Layer<Linear>, scratch: &mut Scratch) {
        let Scratch { states, context, wide, block, operands, .. } = scratch;
        let hidden = self.config.hidden_size;
        let blocks = states.chunks_mut(BLOCK_ROWS * hidden).zip(context.chunks(BLOCK_ROWS * hidden));
        for (states, context) in blocks {
            let block = grown(block, states.len());
            let wide = grown(wide, states.len() / hidden * layer.widen.outputs());
            layer.attention_output.apply(context, block, operands);
            self.normalise(states, block, &layer.attention_norm);
            layer.widen.apply(states, wide, operands);
            gelu(wide);
            layer.narrow.apply(wide, block, operands);
            self.normalise(states, block, &layer.output_norm);
        }
    }

    fn normalise(&self, states: &mut [f32], residual: &[f32], norm: &LayerNorm) {
        add_and_normalise(states, residual, &norm.gain, &norm.bias, self.config.layer_norm_eps);
    }
}

/// The rows of each text in the packed batch.
fn row_ranges(batch: &[impl AsRef<[u32]>]) -> Vec<Range<usize>> {
    let mut end = 0;
    let next = |ids: &[u32]| {
        assert!(!ids.is_empty(), "a text has at least one token");
        let start = end;
        end += ids.len();
        start..end
    };
    batch.iter().map(AsRef::as_ref).map(next).collect()
}

/// Texts one after another, as few of them as have [`GROUP_ROWS`] rows.
fn grouped(texts: &[Range<usize>]) -> Vec<&[Range<usize>]> {
    let mut groups = Vec::new();
    let mut rest = texts;
    while let Some(first) = rest.first() {
        let count = rest.iter().take_while(|rows| rows.start < first.start + GROUP_ROWS).count();
        let (group, others) = rest.split_at(count);
        groups.push(group);
        rest = others;
    }
    groups
}

/// The mean of `rows`, brought to length 1.
fn mean_of_length_1(rows: &[f32], columns: usize) -> Vec<f32> {
    let mut sum = vec![0.0; columns];
    for row in rows.chunks_exact(columns) {
        for (total, x) in sum.iter_mut().zip(row) {
            *total += x;
        }
    }
    // The length of the mean cancels: dividing by the number of rows first
    // would change nothing but the rounding.
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    sum.iter().map(|x| x / length).collect()
}

#[expect(clippy::indexing_slicing, reason = "callers of `encode` promise ids and lengths within the weights")]
fn rows_of(data: &[f32], rows: Range<usize>, columns: usize) -> &[f32] {
    &data[rows.start * columns..rows.end * columns]
}

#[expect(clippy::indexing_slicing, reason = "rows come from `row_ranges` and the buffer was sized by them")]
fn rows_of_mut(data: &mut [f32], rows: Range<usize>, columns: usize) -> &mut [f32] {
    &mut data[rows.start * columns..rows.end * columns]
}

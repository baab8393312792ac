//! Launching the kernels: the place that looks whether the memory fits.
//!
//! Each function has the parameters of the function of that name in
//! `kernels.cu`, and panics where memory is too small for what that touches: a
//! kernel would go on over the end. Rows are tokens.

use super::{
    Argument, Device, DeviceError, Gemm, Kernel, QUERIES,
    memory::{Array, Operand},
};

/// A matrix of weights, outputs × inputs, row by row as checkpoints have it.
pub(super) struct Matrix<M> {
    pub outputs: usize,
    pub inputs: usize,
    pub weights: Weights<M>,
    /// Added by the kernel that reads the product.
    pub bias: Array<M, f32>,
}

/// Weights in the numbers that products are computed with.
pub(super) enum Weights<M> {
    Floats(Array<M, f32>),
    Halves(Array<M, u16>),
}

/// A layer norm on the device.
pub(super) struct Norm<M> {
    pub gain: Array<M, f32>,
    pub shift: Array<M, f32>,
    pub epsilon: f32,
}

/// The texts of a batch, as the kernels need them.
pub(super) struct Batch<M> {
    pub rows: usize,
    pub texts: usize,
    ids: Array<M, i32>,
    positions: Array<M, i32>,
    /// First row and tokens of each text.
    ranges: Array<M, i32>,
    /// First row and tokens of its text, and first query, for each tile.
    tiles: Array<M, i32>,
}

type Result<T = ()> = std::result::Result<T, DeviceError>;
type Halves<'a, M> = Option<&'a Array<M, u16>>;

impl<M> Batch<M> {
    /// Puts the ids of `texts` on the device. Panics unless each text has at
    /// least one token and at most `positions`, each below `vocabulary`.
    pub(super) fn new<D: Device<Memory = M>>(
        device: &D,
        texts: &[impl AsRef<[u32]>],
        vocabulary: usize,
        positions: usize,
    ) -> Result<Self> {
        let (mut ids, mut places, mut ranges, mut tiles) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for text in texts.iter().map(AsRef::as_ref) {
            assert!(!text.is_empty() && text.len() <= positions, "a text has 1 to {positions} tokens");
            assert!(text.iter().all(|id| (*id as usize) < vocabulary), "a token is of the vocabulary");
            let (start, tokens) = (integer(ids.len()), integer(text.len()));
            ids.extend(text.iter().map(|id| id.cast_signed()));
            places.extend(0..tokens);
            ranges.extend([start, tokens]);
            for query in (0..tokens).step_by(QUERIES as usize) {
                tiles.extend([start, tokens, query]);
            }
        }
        Ok(Self {
            rows: ids.len(),
            texts: texts.len(),
            ids: Array::of(device, &ids)?,
            positions: Array::of(device, &places)?,
            ranges: Array::of(device, &ranges)?,
            tiles: Array::of(device, &tiles)?,
        })
    }
}

/// `output = input · weightsᵀ`, row by row, without the bias.
pub(super) fn multiply<D: Device>(
    device: &D,
    matrix: &Matrix<D::Memory>,
    input: Operand<'_, D::Memory>,
    output: &Array<D::Memory, f32>,
    rows: usize,
) -> Result {
    let weights = match &matrix.weights {
        Weights::Floats(array) => Operand::Floats(array),
        Weights::Halves(array) => Operand::Halves(array),
    };
    let Matrix { outputs, inputs, .. } = *matrix;
    assert!(weights.is_like(&input), "operands are of one kind");
    fits(weights.len(), outputs, inputs);
    fits(input.len(), rows, inputs);
    fits(output.len(), rows, outputs);
    // What lies row by row is its own transpose, column by column: outputs are
    // the rows of BLAS's result, and the weights come transposed already.
    let gemm = Gemm {
        m: count(outputs),
        n: count(rows),
        k: count(inputs),
        a: weights,
        b: input,
        c: output.memory(),
    };
    // SAFETY: the three matrices were just found to fit their memory.
    unsafe { device.multiply(&gemm) }
}

/// Word and position embeddings of the batch into `states`.
pub(super) fn embed<D: Device>(
    device: &D,
    batch: &Batch<D::Memory>,
    [words, places]: [&Array<D::Memory, f32>; 2],
    norm: &Norm<D::Memory>,
    states: &Array<D::Memory, f32>,
    halves: Halves<'_, D::Memory>,
) -> Result {
    let columns = norm.columns();
    assert!(words.len().is_multiple_of(columns) && places.len().is_multiple_of(columns), "rows are whole");
    fits_both(states, halves, batch.rows, columns);
    let arguments = [
        Argument::Memory(batch.ids.memory()),
        Argument::Memory(batch.positions.memory()),
        Argument::Memory(words.memory()),
        Argument::Memory(places.memory()),
        Argument::Memory(norm.gain.memory()),
        Argument::Memory(norm.shift.memory()),
        Argument::Memory(states.memory()),
        optional(halves),
        Argument::Integer(integer(columns)),
        Argument::Float(norm.epsilon),
    ];
    // SAFETY: these are its parameters; what is written fits, and `Batch::new`
    // has seen that ids and positions are rows of the embeddings.
    unsafe { device.launch(Kernel::Embed, count(batch.rows), &arguments) }
}

/// `states = norm(states + update + bias)`.
pub(super) fn add_and_normalise<D: Device>(
    device: &D,
    states: &Array<D::Memory, f32>,
    halves: Halves<'_, D::Memory>,
    update: &Array<D::Memory, f32>,
    bias: &Array<D::Memory, f32>,
    norm: &Norm<D::Memory>,
    rows: usize,
) -> Result {
    let columns = norm.columns();
    fits_both(states, halves, rows, columns);
    fits(update.len(), rows, columns);
    fits(bias.len(), 1, columns);
    let arguments = [
        Argument::Memory(states.memory()),
        optional(halves),
        Argument::Memory(update.memory()),
        Argument::Memory(bias.memory()),
        Argument::Memory(norm.gain.memory()),
        Argument::Memory(norm.shift.memory()),
        Argument::Integer(integer(columns)),
        Argument::Float(norm.epsilon),
    ];
    // SAFETY: these are its parameters, and rows and columns fit.
    unsafe { device.launch(Kernel::AddAndNormalise, count(rows), &arguments) }
}

/// `gelu(wide + bias)`, in place or into `halves`.
pub(super) fn add_and_gelu<D: Device>(
    device: &D,
    wide: &Array<D::Memory, f32>,
    halves: Halves<'_, D::Memory>,
    bias: &Array<D::Memory, f32>,
    rows: usize,
) -> Result {
    let columns = bias.len();
    fits_both(wide, halves, rows, columns);
    let arguments = [
        Argument::Memory(wide.memory()),
        optional(halves),
        Argument::Memory(bias.memory()),
        Argument::Integer(integer(columns)),
    ];
    // SAFETY: these are its parameters, and rows and columns fit.
    unsafe { device.launch(Kernel::AddAndGelu, count(rows), &arguments) }
}

/// What each token gets from its text, into `context`: floats or bf16.
pub(super) fn attend<D: Device>(
    device: &D,
    batch: &Batch<D::Memory>,
    states: &Array<D::Memory, f32>,
    bias: &Array<D::Memory, f32>,
    context: Operand<'_, D::Memory>,
    heads: usize,
) -> Result {
    let hidden = bias.len() / 3;
    assert!(hidden * 3 == bias.len() && hidden.is_multiple_of(heads), "heads share the states");
    fits(states.len(), batch.rows, 3 * hidden);
    fits(context.len(), batch.rows, hidden);
    let (floats, halves) = match context {
        Operand::Floats(array) => (Argument::Memory(array.memory()), Argument::Nothing),
        Operand::Halves(array) => (Argument::Nothing, Argument::Memory(array.memory())),
    };
    let arguments = [
        Argument::Memory(states.memory()),
        Argument::Memory(bias.memory()),
        Argument::Memory(batch.tiles.memory()),
        floats,
        halves,
        Argument::Integer(integer(heads)),
    ];
    let blocks = batch.tiles.len() / 3 * heads;
    // SAFETY: these are its parameters, rows and columns fit, and the tiles are
    // those of the rows. A device's kernels are compiled for the head size of
    // the model that it is given.
    unsafe { device.launch(Kernel::Attend, count(blocks), &arguments) }
}

/// One vector of length 1 for each text.
pub(super) fn pool<D: Device>(
    device: &D,
    batch: &Batch<D::Memory>,
    states: &Array<D::Memory, f32>,
    vectors: &Array<D::Memory, f32>,
    columns: usize,
    first_only: bool,
) -> Result {
    fits(states.len(), batch.rows, columns);
    fits(vectors.len(), batch.texts, columns);
    let arguments = [
        Argument::Memory(states.memory()),
        Argument::Memory(batch.ranges.memory()),
        Argument::Memory(vectors.memory()),
        Argument::Integer(integer(columns)),
        Argument::Integer(i32::from(first_only)),
    ];
    // SAFETY: these are its parameters, rows and columns fit, and the ranges
    // are of those rows.
    unsafe { device.launch(Kernel::Pool, count(batch.texts), &arguments) }
}

impl<M> Norm<M> {
    fn columns(&self) -> usize {
        assert_eq!(self.gain.len(), self.shift.len(), "a norm has one of each for a column");
        self.gain.len()
    }
}

fn optional<'a, M>(halves: Halves<'a, M>) -> Argument<'a, M> {
    halves.map_or(Argument::Nothing, |array| Argument::Memory(array.memory()))
}

fn fits_both<M>(floats: &Array<M, f32>, halves: Halves<'_, M>, rows: usize, columns: usize) {
    fits(floats.len(), rows, columns);
    if let Some(halves) = halves {
        fits(halves.len(), rows, columns);
    }
}

fn fits(len: usize, rows: usize, columns: usize) {
    let needed = rows.checked_mul(columns);
    assert!(needed.is_some_and(|needed| needed <= len), "{rows} × {columns} numbers do not fit {len}");
}

/// For a kernel. What does not fit would not fit a device's memory, either.
fn integer(n: usize) -> i32 {
    i32::try_from(n).unwrap_or_else(|_| panic!("{n} is more than a kernel counts"))
}

fn count(n: usize) -> u32 {
    integer(n).cast_unsigned()
}

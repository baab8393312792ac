//! The forward pass on a device.

use super::{
    super::{
        device::{DeviceEncoder, DeviceError},
        encoder::Pooling,
        kernel::{Element, bf16},
        weights::{self, Config, Dense, LayerNorm},
    },
    Device,
    kernels::{self, Batch, Matrix, Norm, Weights},
    memory::{Array, Operand},
};

/// A BERT encoder on a device; what it computes is what the
/// [`Encoder`](super::super::Encoder) of the same weights computes.
pub(super) struct Encoder<D: Device> {
    device: D,
    config: Config,
    pooling: Pooling,
    words: Array<D::Memory, f32>,
    places: Array<D::Memory, f32>,
    embedding_norm: Norm<D::Memory>,
    layers: Vec<Layer<D::Memory>>,
    /// Of the batch before, to be used again.
    room: Option<Room<D::Memory>>,
    element: Element,
}

struct Layer<M> {
    query_key_value: Matrix<M>,
    attention_output: Matrix<M>,
    attention_norm: Norm<M>,
    widen: Matrix<M>,
    narrow: Matrix<M>,
    output_norm: Norm<M>,
}

/// What a batch is computed in; all of it may be larger than needed.
struct Room<M> {
    /// Tokens × hidden size.
    states: Array<M, f32>,
    /// Tokens × 3 · hidden size.
    query_key_value: Array<M, f32>,
    /// What is added to the states: tokens × hidden size.
    update: Array<M, f32>,
    /// Tokens × intermediate size.
    wide: Array<M, f32>,
    operands: Operands<M>,
    /// Texts × hidden size.
    vectors: Array<M, f32>,
}

/// What products read, besides floats that are there anyway.
enum Operands<M> {
    /// What attention gives: tokens × hidden size.
    Floats { context: Array<M, f32> },
    /// The states, or what attention gives, whatever is multiplied next; and
    /// the wide ones.
    Halves { narrow: Array<M, u16>, wide: Array<M, u16> },
}

impl<D: Device> Encoder<D> {
    /// From the bytes of a safetensors file, for a device whose kernels were
    /// compiled for its head size; products are computed with `element`, which
    /// is not int8.
    pub(super) fn read(
        device: D,
        file: &[u8],
        config: Config,
        pooling: Pooling,
        element: Element,
    ) -> Result<Self, DeviceError> {
        let read = weights::Weights::read(file, &config, &Dense::new)?;
        let epsilon = config.layer_norm_eps;
        let norm = |norm: &LayerNorm| -> Result<_, DeviceError> {
            let (gain, shift) = (Array::of(&device, &norm.gain)?, Array::of(&device, &norm.bias)?);
            Ok(Norm { gain, shift, epsilon })
        };
        let matrix = |dense: &Dense| matrix(&device, dense, element);
        let layer = |layer: &weights::Layer<Dense>| -> Result<_, DeviceError> {
            Ok(Layer {
                query_key_value: matrix(&layer.query_key_value)?,
                attention_output: matrix(&layer.attention_output)?,
                attention_norm: norm(&layer.attention_norm)?,
                widen: matrix(&layer.widen)?,
                narrow: matrix(&layer.narrow)?,
                output_norm: norm(&layer.output_norm)?,
            })
        };
        Ok(Self {
            words: Array::of(&device, &read.words)?,
            places: Array::of(&device, &read.positions)?,
            embedding_norm: norm(&read.embedding_norm)?,
            layers: read.layers.iter().map(layer).collect::<Result<_, _>>()?,
            device,
            config,
            pooling,
            room: None,
            element,
        })
    }

    fn compute(
        &self,
        texts: &[impl AsRef<[u32]>],
        room: &mut Option<Room<D::Memory>>,
    ) -> Result<Vec<Vec<f32>>, DeviceError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let (device, hidden) = (&self.device, self.config.hidden_size);
        let batch = Batch::new(device, texts, self.config.vocab_size, self.config.max_position_embeddings)?;
        let room = self.room_for(room, &batch)?;
        let embeddings = [&self.words, &self.places];
        kernels::embed(device, &batch, embeddings, &self.embedding_norm, &room.states, room.narrow())?;
        for layer in &self.layers {
            self.layer(layer, &batch, room)?;
        }
        let first_only = self.pooling == Pooling::Cls;
        kernels::pool(device, &batch, &room.states, &room.vectors, hidden, first_only)?;
        let vectors = room.vectors.download(device, batch.texts * hidden)?;
        Ok(vectors.chunks_exact(hidden).map(<[f32]>::to_vec).collect())
    }

    fn layer(
        &self,
        layer: &Layer<D::Memory>,
        batch: &Batch<D::Memory>,
        room: &Room<D::Memory>,
    ) -> Result<(), DeviceError> {
        let (device, rows) = (&self.device, batch.rows);
        let Room { states, query_key_value, update, wide, .. } = room;
        let multiply = |matrix, input, output| kernels::multiply(device, matrix, input, output, rows);
        let add_and_normalise =
            |bias, norm| kernels::add_and_normalise(device, states, room.narrow(), update, bias, norm, rows);

        let heads = self.config.num_attention_heads;
        multiply(&layer.query_key_value, room.states_to_multiply(), query_key_value)?;
        let bias = &layer.query_key_value.bias;
        kernels::attend(device, batch, query_key_value, bias, room.context(), heads)?;
        multiply(&layer.attention_output, room.context(), update)?;
        add_and_normalise(&layer.attention_output.bias, &layer.attention_norm)?;

        multiply(&layer.widen, room.states_to_multiply(), wide)?;
        kernels::add_and_gelu(device, wide, room.wide_halves(), &layer.widen.bias, rows)?;
        multiply(&layer.narrow, room.wide_to_multiply(), update)?;
        add_and_normalise(&layer.narrow.bias, &layer.output_norm)
    }

    /// Room for `batch`, made larger if need be.
    fn room_for<'a>(
        &self,
        room: &'a mut Option<Room<D::Memory>>,
        batch: &Batch<D::Memory>,
    ) -> Result<&'a Room<D::Memory>, DeviceError> {
        let device = &self.device;
        let narrow = batch.rows * self.config.hidden_size;
        let wide = batch.rows * self.config.intermediate_size;
        let vectors = batch.texts * self.config.hidden_size;
        let mut ready = match room.take() {
            Some(room) => room,
            None => Room::empty(device, self.element)?,
        };
        ready.states.grow(device, narrow)?;
        ready.query_key_value.grow(device, 3 * narrow)?;
        ready.update.grow(device, narrow)?;
        ready.wide.grow(device, wide)?;
        ready.vectors.grow(device, vectors)?;
        match &mut ready.operands {
            Operands::Floats { context } => context.grow(device, narrow)?,
            Operands::Halves { narrow: narrow_halves, wide: wide_halves } => {
                narrow_halves.grow(device, narrow)?;
                wide_halves.grow(device, wide)?;
            }
        }
        Ok(room.insert(ready))
    }
}

impl<D: Device> DeviceEncoder for Encoder<D> {
    fn encode(&mut self, batch: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, DeviceError> {
        let mut room = self.room.take();
        let vectors = self.compute(batch, &mut room);
        self.room = room;
        vectors
    }
}

impl<M> Room<M> {
    fn empty<D: Device<Memory = M>>(device: &D, element: Element) -> Result<Self, DeviceError> {
        Ok(Self {
            states: Array::new(device, 0)?,
            query_key_value: Array::new(device, 0)?,
            update: Array::new(device, 0)?,
            wide: Array::new(device, 0)?,
            operands: match element {
                Element::Bf16 => {
                    Operands::Halves { narrow: Array::new(device, 0)?, wide: Array::new(device, 0)? }
                }
                Element::Fp32 | Element::Int8 => Operands::Floats { context: Array::new(device, 0)? },
            },
            vectors: Array::new(device, 0)?,
        })
    }

    /// Where states go as bf16, if products read that.
    fn narrow(&self) -> Option<&Array<M, u16>> {
        match &self.operands {
            Operands::Floats { .. } => None,
            Operands::Halves { narrow, .. } => Some(narrow),
        }
    }

    fn wide_halves(&self) -> Option<&Array<M, u16>> {
        match &self.operands {
            Operands::Floats { .. } => None,
            Operands::Halves { wide, .. } => Some(wide),
        }
    }

    fn states_to_multiply(&self) -> Operand<'_, M> {
        self.narrow().map_or(Operand::Floats(&self.states), Operand::Halves)
    }

    fn wide_to_multiply(&self) -> Operand<'_, M> {
        self.wide_halves().map_or(Operand::Floats(&self.wide), Operand::Halves)
    }

    fn context(&self) -> Operand<'_, M> {
        match &self.operands {
            Operands::Floats { context } => Operand::Floats(context),
            Operands::Halves { narrow, .. } => Operand::Halves(narrow),
        }
    }
}

fn matrix<D: Device>(device: &D, dense: &Dense, element: Element) -> Result<Matrix<D::Memory>, DeviceError> {
    let weights = match element {
        Element::Bf16 => {
            let halves: Vec<u16> = dense.weights.iter().map(|x| bf16(*x)).collect();
            Weights::Halves(Array::of(device, &halves)?)
        }
        Element::Fp32 | Element::Int8 => Weights::Floats(Array::of(device, &dense.weights)?),
    };
    let outputs = dense.bias.len();
    let inputs = dense.weights.len() / outputs;
    Ok(Matrix { outputs, inputs, weights, bias: Array::of(device, &dense.bias)? })
}

//! Reads a checkpoint into the layout that the encoder computes with.

use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;

/// Beyond this, a size is a mistake, and its products might not fit a `usize`.
const MOST: usize = 1 << 20;

/// The part of `config.json` that decides how the encoder computes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Config {
    /// Numbers in a token's state, and in a vector.
    pub hidden_size: usize,
    /// Transformer layers.
    pub num_hidden_layers: usize,
    /// Heads per layer; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Width of the feed-forward step.
    pub intermediate_size: usize,
    /// Tokens in the longest text the checkpoint has positions for.
    pub max_position_embeddings: usize,
    /// Different tokens.
    pub vocab_size: usize,
    /// Added to the variance in layer norms.
    pub layer_norm_eps: f32,
    /// The activation; only `gelu` is implemented.
    pub hidden_act: String,
    /// The architecture; only `bert` is implemented.
    pub model_type: String,
    /// How positions are told apart; only `absolute` is implemented.
    #[serde(default = "absolute")]
    pub position_embedding_type: String,
    /// Kinds of sentences; every text is of the first.
    #[serde(default = "two")]
    pub type_vocab_size: usize,
}

fn absolute() -> String {
    "absolute".to_owned()
}

fn two() -> usize {
    2
}

/// Why a checkpoint cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file is not in the safetensors format.
    #[error("not a safetensors file: {0}")]
    Format(#[from] SafeTensorError),
    /// The configuration asks for something that is not implemented.
    #[error("config.json has `{key}` = `{found}`, but only {supported} is implemented")]
    Unsupported {
        /// Key of `config.json`.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it would have to be.
        supported: &'static str,
    },
    /// A tensor that the architecture needs is absent.
    #[error("tensor `{tensor}` is missing")]
    Missing {
        /// Its name.
        tensor: String,
    },
    /// A tensor does not have the shape that the configuration demands.
    #[error("tensor `{tensor}` has shape {found:?}, but config.json demands {expected:?}")]
    Shape {
        /// Its name.
        tensor: String,
        /// Shape by the configuration.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },
    /// A tensor holds something other than floats.
    #[error("tensor `{tensor}` holds {found:?}, but only F32, F16 and BF16 are read")]
    Type {
        /// Its name.
        tensor: String,
        /// Element type in the file.
        found: Dtype,
    },
}

impl Config {
    /// Numbers that one attention head works on.
    pub(super) fn head_size(&self) -> usize {
        self.hidden_size.checked_div(self.num_attention_heads).unwrap_or(0)
    }

    /// Refuses what is not implemented, by key.
    pub fn check(&self) -> Result<(), WeightsError> {
        let unless = |holds: bool, key, found: String, supported| {
            if holds { Ok(()) } else { Err(WeightsError::Unsupported { key, found, supported }) }
        };
        unless(self.model_type == "bert", "model_type", self.model_type.clone(), "`bert`")?;
        unless(self.hidden_act == "gelu", "hidden_act", self.hidden_act.clone(), "`gelu`")?;
        let positions = self.position_embedding_type.clone();
        unless(positions == "absolute", "position_embedding_type", positions, "`absolute`")?;
        for (key, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("vocab_size", self.vocab_size),
            ("type_vocab_size", self.type_vocab_size),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            unless((1..=MOST).contains(&size), key, size.to_string(), "a number from 1 to 1048576")?;
        }
        let layers = self.num_hidden_layers;
        unless(layers <= MOST, "num_hidden_layers", layers.to_string(), "a number up to 1048576")?;
        let divides = self.head_size() > 0 && self.head_size() * self.num_attention_heads == self.hidden_size;
        let heads = self.num_attention_heads.to_string();
        unless(divides, "num_attention_heads", heads, "a divisor of `hidden_size`")
    }
}

/// Scale and shift of a layer norm, one number per column.
pub(super) struct LayerNorm {
    pub gain: Vec<f32>,
    pub bias: Vec<f32>,
}

/// A dense layer as the checkpoint has it.
#[cfg(any(test, feature = "cuda"))]
pub(super) struct Dense {
    /// Outputs × inputs, row-major.
    pub weights: Vec<f32>,
    pub bias: Vec<f32>,
}

#[cfg(any(test, feature = "cuda"))]
impl Dense {
    pub fn new(weights: &[f32], bias: &[f32]) -> Self {
        Self { weights: weights.to_vec(), bias: bias.to_vec() }
    }
}

/// One transformer layer, its dense layers made into `L` as they are read.
pub(super) struct Layer<L> {
    /// Query, key and value side by side, the query already divided by the
    /// square root of the head size.
    pub query_key_value: L,
    pub attention_output: L,
    pub attention_norm: LayerNorm,
    pub widen: L,
    pub narrow: L,
    pub output_norm: LayerNorm,
}

/// A checkpoint, ready to compute with.
pub(super) struct Weights<L> {
    /// One row per token of the vocabulary.
    pub words: Vec<f32>,
    /// One row per position, the embedding of token type 0 included: every
    /// text is a first sentence.
    pub positions: Vec<f32>,
    pub embedding_norm: LayerNorm,
    pub layers: Vec<Layer<L>>,
}

/// Makes a dense layer of its weights, outputs × inputs, row-major, and its
/// bias, one number per output.
type Make<'a, L> = &'a dyn Fn(&[f32], &[f32]) -> L;

impl<L> Weights<L> {
    /// Reads `file`, a whole safetensors file.
    pub fn read(file: &[u8], config: &Config, make: Make<'_, L>) -> Result<Self, WeightsError> {
        config.check()?;
        let tensors = Tensors(SafeTensors::deserialize(file)?);
        let hidden = config.hidden_size;
        let types =
            tensors.read("embeddings.token_type_embeddings.weight", &[config.type_vocab_size, hidden])?;
        let mut positions = tensors
            .read("embeddings.position_embeddings.weight", &[config.max_position_embeddings, hidden])?;
        for row in positions.chunks_exact_mut(hidden) {
            for (x, of_type_0) in row.iter_mut().zip(&types) {
                *x += of_type_0;
            }
        }
        Ok(Self {
            words: tensors.read("embeddings.word_embeddings.weight", &[config.vocab_size, hidden])?,
            positions,
            embedding_norm: tensors.norm("embeddings.LayerNorm", hidden)?,
            layers: (0..config.num_hidden_layers)
                .map(|n| Layer::read(&tensors, n, config, make))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl<L> Layer<L> {
    fn read(
        tensors: &Tensors<'_>,
        n: usize,
        config: &Config,
        make: Make<'_, L>,
    ) -> Result<Self, WeightsError> {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let of = |part: &str| format!("encoder.layer.{n}.{part}");
        let dense = |part: &str, outputs, inputs| {
            let weights = tensors.read(&of(&format!("{part}.weight")), &[outputs, inputs])?;
            let bias = tensors.read(&of(&format!("{part}.bias")), &[outputs])?;
            Ok::<_, WeightsError>(make(&weights, &bias))
        };
        let (weights, bias) = query_key_value(tensors, &of("attention.self"), config)?;
        Ok(Self {
            query_key_value: make(&weights, &bias),
            attention_output: dense("attention.output.dense", hidden, hidden)?,
            attention_norm: tensors.norm(&of("attention.output.LayerNorm"), hidden)?,
            widen: dense("intermediate.dense", wide, hidden)?,
            narrow: dense("output.dense", hidden, wide)?,
            output_norm: tensors.norm(&of("output.LayerNorm"), hidden)?,
        })
    }
}

fn query_key_value(
    tensors: &Tensors<'_>,
    prefix: &str,
    config: &Config,
) -> Result<(Vec<f32>, Vec<f32>), WeightsError> {
    let hidden = config.hidden_size;
    #[expect(clippy::cast_precision_loss, reason = "a head has far fewer than 2^24 numbers")]
    let shrink = 1.0 / (config.head_size() as f32).sqrt();
    let (mut weights, mut bias) = (Vec::new(), Vec::new());
    for (part, scale) in [("query", shrink), ("key", 1.0), ("value", 1.0)] {
        let scaled = |numbers: Vec<f32>| numbers.into_iter().map(move |x| x * scale);
        weights.extend(scaled(tensors.read(&format!("{prefix}.{part}.weight"), &[hidden, hidden])?));
        bias.extend(scaled(tensors.read(&format!("{prefix}.{part}.bias"), &[hidden])?));
    }
    Ok((weights, bias))
}

struct Tensors<'a>(SafeTensors<'a>);

impl Tensors<'_> {
    /// The numbers of `tensor`, row-major, if it has the `expected` shape.
    fn read(&self, tensor: &str, expected: &[usize]) -> Result<Vec<f32>, WeightsError> {
        let name = || tensor.to_owned();
        // With a head that was trained on top, the encoder is called `bert`.
        let view = self.0.tensor(tensor).or_else(|_| self.0.tensor(&format!("bert.{tensor}")));
        let view = view.map_err(|_| WeightsError::Missing { tensor: name() })?;
        if view.shape() != expected {
            let (expected, found) = (expected.to_vec(), view.shape().to_vec());
            return Err(WeightsError::Shape { tensor: name(), expected, found });
        }
        let bytes = view.data();
        let halves = || bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes));
        match view.dtype() {
            Dtype::F32 => Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
            Dtype::F16 => Ok(halves().map(from_f16).collect()),
            Dtype::BF16 => Ok(halves().map(|bits| f32::from_bits(u32::from(bits) << 16)).collect()),
            found => Err(WeightsError::Type { tensor: name(), found }),
        }
    }

    fn norm(&self, name: &str, columns: usize) -> Result<LayerNorm, WeightsError> {
        Ok(LayerNorm {
            gain: self.read(&format!("{name}.weight"), &[columns])?,
            bias: self.read(&format!("{name}.bias"), &[columns])?,
        })
    }
}

/// An IEEE 754 half: 1 bit of sign, 5 of exponent, 10 of fraction.
fn from_f16(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let (exponent, fraction) = (u32::from(bits >> 10 & 0x1f), u32::from(bits & 0x3ff));
    let magnitude = match exponent {
        // Fractions of the smallest normal number.
        0 => f32::from(bits & 0x3ff) * 2.0_f32.powi(-24),
        31 => f32::from_bits(0xff << 23 | fraction << 13),
        _ => f32::from_bits((exponent + 112) << 23 | fraction << 13),
    };
    f32::from_bits(magnitude.to_bits() | sign)
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn config() -> Config {
        Config {
            hidden_size: 4,
            num_hidden_layers: 0,
            num_attention_heads: 2,
            intermediate_size: 8,
            max_position_embeddings: 3,
            vocab_size: 5,
            layer_norm_eps: 1e-12,
            hidden_act: "gelu".into(),
            model_type: "bert".into(),
            position_embedding_type: absolute(),
            type_vocab_size: 2,
        }
    }

    /// A checkpoint without layers whose tensor `odd` has another shape or type.
    fn checkpoint(odd: &str, rows: usize, dtype: Dtype) -> Vec<u8> {
        let zeros = [0; 1_024];
        let tensors = [
            ("embeddings.token_type_embeddings.weight", vec![2, 4]),
            ("embeddings.position_embeddings.weight", vec![3, 4]),
            ("embeddings.word_embeddings.weight", vec![5, 4]),
            ("embeddings.LayerNorm.weight", vec![4]),
            ("embeddings.LayerNorm.bias", vec![4]),
        ];
        let views =
            tensors.into_iter().filter(|(name, _)| rows > 0 || *name != odd).map(|(name, mut shape)| {
                let dtype = if name == odd {
                    shape[0] = rows;
                    dtype
                } else {
                    Dtype::F32
                };
                let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                (name, TensorView::new(dtype, shape, &zeros[..bytes]).unwrap())
            });
        safetensors::serialize(views, None).unwrap()
    }

    const WORDS: &str = "embeddings.word_embeddings.weight";

    fn refusal(file: &[u8], config: &Config) -> String {
        Weights::read(file, config, &|_, _| ()).err().unwrap().to_string()
    }

    #[test]
    fn a_checkpoint_that_fits_is_read() {
        let weights = Weights::read(&checkpoint(WORDS, 5, Dtype::F32), &config(), &|_, _| ()).unwrap();
        assert_eq!((weights.words.len(), weights.positions.len()), (20, 12));
    }

    #[test]
    fn a_checkpoint_that_does_not_fit_is_refused_by_tensor() {
        let config = config();
        assert_eq!(
            refusal(&checkpoint(WORDS, 0, Dtype::F32), &config),
            format!("tensor `{WORDS}` is missing")
        );
        assert!(refusal(&checkpoint(WORDS, 6, Dtype::F32), &config).contains("has shape [6, 4]"));
        assert!(refusal(&checkpoint(WORDS, 5, Dtype::F64), &config).contains("holds F64"));
        assert!(refusal(b"not a checkpoint", &config).starts_with("not a safetensors file"));
    }

    #[test]
    fn halves_are_read_as_the_numbers_they_are() {
        for (bits, number) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65_504.0),
            (0x0400, 6.103_515_6e-5),
            (0x0001, 5.960_464_5e-8),
            (0x83ff, -6.097_555e-5),
            (0x7c00, f32::INFINITY),
        ] {
            assert_eq!(from_f16(bits), number, "{bits:#06x}");
        }
        assert!(from_f16(0x7e00).is_nan() && from_f16(0x8000).is_sign_negative());
        // Larger bits, larger numbers: no gap between the three kinds.
        assert!((0..0x7c00_u16).all(|bits| from_f16(bits) < from_f16(bits + 1)));
    }

    #[test]
    fn an_architecture_that_is_not_implemented_is_refused_by_key() {
        let file = checkpoint(WORDS, 5, Dtype::F32);
        assert!(
            refusal(&file, &Config { hidden_act: "relu".into(), ..config() })
                .contains("`hidden_act` = `relu`")
        );
        assert!(refusal(&file, &Config { model_type: "gpt2".into(), ..config() }).contains("`model_type`"));
        let relative = Config { position_embedding_type: "relative_key".into(), ..config() };
        assert!(refusal(&file, &relative).contains("`position_embedding_type` = `relative_key`"));
        assert!(refusal(&file, &Config { vocab_size: 1 << 30, ..config() }).contains("`vocab_size`"));
        assert!(refusal(&file, &Config { intermediate_size: 0, ..config() }).contains("`intermediate_size`"));
        assert!(refusal(&file, &Config { num_hidden_layers: 1 << 30, ..config() }).contains("`num_hidden"));
        assert!(refusal(&file, &Config { num_attention_heads: 3, ..config() }).contains("a divisor"));
        assert!(refusal(&file, &Config { num_attention_heads: 0, ..config() }).contains("a divisor"));
    }
}

//! A model that nobody trained: its folder, and what it computes by the
//! definition, in 64-bit floats and without any cleverness.

use std::{collections::BTreeMap, fs, path::Path};

use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Value, json};

pub const CLS: usize = 1;
pub const SEP: usize = 2;
/// Words `w3` and so on have the token ids 3 and so on.
const FIRST_WORD: usize = 3;

#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub hidden: usize,
    pub heads: usize,
    pub wide: usize,
    pub layers: usize,
}

pub const VOCABULARY: usize = 40;
pub const POSITIONS: usize = 24;
const EPSILON: f64 = 1e-6;

pub struct Made {
    pub shape: Shape,
    positions: usize,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

impl Made {
    /// Numbers drawn from `seed`: multiples of 1/128, which every element type
    /// of a checkpoint can hold.
    pub fn new(shape: Shape, seed: u32) -> Self {
        Self::with_positions(shape, seed, POSITIONS)
    }

    /// The same, for texts of so many tokens.
    pub fn with_positions(shape: Shape, seed: u32, positions: usize) -> Self {
        let mut state = seed;
        let mut draw = |around: f32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            around + ((state >> 16) % 41) as f32 / 128.0 - 20.0 / 128.0
        };
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize]| {
            let around = if name.ends_with("LayerNorm.weight") { 1.0 } else { 0.0 };
            let numbers = (0..shape.iter().product()).map(|_| draw(around)).collect();
            tensors.insert(name, (shape.to_vec(), numbers));
        };
        let Shape { hidden, wide, layers, .. } = shape;
        add("embeddings.word_embeddings.weight".into(), &[VOCABULARY, hidden]);
        add("embeddings.position_embeddings.weight".into(), &[positions, hidden]);
        add("embeddings.token_type_embeddings.weight".into(), &[2, hidden]);
        let mut parts = vec![("embeddings.LayerNorm".to_owned(), vec![hidden])];
        for n in 0..layers {
            for (part, shape) in [
                ("attention.self.query", vec![hidden, hidden]),
                ("attention.self.key", vec![hidden, hidden]),
                ("attention.self.value", vec![hidden, hidden]),
                ("attention.output.dense", vec![hidden, hidden]),
                ("attention.output.LayerNorm", vec![hidden]),
                ("intermediate.dense", vec![wide, hidden]),
                ("output.dense", vec![hidden, wide]),
                ("output.LayerNorm", vec![hidden]),
            ] {
                parts.push((format!("encoder.layer.{n}.{part}"), shape));
            }
        }
        for (part, shape) in parts {
            add(format!("{part}.weight"), &shape);
            add(format!("{part}.bias"), &shape[..1]);
        }
        Self { shape, positions, tensors }
    }

    /// Writes the folder: numbers as `dtype`, tensors' names after `prefix`.
    pub fn write(&self, dir: &Path, dtype: Dtype, prefix: &str) {
        let bytes = |x: f32| match dtype {
            Dtype::F32 => x.to_le_bytes().to_vec(),
            Dtype::BF16 => x.to_le_bytes()[2..].to_vec(),
            Dtype::F16 => f16(x).to_le_bytes().to_vec(),
            other => panic!("{other:?}"),
        };
        let packed: Vec<(String, &[usize], Vec<u8>)> = self
            .tensors
            .iter()
            .map(|(name, (shape, numbers))| {
                (
                    format!("{prefix}{name}"),
                    shape.as_slice(),
                    numbers.iter().flat_map(|x| bytes(*x)).collect(),
                )
            })
            .collect();
        let views = packed
            .iter()
            .map(|(name, shape, bytes)| (name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap()));
        fs::write(dir.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        let Shape { hidden, heads, wide, layers } = self.shape;
        put(
            dir,
            "config.json",
            &json!({
                "model_type": "bert", "hidden_act": "gelu", "hidden_size": hidden, "num_attention_heads": heads,
                "intermediate_size": wide, "num_hidden_layers": layers, "vocab_size": VOCABULARY,
                "max_position_embeddings": self.positions, "layer_norm_eps": EPSILON, "position_embedding_type": "absolute",
                "type_vocab_size": 2, "torch_dtype": "float32",
            }),
        );
        let mut vocabulary =
            BTreeMap::from([("[UNK]".to_owned(), 0), ("[CLS]".into(), CLS), ("[SEP]".into(), SEP)]);
        vocabulary.extend((FIRST_WORD..VOCABULARY).map(|id| (format!("w{id}"), id)));
        put(
            dir,
            "tokenizer.json",
            &json!({
                "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
                "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
                "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", SEP], "cls": ["[CLS]", CLS]},
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
            }),
        );
        put_pooling(dir, "mean_tokens");
    }

    /// The vector of a text's tokens: that of the first, or the mean of all.
    pub fn vector(&self, ids: &[usize], first: bool) -> Vec<f64> {
        let hidden = self.shape.hidden;
        let row = |name: &str, n: usize| {
            let numbers = &self.tensors[&format!("embeddings.{name}.weight")].1;
            numbers[n * hidden..(n + 1) * hidden].iter().map(|x| f64::from(*x)).collect::<Vec<_>>()
        };
        let embedded = ids.iter().enumerate().map(|(n, id)| {
            let word = sum(&row("word_embeddings", *id), &row("position_embeddings", n));
            sum(&word, &row("token_type_embeddings", 0))
        });
        let mut states: Vec<Vec<f64>> = embedded.map(|row| self.norm("embeddings.LayerNorm", &row)).collect();
        for n in 0..self.shape.layers {
            states = self.layer(&format!("encoder.layer.{n}."), &states);
        }
        let pooled = if first {
            states.swap_remove(0)
        } else {
            states.iter().skip(1).fold(states[0].clone(), |a, b| sum(&a, b))
        };
        let length = pooled.iter().map(|x| x * x).sum::<f64>().sqrt();
        pooled.into_iter().map(|x| x / length).collect()
    }

    fn layer(&self, layer: &str, states: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let part = |name: &str| format!("{layer}{name}");
        let all = |name: &str| -> Vec<Vec<f64>> {
            states.iter().map(|state| self.dense(&part(&format!("attention.self.{name}")), state)).collect()
        };
        let (query, key, value) = (all("query"), all("key"), all("value"));
        let size = self.shape.hidden / self.shape.heads;
        let context = |token: usize| -> Vec<f64> {
            (0..self.shape.hidden)
                .map(|i| {
                    let head = i / size * size..(i / size + 1) * size;
                    let weight = |other: &Vec<f64>| {
                        let product: f64 = head.clone().map(|j| query[token][j] * other[j]).sum();
                        (product / (size as f64).sqrt()).exp()
                    };
                    let weights: Vec<f64> = key.iter().map(weight).collect();
                    let total: f64 = weights.iter().sum();
                    weights.iter().zip(&value).map(|(weight, value)| weight / total * value[i]).sum()
                })
                .collect()
        };
        let after = |(token, state): (usize, &Vec<f64>)| {
            let attended = self.dense(&part("attention.output.dense"), &context(token));
            let state = self.norm(&part("attention.output.LayerNorm"), &sum(state, &attended));
            let wide = self.dense(&part("intermediate.dense"), &state);
            let wide: Vec<f64> =
                wide.into_iter().map(|x| x * (1.0 + erf(x / 2.0_f64.sqrt())) / 2.0).collect();
            let narrow = self.dense(&part("output.dense"), &wide);
            self.norm(&part("output.LayerNorm"), &sum(&state, &narrow))
        };
        states.iter().enumerate().map(after).collect()
    }

    fn dense(&self, name: &str, input: &[f64]) -> Vec<f64> {
        let weights = self.tensors[&format!("{name}.weight")].1.chunks(input.len());
        let bias = &self.tensors[&format!("{name}.bias")].1;
        let output = |(row, bias): (&[f32], &f32)| {
            f64::from(*bias) + row.iter().zip(input).map(|(w, x)| f64::from(*w) * x).sum::<f64>()
        };
        weights.zip(bias).map(output).collect()
    }

    fn norm(&self, name: &str, row: &[f64]) -> Vec<f64> {
        let count = row.len() as f64;
        let mean = row.iter().sum::<f64>() / count;
        let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let (gain, bias) =
            (&self.tensors[&format!("{name}.weight")].1, &self.tensors[&format!("{name}.bias")].1);
        let scaled = row.iter().map(|x| (x - mean) / (variance + EPSILON).sqrt());
        scaled
            .zip(gain.iter().zip(bias))
            .map(|(x, (gain, bias))| x * f64::from(*gain) + f64::from(*bias))
            .collect()
    }
}

/// Writes a file of JSON.
pub fn put(dir: &Path, path: &str, value: &Value) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, value.to_string()).unwrap();
}

pub fn put_pooling(dir: &Path, mode: &str) {
    let on = |name: &str| name == mode;
    put(
        dir,
        "1_Pooling/config.json",
        &json!({
            "pooling_mode_mean_tokens": on("mean_tokens"), "pooling_mode_cls_token": on("cls_token"),
            "pooling_mode_max_tokens": on("max_tokens"),
        }),
    );
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// By its series, whose terms cancel to about 1e-9 up to 4.
fn erf(x: f64) -> f64 {
    if x.abs() > 4.0 {
        return x.signum();
    }
    let (mut term, mut total) = (x, x);
    for n in 1..100 {
        let n = f64::from(n);
        term *= -x * x / n;
        total += term / (2.0 * n + 1.0);
    }
    total * 2.0 / std::f64::consts::PI.sqrt()
}

/// A number that is a normal half, as one.
fn f16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x == 0.0 {
        return 0;
    }
    let exponent = (bits >> 23 & 0xff) - 112;
    u16::try_from(bits >> 31 << 15 | exponent << 10 | bits >> 13 & 0x3ff).unwrap()
}

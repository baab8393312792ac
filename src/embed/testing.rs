//! The model and its reference vectors, for the tests of this module.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::Deserialize;

use super::{bert::Element, local::LocalModel, settings::Settings};

/// Tokens that all-MiniLM-L6-v2 keeps of a text.
pub const MAX_TOKENS: usize = 256;

/// The folder of the default model. A machine without it fails these tests:
/// an untested encoder is not a tested one.
pub fn model_dir() -> PathBuf {
    let dir = Settings::default().model_folder(std::env::var_os("THALWEG_MODELS").as_deref());
    assert!(
        dir.join("model.safetensors").exists(),
        "{} holds no model: run `scripts/fetch-model`",
        dir.display()
    );
    dir
}

/// The bytes of a file of the default model.
pub fn model_file(path: &str) -> Vec<u8> {
    std::fs::read(model_dir().join(path)).unwrap()
}

/// Waits for `future` on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// One model for all tests.
pub fn local_model() -> &'static LocalModel {
    static MODEL: OnceLock<LocalModel> = OnceLock::new();
    MODEL.get_or_init(|| LocalModel::load(&model_dir(), &Settings::default(), Element::Fp32).unwrap())
}

/// A text and the vector that sentence-transformers computes for it.
pub struct Reference {
    pub id: String,
    pub text: String,
    pub vector: Vec<f32>,
}

#[derive(Deserialize)]
struct Line {
    id: String,
    text: String,
    /// Little-endian 32-bit floats, in hex.
    vector: String,
}

/// What `scripts/reference-vectors.py` wrote; its first line is about itself.
pub fn reference_vectors() -> Vec<Reference> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/reference_vectors.jsonl.zst");
    let file = zstd::Decoder::new(std::fs::File::open(path).unwrap()).unwrap();
    let lines = BufReader::new(file).lines().skip(1);
    lines
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .map(|Line { id, text, vector }| Reference { id, text, vector: floats(&vector) })
        .collect()
}

fn floats(hex: &str) -> Vec<f32> {
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

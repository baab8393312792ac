//! Folders that nobody here has seen before.

use std::path::Path;

use safetensors::Dtype;
use serde_json::json;

use super::made::{CLS, Made, SEP, Shape, put, put_pooling};
use crate::embed::{
    Element, Embedder, LocalModel, OpenError, Settings,
    model::{self, ModelError},
    testing::block_on,
};

const SMALL: Shape = Shape { hidden: 64, heads: 2, wide: 96, layers: 2 };

fn load(dir: &Path, element: Element) -> Result<LocalModel, OpenError> {
    let settings = Settings {
        model: "own".into(),
        model_dir: dir.to_str().unwrap().into(),
        threads: 1,
        ..Settings::default()
    };
    settings.validate().unwrap();
    LocalModel::load(dir, &settings, element)
}

fn refusal(dir: &Path) -> String {
    let refused = load(dir, Element::Fp32).err().unwrap().to_string();
    // Without the weights being read, too.
    assert!(
        model::verify("own", dir).is_err() || refused.contains("fit together") || refused.contains("tensor")
    );
    refused
}

/// Texts of different lengths, and their tokens.
fn texts() -> (Vec<String>, Vec<Vec<usize>>) {
    let words = |n: usize| (0..n).map(move |i| 3 + (7 * i + n) % 37);
    let text = |n: usize| words(n).map(|id| format!("w{id}")).collect::<Vec<_>>().join(" ");
    let ids = |n: usize| [CLS].into_iter().chain(words(n)).chain([SEP]).collect();
    ([1, 5, 0, 22, 13].map(text).into(), [1, 5, 0, 22, 13].map(ids).into())
}

fn smallest_cosine(model: &LocalModel, made: &Made, first: bool) -> f64 {
    let (texts, ids) = texts();
    let vectors = block_on(model.embed(texts)).unwrap();
    let cosine = |(vector, ids): (&Vec<f32>, &Vec<usize>)| -> f64 {
        assert_eq!(vector.len(), made.shape.hidden);
        vector.iter().zip(made.vector(ids, first)).map(|(x, y)| f64::from(*x) * y).sum()
    };
    vectors.iter().zip(&ids).map(cosine).fold(f64::INFINITY, f64::min)
}

#[test]
fn encoders_of_any_shape_compute_what_the_definition_says() {
    for (n, (hidden, heads, wide, layers)) in [
        (64, 2, 96, 2),
        // Heads of 64.
        (128, 2, 256, 2),
        // Neither heads nor rows fill registers.
        (48, 4, 80, 2),
        (30, 3, 50, 1),
        // One layer of BERT base.
        (768, 12, 3_072, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let shape = Shape { hidden, heads, wide, layers };
        let made = Made::new(shape, 7 + u32::try_from(n).unwrap());
        let dir = tempfile::tempdir().unwrap();
        made.write(dir.path(), Dtype::F32, "");
        for (element, least) in [(Element::Fp32, 0.999_999), (Element::Bf16, 0.999), (Element::Int8, 0.98)] {
            let model = load(dir.path(), element).unwrap();
            let cosine = smallest_cosine(&model, &made, false);
            assert!(cosine > least && cosine < 1.000_001, "{shape:?} {element}: {cosine}");
        }
    }
}

#[test]
fn checkpoints_in_halves_and_with_a_head_on_top_are_read() {
    let made = Made::new(SMALL, 1);
    for (dtype, prefix) in [(Dtype::F16, ""), (Dtype::BF16, ""), (Dtype::F32, "bert.")] {
        let dir = tempfile::tempdir().unwrap();
        made.write(dir.path(), dtype, prefix);
        let cosine = smallest_cosine(&load(dir.path(), Element::Fp32).unwrap(), &made, false);
        assert!(cosine > 0.999_999, "{dtype:?}: {cosine}");
    }
}

#[test]
fn pooling_prompts_and_length_are_those_of_the_folder() {
    let made = Made::new(SMALL, 2);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    made.write(dir, Dtype::F32, "");
    put_pooling(dir, "cls_token");
    put(
        dir,
        "modules.json",
        &json!([
            {"path": "", "type": "sentence_transformers.models.Transformer"},
            {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]),
    );
    let plain = load(dir, Element::Fp32).unwrap();
    assert!(smallest_cosine(&plain, &made, true) > 0.999_999);
    assert_eq!((plain.space().pooling.as_str(), plain.space().max_tokens), ("cls", 24));

    put(
        dir,
        "config_sentence_transformers.json",
        &json!({"prompts": {"query": "w9 w4 ", "document": "w8 "}}),
    );
    put(dir, "sentence_bert_config.json", &json!({"max_seq_length": 6, "do_lower_case": false}));
    let prompted = load(dir, Element::Fp32).unwrap();
    let space = prompted.space();
    assert_eq!((space.prefix.as_str(), space.max_tokens, space.dimensions), ("w8 ", 6, 64));
    assert_ne!(space.id(), plain.space().id());
    let of = |text: &str| block_on(plain.embed_counted(vec![text.into()])).unwrap().vectors.remove(0);
    assert_eq!(block_on(prompted.embed(vec!["w3".into()])).unwrap()[0], of("w8 w3"));
    assert_eq!(block_on(prompted.embed_query("w3".into())).unwrap(), of("w9 w4 w3"));
    let counted = block_on(prompted.embed_counted(vec!["w3 w4 w5 w6 w7 w8".into()])).unwrap();
    assert_eq!((counted.tokens, &counted.vectors[0]), (6, &of("w3 w4 w5 w6")));
}

#[test]
fn other_weights_are_another_space() {
    let dir = tempfile::tempdir().unwrap();
    let of_seed = |seed| {
        Made::new(SMALL, seed).write(dir.path(), Dtype::F32, "");
        load(dir.path(), Element::Fp32).unwrap().space().clone()
    };
    let (one, other) = (of_seed(1), of_seed(2));
    assert_eq!((one.revision.len(), &one.tokenizer), (64, &other.tokenizer));
    assert_ne!(one.revision, other.revision);
    assert_ne!(one.id(), other.id());
}

#[test]
fn what_is_not_implemented_is_refused_by_file_and_name() {
    let made = Made::new(SMALL, 3);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let refused = |path: &str, change: &dyn Fn(&mut serde_json::Value)| {
        made.write(dir, Dtype::F32, "");
        let mut value =
            std::fs::read(dir.join(path)).map_or(json!({}), |file| serde_json::from_slice(&file).unwrap());
        change(&mut value);
        put(dir, path, &value);
        let said = refusal(dir);
        if !["config.json", "1_Pooling/config.json", "tokenizer.json"].contains(&path) {
            std::fs::remove_file(dir.join(path)).unwrap();
        }
        said
    };
    for (key, value) in
        [("model_type", "xlm-roberta"), ("hidden_act", "relu"), ("position_embedding_type", "relative_key")]
    {
        let said = refused("config.json", &|config| config[key] = json!(value));
        assert!(said.contains("config.json") && said.contains(key) && said.contains(value), "{said}");
    }
    let said = refused("1_Pooling/config.json", &|pooling| pooling["pooling_mode_max_tokens"] = json!(true));
    assert!(said.contains("1_Pooling/config.json: pooling by max_tokens and mean_tokens"), "{said}");
    let dense = json!([{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"},
        {"path": "2_Dense", "type": "a.Dense"}]);
    let said = refused("modules.json", &|modules| *modules = dense.clone());
    assert!(said.contains("modules.json: its steps are Transformer, Pooling, Dense"), "{said}");
    let said = refused("sentence_bert_config.json", &|limits| limits["max_seq_length"] = json!(25));
    assert!(said.contains("positions for 24 tokens"), "{said}");
    let said = refused("tokenizer.json", &|tokenizer| tokenizer["post_processor"] = json!(null));
    assert!(said.contains("no special tokens"), "{said}");
    let said = refused("config.json", &|config| config["intermediate_size"] = json!(97));
    assert!(said.contains("tensor `encoder.layer.0.intermediate.dense.weight` has shape [96, 64]"), "{said}");
    made.write(dir, Dtype::F32, "");
    std::fs::remove_file(dir.join("1_Pooling/config.json")).unwrap();
    let missing = load(dir, Element::Fp32).err().unwrap();
    assert!(matches!(missing, OpenError::Model(ModelError::Missing { .. })), "{missing}");
}

//! The small files of a model's folder, as sentence-transformers lays it out:
//! what kind of encoder, how its states become a vector, how long a text may
//! be, and what is put before it. What is not implemented is refused by name,
//! because its vectors would be wrong without anybody noticing.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Folder, ModelError};
use crate::embed::bert::{Config, Pooling};

pub(super) const CONFIG: &str = "config.json";
pub(super) const POOLING: &str = "1_Pooling/config.json";
pub(super) const LIMITS: &str = "sentence_bert_config.json";
/// Which steps there are.
const MODULES: &str = "modules.json";
/// What is put before texts.
const PROMPTS: &str = "config_sentence_transformers.json";

/// Everything but weights and tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Layout {
    pub config: Config,
    pub pooling: Pooling,
    /// Tokens kept of a text, special tokens included.
    pub max_tokens: usize,
    pub prompts: Prompts,
}

/// What is put before texts; empty for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Prompts {
    pub document: String,
    pub query: String,
}

#[derive(Deserialize)]
struct Limits {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize, Default)]
struct PromptFile {
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
    default_prompt_name: Option<String>,
}

impl Layout {
    /// Reads a folder's small files.
    pub fn read(folder: &mut Folder<'_>) -> Result<Self, ModelError> {
        let config: Config = required(folder, CONFIG)?;
        config.check()?;
        let modules: Option<Vec<Module>> = optional(folder, MODULES)?;
        refused(folder, MODULES, modules.and_then(|modules| odd_module(&modules)))?;
        let given: BTreeMap<String, Value> = required(folder, POOLING)?;
        let pooling = pooling(&given)
            .map_err(|reason| ModelError::Unsupported { path: folder.dir.join(POOLING), reason })?;
        let limits: Option<Limits> = optional(folder, LIMITS)?;
        if limits.as_ref().is_some_and(|limits| limits.do_lower_case) {
            let reason = "`do_lower_case` is left to the tokenizer here: write `false`";
            refused(folder, LIMITS, Some(reason.to_owned()))?;
        }
        let most = config.max_position_embeddings;
        let max_tokens = limits.and_then(|limits| limits.max_seq_length).unwrap_or(most);
        if !(2..=most).contains(&max_tokens) {
            let reason =
                format!("`max_seq_length` is {max_tokens}, but there are positions for {most} tokens");
            refused(folder, LIMITS, Some(reason))?;
        }
        let prompts = optional::<PromptFile>(folder, PROMPTS)?.unwrap_or_default().prompts();
        if given.get("include_prompt") == Some(&Value::Bool(false)) && prompts != Prompts::default() {
            let reason = "`include_prompt` = `false` is not implemented: prompts are part of the mean here";
            refused(folder, POOLING, Some(reason.to_owned()))?;
        }
        Ok(Self { config, pooling, max_tokens, prompts })
    }
}

fn required<T: DeserializeOwned>(folder: &mut Folder<'_>, path: &str) -> Result<T, ModelError> {
    let (bytes, _) = folder.required(path)?;
    parse(folder, path, &bytes)
}

fn optional<T: DeserializeOwned>(folder: &mut Folder<'_>, path: &str) -> Result<Option<T>, ModelError> {
    folder.optional(path)?.map(|(bytes, _)| parse(folder, path, &bytes)).transpose()
}

fn parse<T: DeserializeOwned>(folder: &Folder<'_>, path: &str, bytes: &[u8]) -> Result<T, ModelError> {
    let path = folder.dir.join(path);
    serde_json::from_slice(bytes).map_err(|source| ModelError::Malformed { path, source })
}

/// An error if there is a reason for one.
fn refused(folder: &Folder<'_>, path: &str, reason: Option<String>) -> Result<(), ModelError> {
    match reason {
        None => Ok(()),
        Some(reason) => Err(ModelError::Unsupported { path: folder.dir.join(path), reason }),
    }
}

/// What is odd about the steps of a model, if anything is. That vectors are
/// brought to length 1 here, also where no step says so, changes no
/// comparison by cosine.
fn odd_module(modules: &[Module]) -> Option<String> {
    let kinds: Vec<&str> =
        modules.iter().map(|module| module.kind.rsplit('.').next().unwrap_or_default()).collect();
    if !matches!(kinds.as_slice(), ["Transformer", "Pooling"] | ["Transformer", "Pooling", "Normalize"]) {
        let found = kinds.join(", ");
        return Some(format!(
            "its steps are {found}, but only Transformer, Pooling, Normalize are implemented"
        ));
    }
    let paths = modules.iter().map(|module| module.path.as_str()).take(2);
    (!paths.eq(["", "1_Pooling"]))
        .then(|| "the encoder has to be in the folder itself, the pooling in 1_Pooling".into())
}

/// The one pooling that is switched on.
fn pooling(given: &BTreeMap<String, Value>) -> Result<Pooling, String> {
    let switched = |(key, value): (&String, &Value)| {
        (*value == Value::Bool(true)).then(|| key.strip_prefix("pooling_mode_")).flatten().map(str::to_owned)
    };
    let mut on: Vec<String> = given.iter().filter_map(switched).collect();
    if let Some(Value::String(mode)) = given.get("pooling_mode") {
        on.push(mode.clone());
    }
    match on.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["mean_tokens" | "mean"] => Ok(Pooling::Mean),
        ["cls_token" | "cls"] => Ok(Pooling::Cls),
        [] => Err("no pooling is switched on".to_owned()),
        other => {
            Err(format!("pooling by {} is not implemented; only mean or cls alone is", other.join(" and ")))
        }
    }
}

impl PromptFile {
    /// As sentence-transformers chooses: by what a text is, else the default.
    fn prompts(&self) -> Prompts {
        let named = |name: &str| self.prompts.get(name).cloned().flatten();
        let default = || self.default_prompt_name.as_deref().and_then(named);
        let first =
            |names: &[&str]| names.iter().find_map(|name| named(name)).or_else(default).unwrap_or_default();
        Prompts { document: first(&["document", "passage", "corpus"]), query: first(&["query"]) }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of<T: DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn one_pooling_is_mean_or_cls_and_others_are_refused_by_name() {
        let pooling = |value: Value| pooling(&of(value));
        let mode = |mean: bool, cls: bool, max: bool| {
            json!({"word_embedding_dimension": 4, "pooling_mode_mean_tokens": mean,
                "pooling_mode_cls_token": cls, "pooling_mode_max_tokens": max, "include_prompt": true})
        };
        assert_eq!(pooling(mode(true, false, false)), Ok(Pooling::Mean));
        assert_eq!(pooling(mode(false, true, false)), Ok(Pooling::Cls));
        assert_eq!(pooling(json!({"pooling_mode": "cls"})), Ok(Pooling::Cls));
        assert!(pooling(mode(false, false, true)).unwrap_err().contains("max_tokens"));
        assert!(pooling(mode(true, true, false)).unwrap_err().contains("cls_token and mean_tokens"));
        assert!(pooling(mode(false, false, false)).is_err());
    }

    #[test]
    fn steps_that_are_not_implemented_are_refused_by_name() {
        let odd = |steps: &[(&str, &str)]| {
            let module = |(path, kind): &(&str, &str)| json!({"path": path, "type": format!("sentence_transformers.models.{kind}")});
            odd_module(&of::<Vec<Module>>(Value::Array(steps.iter().map(module).collect())))
        };
        let (encoder, pooling) = (("", "Transformer"), ("1_Pooling", "Pooling"));
        assert_eq!(odd(&[encoder, pooling]), None);
        assert_eq!(odd(&[encoder, pooling, ("2_Normalize", "Normalize")]), None);
        assert!(odd(&[encoder, pooling, ("2_Dense", "Dense")]).unwrap().contains("Dense"));
        assert!(odd(&[encoder]).is_some());
        assert!(odd(&[("0_Transformer", "Transformer"), pooling]).unwrap().contains("in the folder itself"));
    }

    #[test]
    fn prompts_are_chosen_as_sentence_transformers_chooses() {
        let prompts = |value: Value| {
            let Prompts { document, query } = of::<PromptFile>(value).prompts();
            (document, query)
        };
        let both = json!({"prompts": {"query": "query: ", "passage": "passage: "}});
        assert_eq!(prompts(both), ("passage: ".to_owned(), "query: ".to_owned()));
        let default = json!({"prompts": {"query": "q: ", "x": "x: "}, "default_prompt_name": "x"});
        assert_eq!(prompts(default), ("x: ".to_owned(), "q: ".to_owned()));
        let null = json!({"prompts": {"query": "", "document": null}, "default_prompt_name": null});
        assert_eq!(prompts(null), (String::new(), String::new()));
        assert_eq!(prompts(json!({"similarity_fn_name": "cosine"})), (String::new(), String::new()));
    }
}

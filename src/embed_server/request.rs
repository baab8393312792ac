//! What is asked: the body of `POST /v1/embeddings`.
//!
//! <https://platform.openai.com/docs/api-reference/embeddings/create>. Keys
//! that are not OpenAI's are refused: they would ask for something that is not
//! done.

use std::fmt;

use axum::http::StatusCode;
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, SeqAccess, Visitor},
};

use super::{ApiError, answer::Encoding};

/// A request that can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// At least one.
    pub texts: Vec<String>,
    /// How the vectors are to be written.
    pub encoding: Encoding,
}

/// What a request is held against.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The model's name.
    pub model: &'a str,
    /// Numbers in its vectors.
    pub dimensions: usize,
    /// Texts that a request may have.
    pub inputs: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    model: String,
    input: Input,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
    /// Says for whom; nothing is done with it.
    #[serde(rename = "user")]
    _user: Option<IgnoredAny>,
}

/// What was given as `input`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Input {
    Texts(Vec<String>),
    /// More than could ever be allowed, counted but not kept.
    TooMany(usize),
    /// Numbers, or lists of them.
    TokenIds,
}

/// Texts that are kept of a list: the service may allow fewer.
const MOST_TEXTS: usize = 65_536;

/// Reads a body.
pub fn parse(body: &[u8], expected: Expected<'_>) -> Result<Request, ApiError> {
    let body: Body = serde_json::from_slice(body).map_err(|error| {
        let message = format!("the body is not a request for embeddings: {error}");
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    })?;
    let Expected { model, dimensions, inputs } = expected;
    if body.model != model {
        return Err(ApiError::model_not_found(&body.model, model));
    }
    let encoding = match body.encoding_format.as_deref() {
        None | Some("float") => Encoding::Float,
        Some("base64") => Encoding::Base64,
        Some(other) => {
            let message = format!("`{other}` is not an encoding; write `float` or `base64`");
            return Err(ApiError::invalid("encoding_format", "invalid_value", message));
        }
    };
    if let Some(given) = body.dimensions
        && given != dimensions
    {
        let message =
            format!("`{model}` has vectors of {dimensions} numbers and cannot make them of {given}");
        return Err(ApiError::invalid("dimensions", "invalid_value", message));
    }
    let invalid = |message: String| Err(ApiError::invalid("input", "invalid_value", message));
    match body.input {
        Input::Texts(texts) if texts.is_empty() => invalid("there is no text in the list".to_owned()),
        Input::Texts(texts) if texts.len() <= inputs => Ok(Request { texts, encoding }),
        Input::Texts(texts) => invalid(too_many(texts.len(), inputs)),
        Input::TooMany(count) => invalid(too_many(count, inputs)),
        Input::TokenIds => {
            let message = "token ids are of another model's tokenizer; send text (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)";
            Err(ApiError::invalid("input", "token_ids_not_supported", message))
        }
    }
}

fn too_many(count: usize, most: usize) -> String {
    format!("{count} texts are too many for one request; send at most {most}")
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(InputVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of texts")
    }

    fn visit_str<E>(self, text: &str) -> Result<Input, E> {
        Ok(Input::Texts(vec![text.to_owned()]))
    }

    /// Nothing is kept but texts that count, so a body makes nothing larger
    /// than itself.
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Input, A::Error> {
        let mut texts = Vec::new();
        while let Some(item) = list.next_element()? {
            match item {
                Item::Text(text) if texts.len() < MOST_TEXTS => texts.push(text),
                Item::Text(_) => {
                    let count = texts.len() + 1 + rest(&mut list)?;
                    return Ok(Input::TooMany(count));
                }
                Item::TokenIds => {
                    rest(&mut list)?;
                    return Ok(Input::TokenIds);
                }
            }
        }
        Ok(Input::Texts(texts))
    }
}

/// Reads a list to its end and says how long that was.
fn rest<'de, A: SeqAccess<'de>>(list: &mut A) -> Result<usize, A::Error> {
    let mut count = 0;
    while list.next_element::<IgnoredAny>()?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// One of a list.
enum Item {
    Text(String),
    TokenIds,
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_string<E>(self, text: String) -> Result<Item, E> {
        Ok(Item::Text(text))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Item, E> {
        Ok(Item::TokenIds)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
        rest(&mut list)?;
        Ok(Item::TokenIds)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const EXPECTED: Expected<'_> = Expected { model: "m", dimensions: 384, inputs: 3 };

    fn parsed(body: &Value) -> Result<Request, ApiError> {
        parse(body.to_string().as_bytes(), EXPECTED)
    }

    fn refused(body: Value) -> (u16, &'static str, Option<&'static str>, String) {
        let error = parsed(&body).unwrap_err();
        (error.status.as_u16(), error.code, error.param, error.message)
    }

    #[test]
    fn one_text_or_a_list_with_every_key_that_openai_has() {
        let texts = |body| parsed(&body).unwrap().texts;
        assert_eq!(texts(json!({"model": "m", "input": "a"})), ["a"]);
        assert_eq!(texts(json!({"model": "m", "input": ["a", "", "c"]})), ["a", "", "c"]);
        let all = parsed(&json!({
            "model": "m", "input": "a", "encoding_format": "base64", "dimensions": 384, "user": "u"
        }));
        assert_eq!(all, Ok(Request { texts: vec!["a".into()], encoding: Encoding::Base64 }));
        let null =
            json!({"model": "m", "input": "a", "encoding_format": null, "dimensions": null, "user": null});
        assert_eq!(parsed(&null).unwrap().encoding, Encoding::Float);
    }

    #[test]
    fn token_ids_are_refused_with_what_to_do() {
        for input in [json!([1, 2]), json!([[1, 2], [3]]), json!(["a", 2])] {
            let (status, code, param, message) = refused(json!({"model": "m", "input": input}));
            assert_eq!((status, code, param), (400, "token_ids_not_supported", Some("input")));
            assert!(message.contains("check_embedding_ctx_length=False"), "{message}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_key() {
        let other = |key: &str, value: Value| {
            let mut body = json!({"model": "m", "input": "a"});
            body[key] = value;
            refused(body)
        };
        assert_eq!(other("encoding_format", json!("hex")).2, Some("encoding_format"));
        assert_eq!(other("dimensions", json!(256)).2, Some("dimensions"));
        assert_eq!(other("input", json!([])).2, Some("input"));
        let (status, code, param, message) = other("model", json!("text-embedding-3-small"));
        assert_eq!((status, code, param), (404, "model_not_found", Some("model")));
        assert!(message.contains("`m`"), "{message}");
        let (_, _, param, message) = other("input", json!(["a", "b", "c", "d"]));
        assert_eq!(param, Some("input"));
        assert!(message.starts_with("4 texts are too many"), "{message}");
        assert!(other("input", json!([{"text": "a"}])).3.contains("expected a text"));
        assert!(other("input", json!(7)).3.contains("expected a text or a list of texts"));
        assert!(other("truncate", json!(true)).3.contains("unknown field `truncate`"));
        assert!(refused(json!({"model": "m"})).3.contains("missing field `input`"));
    }

    #[test]
    fn a_list_without_end_is_counted_and_not_kept() {
        let body = format!("{{\"model\":\"m\",\"input\":[{}\"\"]}}", "\"\",".repeat(MOST_TEXTS + 9));
        let error = parse(body.as_bytes(), EXPECTED).unwrap_err();
        assert!(error.message.starts_with("65546 texts"), "{}", error.message);
    }
}

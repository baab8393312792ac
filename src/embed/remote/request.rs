//! What is sent, in each API's words.
//!
//! OpenAI: <https://platform.openai.com/docs/api-reference/embeddings>.
//! Voyage: <https://docs.voyageai.com/reference/embeddings-api>.
//! text-embeddings-inference: <https://huggingface.github.io/text-embeddings-inference/>.

use serde::Serialize;

use super::settings::Api;

impl Api {
    /// Where requests go, below the endpoint's address.
    pub fn path(self) -> &'static str {
        match self {
            Self::Openai | Self::Voyage => "/embeddings",
            Self::Tei => "/embed",
        }
    }
}

/// A request for vectors.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub api: Api,
    /// The model's name there.
    pub model: &'a str,
    /// At least one, none of them empty.
    pub texts: &'a [&'a str],
    /// Whether they are queries, where the API tells these from documents.
    pub query: bool,
    /// Sent along if given.
    pub dimensions: Option<usize>,
    /// Whether vectors are wanted in base64.
    pub base64: bool,
    /// Whether vectors are wanted with length 1.
    pub normalise: bool,
}

#[derive(Serialize)]
struct Openai<'a> {
    model: &'a str,
    input: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_format: Option<&'static str>,
}

#[derive(Serialize)]
struct Voyage<'a> {
    model: &'a str,
    input: &'a [&'a str],
    input_type: &'static str,
    truncation: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    output_dimension: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding_format: Option<&'static str>,
}

#[derive(Serialize)]
struct Tei<'a> {
    inputs: &'a [&'a str],
    truncate: bool,
    normalize: bool,
}

impl Request<'_> {
    /// The body, as JSON.
    pub fn body(&self) -> Result<Vec<u8>, serde_json::Error> {
        let encoding_format = self.base64.then_some("base64");
        match self.api {
            Api::Openai => serde_json::to_vec(&Openai {
                model: self.model,
                input: self.texts,
                dimensions: self.dimensions,
                encoding_format,
            }),
            Api::Voyage => serde_json::to_vec(&Voyage {
                model: self.model,
                input: self.texts,
                input_type: if self.query { "query" } else { "document" },
                truncation: true,
                output_dimension: self.dimensions,
                encoding_format,
            }),
            Api::Tei => {
                serde_json::to_vec(&Tei { inputs: self.texts, truncate: true, normalize: self.normalise })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sent(request: Request<'_>) -> Value {
        serde_json::from_slice(&request.body().unwrap()).unwrap()
    }

    fn request(api: Api) -> Request<'static> {
        Request {
            api,
            model: "m",
            texts: &["a", "\0"],
            query: false,
            dimensions: None,
            base64: false,
            normalise: true,
        }
    }

    #[test]
    fn requests_are_as_each_api_wants_them() {
        assert_eq!(sent(request(Api::Openai)), json!({"model": "m", "input": ["a", "\0"]}));
        let wanted = Request { dimensions: Some(256), base64: true, query: true, ..request(Api::Openai) };
        assert_eq!(
            sent(wanted),
            json!({"model": "m", "input": ["a", "\0"], "dimensions": 256, "encoding_format": "base64"})
        );
        assert_eq!(
            sent(request(Api::Voyage)),
            json!({"model": "m", "input": ["a", "\0"], "input_type": "document", "truncation": true})
        );
        let query = Request { query: true, dimensions: Some(256), ..request(Api::Voyage) };
        assert_eq!(sent(query)["input_type"], "query");
        assert_eq!(sent(query)["output_dimension"], 256);
        assert_eq!(
            sent(request(Api::Tei)),
            json!({"inputs": ["a", "\0"], "truncate": true, "normalize": true})
        );
    }
}

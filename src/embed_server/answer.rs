//! What is answered: vectors as OpenAI writes them, packed where the client
//! understands it.

use std::io::{self, Write};

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use flate2::{Compression, write::GzEncoder};
use serde::Serialize;

use crate::embed::Counted;

/// Answers shorter than this are not worth packing.
const LEAST_PACKED_BYTES: usize = 1 << 10;

/// How vectors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// A list of numbers.
    Float,
    /// Little-endian 32-bit floats, in base64.
    Base64,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Datum<'a>>,
    model: &'a str,
    usage: Usage,
}

#[derive(Serialize)]
struct Datum<'a> {
    object: &'static str,
    index: usize,
    embedding: Embedding<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Embedding<'a> {
    Float(&'a [f32]),
    Base64(String),
}

#[derive(Serialize)]
struct Usage {
    prompt_tokens: usize,
    total_tokens: usize,
}

/// Whether the client understands gzip.
pub fn takes_gzip(headers: &HeaderMap) -> bool {
    let given = headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let named = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let refused = |quality: &str| quality.parse::<f32>().is_ok_and(|quality| quality <= 0.0);
        named && !parts.any(|part| part.strip_prefix("q=").is_some_and(refused))
    })
}

/// The answer to a request that has come to `embedded`.
///
/// # Errors
/// None that a vector of finite numbers could cause.
pub fn answer(embedded: &Counted, model: &str, encoding: Encoding, gzip: bool) -> io::Result<Response> {
    let tokens = embedded.tokens;
    let vectors = embedded.vectors.iter().enumerate();
    let data = vectors.map(|(index, vector)| {
        let embedding = match encoding {
            Encoding::Float => Embedding::Float(vector),
            Encoding::Base64 => Embedding::Base64(base64(vector)),
        };
        Datum { object: "embedding", index, embedding }
    });
    let usage = Usage { prompt_tokens: tokens, total_tokens: tokens };
    let list = List { object: "list", data: data.collect(), model, usage };
    let body = serde_json::to_vec(&list)?;
    let packed = gzip && body.len() >= LEAST_PACKED_BYTES;
    let mut response = Response::new(Body::from(if packed { pack(&body)? } else { body }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if packed {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}

fn base64(vector: &[f32]) -> String {
    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
    STANDARD.encode(bytes)
}

fn pack(body: &[u8]) -> io::Result<Vec<u8>> {
    // Vectors hardly get smaller; what is won is won at once.
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_whoever_takes_it() {
        let takes = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            takes_gzip(&headers)
        };
        assert!(takes("gzip") && takes("deflate, GZIP;q=0.5, br"));
        assert!(!takes("br, deflate") && !takes("gzip;q=0") && !takes("gzip; q=0.0") && !takes(""));
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn vectors_in_base64_are_little_endian_floats() {
        assert_eq!(base64(&[1.0, -2.0]), "AACAPwAAAMA=");
    }
}

//! What comes back, and whether it may be believed.
//!
//! Vectors are put in the order of their `index`; every text has exactly one.
//! Some services leave the index out where it is 0, or everywhere: that is
//! understood wherever it can mean one thing only.
//! A vector of another length than the space's means another model, and so a
//! wrong configuration. One that is missing, zero or not finite is bad by
//! itself: the others of its answer are good and paid for.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, SeqAccess, Visitor},
};
use serde_json::error::Category;

use super::{classify::Fault, settings::Api};

/// Bytes of JSON that one number takes at most, and what stands around a
/// vector.
const NUMBER_BYTES: usize = 32;
const AROUND_VECTOR_BYTES: usize = 256;
const AROUND_BYTES: usize = 64 << 10;

/// The vectors of an answer, in the order of the texts.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Or what is wrong with one.
    pub vectors: Vec<Result<Vec<f32>, &'static str>>,
    /// Tokens that were counted, if it says so.
    pub tokens: Option<u64>,
}

/// What vectors must be like.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub dimensions: usize,
    /// Brought to length 1.
    pub normalised: bool,
}

/// The most bytes that an answer to this many texts has.
pub fn most_bytes(texts: usize, dimensions: usize) -> usize {
    texts.saturating_mul(dimensions * NUMBER_BYTES + AROUND_VECTOR_BYTES).saturating_add(AROUND_BYTES)
}

/// Reads an answer to `texts` texts.
pub fn read(api: Api, body: &[u8], texts: usize, wanted: Wanted) -> Result<Answer, Fault> {
    let (vectors, tokens) = match api {
        Api::Openai | Api::Voyage => {
            let list: List = json(body)?;
            let tokens = list.usage.and_then(|usage| usage.total_tokens.or(usage.prompt_tokens));
            // Some services count nothing, and say so as 0.
            let tokens = tokens.filter(|tokens| *tokens > 0);
            (in_order(list.data, texts)?, tokens)
        }
        Api::Tei => (json::<Vec<Numbers>>(body)?.into_iter().map(|numbers| numbers.0).collect(), None),
    };
    if vectors.len() != texts {
        return Err(another_number(vectors.len(), texts));
    }
    let vectors = vectors.into_iter().map(|vector| checked(vector, wanted)).collect::<Result<_, _>>()?;
    Ok(Answer { vectors, tokens })
}

#[derive(Deserialize)]
struct List {
    data: Vec<Item>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Item {
    index: Option<usize>,
    embedding: Numbers,
}

#[derive(Deserialize)]
struct Usage {
    total_tokens: Option<u64>,
    prompt_tokens: Option<u64>,
}

/// Numbers as a list, where `null` is none, or in base64.
struct Numbers(Vec<f32>);

impl<'de> Deserialize<'de> for Numbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reading;
        impl<'de> Visitor<'de> for Reading {
            type Value = Numbers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vector, as numbers or in base64")
            }

            fn visit_unit<E>(self) -> Result<Numbers, E> {
                Ok(Numbers(Vec::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Numbers, A::Error> {
                let mut numbers = Vec::new();
                while let Some(number) = seq.next_element::<Option<f32>>()? {
                    numbers.push(number.unwrap_or(f32::NAN));
                }
                Ok(Numbers(numbers))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Numbers, E> {
                let bytes = BASE64_STANDARD.decode(text).map_err(E::custom)?;
                let (numbers, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err(E::custom("a vector in base64 is cut short"));
                }
                Ok(Numbers(numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()))
            }
        }
        deserializer.deserialize_any(Reading)
    }
}

/// Parses JSON, and what Python makes of NaN and infinities.
fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Fault> {
    let error = match serde_json::from_slice(body) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    if error.is_syntax()
        && let Some(plain) = without_nan(body)
        && let Ok(read) = serde_json::from_slice(&plain)
    {
        return Ok(read);
    }
    Err(match error.classify() {
        Category::Data => {
            Fault::Configuration { reason: format!("its answer is not what this `api` answers: {error}") }
        }
        Category::Eof => Fault::transient(format!("its answer is cut short: {error}")),
        Category::Io | Category::Syntax => Fault::transient(format!("its answer is no JSON: {error}")),
    })
}

/// The body with `null` for what is no JSON number but was meant as one;
/// `None` if there is nothing of that kind.
fn without_nan(body: &[u8]) -> Option<Vec<u8>> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
    let (mut plain, mut rest, mut in_string, mut changed) =
        (Vec::with_capacity(body.len()), body, false, false);
    while let Some((byte, after)) = rest.split_first() {
        let word = WORDS.iter().find(|word| !in_string && rest.starts_with(word));
        if let Some(after) = word.and_then(|word| rest.strip_prefix(*word)) {
            plain.extend_from_slice(b"null");
            (rest, changed) = (after, true);
            continue;
        }
        plain.push(*byte);
        rest = after;
        match byte {
            b'"' => in_string = !in_string,
            b'\\' if in_string => {
                if let Some((escaped, after)) = rest.split_first() {
                    plain.push(*escaped);
                    rest = after;
                }
            }
            _ => {}
        }
    }
    changed.then_some(plain)
}

/// Each vector in the place that its index says. One without an index has the
/// place that is left; several have those they stand in, if the others do too.
fn in_order(items: Vec<Item>, texts: usize) -> Result<Vec<Vec<f32>>, Fault> {
    if items.len() != texts {
        return Err(another_number(items.len(), texts));
    }
    let malformed = |reason: String| Err(Fault::Malformed { reason });
    let by_position = |(position, item): (usize, &Item)| item.index.is_none_or(|index| index == position);
    if items.iter().enumerate().all(by_position) {
        return Ok(items.into_iter().map(|item| item.embedding.0).collect());
    }
    let mut vectors: Vec<Option<Vec<f32>>> = vec![None; texts];
    let mut left = None;
    for item in items {
        let Some(index) = item.index else {
            if left.replace(item.embedding.0).is_some() {
                return malformed("several vectors of its answer have no index".to_owned());
            }
            continue;
        };
        let Some(place) = vectors.get_mut(index) else {
            return malformed(format!("its answer has an index {index} of {texts}"));
        };
        if place.replace(item.embedding.0).is_some() {
            return malformed(format!("its answer has the index {index} twice"));
        }
    }
    // As many as there are places, and none twice: all are taken but that of
    // the one without an index.
    Ok(vectors.into_iter().filter_map(|vector| vector.or_else(|| left.take())).collect())
}

fn another_number(vectors: usize, texts: usize) -> Fault {
    Fault::Malformed { reason: format!("it answered with {vectors} vectors for {texts} texts") }
}

/// The vector as it is stored, or what is wrong with it; an error if it is of
/// another model.
fn checked(mut vector: Vec<f32>, wanted: Wanted) -> Result<Result<Vec<f32>, &'static str>, Fault> {
    if vector.is_empty() {
        return Ok(Err("its vector is missing"));
    }
    if vector.len() != wanted.dimensions {
        return Err(Fault::Configuration {
            reason: format!(
                "its vectors have {} numbers, embed.dimensions is {}: another model, or `send_dimensions` is wanted",
                vector.len(),
                wanted.dimensions
            ),
        });
    }
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if !length.is_finite() {
        return Ok(Err("its vector is not finite"));
    }
    if length < f64::from(f32::MIN_POSITIVE) {
        return Ok(Err("its vector is zero"));
    }
    if wanted.normalised {
        #[expect(clippy::cast_possible_truncation, reason = "a quotient of at most 1")]
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    Ok(Ok(vector))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: Wanted = Wanted { dimensions: 2, normalised: true };

    fn openai(body: &str, texts: usize) -> Result<Answer, Fault> {
        read(Api::Openai, body.as_bytes(), texts, WANTED)
    }

    fn class(body: &str) -> &'static str {
        openai(body, 2).unwrap_err().class()
    }

    #[test]
    fn vectors_are_put_in_the_order_of_the_texts_and_brought_to_length_1() {
        let body = r#"{"object": "list", "model": "m", "data": [
            {"object": "embedding", "index": 1, "embedding": [0, 2]},
            {"object": "embedding", "index": 0, "embedding": [3.0, 4e0]}],
            "usage": {"prompt_tokens": 8, "total_tokens": 9}}"#;
        let answer = openai(body, 2).unwrap();
        assert_eq!(answer.vectors, [Ok(vec![0.6, 0.8]), Ok(vec![0.0, 1.0])]);
        assert_eq!(answer.tokens, Some(9));
        let raw = Wanted { normalised: false, ..WANTED };
        let tei = read(Api::Tei, b"[[3, 4], [0, 2]]", 2, raw).unwrap();
        assert_eq!(tei.vectors, [Ok(vec![3.0, 4.0]), Ok(vec![0.0, 2.0])]);
    }

    #[test]
    fn an_answer_without_one_vector_for_each_text_is_refused() {
        for body in [
            r#"{"data": [{"index": 0, "embedding": [1, 0]}]}"#,
            r#"{"data": [{"index": 0, "embedding": [1, 0]}, {"index": 0, "embedding": [1, 0]}]}"#,
            r#"{"data": [{"index": 0, "embedding": [1, 0]}, {"index": 2, "embedding": [1, 0]}]}"#,
        ] {
            assert!(matches!(openai(body, 2), Err(Fault::Malformed { .. })), "{body}");
        }
        assert!(matches!(read(Api::Tei, b"[[1, 0]]", 2, WANTED), Err(Fault::Malformed { .. })));
    }

    /// The vector of the text with number n is `[n, 1]`, before its length is 1.
    fn with_indexes(indexes: [Option<usize>; 3], texts: [u64; 3]) -> Result<Answer, Fault> {
        let data: Vec<_> = (indexes.iter().zip(texts))
            .map(|(index, text)| match index {
                Some(index) => serde_json::json!({"index": index, "embedding": [text, 1]}),
                None => serde_json::json!({"embedding": [text, 1]}),
            })
            .collect();
        let body = serde_json::json!({ "data": data }).to_string();
        read(Api::Openai, body.as_bytes(), 3, Wanted { normalised: false, ..WANTED })
    }

    #[test]
    fn an_index_that_is_left_out_is_understood_where_it_can_be_one_only() {
        let in_order = [0.0, 1.0, 2.0].map(|n| Ok(vec![n, 1.0]));
        for (indexes, texts) in [
            ([None, None, None], [0, 1, 2]),
            ([None, Some(1), Some(2)], [0, 1, 2]),
            ([Some(2), Some(1), None], [2, 1, 0]),
            ([None, Some(1), None], [0, 1, 2]),
        ] {
            let answer = with_indexes(indexes, texts).unwrap();
            assert_eq!(answer.vectors, in_order, "{indexes:?}");
        }
        for indexes in [[None, None, Some(1)], [None, Some(2), Some(2)], [None, Some(3), Some(0)]] {
            let read = with_indexes(indexes, [0, 1, 2]);
            assert!(matches!(read, Err(Fault::Malformed { .. })), "{indexes:?}: {read:?}");
        }
    }

    #[test]
    fn what_is_cut_short_may_come_whole_the_next_time_and_what_is_no_answer_never() {
        assert_eq!(class(r#"{"data": [{"index": 0, "embed"#), "transient");
        assert_eq!(class(""), "transient");
        assert_eq!(class("<html>"), "transient");
        assert_eq!(class(r#"{"error": "no such thing"}"#), "configuration");
        assert_eq!(class(r#"[[1, 0], [0, 1]]"#), "configuration");
        let longer = r#"{"data": [{"index": 0, "embedding": [1, 0, 0]}, {"index": 1, "embedding": [1, 0]}]}"#;
        assert_eq!(class(longer), "configuration");
    }

    #[test]
    fn a_bad_vector_is_bad_by_itself() {
        for (bad, reason) in [
            ("[NaN, 1]", "its vector is not finite"),
            ("[1, -Infinity]", "its vector is not finite"),
            ("[null, 1]", "its vector is not finite"),
            ("[1e39, 1]", "its vector is not finite"),
            ("[0, -0.0]", "its vector is zero"),
            ("[]", "its vector is missing"),
            ("null", "its vector is missing"),
        ] {
            let body = format!(
                r#"{{"id": "Na\"N", "data": [{{"index": 0, "embedding": {bad}}}, {{"index": 1, "embedding": [1, 0]}}]}}"#
            );
            assert_eq!(openai(&body, 2).unwrap().vectors, [Err(reason), Ok(vec![1.0, 0.0])], "{bad}");
        }
    }

    #[test]
    fn vectors_come_in_base64_as_well() {
        let bytes: Vec<u8> = [3.0_f32, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let text = BASE64_STANDARD.encode(bytes);
        let body = format!(r#"{{"data": [{{"index": 0, "embedding": "{text}"}}]}}"#);
        assert_eq!(openai(&body, 1).unwrap().vectors, [Ok(vec![0.6, 0.8])]);
        assert_eq!(
            openai(r#"{"data": [{"index": 0, "embedding": "AAA"}]}"#, 1).unwrap_err().class(),
            "configuration"
        );
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in any::<Vec<u8>>(), texts in 0..5_usize) {
            for api in [Api::Openai, Api::Voyage, Api::Tei] {
                let _ = read(api, &body, texts, WANTED);
            }
        }

        #[test]
        fn only_words_outside_strings_are_replaced(text in "[ -~]{0,40}") {
            let body = serde_json::to_string(&text).unwrap();
            prop_assert_eq!(without_nan(body.as_bytes()), None);
            let list = format!("[{body}, NaN, {body}]");
            let plain = without_nan(list.as_bytes()).unwrap();
            let read: (String, Option<f32>, String) = serde_json::from_slice(&plain).unwrap();
            prop_assert_eq!(read, (text.clone(), None, text));
        }
    }
}

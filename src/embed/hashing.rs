//! Vectors without a model, for tests and benchmarks.
//!
//! Feature hashing (Weinberger et al., *Feature Hashing for Large Scale
//! Multitask Learning*, 2009) of words and of the character trigrams within
//! them: texts that share words or parts of words are near each other. It
//! knows nothing of meaning.
//!
//! The algorithm never changes: its version stands in the space's name, and a
//! test holds it to the bits. Version 1: the text's Unicode words (UAX 29),
//! lower-cased; each word is a feature of weight 1, each run of three
//! characters of `<word>` one of weight 1/2. A feature's hash is the 64-bit
//! FNV-1a of a tag byte (`w` or `t`) and its UTF-8 bytes; the low bits choose
//! the dimension, the highest the sign. The sum is brought to length 1; a text
//! without words is the feature `w` alone.

use std::sync::Arc;

use futures::{TryFutureExt, future::BoxFuture};
use tokio::sync::oneshot;

use super::{EmbedError, Embedder, Space, TokenSpans};
use crate::transform::words::word_indices;

const DIMENSIONS: usize = 256;
/// Words read of a text; the rest is cut, as a model would.
const MAX_WORDS: usize = 8_192;
const TRIGRAM_WEIGHT: f32 = 0.5;

/// An embedder that needs no model.
pub struct Hashing {
    space: Space,
}

/// Counts Unicode words.
pub struct Words;

impl Default for Hashing {
    fn default() -> Self {
        Self {
            space: Space {
                provider: "hashing".into(),
                model: "hashing-test-only-v1".into(),
                revision: "1".into(),
                tokenizer: String::new(),
                dimensions: DIMENSIONS,
                pooling: "sum".into(),
                normalised: true,
                prefix: String::new(),
                element: "fp32".into(),
                max_tokens: MAX_WORDS,
            },
        }
    }
}

impl Embedder for Hashing {
    fn space(&self) -> &Space {
        &self.space
    }

    fn embed(&self, texts: Vec<String>) -> BoxFuture<'_, Result<Vec<Vec<f32>>, EmbedError>> {
        let (reply, vectors) = oneshot::channel();
        rayon::spawn(move || {
            // The caller may have gone away.
            let _ = reply.send(texts.iter().map(|text| vector(text)).collect());
        });
        Box::pin(vectors.map_err(|_| EmbedError::Transient { reason: "hashing was interrupted".into() }))
    }

    fn tokens(&self) -> Arc<dyn TokenSpans> {
        Arc::new(Words)
    }
}

impl TokenSpans for Words {
    fn spans(&self, text: &str) -> Vec<(usize, usize)> {
        word_indices(text).map(|(start, word)| (start, start + word.len())).collect()
    }
}

fn vector(text: &str) -> Vec<f32> {
    let (mut sum, mut marked) = (vec![0.0; DIMENSIONS], String::new());
    for (_, word) in word_indices(text).take(MAX_WORDS) {
        mark(&mut marked, word);
        let bytes = marked.as_bytes();
        let within = bytes.get(1..bytes.len() - 1).unwrap_or_default();
        add(&mut sum, b'w', within, 1.0);
        if marked.is_ascii() {
            bytes.windows(3).for_each(|trigram| add(&mut sum, b't', trigram, TRIGRAM_WEIGHT));
        } else {
            let ends = marked.char_indices().map(|(at, c)| at + c.len_utf8()).skip(2);
            for ((start, _), end) in marked.char_indices().zip(ends) {
                let trigram = bytes.get(start..end).unwrap_or_default();
                add(&mut sum, b't', trigram, TRIGRAM_WEIGHT);
            }
        }
    }
    if sum.iter().all(|x| *x == 0.0) {
        add(&mut sum, b'w', b"", 1.0);
    }
    let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
    sum.iter_mut().for_each(|x| *x /= length);
    sum
}

/// Makes `marked` the lower-cased `word` between `<` and `>`.
fn mark(marked: &mut String, word: &str) {
    marked.clear();
    marked.push('<');
    if word.is_ascii() {
        marked.push_str(word);
        marked.make_ascii_lowercase();
    } else {
        marked.push_str(&word.to_lowercase());
    }
    marked.push('>');
}

fn add(sum: &mut [f32], tag: u8, feature: &[u8], weight: f32) {
    let hash = fnv_1a(fnv_1a(FNV_START, &[tag]), feature);
    #[expect(clippy::cast_possible_truncation, reason = "reduced to the number of dimensions")]
    let dimension = (hash % DIMENSIONS as u64) as usize;
    if let Some(x) = sum.get_mut(dimension) {
        *x += if hash >> 63 == 0 { weight } else { -weight };
    }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// Fowler, Noll and Vo, as in RFC 9923: the hash of what `hash` is of, and
/// `bytes` behind it.
fn fnv_1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use unicode_segmentation::UnicodeSegmentation;

    use super::{super::testing::block_on, *};

    fn cosine(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn the_hash_is_fnv_1a() {
        assert_eq!(fnv_1a(FNV_START, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv_1a(FNV_START, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv_1a(FNV_START, b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_algorithm_never_changes() {
        let vector = vector("Ahoi, ahoi: Größe 7!");
        let features: Vec<(usize, f32)> = vector.into_iter().enumerate().filter(|(_, x)| *x != 0.0).collect();
        let (half, one, two) = (0.147_441_95, 0.294_883_9, 0.589_767_8);
        assert_eq!(
            features,
            [
                (23, -half),
                (36, -one),
                (48, -half),
                (50, -half),
                (51, -half),
                (73, one),
                (99, -two),
                (100, half),
                (107, one),
                (147, one),
                (159, -one),
                (164, -half),
                (211, one),
            ]
        );
    }

    #[test]
    fn texts_that_share_words_are_nearer_than_those_that_do_not() {
        let near = cosine(&vector("disk almost full"), &vector("the disk is full"));
        let far = cosine(&vector("disk almost full"), &vector("a walk by the river"));
        assert!(near > 0.5 && far < 0.25, "{near} {far}");
        let inflected = cosine(&vector("restarting"), &vector("restarted"));
        assert!(inflected > 0.2, "{inflected}");
    }

    #[test]
    fn every_text_has_a_vector_of_length_one() {
        let texts = ["", "!?", "a", "日本語", &"word ".repeat(10_000)].map(str::to_owned).to_vec();
        for vector in block_on(Hashing::default().embed(texts)).unwrap() {
            assert_eq!(vector.len(), DIMENSIONS);
            assert!((cosine(&vector, &vector) - 1.0).abs() < 1e-5);
        }
    }

    #[test]
    fn tokens_are_unicode_words_by_byte() {
        let text = "Zug nach Köln, 9.41!";
        let words: Vec<&str> = Words.spans(text).into_iter().map(|(start, end)| &text[start..end]).collect();
        assert_eq!(words, ["Zug", "nach", "Köln", "9.41"]);
    }

    /// As the head of this file says it, of words that are not longer.
    fn by_the_book(text: &str) -> Vec<f32> {
        let mut sum = vec![0.0; DIMENSIONS];
        for word in text.unicode_words() {
            let word = word.to_lowercase();
            add(&mut sum, b'w', word.as_bytes(), 1.0);
            let marked: Vec<char> = format!("<{word}>").chars().collect();
            for trigram in marked.windows(3) {
                add(&mut sum, b't', trigram.iter().collect::<String>().as_bytes(), 0.5);
            }
        }
        if sum.iter().all(|x| *x == 0.0) {
            add(&mut sum, b'w', b"", 1.0);
        }
        let length = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
        sum.iter().map(|x| x / length).collect()
    }

    proptest! {
        #[test]
        fn the_short_way_gives_the_same_bits(text in "([a-zA-Z0-9 .,'_-]|[éßİ東\u{301}]){0,60}") {
            prop_assert_eq!(vector(&text), by_the_book(&text));
        }
    }
}

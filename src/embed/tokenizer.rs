//! Text to token ids, as the model was trained to read it.

use tokenizers::{NormalizerWrapper, PreTokenizerWrapper, Tokenizer as Inner};

use super::TokenSpans;

/// Bytes of a long text that are looked at first for each token that is kept:
/// English has four or five.
const BYTES_PER_TOKEN: usize = 6;

/// A tokenizer that cuts texts at a number of tokens of its own and never
/// pads. What `tokenizer.json` says about truncation and padding is ignored:
/// the file of all-MiniLM-L6-v2 says 128 for both, where the model takes 256.
pub struct Tokenizer {
    inner: Inner,
    max_tokens: usize,
    /// Whether a text may be cut at a space without changing the tokens before.
    cut_at_spaces: bool,
}

/// Why a text or a tokenizer file was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct TokenizerError {
    reason: String,
}

impl From<tokenizers::Error> for TokenizerError {
    fn from(error: tokenizers::Error) -> Self {
        Self { reason: error.to_string() }
    }
}

impl Tokenizer {
    /// From the bytes of a `tokenizer.json`. Texts are cut at `max_tokens`,
    /// special tokens included.
    pub fn read(file: &[u8], max_tokens: usize) -> Result<Self, TokenizerError> {
        let mut inner = Inner::from_bytes(file)?;
        inner.with_truncation(None)?;
        inner.with_padding(None);
        let cut_at_spaces = cut_at_spaces(&inner);
        Ok(Self { inner, max_tokens, cut_at_spaces })
    }

    /// One more than the largest token id.
    pub fn vocabulary(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |largest| largest as usize + 1)
    }

    /// The ids of `text` between its special tokens, at most `max_tokens` in
    /// all: a longer text loses what comes before its closing special token.
    /// Of a much longer one only the beginning is read.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut bytes =
            if self.cut_at_spaces { self.max_tokens.saturating_mul(BYTES_PER_TOKEN) } else { text.len() };
        loop {
            let beginning = up_to_a_space(text, bytes);
            let encoding = self.inner.encode_fast(beginning, true)?;
            let ids = encoding.get_ids();
            if ids.len() > self.max_tokens || beginning.len() == text.len() {
                return Ok(cut(ids, self.max_tokens));
            }
            bytes = bytes.saturating_mul(4);
        }
    }
}

/// Whether words are told apart by spaces before anything else looks at more
/// than a character, as BERT's tokenizers do.
fn cut_at_spaces(inner: &Inner) -> bool {
    let by_word = matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::BertPreTokenizer(_)));
    let by_character = matches!(inner.get_normalizer(), None | Some(NormalizerWrapper::BertNormalizer(_)));
    let no_spaces = |added: &tokenizers::AddedToken| !added.content.contains(char::is_whitespace);
    by_word && by_character && inner.get_added_tokens_decoder().values().all(no_spaces)
}

/// The longest part of the first `bytes` bytes that ends before a space; all of
/// a `text` that is no longer, or has no space there.
fn up_to_a_space(text: &str, bytes: usize) -> &str {
    let space = text.as_bytes().get(..bytes).and_then(|part| part.iter().rposition(u8::is_ascii_whitespace));
    space.and_then(|space| text.get(..space)).unwrap_or(text)
}

/// `ids` without those before the last that are too many.
fn cut(ids: &[u32], most: usize) -> Vec<u32> {
    let mut ids = ids.to_vec();
    if let Some(last) = ids.last().copied()
        && ids.len() > most
    {
        ids.truncate(most - 1);
        ids.push(last);
    }
    ids
}

impl TokenSpans for Tokenizer {
    /// Spans lie on character boundaries. Neighbours may coincide: a Hangul
    /// syllable is several tokens.
    fn spans(&self, text: &str) -> Vec<(usize, usize)> {
        // Encoding fails only on a vocabulary without an unknown token.
        self.inner.encode(text, false).map(|tokens| tokens.get_offsets().to_vec()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::{
        super::testing::{self, MAX_TOKENS},
        *,
    };

    fn tokenizer() -> Tokenizer {
        Tokenizer::read(&testing::model_file("tokenizer.json"), MAX_TOKENS).unwrap()
    }

    #[test]
    fn texts_are_cut_at_the_length_of_the_model_and_never_padded() {
        let tokenizer = tokenizer();
        let (cls, sep, hello) = (101, 102, 7592);
        assert_eq!(tokenizer.ids("Hello").unwrap(), [cls, hello, sep]);
        assert_eq!(tokenizer.ids("").unwrap(), [cls, sep]);
        for (words, expected) in [(253, 255), (254, 256), (255, 256), (1_000, 256)] {
            let ids = tokenizer.ids(&"hello ".repeat(words)).unwrap();
            assert_eq!(ids.len(), expected);
            assert_eq!((ids[0], ids[expected - 2], ids[expected - 1]), (cls, hello, sep));
        }
    }

    proptest! {
        #[test]
        fn what_stands_before_a_space_has_its_tokens_whatever_comes_after(
            words in prop::collection::vec("[a-zA-ZÄé日本\u{301}\u{0}😀.,'\\-]{0,9}|\\[SEP\\]|\\PC{0,5}", 0..40),
            spaces in prop::sample::select(vec![" ", "\n", "\t ", "\u{3000}", "\u{a0}", "\u{b}", "", " \u{301}"]),
            bytes in 0usize..200,
        ) {
            static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(tokenizer);
            let ids = |text| TOKENIZER.inner.encode_fast(text, false).unwrap().get_ids().to_vec();
            let text = words.join(spaces);
            prop_assert!(ids(text.as_str()).starts_with(&ids(up_to_a_space(&text, bytes))));
        }
    }

    #[test]
    fn a_long_text_has_the_tokens_of_all_of_it_cut() {
        let (mut short, mut whole) = (tokenizer(), Tokenizer { cut_at_spaces: false, ..tokenizer() });
        // More bytes for a token than are looked at first, and fewer.
        for word in ["photosynthesis ", "unembeddable ", "a b ", "日本", "\u{301} "] {
            for count in [85, 127, 253, 254, 255, 256, 3_000] {
                let text = word.repeat(count);
                assert_eq!(short.ids(&text).unwrap(), whole.ids(&text).unwrap(), "{count} times {word:?}");
            }
        }
        // What is looked at first has about as many tokens as are kept.
        let text = "hello  hello ".repeat(100);
        for max_tokens in 2..100 {
            (short.max_tokens, whole.max_tokens) = (max_tokens, max_tokens);
            assert_eq!(short.ids(&text).unwrap(), whole.ids(&text).unwrap(), "{max_tokens} tokens");
        }
    }

    #[test]
    fn a_long_text_is_cut_before_a_space() {
        for (text, bytes, beginning) in [
            ("ab cd ef", 8, "ab cd"),
            ("ab cd ef", 6, "ab cd"),
            ("ab cd ef", 5, "ab"),
            ("ab cd ef", 9, "ab cd ef"),
            ("abcdef gh", 5, "abcdef gh"),
            ("a日本\n本", 9, "a日本"),
        ] {
            assert_eq!(up_to_a_space(text, bytes), beginning, "{text:?} {bytes}");
        }
    }

    #[test]
    fn what_tells_words_apart_in_another_way_is_read_whole() {
        assert!(tokenizer().cut_at_spaces);
        let mut file: serde_json::Value =
            serde_json::from_slice(&testing::model_file("tokenizer.json")).unwrap();
        file["added_tokens"][0]["content"] = "two words".into();
        let read = |file: &serde_json::Value| Tokenizer::read(file.to_string().as_bytes(), 256).unwrap();
        assert!(!read(&file).cut_at_spaces);
        file["added_tokens"][0]["content"] = "[PAD]".into();
        assert!(read(&file).cut_at_spaces);
        file["pre_tokenizer"]["type"] = "Whitespace".into();
        assert!(!read(&file).cut_at_spaces);
    }

    #[test]
    fn spans_are_bytes_of_the_original_text() {
        let text = "Ünïcode, CAFÉS e\u{301}t\u{e9} 日本 embeddings\t😀!";
        let spans = tokenizer().spans(text);
        let tokens: Vec<&str> = spans.iter().map(|(start, end)| &text[*start..*end]).collect();
        assert_eq!(
            tokens,
            ["Ünïcode", ",", "CAFÉS", "e\u{301}t", "\u{e9}", "日", "本", "em", "bed", "ding", "s", "😀", "!"]
        );
    }

    #[test]
    fn spans_are_not_cut_and_lie_on_character_boundaries() {
        let text = "한국어 hello ".repeat(400);
        let spans = tokenizer().spans(&text);
        assert!(spans.len() > 4 * MAX_TOKENS);
        assert_eq!(spans.last().map(|(_, end)| *end), Some(text.trim_end().len()));
        for pair in spans.windows(2) {
            assert!(pair[0].0 <= pair[1].0, "{pair:?} are out of order");
        }
        for (start, end) in spans {
            assert!(start < end && text.is_char_boundary(start) && text.is_char_boundary(end));
        }
    }
}

//! Text to token ids, as the model was trained to read it.

use tokenizers::Tokenizer as Inner;

use super::TokenSpans;

/// A tokenizer that cuts texts at a number of tokens of its own and never
/// pads. What `tokenizer.json` says about truncation and padding is ignored:
/// the file of all-MiniLM-L6-v2 says 128 for both, where the model takes 256.
pub struct Tokenizer {
    inner: Inner,
    max_tokens: usize,
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
        Ok(Self { inner, max_tokens })
    }

    /// One more than the largest token id.
    pub fn vocabulary(&self) -> usize {
        let ids = self.inner.get_vocab(true).into_values();
        ids.max().map_or(0, |largest| largest as usize + 1)
    }

    /// The ids of `text` between its special tokens, at most `max_tokens` in
    /// all: a longer text loses what comes before its closing special token.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, true)?;
        let mut ids = encoding.get_ids().to_vec();
        if let Some(last) = ids.last().copied()
            && ids.len() > self.max_tokens
        {
            ids.truncate(self.max_tokens - 1);
            ids.push(last);
        }
        Ok(ids)
    }
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

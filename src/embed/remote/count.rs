//! How many tokens a text has, and where it is cut.
//!
//! With the model's `tokenizer.json` tokens are counted exactly. Without it
//! they are estimated, on the side of too many: letters of the ASCII alphabet
//! in runs of at most three, a run ending where small letters turn to
//! capitals; every digit and every other ASCII character by itself; spaces
//! with what follows them, but for runs of four; any other character by its
//! length in UTF-8, less one byte. English prose comes out a third to two
//! thirds over what WordPiece finds, Chinese about twice over what byte pairs do.
//! An estimate that is still too low costs a request that is refused and split.

use std::{fs, path::Path, sync::Arc};

use super::super::{TokenSpans, tokenizer::Tokenizer};
use crate::embed::tokenizer::TokenizerError;

/// Letters of a run that count as one token.
const LETTERS: usize = 3;
/// Spaces that count as one token.
const SPACES: usize = 4;
/// Tokens that a model adds around a text.
pub const SPECIAL_TOKENS: usize = 2;
/// Bytes of a text looked at for each token that is kept: no sensible token is
/// longer, and a text of a gigabyte must not be tokenised to be cut.
const LOOKED_AT: usize = 32;

/// A text as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// With its prefix, cut.
    pub text: String,
    /// Its tokens, those around it included.
    pub tokens: u64,
}

impl Prepared {
    /// Cuts it to three quarters: where it is refused as too long, more was
    /// counted there than here.
    pub fn shorten(&mut self) {
        self.text.truncate(self.text.floor_char_boundary((self.text.len() / 4 * 3).max(4)));
        self.tokens = (self.tokens / 4 * 3).max(1);
    }
}

/// Counts and cuts.
#[derive(Clone)]
pub struct Counter {
    spans: Arc<dyn TokenSpans>,
    max_tokens: usize,
}

/// Why there is no tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum CounterError {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] std::io::Error),
    #[error("is no tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
}

/// Estimated tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimate;

impl Counter {
    /// With the tokenizer in the file at `path`; estimating if there is none.
    pub fn open(path: Option<&Path>, max_tokens: usize) -> Result<Self, CounterError> {
        let spans: Arc<dyn TokenSpans> = match path {
            None => Arc::new(Estimate),
            Some(path) => Arc::new(Tokenizer::read(&fs::read(path)?, max_tokens)?),
        };
        Ok(Self { spans, max_tokens })
    }

    /// What counts.
    pub fn spans(&self) -> Arc<dyn TokenSpans> {
        Arc::clone(&self.spans)
    }

    /// `prefix` and `text`, cut to the most tokens that are kept. `None` for a
    /// text of which a model could see nothing: services refuse it, each in
    /// its own way.
    pub fn prepare(&self, prefix: &str, text: &str) -> Option<Prepared> {
        if text.chars().all(|c| c.is_whitespace() || c.is_control()) {
            return None;
        }
        let mut whole = format!("{prefix}{text}");
        whole.truncate(whole.floor_char_boundary(self.max_tokens.saturating_mul(LOOKED_AT)));
        let spans = self.spans.spans(&whole);
        let most = self.max_tokens.saturating_sub(SPECIAL_TOKENS).max(1);
        let kept = spans.len().min(most);
        if let Some((_, end)) = spans.get(kept.saturating_sub(1)).filter(|_| spans.len() > most) {
            whole.truncate(whole.floor_char_boundary(*end));
        }
        Some(Prepared { text: whole, tokens: (kept + SPECIAL_TOKENS) as u64 })
    }
}

/// What an ASCII character goes with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Small,
    Capital,
    Space,
    Single,
    Wide,
}

impl Kind {
    fn of(c: char) -> Self {
        match c {
            'a'..='z' => Self::Small,
            'A'..='Z' => Self::Capital,
            ' ' => Self::Space,
            _ if c.is_ascii() => Self::Single,
            _ => Self::Wide,
        }
    }

    /// Whether a character of this kind goes on with a token of `length`
    /// characters that ends in `last`.
    fn joins(self, last: Self, length: usize) -> bool {
        match (last, self) {
            (Self::Small | Self::Capital, Self::Small) | (Self::Capital, Self::Capital) => length < LETTERS,
            (Self::Space, Self::Space) => length < SPACES,
            _ => false,
        }
    }
}

impl TokenSpans for Estimate {
    fn spans(&self, text: &str) -> Vec<(usize, usize)> {
        let mut spans: Vec<(usize, usize)> = Vec::new();
        let mut open: Option<(usize, Kind, usize)> = None;
        for (at, c) in text.char_indices() {
            let kind = Kind::of(c);
            if let Some((start, last, length)) = open {
                if kind.joins(last, length) {
                    open = Some((start, kind, length + 1));
                    continue;
                }
                // A space by itself goes with the token after it.
                if (last, length) != (Kind::Space, 1) {
                    spans.push((start, at));
                }
            }
            open = (kind != Kind::Wide).then_some((at, kind, 1));
            if kind == Kind::Wide {
                let end = at + c.len_utf8();
                spans.extend(std::iter::repeat_n((at, end), (c.len_utf8() - 1).max(1)));
            }
        }
        if let Some((start, last, length)) = open
            && (last, length) != (Kind::Space, 1)
        {
            spans.push((start, text.len()));
        }
        spans
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::embed::testing;

    fn tokens(text: &str) -> Vec<&str> {
        Estimate.spans(text).into_iter().map(|(start, end)| &text[start..end]).collect()
    }

    #[test]
    fn tokens_are_estimated_as_documented() {
        assert_eq!(tokens("the mountain"), ["the", "mou", "nta", "in"]);
        assert_eq!(tokens("HTTPServer v12"), ["HTT", "PSe", "rve", "r", "v", "1", "2"]);
        assert_eq!(tokens("fooBar"), ["foo", "Bar"]);
        assert_eq!(tokens("a,  b"), ["a", ",", "  ", "b"]);
        assert_eq!(tokens("日é😀"), ["日", "日", "é", "😀", "😀", "😀"]);
        assert_eq!(tokens(""), [""; 0]);
        assert_eq!(tokens("\0\0").len(), 2);
    }

    #[test]
    fn the_estimate_is_not_below_what_a_real_tokenizer_finds() {
        let exact = Tokenizer::read(&testing::model_file("tokenizer.json"), 256).unwrap();
        let (mut estimated, mut counted) = (0, 0);
        for reference in testing::reference_vectors() {
            let (e, c) = (Estimate.spans(&reference.text).len(), exact.spans(&reference.text).len());
            // A word or two may be short of it; a tenth is kept free for them.
            assert!((e + 3) * 10 >= c * 9, "{e} for {c}: {}", reference.text);
            estimated += e;
            counted += c;
        }
        assert!(estimated * 10 >= 12 * counted && estimated <= 2 * counted, "{estimated} for {counted}");
    }

    #[test]
    fn a_long_text_is_cut_and_a_short_one_gets_its_prefix() {
        let counter = Counter::open(None, 16).unwrap();
        let short = counter.prepare("query: ", "disk full").unwrap();
        assert_eq!(short, Prepared { text: "query: disk full".into(), tokens: 9 });
        let million = "hello ".repeat(1_000_000);
        let long = counter.prepare("", &million).unwrap();
        assert_eq!((long.tokens, Estimate.spans(&long.text).len()), (16, 14));
        assert!(million.starts_with(&long.text));
        let wide = counter.prepare("", &"日本語".repeat(100)).unwrap();
        assert_eq!((wide.tokens, wide.text.as_str()), (16, "日本語日本語日"));
    }

    #[test]
    fn a_text_is_shortened_between_characters_and_never_to_nothing() {
        let mut text = Prepared { text: "日本語日本語".to_owned(), tokens: 14 };
        text.shorten();
        assert_eq!(text, Prepared { text: "日本語日".to_owned(), tokens: 9 });
        for _ in 0..20 {
            text.shorten();
        }
        assert_eq!(text, Prepared { text: "日".to_owned(), tokens: 1 });
    }

    #[test]
    fn a_tokenizer_counts_exactly() {
        let path = testing::model_dir().join("tokenizer.json");
        let counter = Counter::open(Some(&path), 256).unwrap();
        assert_eq!(counter.prepare("", "embeddings").unwrap().tokens, 4 + 2);
        assert_eq!(counter.prepare("", &"hello ".repeat(1_000)).unwrap().tokens, 256);
        assert!(Counter::open(Some(Path::new("/nowhere")), 256).is_err());
    }

    #[test]
    fn a_text_without_anything_to_see_is_none() {
        let counter = Counter::open(None, 16).unwrap();
        for text in ["", " \n\t", "\0\0\0", "\u{1b}\u{7f}"] {
            assert_eq!(counter.prepare("passage: ", text), None, "{text:?}");
        }
        assert_eq!(counter.prepare("", "😀").unwrap().tokens, 5);
    }

    proptest! {
        #[test]
        fn spans_are_in_order_and_on_character_boundaries(text in any::<String>(), max_tokens in 3..40_usize) {
            let mut end_before = 0;
            for (start, end) in Estimate.spans(&text) {
                prop_assert!(start < end && text.is_char_boundary(start) && text.is_char_boundary(end));
                prop_assert!(start >= end_before.min(start) && end >= end_before);
                end_before = end;
            }
            if let Some(prepared) = Counter::open(None, max_tokens).unwrap().prepare("", &text) {
                prop_assert!(prepared.tokens <= max_tokens as u64);
                prop_assert!(text.starts_with(&prepared.text));
            }
        }
    }
}

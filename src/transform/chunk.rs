//! Chunks: parts of a text that fit the model, cut where the text itself
//! breaks.
//!
//! A text is tokenised once. `breaks` says how good a place to cut each gap
//! between two tokens is: before a heading, between paragraphs, sentences,
//! lines or words, or within a word. From each start the
//! strongest break among those that leave the chunk between `min_tokens` and
//! `max_tokens` is taken, of equals the last; the next chunk begins up to
//! `overlap_tokens` earlier, at a sentence where there is one. No chunk reaches
//! back over a heading.
//!
//! What holds for every text and every tokenizer: ranges lie on character
//! boundaries, every character that is not white space is in a chunk, ends
//! increase and starts do not decrease, and no chunk has more than
//! `max_tokens` tokens of the whole text. Tokenised alone, a chunk may count otherwise only where a
//! word was cut, that is, where a word alone exceeds the limit.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    breaks::{self, Break},
    tokens::TokenSpans,
};
use crate::setting::SettingError;

/// `[derive.chunk]` of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Most tokens of a chunk, special tokens not counted. A model that reads
    /// 256 tokens has room for 254.
    pub max_tokens: usize,
    /// Fewest tokens of a chunk, but where the text is shorter or a break
    /// cannot be had.
    pub min_tokens: usize,
    /// Most tokens repeated from the chunk before.
    pub overlap_tokens: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_tokens: 254, min_tokens: 64, overlap_tokens: 0 }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        let Self { max_tokens, min_tokens, overlap_tokens } = *self;
        SettingError::unless(
            max_tokens >= 8,
            "max_tokens",
            format!("{max_tokens} tokens hold no sentence; write 8 or more"),
        )?;
        SettingError::unless(
            (1..=max_tokens).contains(&min_tokens),
            "min_tokens",
            format!("{min_tokens} is not between 1 and max_tokens ({max_tokens})"),
        )?;
        SettingError::unless(
            overlap_tokens <= max_tokens / 2,
            "overlap_tokens",
            format!(
                "{overlap_tokens} is more than half of max_tokens ({max_tokens}): most text would be stored three times"
            ),
        )
    }
}

/// A part of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Bytes within the text.
    pub range: Range<usize>,
    /// Tokens within the range.
    pub tokens: usize,
}

/// Cuts `text` into chunks in the order of the text; none for a text without
/// visible characters. A text of up to `max_tokens` tokens is one chunk, whole.
/// Settings that [`Settings::validate`] refuses are brought into bounds.
pub fn chunk(text: &str, settings: &Settings, tokens: &dyn TokenSpans) -> Vec<Chunk> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    let spans = breaks::bounded(text, tokens.spans(text));
    if spans.len() <= settings.max_tokens {
        return vec![Chunk { range: 0..text.len(), tokens: spans.len() }];
    }
    let gaps = breaks::gaps(text, &spans);
    let cutter = Cutter::new(settings, &gaps);
    let mut covered = 0;
    let mut chunks: Vec<_> = cutter.cuts().into_iter().map(|tokens| cutter.chunk(text, tokens)).collect();
    // Some tokenizers make tokens of white space, which alone are no chunk.
    chunks.retain(|chunk| {
        let adds = chunk.range.end > covered;
        covered = covered.max(chunk.range.end);
        adds && !chunk.range.is_empty()
    });
    chunks
}

/// Decides in token numbers: gap `i` lies before token `i`.
struct Cutter<'a> {
    gaps: &'a [breaks::Gap],
    max: usize,
    min: usize,
    overlap: usize,
}

impl<'a> Cutter<'a> {
    fn new(settings: &Settings, gaps: &'a [breaks::Gap]) -> Self {
        let max = settings.max_tokens.max(2);
        Self {
            gaps,
            max,
            min: settings.min_tokens.clamp(1, max),
            overlap: settings.overlap_tokens.min(max / 2),
        }
    }

    /// Tokens of the text.
    fn len(&self) -> usize {
        self.gaps.len()
    }

    /// Token ranges of all chunks.
    fn cuts(&self) -> Vec<Range<usize>> {
        let mut cuts = Vec::new();
        let (mut start, mut covered) = (0, 0);
        while covered < self.len() {
            let end = self.end(start, covered);
            cuts.push(start..end);
            start = self.next_start(start, end);
            covered = end;
        }
        cuts
    }

    /// Where the chunk from `start` ends, past `covered`.
    fn end(&self, start: usize, covered: usize) -> usize {
        let limit = start + self.max;
        if limit >= self.len() {
            return self.len();
        }
        let first = (start + self.min).max(covered + 1).min(limit);
        // A last chunk below the minimum is avoided by cutting earlier.
        let last = limit.min(self.len().saturating_sub(self.min)).max(first);
        self.strongest(first..=last).unwrap_or(last)
    }

    /// The strongest gap, of equals the last.
    fn strongest(&self, within: std::ops::RangeInclusive<usize>) -> Option<usize> {
        within.max_by_key(|gap| (self.strength(*gap), *gap))
    }

    /// Where the chunk after `start..end` starts: the earliest gap between
    /// sentences that the overlap reaches, or else between words.
    fn next_start(&self, start: usize, end: usize) -> usize {
        if self.overlap == 0 || self.strength(end) == Break::Heading {
            return end;
        }
        let earliest = end.saturating_sub(self.overlap).max(start + 1);
        let from = (earliest..end).rfind(|gap| self.strength(*gap) == Break::Heading).unwrap_or(earliest);
        [Break::Sentence, Break::Word]
            .into_iter()
            .find_map(|least| (from..end).find(|gap| self.strength(*gap) >= least))
            .unwrap_or(from)
    }

    fn strength(&self, gap: usize) -> Break {
        self.gaps.get(gap).map_or(Break::None, |gap| gap.strength)
    }

    /// From the cut before the first token to the cut before the token after
    /// the last, less white space: what stands between tokens belongs to
    /// exactly one side.
    fn chunk(&self, text: &str, tokens: Range<usize>) -> Chunk {
        let at = |gap: usize| self.gaps.get(gap).map_or(text.len(), |gap| gap.cut);
        let start = if tokens.start == 0 { 0 } else { at(tokens.start) };
        let end = at(tokens.end);
        let part = text.get(start..end).unwrap_or_default();
        let leading = part.len() - part.trim_start().len();
        let visible = part.trim().len();
        Chunk { range: start + leading..start + leading + visible, tokens: tokens.len() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;
    use crate::transform::tokens::Words;

    /// Every character a token, white space too.
    struct Chars;

    impl TokenSpans for Chars {
        fn spans(&self, text: &str) -> Vec<(usize, usize)> {
            text.char_indices().map(|(at, c)| (at, at + c.len_utf8())).collect()
        }
    }

    /// No word is known.
    struct Blind;

    impl TokenSpans for Blind {
        fn spans(&self, _: &str) -> Vec<(usize, usize)> {
            Vec::new()
        }
    }

    fn settings(max: usize, min: usize, overlap: usize) -> Settings {
        Settings { max_tokens: max, min_tokens: min, overlap_tokens: overlap }
    }

    fn parts<'a>(text: &'a str, settings: &Settings) -> Vec<&'a str> {
        chunk(text, settings, &Words).into_iter().map(|c| &text[c.range]).collect()
    }

    fn check(text: &str, settings: &Settings, tokens: &dyn TokenSpans) -> Result<(), TestCaseError> {
        let chunks = chunk(text, settings, tokens);
        let mut covered = 0;
        for pair in chunks.windows(2) {
            prop_assert!(pair[0].range.start <= pair[1].range.start, "starts go back");
            prop_assert!(pair[0].range.end < pair[1].range.end, "ends stay");
        }
        for Chunk { range, tokens } in chunks {
            prop_assert!(tokens <= settings.max_tokens);
            prop_assert!(text.get(range.clone()).is_some_and(|part| !part.trim().is_empty()));
            if range.start > covered {
                prop_assert_eq!(text[covered..range.start].trim(), "", "lost");
            }
            covered = range.end;
        }
        prop_assert_eq!(text[covered..].trim(), "", "lost at the end");
        Ok(())
    }

    #[test]
    fn a_short_text_is_one_chunk_and_whole() {
        let text = " One sentence. And another.\n";
        assert_eq!(chunk(text, &Settings::default(), &Words), [Chunk { range: 0..text.len(), tokens: 4 }]);
        assert_eq!(chunk("?!", &Settings::default(), &Blind), [Chunk { range: 0..2, tokens: 0 }]);
        assert_eq!(chunk(" \n\t", &Settings::default(), &Words), []);
    }

    #[test]
    fn cuts_fall_on_the_strongest_break_within_reach() {
        let text = "One two three. Four five six.\n\nSeven eight.\n## Nine\nTen eleven. Twelve.";
        assert_eq!(
            parts(text, &settings(8, 2, 0)),
            ["One two three. Four five six.\n\nSeven eight.", "## Nine\nTen eleven. Twelve."],
            "a heading is stronger than the paragraph before it"
        );
        let wrapped = "one two\nthree four five six seven eight nine";
        assert_eq!(parts(wrapped, &settings(8, 2, 0)), ["one two", "three four five six seven eight nine"]);
    }

    #[test]
    fn the_last_chunk_is_not_a_scrap() {
        let text = "a b c d e f g h i";
        assert_eq!(parts(text, &settings(8, 4, 0)), ["a b c d e", "f g h i"]);
    }

    #[test]
    fn an_overlap_begins_with_a_sentence_and_never_crosses_a_heading() {
        let text = "Aa bb cc. Dd ee. Ff gg hh ii. Jj kk ll. Mm nn.";
        assert_eq!(
            parts(text, &settings(8, 2, 3)),
            ["Aa bb cc. Dd ee.", "Dd ee. Ff gg hh ii.", "gg hh ii. Jj kk ll. Mm nn."],
            "the last finds no sentence within three tokens, so words"
        );
        let text = "Aa bb. Cc dd.\n# Ee ff. Gg hh ii jj kk.";
        assert_eq!(parts(text, &settings(8, 2, 4)), ["Aa bb. Cc dd.", "# Ee ff. Gg hh ii jj kk."]);
    }

    #[test]
    fn a_megabyte_without_a_break_is_cut_all_the_same() {
        let settings = settings(254, 64, 32);
        for text in ["x".repeat(1 << 20), "字".repeat(1 << 18), "👩‍🚀".repeat(1 << 16)] {
            check(&text, &settings, &Words).unwrap();
            check(&text, &settings, &Chars).unwrap();
            let longest = chunk(&text, &settings, &Words).iter().map(|c| c.range.len()).max();
            assert!(longest.unwrap() <= 254 * 128, "{longest:?}");
        }
    }

    #[test]
    fn a_megabyte_of_empty_lines_takes_no_time() {
        let text = format!("a{}b", "\n".repeat(1 << 20));
        let begin = Instant::now();
        check(&text, &settings(254, 64, 32), &Chars).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn values_that_cannot_be_meant_are_refused() {
        let refused = |max, min, overlap| settings(max, min, overlap).validate().unwrap_err().key;
        assert_eq!(Settings::default().validate(), Ok(()));
        assert_eq!(refused(0, 1, 0), "max_tokens");
        assert_eq!(refused(64, 65, 0), "min_tokens");
        assert_eq!(refused(64, 0, 0), "min_tokens");
        assert_eq!(refused(64, 8, 33), "overlap_tokens");
    }

    proptest! {
        #[test]
        fn no_text_is_lost_and_no_chunk_too_long(
            text in "([a-zé]{1,9}|[字世界]{1,4}|👩‍🚀|[ \n.!#`\t-]{1,3}|\n\n|\n# |\\PC){0,80}",
            max in 8_usize..30, min in 1_usize..12, overlap in 0_usize..12,
        ) {
            let settings = settings(max, min.min(max), overlap.min(max / 2));
            check(&text, &settings, &Words)?;
            check(&text, &settings, &Chars)?;
            check(&text, &settings, &Blind)?;
        }
    }
}

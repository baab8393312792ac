//! Where a text breaks: headings, paragraphs, sentences, lines, words.

use std::iter::Peekable;

use unicode_segmentation::UnicodeSegmentation;

use super::{sentences, words};

/// How good a place is to cut, from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Break {
    /// Within a word.
    None,
    /// Between words.
    Word,
    /// At the end of a line that is not the end of a sentence: hard-wrapped
    /// prose, items of a list, code.
    Line,
    /// Between sentences, by the Unicode rules (UAX #29).
    Sentence,
    /// At an empty line.
    Paragraph,
    /// Before a Markdown heading (`# …`), outside code fences.
    Heading,
}

/// What lies before a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    /// How good a place to cut it is.
    pub strength: Break,
    /// The byte to cut at.
    pub cut: usize,
}

/// Longest token in bytes. A tokenizer may take any run without white space
/// for one unknown token; it is counted as several, so that a chunk's size in
/// bytes is bounded too.
const LONGEST_TOKEN: usize = 128;

/// `spans` with those longer than [`LONGEST_TOKEN`] split at characters, with
/// text of that length that the tokenizer left out, and without the white
/// space that byte-level tokenizers put before a word. Spans that do not lie
/// in `text`, on character boundaries and in order, are left out.
pub(super) fn bounded(text: &str, spans: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let mut bounded = Vec::with_capacity(spans.len());
    let mut done = 0;
    for (start, end) in spans {
        let start = start.max(done);
        if start < end && text.get(start..end).is_some() {
            push_unknown(&mut bounded, text, done, start);
            push_pieces(&mut bounded, text, start, end);
            done = end;
        }
    }
    push_unknown(&mut bounded, text, done, text.len());
    bounded
}

/// Text between two tokens, such as emoji that the tokenizer does not know.
fn push_unknown(spans: &mut Vec<(usize, usize)>, text: &str, start: usize, end: usize) {
    let part = text.get(start..end).unwrap_or_default();
    if part.trim().len() > LONGEST_TOKEN {
        push_pieces(spans, text, start, start + part.trim_end().len());
    }
}

/// The token less the white space before it, in pieces.
fn push_pieces(spans: &mut Vec<(usize, usize)>, text: &str, start: usize, end: usize) {
    let token = text.get(start..end).unwrap_or_default();
    let visible = Some(token.trim_start().len()).filter(|len| *len > 0);
    let mut at = end - visible.unwrap_or(token.len());
    while end - at > LONGEST_TOKEN {
        let next = text.floor_char_boundary(at + LONGEST_TOKEN);
        spans.push((at, next));
        at = next;
    }
    spans.push((at, end));
}

/// One gap before each token.
pub(super) fn gaps(text: &str, spans: &[(usize, usize)]) -> Vec<Gap> {
    let mut breaks = breaks(text).into_iter().peekable();
    let mut before = 0;
    spans
        .iter()
        .map(|&(start, end)| {
            let gap = gap(text, &mut breaks, before, start);
            before = end;
            gap
        })
        .collect()
}

/// The strongest break from byte `before`, where the token before ended, to
/// byte `start`, where the next begins.
fn gap(
    text: &str,
    breaks: &mut Peekable<impl Iterator<Item = (usize, Break)>>,
    before: usize,
    start: usize,
) -> Gap {
    let spaced = text.get(before..start).is_some_and(|between| between.contains(char::is_whitespace));
    let mut gap = Gap { strength: if spaced { Break::Word } else { Break::None }, cut: start };
    while let Some((cut, strength)) = breaks.next_if(|(cut, _)| *cut <= start) {
        if cut >= before && strength > gap.strength {
            gap = Gap { strength, cut };
        }
    }
    gap
}

/// Every break of a text above [`Break::None`] by the byte it lies before, in
/// order.
fn breaks(text: &str) -> Vec<(usize, Break)> {
    let mut breaks = line_breaks(text);
    // Looking back from each of a million empty lines would take for ever:
    // those begin no sentence here.
    breaks.extend(sentences::starts(text).filter_map(|at| sentence_break(text, at)));
    breaks.extend(foreign_words(text).filter_map(|(at, word)| word_break(text, at, word)));
    breaks.sort_unstable();
    breaks
}

/// UAX #29 ends a sentence at every line end; here only where the line ends
/// as a sentence does.
fn sentence_break(text: &str, at: usize) -> Option<(usize, Break)> {
    let before = text.get(..at)?;
    let said = before.trim_end();
    let wrapped = before.get(said.len()..)?.contains('\n');
    let ended = said
        .trim_end_matches(['"', '\'', '”', '’', '»', ')', ']', '*', '_', '`'])
        .ends_with(['.', '!', '?', ':', '…', '。', '！', '？', '।', '؟']);
    (at > 0 && (!wrapped || ended)).then_some((at, Break::Sentence))
}

/// What lies between the word bounds of the parts that are not ASCII.
fn foreign_words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let foreign = words::parts(text).filter(|part| !part.is_ascii);
    foreign.flat_map(|part| part.text.split_word_bound_indices().map(move |(at, word)| (part.at + at, word)))
}

/// Where scripts without spaces, and punctuation, let words part.
fn word_break(text: &str, at: usize, word: &str) -> Option<(usize, Break)> {
    let opens = word.starts_with(|c: char| !c.is_ascii() && c.is_alphanumeric());
    let after_plain = text.get(..at)?.ends_with(|c: char| !c.is_ascii_graphic());
    (at > 0 && opens && after_plain).then_some((at, Break::Word))
}

fn line_breaks(text: &str) -> Vec<(usize, Break)> {
    let mut breaks = Vec::new();
    let (mut at, mut blank, mut fenced) = (0, false, false);
    for line in text.split_inclusive('\n') {
        let content = line.trim();
        if !content.is_empty() {
            let strength = match (blank, fenced) {
                (_, false) if is_heading(line) => Break::Heading,
                (true, _) => Break::Paragraph,
                (false, _) => Break::Line,
            };
            if at > 0 {
                breaks.push((at, strength));
            }
            fenced ^= content.starts_with("```") || content.starts_with("~~~");
        }
        blank = content.is_empty();
        at += line.len();
    }
    breaks
}

/// An ATX heading: up to three spaces, one to six `#`, then a space.
fn is_heading(line: &str) -> bool {
    let hashes = line.trim_start_matches(' ');
    let title = hashes.trim_start_matches('#');
    line.len() - hashes.len() <= 3
        && (1..=6).contains(&(hashes.len() - title.len()))
        && title.starts_with([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strengths(text: &str) -> Vec<(Break, &str)> {
        let spans: Vec<_> = text.unicode_word_indices().map(|(at, w)| (at, at + w.len())).collect();
        gaps(text, &spans)
            .iter()
            .zip(&spans)
            .map(|(gap, &(start, end))| (gap.strength, &text[start..end]))
            .collect()
    }

    #[test]
    fn each_kind_of_break_is_seen() {
        use Break::*;
        assert_eq!(
            strengths("One two. Three\nfour.\nFive\n\nsix\n\n## Seven"),
            [
                (None, "One"),
                (Word, "two"),
                (Sentence, "Three"),
                (Line, "four"),
                (Sentence, "Five"),
                (Paragraph, "six"),
                (Heading, "Seven")
            ]
        );
    }

    #[test]
    fn a_heading_takes_its_marks_along() {
        let text = "One\n## Two";
        assert_eq!(gaps(text, &[(0, 3), (7, 10)])[1], Gap { strength: Break::Heading, cut: 4 });
    }

    #[test]
    fn a_comment_in_code_and_a_hashtag_are_no_headings() {
        let inside = strengths("a\n```\n# b\n```\n# c\n#d");
        assert_eq!(
            inside,
            [(Break::None, "a"), (Break::Line, "b"), (Break::Heading, "c"), (Break::Line, "d")]
        );
    }

    #[test]
    fn words_without_spaces_part_too() {
        let text = "世界你好";
        let spans: Vec<_> = text.char_indices().map(|(at, c)| (at, at + c.len_utf8())).collect();
        assert!(gaps(text, &spans).iter().skip(1).all(|gap| gap.strength == Break::Word));
    }

    #[test]
    fn a_token_without_end_is_counted_as_several() {
        let text = "é".repeat(500);
        let spans = bounded(&text, vec![(0, 1_000)]);
        assert_eq!(spans.len(), 8);
        assert!(spans.iter().all(|(a, b)| b - a <= LONGEST_TOKEN && text.is_char_boundary(*b)));
        assert_eq!(spans.last().map(|s| s.1), Some(1_000));
    }

    #[test]
    fn long_text_without_tokens_is_counted_too() {
        let text = format!("a {} b", "🚀".repeat(64));
        let end = text.len();
        assert_eq!(
            bounded(&text, vec![(0, 1), (end - 1, end)]),
            [(0, 1), (2, 130), (130, 258), (end - 1, end)]
        );
        assert_eq!(bounded("a 🚀 b", vec![(0, 1), (7, 8)]), [(0, 1), (7, 8)]);
    }

    #[test]
    fn spans_that_cannot_be_are_left_out() {
        assert_eq!(bounded("aé", vec![(0, 2), (0, 1), (0, 1), (1, 9)]), [(0, 1)]);
    }
}

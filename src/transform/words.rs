//! Words by the Unicode rules (UAX #29), fast where a text is mostly ASCII.
//!
//! The rules are simple among ASCII characters. One `µ` in a long document
//! would take the short way from all of it; so the text is first parted where
//! no rule looks across: between a space and an ASCII character that is none.

use std::iter;

use unicode_segmentation::{UWordBoundIndices, UnicodeSegmentation};

/// The words of `text` and the bytes they begin at, as
/// [`UnicodeSegmentation::unicode_word_indices`] gives them.
pub fn word_indices(text: &str) -> impl Iterator<Item = (usize, &str)> {
    WordIndices { text, at: 0, plain: 0, foreign: None }
}

struct WordIndices<'t> {
    text: &'t str,
    /// Where the next word is looked for.
    at: usize,
    /// Where the ASCII part ends that `at` is in.
    plain: usize,
    /// The rest of the part before `at`, and where that part begins.
    foreign: Option<(usize, UWordBoundIndices<'t>)>,
}

impl<'t> Iterator for WordIndices<'t> {
    type Item = (usize, &'t str);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((start, words)) = &mut self.foreign {
                if let Some((at, word)) = words.find(|(_, word)| word.contains(char::is_alphanumeric)) {
                    return Some((*start + at, word));
                }
                self.foreign = None;
            }
            let plain = self.text.as_bytes().get(..self.plain)?;
            if let Some((start, end)) = ascii_word(plain, self.at) {
                self.at = end;
                return Some((start, self.text.get(start..end)?));
            }
            let (start, rest) = (self.plain, self.text.as_bytes().get(self.plain..)?);
            if rest.is_empty() {
                return None;
            }
            let (length, is_ascii) = part_len(rest);
            self.plain = start + length;
            self.at = self.plain;
            if is_ascii {
                self.at = start;
            } else {
                let part = self.text.get(start..self.plain)?;
                self.foreign = Some((start, part.split_word_bound_indices()));
            }
        }
    }
}

/// Where the first word at `from` or after it begins and ends, in a part that
/// is ASCII from there on.
fn ascii_word(plain: &[u8], mut from: usize) -> Option<(usize, usize)> {
    loop {
        let start = from + plain.get(from..)?.iter().position(|byte| is_core(*byte))?;
        let (mut end, mut solid) = (start, false);
        let mut before = 0;
        while let Some(&byte) = plain.get(end) {
            if !is_core(byte) && !plain.get(end + 1).is_some_and(|next| joins(byte, before, *next)) {
                break;
            }
            solid |= byte.is_ascii_alphanumeric();
            before = byte;
            end += 1;
        }
        if solid {
            return Some((start, end));
        }
        from = end;
    }
}

/// Whether `byte` is part of a word whatever stands beside it: ALetter,
/// Numeric and ExtendNumLet.
fn is_core(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Whether `byte` joins what stands before and after it into one word, as in
/// `3.14` and `isn't`: rules WB6, WB7, WB11 and WB12.
fn joins(byte: u8, before: u8, after: u8) -> bool {
    match byte {
        b'.' | b'\'' => {
            before.is_ascii_alphabetic() && after.is_ascii_alphabetic()
                || before.is_ascii_digit() && after.is_ascii_digit()
        }
        b':' => before.is_ascii_alphabetic() && after.is_ascii_alphabetic(),
        b',' | b';' => before.is_ascii_digit() && after.is_ascii_digit(),
        _ => false,
    }
}

/// The first bytes of `word` as a number. Pairs of it and the word are in the
/// order of the words, and mostly need one comparison of numbers.
pub fn beginning(word: &str) -> u64 {
    let mut first = [0; 8];
    first.iter_mut().zip(word.bytes()).for_each(|(place, byte)| *place = byte);
    u64::from_be_bytes(first)
}

/// The runs of letters and digits of a text that is ASCII.
pub fn ascii_runs(text: &str) -> impl Iterator<Item = &str> {
    let (bytes, mut at) = (text.as_bytes(), 0);
    iter::from_fn(move || {
        let start = at + bytes.get(at..)?.iter().position(u8::is_ascii_alphanumeric)?;
        let rest = bytes.get(start..)?;
        at = start + rest.iter().position(|byte| !byte.is_ascii_alphanumeric()).unwrap_or(rest.len());
        text.get(start..at)
    })
}

/// `text` in parts that hold the same words alone as together. A part is
/// either ASCII or as short as can be around what is not.
pub fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut at = 0;
    iter::from_fn(move || {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        let (length, is_ascii) = part_len(rest.as_bytes());
        let part = Part { at, text: rest.get(..length)?, is_ascii };
        at += length;
        Some(part)
    })
}

/// A part of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'t> {
    /// The byte it begins at.
    pub at: usize,
    /// What it holds.
    pub text: &'t str,
    /// Whether all of that is ASCII.
    pub is_ascii: bool,
}

/// Bytes of the first part of a text that is not empty, and whether they are
/// ASCII.
fn part_len(text: &[u8]) -> (usize, bool) {
    let foreign = first_foreign(text);
    if foreign == text.len() {
        return (foreign, true);
    }
    let (plain, rest) = text.split_at(foreign);
    let parted = |pair: &[u8]| matches!(pair, [b' ', next] if next.is_ascii() && *next != b' ');
    match plain.windows(2).rposition(parted) {
        Some(space) => (space + 1, true),
        None => (rest.windows(2).position(parted).map_or(text.len(), |space| foreign + space + 1), false),
    }
}

/// The first byte that is not ASCII, or the end.
fn first_foreign(text: &[u8]) -> usize {
    // Whole blocks are looked at faster than bytes.
    let plain = text.chunks(64).take_while(|block| block.is_ascii()).map(<[u8]>::len).sum();
    let rest = text.get(plain..).unwrap_or_default();
    plain + rest.iter().take_while(|byte| byte.is_ascii()).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_near_other_scripts_is_not_plain() {
        let texts: Vec<&str> = parts("ten µg a day, 東 京 or so, naïve").map(|part| part.text).collect();
        assert_eq!(texts, ["ten µg ", "a ", "day, 東 京 ", "or so, ", "naïve"]);
        assert_eq!(parts("").count(), 0);
    }

    proptest! {
        #[test]
        fn beginnings_are_in_the_order_of_words(a in "[a\0b]{0,10}", b in "[a\0b]{0,10}") {
            prop_assert_eq!((beginning(&a), &a).cmp(&(beginning(&b), &b)), a.cmp(&b));
        }

        #[test]
        fn runs_are_what_lies_between_other_characters(text in "[aB7_., '-]{0,20}") {
            let expected = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|run| !run.is_empty());
            prop_assert!(ascii_runs(&text).eq(expected));
        }

        #[test]
        fn the_words_are_those_of_the_whole_text(text in text()) {
            let words: Vec<_> = word_indices(&text).collect();
            prop_assert_eq!(words, text.unicode_word_indices().collect::<Vec<_>>());
            let mut joined = String::new();
            for part in parts(&text) {
                prop_assert_eq!((part.at, part.is_ascii), (joined.len(), part.text.is_ascii()));
                joined.push_str(part.text);
            }
            prop_assert_eq!(joined, text);
        }
    }

    /// Characters that the rules treat differently, spaces above all.
    fn text() -> impl Strategy<Value = String> {
        let common = vec![' ', ' ', ' ', 'a', 'B', '7', '.', ',', ';', '\'', '_', ':', '\n', '\r', '-', '"'];
        let rare = vec![
            'µ',
            'é',
            '\u{301}',
            '\u{93e}',
            '\u{200d}',
            '\u{ad}',
            'カ',
            '東',
            'א',
            '\u{1f1e9}',
            '\u{1f30a}',
            '\u{a0}',
            '\u{2003}',
            '\u{2028}',
            '٣',
        ];
        let character = prop_oneof![3 => prop::sample::select(common), 1 => prop::sample::select(rare)];
        prop::collection::vec(character, 0..40).prop_map(|chars| chars.into_iter().collect())
    }
}

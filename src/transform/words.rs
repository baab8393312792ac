//! Words by the Unicode rules (UAX #29), fast where a text is mostly ASCII.
//!
//! The rules are simple among ASCII characters, and `unicode_segmentation`
//! takes a short way through a text that holds nothing else. One `µ` in a long
//! document would take that way from all of it; so the text is first parted
//! where no rule looks across: between a space and an ASCII character that is none.

use std::iter;

use unicode_segmentation::UnicodeSegmentation;

/// The words of `text` and the bytes they begin at, as
/// [`UnicodeSegmentation::unicode_word_indices`] gives them.
pub fn word_indices(text: &str) -> impl Iterator<Item = (usize, &str)> {
    parts(text).flat_map(|(at, part)| part.unicode_word_indices().map(move |(i, word)| (at + i, word)))
}

/// `text` in parts that hold the same words alone as together. A part is
/// either ASCII or as short as can be around what is not.
pub fn parts(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    iter::from_fn(move || {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        let part = rest.get(..part_len(rest.as_bytes()))?;
        at += part.len();
        Some((at - part.len(), part))
    })
}

/// Bytes of the first part of a text that is not empty.
fn part_len(text: &[u8]) -> usize {
    let Some(foreign) = text.iter().position(|byte| !byte.is_ascii()) else { return text.len() };
    let (plain, rest) = text.split_at(foreign);
    let parted = |pair: &[u8]| matches!(pair, [b' ', next] if next.is_ascii() && *next != b' ');
    match plain.windows(2).rposition(parted) {
        Some(space) => space + 1,
        None => rest.windows(2).position(parted).map_or(text.len(), |space| foreign + space + 1),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_what_is_near_other_scripts_is_not_plain() {
        let texts: Vec<&str> = parts("ten µg a day, 東 京 or so, naïve").map(|(_, part)| part).collect();
        assert_eq!(texts, ["ten µg ", "a ", "day, 東 京 ", "or so, ", "naïve"]);
        assert_eq!(parts("").count(), 0);
    }

    proptest! {
        #[test]
        fn the_words_are_those_of_the_whole_text(text in text()) {
            let words: Vec<_> = word_indices(&text).collect();
            prop_assert_eq!(words, text.unicode_word_indices().collect::<Vec<_>>());
            prop_assert_eq!(parts(&text).map(|(_, part)| part).collect::<String>(), text);
        }
    }

    /// Characters that the rules treat differently, spaces above all.
    fn text() -> impl Strategy<Value = String> {
        let common = vec![' ', ' ', ' ', 'a', 'B', '7', '.', ',', '\'', '_', ':', '\n', '\r', '-', '"'];
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

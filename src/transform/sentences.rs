//! Where sentences begin by the Unicode rules (UAX #29), fast where a text is
//! mostly ASCII.
//!
//! A line end always ends a sentence, so each line is looked at alone. Among
//! ASCII characters only `.`, `!` and `?` can end one within a line, and no
//! rule looks back further than one ASCII character before the first of them;
//! so the rules are applied from there on, or from the first other character,
//! and not to what lies before.

use std::iter;

use unicode_segmentation::UnicodeSegmentation;

/// The bytes of `text` at which a sentence begins that is not blank.
pub(super) fn starts(text: &str) -> impl Iterator<Item = usize> {
    let mut at = 0;
    let lines = text.split_inclusive('\n').map(move |line| {
        at += line.len();
        (at - line.len(), line)
    });
    let written = lines.filter(|(_, line)| !line.trim_start().is_empty());
    written.flat_map(|(at, line)| {
        let (whole, parted) = if line.contains(LINE_ENDS) { ("", line) } else { (line, "") };
        let first = (!whole.is_empty()).then_some(0);
        first.into_iter().chain(later_of(whole)).chain(all_of(parted)).map(move |start| at + start)
    })
}

/// What ends a sentence as a line feed does. Between two of them there may be
/// nothing but white space.
const LINE_ENDS: [char; 4] = ['\r', '\u{85}', '\u{2028}', '\u{2029}'];

/// Where sentences begin in a line without [`LINE_ENDS`], but for the first.
fn later_of(line: &str) -> impl Iterator<Item = usize> {
    let mut from = 0;
    iter::from_fn(move || {
        let rest = line.get(from..)?;
        let telling = rest.find(|c: char| matches!(c, '.' | '!' | '?') || !c.is_ascii())?;
        let before = from + telling.saturating_sub(1);
        let (start, _) = line.get(before..)?.split_sentence_bound_indices().nth(1)?;
        from = before + start;
        Some(from)
    })
}

/// Where sentences begin in a line of any kind. (The iterator's own
/// `size_hint` must not be asked: it takes 1 from 0.)
fn all_of(line: &str) -> impl Iterator<Item = usize> {
    let mut sentences = line.split_sentence_bound_indices();
    iter::from_fn(move || sentences.find(|(_, sentence)| !sentence.trim_start().is_empty()).map(|(at, _)| at))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn abbreviations_and_numbers_end_no_sentence() {
        let text = "Take 3.5 mg, e.g. daily. Then stop! \"Why?\" he asked.\n\nNext line";
        let sentences: Vec<usize> = starts(text).collect();
        assert_eq!(sentences, [0, 25, 36, 43, 54]);
    }

    proptest! {
        #[test]
        fn the_starts_are_those_of_the_whole_text(text in text()) {
            let expected: Vec<usize> = text
                .split_sentence_bound_indices()
                .filter(|(_, sentence)| !sentence.trim_start().is_empty())
                .map(|(at, _)| at)
                .collect();
            prop_assert_eq!(starts(&text).collect::<Vec<_>>(), expected);
        }
    }

    /// Characters that the rules treat differently, ends of sentences above
    /// all; many texts are ASCII.
    fn text() -> impl Strategy<Value = String> {
        let plain = vec![
            '.', '.', '!', '?', ' ', ' ', 'a', 'B', '7', ',', ';', ':', '-', '\'', '"', ')', '(', '#', '\n',
            '\t', '\u{b}',
        ];
        let rare =
            vec!['é', '\u{301}', '。', '東', '\u{85}', '\u{2028}', '\r', '»', '\u{a0}', '\u{200d}', '…'];
        let of = |characters| prop::collection::vec(prop::sample::select(characters), 0..40);
        let mixed = [plain.clone(), plain.clone(), rare].concat();
        prop_oneof![of(plain), of(mixed)].prop_map(|chars| chars.into_iter().collect())
    }
}

//! Where sentences begin by the Unicode rules (UAX #29), fast where a text is
//! mostly ASCII.
//!
//! A line end always ends a sentence, so each line is looked at alone. Within
//! one only what may end a sentence is looked at, and what stands around it:
//! among ASCII characters `.`, `!` and `?`. As soon as another character could
//! have a say the rules are applied in full, from an ASCII character that is
//! none of these, or that begins a sentence: no rule looks back further.

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
        let is_odd = |byte: u8| byte == b'\r' || !byte.is_ascii();
        let is_parted = line.bytes().any(is_odd) && line.contains(LINE_ENDS);
        let (whole, parted) = if is_parted { ("", line) } else { (line, "") };
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
        from = next_start(line, from)?;
        Some(from)
    })
}

/// Where the sentence after the one at `from` begins.
fn next_start(line: &str, from: usize) -> Option<usize> {
    let bytes = line.as_bytes();
    let mut at = from;
    loop {
        at += bytes
            .get(at..)?
            .iter()
            .position(|byte| matches!(byte, b'.' | b'!' | b'?') || !byte.is_ascii())?;
        let rest = line.get(at..)?;
        let passed = match rest.chars().next()? {
            c if c.is_ascii() => after_mark(bytes, from, at),
            c if is_indifferent(c) => Verdict::Goes(at + c.len_utf8()),
            _ => Verdict::Unclear,
        };
        match passed {
            Verdict::Goes(on) => at = on,
            Verdict::Begins(start) => return Some(start),
            Verdict::Ends => return None,
            Verdict::Unclear => {
                let foreign = bytes.get(from..at)?.iter().rev().take_while(|byte| !byte.is_ascii()).count();
                let before = from.max((at - foreign).saturating_sub(1));
                let (start, _) = line.get(before..)?.split_sentence_bound_indices().nth(1)?;
                return Some(before + start);
            }
        }
    }
}

/// What the rules say of a character that may end a sentence.
enum Verdict {
    /// It does not; the next that may is here or after it.
    Goes(usize),
    /// The next sentence begins here.
    Begins(usize),
    /// None begins after it.
    Ends,
    /// Characters decide that are not ASCII.
    Unclear,
}

/// What the rules say of the mark at `at`, in the sentence that begins at
/// `from`.
fn after_mark(line: &[u8], from: usize, at: usize) -> Verdict {
    let is = |at: usize, what: fn(u8) -> bool| line.get(at).is_some_and(|byte| what(*byte));
    let before = line.get(from..at).and_then(<[u8]>::last).copied().unwrap_or(b' ');
    if !before.is_ascii() {
        return Verdict::Unclear;
    }
    let skip = |from: usize, what: fn(u8) -> bool| (from..).find(|at| !is(*at, what)).unwrap_or(line.len());
    let closed = skip(at + 1, |byte| matches!(byte, b'"' | b'\'' | b'(' | b')' | b'[' | b']' | b'{' | b'}'));
    let next = skip(closed, |byte| matches!(byte, b' ' | b'\t' | 0xb | 0xc));
    let Some(&follows) = line.get(next) else { return Verdict::Ends };
    let is_period = line.get(at) == Some(&b'.');
    let stands_alone = next > at + 1;
    match follows {
        b'\n' => return Verdict::Ends,
        foreign if !foreign.is_ascii() => return Verdict::Unclear,
        // SB6
        digit if digit.is_ascii_digit() && is_period && !stands_alone => return Verdict::Goes(next),
        // SB7
        upper if upper.is_ascii_uppercase() && is_period && !stands_alone && before.is_ascii_alphabetic() => {
            return Verdict::Goes(next);
        }
        // SB8a
        b',' | b'-' | b':' | b';' | b'.' | b'!' | b'?' => return Verdict::Goes(next),
        _ => {}
    }
    if is_period {
        // SB8
        let telling = |byte: &u8| {
            byte.is_ascii_alphabetic() || matches!(byte, b'.' | b'!' | b'?' | b'\n') || !byte.is_ascii()
        };
        match line.get(next..).unwrap_or_default().iter().find(|byte| telling(byte)) {
            Some(byte) if byte.is_ascii_lowercase() => return Verdict::Goes(next),
            Some(byte) if !byte.is_ascii() => return Verdict::Unclear,
            _ => {}
        }
    }
    // SB11
    Verdict::Begins(next)
}

/// Whether a character that is not ASCII is known to neither end a sentence
/// nor part lines: letters and marks of Europe, dashes, arrows, signs of
/// mathematics.
fn is_indifferent(c: char) -> bool {
    matches!(c, '\u{a0}'..='\u{588}' | '\u{2010}'..='\u{2023}' | '\u{2070}'..='\u{2bff}')
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

    /// The rules change with Unicode: whoever ends a sentence one day must not
    /// be passed over.
    #[test]
    fn what_is_indifferent_ends_no_sentence_and_no_line() {
        for c in (0..0x3000).filter_map(char::from_u32).filter(|c| is_indifferent(*c)) {
            let text = format!("a{c} B {c}{c}c");
            assert_eq!(text.split_sentence_bounds().count(), 1, "{c:?}");
        }
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
        let rare = vec![
            'é', 'É', 'µ', '–', '’', '≥', '\u{301}', '。', '東', '\u{85}', '\u{2028}', '\r', '»', '\u{a0}',
            '\u{ad}', '\u{200d}', '…', '‼', '\u{589}', '\u{6d4}',
        ];
        let of = |characters| prop::collection::vec(prop::sample::select(characters), 0..40);
        let mixed = [plain.clone(), plain.clone(), rare].concat();
        let some =
            [plain.clone(), plain.clone(), plain.clone(), vec!['é', 'µ', '–', '’', '\u{301}']].concat();
        prop_oneof![of(plain), of(some), of(mixed)].prop_map(|chars| chars.into_iter().collect())
    }
}

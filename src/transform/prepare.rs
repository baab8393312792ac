//! Canonical text: the one form of a text that is judged, hashed and embedded.
//!
//! The same words typed on two machines can differ in bytes: composed or
//! decomposed accents, CRLF or LF, a byte order mark. Deduplication and the
//! embedding cache compare bytes, so the difference is taken away first:
//!
//! 1. Line ends (CR LF, CR, VT, FF, NEL) become LF. Dropping them as the other
//!    control characters are dropped would join the words around them.
//! 2. Control characters other than LF and TAB, and byte order marks, go.
//! 3. Unicode normalisation form C (UAX #15).
//! 4. White space at both ends goes. This comes last: parts of a text in form
//!    C are in form C, so the result is a fixed point.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

/// The canonical form of `text`. Borrowed where `text` is canonical but for
/// white space at its ends. Idempotent.
pub fn canonical(text: &str) -> Cow<'_, str> {
    if text.chars().all(keeps) {
        match is_nfc_quick(text.chars()) {
            IsNormalized::Yes => Cow::Borrowed(text.trim()),
            IsNormalized::No | IsNormalized::Maybe => Cow::Owned(normalised(text.chars())),
        }
    } else {
        Cow::Owned(normalised(unified(text)))
    }
}

fn normalised(chars: impl Iterator<Item = char>) -> String {
    let text: String = chars.nfc().collect();
    let trimmed = text.trim();
    if trimmed.len() == text.len() { text } else { trimmed.to_owned() }
}

fn keeps(c: char) -> bool {
    c == '\n' || c == '\t' || !(c.is_control() || c == BYTE_ORDER_MARK)
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Steps 1 and 2.
fn unified(text: &str) -> impl Iterator<Item = char> {
    let mut after_cr = false;
    text.chars().filter_map(move |c| {
        let ends_crlf = after_cr && c == '\n';
        after_cr = c == '\r';
        match c {
            '\n' if ends_crlf => None,
            '\r' | '\u{b}' | '\u{c}' | '\u{85}' => Some('\n'),
            c => keeps(c).then_some(c),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_text_has_one_form() {
        assert_eq!(canonical("cafe\u{301}\r\n"), "café");
        assert_eq!(canonical("\u{feff}a\u{0}b\u{1b}[0m"), "ab[0m");
        assert_eq!(canonical("one\rtwo\r\n\r\nthree\u{c}four"), "one\ntwo\n\nthree\nfour");
        assert_eq!(canonical(" \t\n "), "");
    }

    #[test]
    fn a_removed_control_character_lets_an_accent_join_its_letter() {
        assert_eq!(canonical("e\u{0}\u{301}"), "é");
    }

    #[test]
    fn canonical_text_is_not_copied() {
        assert!(matches!(canonical("  naïve\n\tcode  "), Cow::Borrowed("naïve\n\tcode")));
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_a_fixed_point(text in "(\\PC|\\p{M}|\\p{Cc}|\u{feff}|[\r\n\t ]|\u{2000}){0,24}") {
            let once = canonical(&text).into_owned();
            prop_assert_eq!(canonical(&once), once.as_str());
            prop_assert!(once.chars().all(keeps));
        }
    }
}

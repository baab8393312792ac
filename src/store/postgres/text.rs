//! Texts as PostgreSQL can hold them.
//!
//! It knows no U+0000. So that two tenants whose names differ only in one stay
//! two, and every text comes back as it was sent, U+0000 is stored as U+FDD0
//! `0` and U+FDD0, a code point that Unicode never assigns, as U+FDD0 `1`.

use std::borrow::Cow;

const ESCAPE: char = '\u{fdd0}';
/// The first byte of [`ESCAPE`].
const ESCAPE_BYTE: u8 = 0xef;

/// A text, to be stored.
pub(super) fn stored(text: &str) -> Cow<'_, str> {
    if memchr::memchr2(0, ESCAPE_BYTE, text.as_bytes()).is_none() || !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    let mut stored = String::with_capacity(text.len() + 4);
    for c in text.chars() {
        match c {
            '\0' => stored.extend([ESCAPE, '0']),
            ESCAPE => stored.extend([ESCAPE, '1']),
            c => stored.push(c),
        }
    }
    Cow::Owned(stored)
}

/// A stored text as it was sent.
pub(super) fn original(stored: String) -> String {
    if !stored.contains(ESCAPE) {
        return stored;
    }
    let mut original = String::with_capacity(stored.len());
    let mut chars = stored.chars();
    while let Some(c) = chars.next() {
        match c {
            ESCAPE => original.push(if chars.next() == Some('0') { '\0' } else { ESCAPE }),
            c => original.push(c),
        }
    }
    original
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_text_comes_back_and_no_two_become_one(a in text(), b in text()) {
            let (kept, other) = (stored(&a).into_owned(), stored(&b).into_owned());
            prop_assert!(!kept.contains('\0'));
            prop_assert_eq!(kept == other, a == b);
            prop_assert_eq!(original(kept), a);
        }
    }

    fn text() -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!['\0', ESCAPE, '0', '1', 'é', '🌊']), 0..6)
            .prop_map(String::from_iter)
    }
}

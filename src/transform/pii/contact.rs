//! E-mail addresses and phone numbers.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;

use super::{Candidate, digits, is_digit, matches, matches_among};

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static EMAIL: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[\w.!#$%&'*+/=?^`{|}~-]*\w@(?:\w(?:[\w-]*\w)?\.)+\p{L}{2,}").unwrap());

/// E-mail addresses, international ones too (RFC 6531). The domain needs a
/// dot and ends in letters.
pub(super) fn emails(text: &str) -> Vec<Range<usize>> {
    if memchr::memchr(b'@', text.as_bytes()).is_none() {
        return Vec::new();
    }
    matches(text, &EMAIL, |email| Some(email.end()))
}

/// Formats that a number has to itself. Country code, or area code set off
/// from the rest; an extension may follow.
#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static FORMATTED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?x-u)
        (?: \+[1-9]\d{0,2} [\x20.-]? (?: \(\d{1,4}\) [\x20.-]? )? \d{1,8} (?: [\x20./-]? \d{2,8} ){1,5}   # +44 20 7946 0958
          | 00[1-9]\d{0,2} (?: [\x20.-] \d{1,5} ){2,5}                                              # 0044 20 7946 0958
          | (?: 1[\x20.-] )? (?: \(\d{3}\) [\x20-]? | \d{3} [.-] ) \d{3} [.-] \d{4}                 # (555) 123-4567
          | \( 0?\d{2,4} \) \x20? \d{3,4} [\x20-] \d{3,4}                                           # (020) 7946 0958
          | 0[1-9]\d{0,3} [\x20/-] \d{2,8} (?: [\x20-] \d{2,4} ){0,3}                               # 020 7946 0958
        ) (?: \x20? (?: x | ext\.? ) \x20? \d{1,6} )?",
    )
    .unwrap()
});

/// Digits as any phone number groups them: one only where words say so.
#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static PLAIN: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)\+?(?:\(\d{1,4}\)[ -]?)?\d{1,15}(?:[ ./-]\d{2,8}){0,5}(?: ?(?:x|ext\.?) ?\d{1,6})?")
        .unwrap()
});

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static WORDS_BEFORE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?xi) (?: \b (?: (?:tele)?phone | tel | mobile | cell (?:phone)? | fax | whatsapp | sms | dial | contact
            | call (?: ing | ed )? (?: \x20 (?: me | us | him | her | them ))? | telefon\w* | handy(?:nummer)?
            | t[ée]l[ée]phone | m[óo]vil | celular | cellulare | (?: my | your | his | her | our | their ) \x20 number )
        \b | ☎ | 📞 ) [^\d\n=(\[{]{0,16} $",
    )
    .unwrap()
});

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static WORDS_AFTER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)^[ (,-]{0,3}(?:(?:tele)?phone|tel|mobile|cell|fax|office|home)\b").unwrap()
});

/// Phone numbers with country or area code, and any number of 6 to 15 digits
/// that words call one.
pub(super) fn phones(text: &str) -> Vec<Range<usize>> {
    let may_hold = |bytes: &[u8]| digits(bytes) >= LEAST_DIGITS || digits(bytes) > 3 && bytes.contains(&b'x');
    let formatted = matches_among(text, (is_digit, is_of_phone), may_hold, &FORMATTED, formatted);
    let may_hold = |bytes: &[u8]| digits(bytes) >= LEAST_DIGITS_CALLED;
    union(formatted, matches_among(text, (is_digit, is_of_phone), may_hold, &PLAIN, called))
}

/// Fewest digits of a number without an extension.
const LEAST_DIGITS: usize = 8;
/// Fewest digits of a number that words call one.
const LEAST_DIGITS_CALLED: usize = 6;

/// Whether `byte` may be part of a number with its extension.
fn is_of_phone(byte: u8) -> bool {
    byte.is_ascii_digit()
        || matches!(byte, b' ' | b'.' | b'-' | b'/' | b'(' | b')' | b'+' | b'e' | b'x' | b't')
}

fn formatted(phone: &Candidate) -> Option<usize> {
    let digits = phone.digits();
    let extended = phone.as_str().contains('x');
    let plausible = (LEAST_DIGITS..=15).contains(&digits) || (extended && digits <= 21);
    (plausible && phone.stands_alone() && !is_list(phone) && !is_label(phone) && is_formatted(phone.as_str()))
        .then(|| phone.end())
}

fn called(phone: &Candidate) -> Option<usize> {
    let plausible = (LEAST_DIGITS_CALLED..=15).contains(&phone.digits()) && !is_date(phone.as_str());
    let called = || WORDS_BEFORE.is_match(phone.before(48)) || WORDS_AFTER.is_match(head(phone.after()));
    (plausible && phone.stands_alone() && called()).then(|| phone.end())
}

/// What a number of the given shape must also hold.
fn is_formatted(number: &str) -> bool {
    if !number.starts_with('0') || number.starts_with("00") {
        return true;
    }
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    // 01-02-2003 is a date, 05 12 34 a time, 03866-5005 a ZIP+4 code.
    let zip = number.len() == 10 && number.find('-') == Some(5);
    ((9..=11).contains(&digits) && !zip) || number.contains('x')
}

/// Numbers in a row: a dump, a table.
fn is_list(phone: &Candidate) -> bool {
    let next_to_digit = |mut chars: std::str::Chars| {
        chars.next() == Some(' ') && chars.next().is_some_and(|c| c.is_ascii_digit())
    };
    next_to_digit(phone.after().chars())
        || phone.before(2).as_bytes().ends_with(b" ")
            && phone.before(2).starts_with(|c: char| c.is_ascii_digit())
}

/// `0701/114930:` before a log line's text.
fn is_label(phone: &Candidate) -> bool {
    phone.after().starts_with(':')
}

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)^(?:\d{4}[./-]\d{1,2}[./-]\d{1,2}|\d{1,2}[./-]\d{1,2}[./-]\d{4})\b").unwrap()
});

fn is_date(number: &str) -> bool {
    DATE.is_match(number)
}

/// As much of `text` as a context word needs.
fn head(text: &str) -> &str {
    text.get(..text.floor_char_boundary(24)).unwrap_or(text)
}

/// Both lists in order, the longer of two that overlap.
fn union(mut a: Vec<Range<usize>>, b: Vec<Range<usize>>) -> Vec<Range<usize>> {
    a.extend(b);
    a.sort_unstable_by_key(|range| (range.start, std::cmp::Reverse(range.end)));
    a.dedup_by(|next, kept| {
        let overlaps = next.start < kept.end;
        if overlaps && next.len() > kept.len() {
            *kept = next.clone();
        }
        overlaps
    });
    a
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::numbers, *};

    proptest! {
        #[test]
        fn nothing_is_found_but_where_it_is_looked_for(text in numbers()) {
            let everywhere = union(matches(&text, &FORMATTED, formatted), matches(&text, &PLAIN, called));
            prop_assert_eq!(phones(&text), everywhere);
            prop_assert_eq!(emails(&text), matches(&text, &EMAIL, |email| Some(email.end())));
        }
    }
}

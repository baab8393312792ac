//! Numbers that name an account or a person, with their check digits.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;

use super::{Candidate, digits, is_digit, matches_among};

/// As written on cards: in one piece, in fours, or 4-6-5.
#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static CARD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)\d{4}[ -]\d{4}[ -]\d{4}[ -]\d{4}(?:[ -]\d{3})?|\d{4}[ -]\d{6}[ -]\d{5}|\d{13,19}")
        .unwrap()
});

/// Payment cards: issuer prefix, length for it, and the Luhn check digit
/// (ISO/IEC 7812-1).
pub(super) fn cards(text: &str) -> Vec<Range<usize>> {
    matches_among(text, (is_digit, is_of_number), |bytes| digits(bytes) >= 13, &CARD, card)
}

fn card(card: &Candidate) -> Option<usize> {
    let digits: Vec<u32> = card.as_str().chars().filter_map(|c| c.to_digit(10)).collect();
    (card.stands_alone() && is_issued(&digits) && passes_luhn(&digits)).then(|| card.end())
}

/// Whether `byte` may be part of a number in groups.
fn is_of_number(byte: u8) -> bool {
    byte.is_ascii_digit() || matches!(byte, b' ' | b'-')
}

fn is_issued(digits: &[u32]) -> bool {
    let prefix = digits.iter().take(4).fold(0, |n, d| 10 * n + d);
    match (prefix, digits.len()) {
        (4000..=4999, 13 | 16 | 19) => true,                        // Visa
        (5100..=5599 | 2221..=2720, 16) => true,                    // Mastercard
        (3400..=3499 | 3700..=3799, 15) => true,                    // American Express
        (6011 | 6440..=6599, 16..=19) => true,                      // Discover
        (3528..=3589, 16..=19) => true,                             // JCB
        (3000..=3059 | 3600..=3699 | 3800..=3999, 14..=19) => true, // Diners Club
        (6200..=6299, 16..=19) => true,                             // UnionPay
        (5018 | 5020 | 5038 | 5893 | 6304 | 6759 | 6761..=6763, 12..=19) => true, // Maestro
        _ => false,
    }
}

fn passes_luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, d)| match (i % 2, 2 * d) {
            (0, _) => *d,
            (_, doubled) if doubled > 9 => doubled - 9,
            (_, doubled) => doubled,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static IBAN_HEAD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?-u)[A-Za-z]{2}\d\d[ -]?[A-Za-z0-9]{4}").unwrap());

/// International bank account numbers (ISO 13616), in one piece or in
/// groups: the country's length and remainder 1 modulo 97.
pub(super) fn ibans(text: &str) -> Vec<Range<usize>> {
    let of = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b' ' | b'-');
    let may_hold = |bytes: &[u8]| {
        bytes.windows(4).any(|four| match four {
            [a, b, c, d] => {
                a.is_ascii_alphabetic() && b.is_ascii_alphabetic() && c.is_ascii_digit() && d.is_ascii_digit()
            }
            _ => false,
        })
    };
    matches_among(text, (is_digit, of), may_hold, &IBAN_HEAD, iban)
}

fn iban(head: &Candidate) -> Option<usize> {
    let joined = head.before(4).ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let country: String = head.as_str().chars().take(2).map(|c| c.to_ascii_uppercase()).collect();
    let (_, length) = IBAN_LENGTHS.iter().find(|(code, _)| *code == country)?;
    let (iban, len) = characters(head, *length)?;
    (!joined && remainder_97(&iban) == 1).then_some(head.range.start + len)
}

/// The first `count` letters and digits from the start of `head`, with single
/// spaces or hyphens between them, and the bytes they take up.
fn characters(head: &Candidate, count: usize) -> Option<(Vec<u8>, usize)> {
    let bytes = head.text.as_bytes().get(head.range.start..)?;
    let mut characters = Vec::with_capacity(count);
    let mut separated = false;
    for (i, byte) in bytes.iter().enumerate() {
        if characters.len() == count {
            return (!byte.is_ascii_alphanumeric()).then_some((characters, i));
        }
        match byte {
            b if b.is_ascii_alphanumeric() => characters.push(*b),
            b' ' | b'-' if !separated => {}
            _ => return None,
        }
        separated = !byte.is_ascii_alphanumeric();
    }
    (characters.len() == count).then_some((characters, bytes.len()))
}

/// Country and check digits moved to the end, letters as 10 to 35.
fn remainder_97(iban: &[u8]) -> u32 {
    let (head, account) = iban.split_at(iban.len().min(4));
    account.iter().chain(head).fold(0, |rest, byte| {
        let value = char::from(*byte).to_digit(36).unwrap_or(0);
        (rest * if value > 9 { 100 } else { 10 } + value) % 97
    })
}

#[rustfmt::skip]
const IBAN_LENGTHS: [(&str, usize); 79] = [
    ("AD", 24), ("AE", 23), ("AL", 28), ("AT", 20), ("AZ", 28), ("BA", 20), ("BE", 16), ("BG", 22), ("BH", 22),
    ("BI", 27), ("BR", 29), ("BY", 28), ("CH", 21), ("CR", 22), ("CY", 28), ("CZ", 24), ("DE", 22), ("DJ", 27),
    ("DK", 18), ("DO", 28), ("EE", 20), ("EG", 29), ("ES", 24), ("FI", 18), ("FO", 18), ("FR", 27), ("GB", 22),
    ("GE", 22), ("GI", 23), ("GL", 18), ("GR", 27), ("GT", 28), ("HR", 21), ("HU", 28), ("IE", 22), ("IL", 23),
    ("IQ", 23), ("IS", 26), ("IT", 27), ("JO", 30), ("KW", 30), ("KZ", 20), ("LB", 28), ("LC", 32), ("LI", 21),
    ("LT", 20), ("LU", 20), ("LV", 21), ("LY", 25), ("MC", 27), ("MD", 24), ("ME", 22), ("MK", 19), ("MR", 27),
    ("MT", 31), ("MU", 30), ("NL", 18), ("NO", 15), ("PK", 24), ("PL", 28), ("PS", 29), ("PT", 25), ("QA", 29),
    ("RO", 24), ("RS", 22), ("RU", 33), ("SA", 24), ("SC", 31), ("SD", 18), ("SE", 24), ("SI", 19), ("SK", 24),
    ("SM", 27), ("ST", 25), ("SV", 28), ("TN", 24), ("TR", 26), ("UA", 29), ("VA", 22),
];

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static SSN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?-u)\d{3}-\d{2}-\d{4}|\d{3} \d{2} \d{4}|\d{9}").unwrap());

#[expect(clippy::unwrap_used, reason = "a constant pattern, compiled by every test")]
static SSN_WORDS: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?i)\b(?:ssn|social security)\b[^\d\n]{0,24}$").unwrap());

/// Social security numbers: no area 000, 666 or 9xx, no group 00, no serial
/// 0000. Without hyphens only where the words before say so.
pub(super) fn social_security_numbers(text: &str) -> Vec<Range<usize>> {
    matches_among(text, (is_digit, is_of_number), |bytes| digits(bytes) >= 9, &SSN, social_security_number)
}

fn social_security_number(ssn: &Candidate) -> Option<usize> {
    let digits: String = ssn.as_str().chars().filter(char::is_ascii_digit).collect();
    let issued = !digits.starts_with("000")
        && !digits.starts_with("666")
        && !digits.starts_with('9')
        && digits.get(3..5) != Some("00")
        && !digits.ends_with("0000");
    let meant = ssn.as_str().contains('-') || SSN_WORDS.is_match(ssn.before(48));
    (issued && meant && ssn.stands_alone()).then(|| ssn.end())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::{matches, tests::numbers},
        *,
    };

    proptest! {
        #[test]
        fn nothing_is_found_but_where_it_is_looked_for(text in numbers()) {
            prop_assert_eq!(cards(&text), matches(&text, &CARD, card));
            prop_assert_eq!(ibans(&text), matches(&text, &IBAN_HEAD, iban));
            prop_assert_eq!(
                social_security_numbers(&text),
                matches(&text, &SSN, social_security_number)
            );
        }
    }
}

//! Personal data: found by pattern, then redacted or refused.
//!
//! Each kind is a pattern and, where the format has one, a proof: a card
//! number passes the Luhn check, an IBAN its length and remainder, an address
//! parses. Phone numbers have no check digit, so a number without country or
//! area code counts only where the words around it say what it is. Names of
//! people and postal addresses have no pattern and are not found;
//! `docs/deriving.md` gives precision and recall on labelled text.
//!
//! Only the text of a record is scanned. The log keeps frames as they came.

mod account;
mod contact;
mod network;

use std::{borrow::Cow, collections::BTreeMap, fmt, ops::Range};

use regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::setting::SettingError;

/// `[derive.pii]` of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What happens to a text in which something is found.
    pub action: Action,
    /// What is looked for.
    pub kinds: Vec<Kind>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            action: Action::Redact,
            kinds: vec![Kind::Email, Kind::Phone, Kind::CreditCard, Kind::Iban, Kind::UsSsn, Kind::IpAddress],
        }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(
            self.action == Action::Off || !self.kinds.is_empty(),
            "kinds",
            "nothing would be looked for; name kinds, or set action = \"off\"",
        )
    }
}

/// What happens to a text in which personal data is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The finding is replaced by its kind: `[EMAIL]`.
    Redact,
    /// The record is not indexed.
    Reject,
    /// Findings are counted, the text stays.
    Detect,
    /// Nothing is looked for.
    Off,
}

/// A kind of personal data. Where two overlap, the one listed first counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Addresses beginning with `http://`, `https://`, `ftp://` or `www.`.
    Url,
    /// E-mail addresses.
    Email,
    /// International bank account numbers, with check digits.
    Iban,
    /// Payment card numbers, with check digit.
    CreditCard,
    /// Social security numbers of the United States.
    UsSsn,
    /// IPv4 and IPv6 addresses, but unspecified, loopback, multicast and
    /// reserved ones.
    IpAddress,
    /// Phone numbers.
    Phone,
}

impl Kind {
    /// Every kind, in the order in which they take precedence.
    pub const ALL: [Self; 7] =
        [Self::Url, Self::Email, Self::Iban, Self::CreditCard, Self::UsSsn, Self::IpAddress, Self::Phone];

    /// The name as in a pipeline file, fit for a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Email => "email",
            Self::Iban => "iban",
            Self::CreditCard => "credit_card",
            Self::UsSsn => "us_ssn",
            Self::IpAddress => "ip_address",
            Self::Phone => "phone",
        }
    }

    /// What stands in a redacted text instead.
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Url => "[URL]",
            Self::Email => "[EMAIL]",
            Self::Iban => "[IBAN]",
            Self::CreditCard => "[CREDIT_CARD]",
            Self::UsSsn => "[US_SSN]",
            Self::IpAddress => "[IP_ADDRESS]",
            Self::Phone => "[PHONE]",
        }
    }

    fn find(self, text: &str) -> Vec<Range<usize>> {
        match self {
            Self::Url => network::urls(text),
            Self::Email => contact::emails(text),
            Self::Iban => account::ibans(text),
            Self::CreditCard => account::cards(text),
            Self::UsSsn => account::social_security_numbers(text),
            Self::IpAddress => network::addresses(text),
            Self::Phone => contact::phones(text),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Something found. The value itself is not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: Kind,
    /// Where it stands: bytes of the text scanned.
    pub range: Range<usize>,
}

/// Finds the kinds that its settings name.
#[derive(Clone, Debug)]
pub struct Scanner {
    action: Action,
    kinds: Vec<Kind>,
}

impl Scanner {
    /// A scanner for `settings`.
    pub fn new(settings: &Settings) -> Self {
        let mut kinds = match settings.action {
            Action::Off => Vec::new(),
            Action::Redact | Action::Reject | Action::Detect => settings.kinds.clone(),
        };
        kinds.sort_unstable();
        kinds.dedup();
        Self { action: settings.action, kinds }
    }

    /// What happens to a text in which something is found.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Everything found in `text`, in the order of the text, none
    /// overlapping another.
    pub fn findings(&self, text: &str) -> Vec<Finding> {
        self.kinds.iter().fold(Vec::new(), |found, kind| merged(found, *kind, kind.find(text)))
    }

    /// Scans `text` and redacts it if that is the action.
    pub fn scan<'t>(&self, text: &'t str) -> Scan<'t> {
        let findings = self.findings(text);
        let text = match self.action {
            Action::Redact if !findings.is_empty() => Cow::Owned(redacted(text, &findings)),
            _ => Cow::Borrowed(text),
        };
        Scan { text, findings }
    }
}

/// `found` and those of `more` that overlap none of it, in order.
fn merged(found: Vec<Finding>, kind: Kind, more: Vec<Range<usize>>) -> Vec<Finding> {
    let mut merged = Vec::with_capacity(found.len() + more.len());
    let mut found = found.into_iter().peekable();
    for range in more {
        while let Some(before) = found.next_if(|f| f.range.end <= range.start) {
            merged.push(before);
        }
        if found.peek().is_none_or(|f| range.end <= f.range.start) {
            merged.push(Finding { kind, range });
        }
    }
    merged.extend(found);
    merged
}

fn redacted(text: &str, findings: &[Finding]) -> String {
    let mut redacted = String::with_capacity(text.len());
    let mut done = 0;
    for Finding { kind, range } in findings {
        redacted.push_str(text.get(done..range.start).unwrap_or_default());
        redacted.push_str(kind.placeholder());
        done = range.end;
    }
    redacted.push_str(text.get(done..).unwrap_or_default());
    redacted
}

/// Result of a scan.
#[derive(Clone, PartialEq, Eq)]
pub struct Scan<'t> {
    /// The text, redacted if that is the action.
    pub text: Cow<'t, str>,
    /// What was found, by place in the text scanned.
    pub findings: Vec<Finding>,
}

impl Scan<'_> {
    /// How many of each kind were found.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts = BTreeMap::new();
        for finding in &self.findings {
            *counts.entry(finding.kind).or_default() += 1;
        }
        counts
    }
}

/// Shows no text: with `detect` it still holds what was found.
impl fmt::Debug for Scan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scan").field("bytes", &self.text.len()).field("findings", &self.findings).finish()
    }
}

/// Matches of `pattern` that `accept` confirms, perhaps shortened. After one
/// that it does not, the search goes on behind the word or number that the
/// match began with: nothing found begins within one. Patterns are of bounded
/// length or always accepted, so that this stays linear.
fn matches(text: &str, pattern: &Regex, accept: impl Fn(&Candidate) -> Option<usize>) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    matches_within(text, 0..text.len(), pattern, accept, &mut found);
    found
}

/// As [`matches`], but looks only where something can be found: at stretches
/// of bytes `of` that the pattern knows, with a byte among them that `mark`
/// names, and that `may_hold` something.
///
/// Finds the same where the pattern has no look-around, a match consists of
/// such bytes and has such a mark, and `accept` takes none in a stretch that
/// may not hold any, nor reaches beyond it.
fn matches_among(
    text: &str,
    (mark, of): (impl Fn(u8) -> bool, impl Fn(u8) -> bool),
    may_hold: impl Fn(&[u8]) -> bool,
    pattern: &Regex,
    accept: impl Fn(&Candidate) -> Option<usize>,
) -> Vec<Range<usize>> {
    let (bytes, mut found, mut at) = (text.as_bytes(), Vec::new(), 0);
    while let Some((passed, rest)) = bytes.get(at..).and_then(|rest| {
        let passed = rest.iter().position(|byte| mark(*byte))?;
        rest.split_at_checked(passed)
    }) {
        let before = passed.iter().rev().take_while(|byte| of(**byte)).count();
        let after = rest.iter().take_while(|byte| of(**byte)).count();
        let stretch = at + passed.len() - before..at + passed.len() + after;
        at = stretch.end;
        if bytes.get(stretch.clone()).is_some_and(&may_hold) {
            matches_within(text, stretch, pattern, &accept, &mut found);
        }
    }
    found
}

/// Adds to `found` the matches that lie in `stretch`.
fn matches_within(
    text: &str,
    stretch: Range<usize>,
    pattern: &Regex,
    accept: impl Fn(&Candidate) -> Option<usize>,
    found: &mut Vec<Range<usize>>,
) {
    let mut at = stretch.start;
    while at <= stretch.end
        && let Some(m) = text.get(..stretch.end).and_then(|within| pattern.find_at(within, at))
    {
        let candidate = Candidate { text, range: m.range() };
        match accept(&candidate).filter(|end| *end > m.start()) {
            Some(end) => {
                found.push(m.start()..end);
                at = end;
            }
            None => {
                let word = m.as_str().chars().take_while(|c| c.is_alphanumeric()).map(char::len_utf8).sum();
                at = text.ceil_char_boundary(m.start() + usize::max(word, 1));
            }
        }
    }
}

/// Digits of `bytes`.
fn digits(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| byte.is_ascii_digit()).count()
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit()
}

/// A match and the text it stands in.
struct Candidate<'t> {
    text: &'t str,
    range: Range<usize>,
}

impl<'t> Candidate<'t> {
    fn as_str(&self) -> &'t str {
        self.text.get(self.range.clone()).unwrap_or_default()
    }

    fn end(&self) -> usize {
        self.range.end
    }

    /// Up to `bytes` of text before the match.
    fn before(&self, bytes: usize) -> &'t str {
        let from = self.text.floor_char_boundary(self.range.start.saturating_sub(bytes));
        self.text.get(from..self.range.start).unwrap_or_default()
    }

    fn after(&self) -> &'t str {
        self.text.get(self.range.end..).unwrap_or_default()
    }

    /// Whether the match is a whole number: not part of a longer one, of a
    /// word, a version, a path, a sum of money or a measured value.
    fn stands_alone(&self) -> bool {
        let before = self.before(4).chars().next_back();
        let joined = |c: char| {
            c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | '+' | '/' | '\\' | '$' | '€' | '£')
        };
        let mut after = self.after().chars();
        let continues = match after.next() {
            Some(c) if c.is_alphanumeric() || matches!(c, '_' | '%') => true,
            Some('.' | '-' | '/' | ',' | ':' | '+') => after.next().is_some_and(|c| c.is_ascii_digit()),
            _ => false,
        };
        !before.is_some_and(joined) && !continues
    }

    fn digits(&self) -> usize {
        digits(self.as_str().as_bytes())
    }
}

#[cfg(test)]
mod tests;

//! Quality: which texts are worth a place in the index.
//!
//! A text is measured once ([`Measures::of`]) and judged against thresholds
//! ([`Measures::judge`]). Shares are judged only on texts long enough for a
//! share to say something, so that a turn such as `yes, thanks` or `:)` passes
//! as an event. [`crate::transform::relax`] loosens the thresholds when too
//! little passes.
//!
//! No detail of a verdict quotes the text: verdicts are logged and reported,
//! and the text may hold personal data.

use std::collections::HashMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    relax,
    words::{beginning, parts, word_indices},
};
use crate::{record::Tier, setting::SettingError};

/// `[derive.quality]` of a pipeline file. Shares are of 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whether texts are judged. An empty text is refused in any case: there
    /// is nothing to embed.
    pub enabled: bool,
    /// Fewest characters of a text, by tier.
    pub min_chars: MinChars,
    /// Most characters of a text.
    pub max_chars: usize,
    /// Least share of letters and digits among the characters that are not
    /// white space.
    pub min_alphanumeric_share: f64,
    /// Greatest share of replacement characters, private-use characters and
    /// noncharacters: the traces of text decoded wrongly.
    pub max_unreadable_share: f64,
    /// Greatest share of a text's characters that copies of one line make up.
    pub max_repeated_line_share: f64,
    /// Greatest share of a text's words that copies of one word make up.
    pub max_repeated_word_share: f64,
    /// When and how far the thresholds loosen.
    pub relax: relax::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            min_chars: MinChars::default(),
            max_chars: 2_000_000,
            min_alphanumeric_share: 0.2,
            max_unreadable_share: 0.05,
            max_repeated_line_share: 0.5,
            max_repeated_word_share: 0.4,
            relax: relax::Settings::default(),
        }
    }
}

/// Fewest characters by tier. A conversation is made of short turns; a
/// document of one line is a failed extraction.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MinChars {
    /// Of an event.
    pub event: usize,
    /// Of a summary.
    pub summary: usize,
    /// Of a document.
    pub doc: usize,
    /// Of a profile.
    pub profile: usize,
    /// Of an artifact.
    pub artifact: usize,
}

impl Default for MinChars {
    fn default() -> Self {
        Self { event: 1, summary: 16, doc: 40, profile: 2, artifact: 2 }
    }
}

impl MinChars {
    fn of(&self, tier: Tier) -> usize {
        match tier {
            Tier::Event => self.event,
            Tier::Summary => self.summary,
            Tier::Doc => self.doc,
            Tier::Profile => self.profile,
            Tier::Artifact => self.artifact,
        }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        for (key, share) in [
            ("min_alphanumeric_share", self.min_alphanumeric_share),
            ("max_unreadable_share", self.max_unreadable_share),
            ("max_repeated_line_share", self.max_repeated_line_share),
            ("max_repeated_word_share", self.max_repeated_word_share),
        ] {
            SettingError::unless(
                (0.0..=1.0).contains(&share),
                key,
                format!("{share} is not a share; write a number from 0 to 1"),
            )?;
        }
        for tier in TIERS {
            let min = self.min_chars.of(tier);
            SettingError::unless(
                min <= self.max_chars,
                "max_chars",
                format!(
                    "{} refuses every {tier:?}, of which min_chars asks {min}; write more",
                    self.max_chars
                ),
            )?;
        }
        self.relax.validate().map_err(|e| SettingError::new(format!("relax.{}", e.key), e.message))
    }
}

const TIERS: [Tier; 5] = [Tier::Event, Tier::Summary, Tier::Doc, Tier::Profile, Tier::Artifact];

/// What is decided about one text.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The text is good enough.
    Pass {
        /// The first step of relaxation at which it passes, at most the one
        /// in force; 0: it passes the thresholds as they are set.
        step: u32,
    },
    /// The text is not stored in the index.
    Reject {
        /// Stable code, fit for a metric's label.
        reason: &'static str,
        /// Measured value and threshold; never the text.
        detail: String,
    },
}

/// Thresholds for one tier at one step of relaxation.
#[derive(Clone, Debug, PartialEq)]
struct Thresholds {
    min_chars: f64,
    max_chars: f64,
    min_alphanumeric: f64,
    max_unreadable: f64,
    max_repeated_line: f64,
    max_repeated_word: f64,
}

impl Settings {
    fn thresholds(&self, tier: Tier, step: u32) -> Thresholds {
        let least = |n: f64| self.relax.loosened_minimum(n, step);
        let most = |n: f64| self.relax.loosened_maximum(n, step);
        Thresholds {
            min_chars: least(count(self.min_chars.of(tier))).round(),
            max_chars: most(count(self.max_chars)).round(),
            min_alphanumeric: least(self.min_alphanumeric_share),
            max_unreadable: most(self.max_unreadable_share),
            max_repeated_line: most(self.max_repeated_line_share),
            max_repeated_word: most(self.max_repeated_word_share),
        }
    }

    /// Every threshold under its key in the pipeline file.
    pub(super) fn listed(&self, step: u32) -> Vec<(String, f64)> {
        let mut all: Vec<_> = TIERS
            .into_iter()
            .map(|tier| {
                let name = format!("{tier:?}").to_lowercase();
                (format!("min_chars.{name}"), self.thresholds(tier, step).min_chars)
            })
            .collect();
        let shared = self.thresholds(Tier::Event, step);
        all.extend([
            ("max_chars".to_owned(), shared.max_chars),
            ("min_alphanumeric_share".to_owned(), shared.min_alphanumeric),
            ("max_unreadable_share".to_owned(), shared.max_unreadable.min(1.0)),
            ("max_repeated_line_share".to_owned(), shared.max_repeated_line.min(1.0)),
            ("max_repeated_word_share".to_owned(), shared.max_repeated_word.min(1.0)),
        ]);
        all
    }
}

/// Fewer non-white characters, lines or words than these give no share.
const SAMPLE_CHARS: usize = 32;
const SAMPLE_LINES: usize = 8;
const SAMPLE_WORDS: usize = 24;

/// What is measured of a text, before any threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct Measures {
    /// Unicode scalar values.
    pub chars: usize,
    /// Letters and digits among characters that are not white space.
    pub alphanumeric_share: Option<f64>,
    /// Characters that stand for no text, among those that are not white space.
    pub unreadable_share: Option<f64>,
    /// Characters in copies of the line whose copies make up most.
    pub repeated_line_share: Option<f64>,
    /// Copies of the most frequent word among all words.
    pub repeated_word_share: Option<f64>,
}

impl Measures {
    /// Measures a canonical text. Shares are `None` where the text is too
    /// short for them.
    pub fn of(text: &str) -> Self {
        let (mut chars, mut solid, mut alphanumeric, mut unreadable) = (0, 0, 0, 0);
        for part in parts(text) {
            if part.is_ascii {
                let count =
                    |is: fn(u8) -> bool| part.text.bytes().map(|byte| usize::from(is(byte))).sum::<usize>();
                chars += part.text.len();
                solid += count(|byte| !matches!(byte, b'\t'..=b'\r' | b' '));
                alphanumeric += count(|byte| byte.is_ascii_alphanumeric());
                unreadable += count(|byte| byte.is_ascii_control() && !matches!(byte, b'\n' | b'\t'));
            } else {
                for c in part.text.chars() {
                    chars += 1;
                    solid += usize::from(!c.is_whitespace());
                    alphanumeric += usize::from(c.is_alphanumeric());
                    unreadable += usize::from(is_unreadable(c));
                }
            }
        }
        let of_solid = |n| (solid >= SAMPLE_CHARS).then(|| share(n, solid));
        Self {
            chars,
            alphanumeric_share: of_solid(alphanumeric),
            unreadable_share: of_solid(unreadable),
            repeated_line_share: repeated_line_share(text),
            repeated_word_share: repeated_word_share(text),
        }
    }

    /// Judges by `settings` with `step` steps of relaxation in force.
    pub fn judge(&self, tier: Tier, settings: &Settings, step: u32) -> Verdict {
        if self.chars == 0 {
            return Verdict::Reject {
                reason: "empty",
                detail: "no text is left after preparation".to_owned(),
            };
        }
        if !settings.enabled {
            return Verdict::Pass { step: 0 };
        }
        let passes = |step| self.offence(&settings.thresholds(tier, step)).is_none();
        match self.offence(&settings.thresholds(tier, step)) {
            None => Verdict::Pass { step: (0..step).find(|s| passes(*s)).unwrap_or(step) },
            Some((reason, detail)) if step == 0 => Verdict::Reject { reason, detail },
            Some((reason, detail)) => {
                Verdict::Reject { reason, detail: format!("{detail} at relaxation step {step}") }
            }
        }
    }

    fn offence(&self, t: &Thresholds) -> Option<(&'static str, String)> {
        let chars = count(self.chars);
        if chars < t.min_chars {
            return Some(("too_short", format!("{chars} characters, min_chars is {}", t.min_chars)));
        }
        if chars > t.max_chars {
            return Some(("too_long", format!("{chars} characters, max_chars is {}", t.max_chars)));
        }
        if let Some(share) = self.alphanumeric_share.filter(|s| *s < t.min_alphanumeric) {
            let least = t.min_alphanumeric;
            return Some((
                "symbols",
                format!("{share:.2} letters and digits, min_alphanumeric_share is {least:.2}"),
            ));
        }
        [
            ("unreadable", "unreadable", self.unreadable_share, t.max_unreadable),
            ("repeated_line", "one line's copies", self.repeated_line_share, t.max_repeated_line),
            ("repeated_word", "one word's copies", self.repeated_word_share, t.max_repeated_word),
        ]
        .into_iter()
        .find_map(|(reason, what, measured, most)| {
            let share = measured.filter(|s| *s > most)?;
            Some((reason, format!("{share:.2} {what}, max_{reason}_share is {most:.2}")))
        })
    }
}

/// Replacement character, private use, noncharacters, controls: what a wrong
/// decoding leaves behind.
fn is_unreadable(c: char) -> bool {
    matches!(c, '\u{fffd}' | '\u{e000}'..='\u{f8ff}' | '\u{f0000}'..)
        || u32::from(c) & 0xfffe == 0xfffe
        || (c.is_control() && !matches!(c, '\n' | '\t'))
}

fn repeated_line_share(text: &str) -> Option<f64> {
    let mut copies: HashMap<&str, usize> = HashMap::new();
    let (mut lines, mut total) = (0, 0);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        lines += 1;
        total += line.len();
        *copies.entry(line).or_default() += 1;
    }
    if lines < SAMPLE_LINES {
        return None;
    }
    let most = copies.iter().filter(|(_, n)| **n > 1).map(|(line, n)| line.len() * n).max();
    Some(share(most.unwrap_or(0), total))
}

fn repeated_word_share(text: &str) -> Option<f64> {
    // Sorted, and not counted in a table: a long text can be made of words
    // that any cheap table would put in one place.
    let mut words: Vec<(u64, &str)> = word_indices(text).map(|(_, word)| (beginning(word), word)).collect();
    words.sort_unstable();
    let most = words.chunk_by(|a, b| a == b).map(<[_]>::len).max().unwrap_or(0);
    (words.len() >= SAMPLE_WORDS).then(|| share(most, words.len()))
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { count(part) / count(whole) }
}

#[expect(clippy::cast_precision_loss, reason = "counts of characters stay far below 2^52")]
fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests;

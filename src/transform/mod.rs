//! Pure functions on records: no clock, no I/O, no state of their own.
//!
//! Each takes its settings and its input and returns a decision; `pipeline`
//! carries the decisions out. [`derive()`] puts them in order, for live records
//! and for replayed ones alike: the same record, settings, relaxation step
//! and tokenizer give the same result, so that a replay can be compared with
//! what was stored.

mod breaks;
pub mod chunk;
pub mod chunk_score;
pub mod dedupe;
pub mod pii;
pub mod prepare;
pub mod quality;
pub mod relax;
mod sentences;
pub mod tokens;
pub mod words;

#[cfg(test)]
mod measure;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
pub use tokens::{TokenSpans, Words};

use crate::{record::Record, setting::SettingError};

/// Everything that decides what becomes of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whether records are derived as they arrive. If not, the pipeline only
    /// keeps a log; what is in it is derived once this is true again.
    pub enabled: bool,
    /// Which texts are worth indexing.
    pub quality: quality::Settings,
    /// What is done about personal data.
    pub pii: pii::Settings,
    /// When a record is already known.
    pub dedupe: dedupe::Settings,
    /// How texts are cut.
    pub chunk: chunk::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            enabled: true,
            quality: quality::Settings::default(),
            pii: pii::Settings::default(),
            dedupe: dedupe::Settings::default(),
            chunk: chunk::Settings::default(),
        }
    }
}

impl Settings {
    /// Refuses values that cannot be meant; keys begin with the section.
    pub fn validate(&self) -> Result<(), SettingError> {
        let below = |section: &str, result: Result<(), SettingError>| {
            result.map_err(|e| SettingError::new(format!("{section}.{}", e.key), e.message))
        };
        below("quality", self.quality.validate())?;
        below("pii", self.pii.validate())?;
        below("dedupe", self.dedupe.validate())?;
        below("chunk", self.chunk.validate())
    }
}

/// What became of a record.
#[derive(Clone, Debug, PartialEq)]
pub struct Derived {
    /// What the record adds to the window that relaxation looks at.
    pub tally: relax::Tally,
    /// Whether it is indexed, and as what.
    pub outcome: Outcome,
}

/// Whether a record is indexed, and as what.
#[derive(Clone, PartialEq)]
pub enum Outcome {
    /// It is not.
    Rejected {
        /// Stable code, fit for a metric's label: one of
        /// [`quality::Verdict::Reject`], or `pii`.
        reason: &'static str,
        /// Why, in words that quote nothing of the text.
        detail: String,
    },
    /// It is, as these chunks of this text.
    Kept(Kept),
}

/// Shows no text.
impl std::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Rejected { reason, detail } => write!(f, "Rejected({reason}: {detail})"),
            Self::Kept(kept) => {
                write!(f, "Kept({} bytes, {} chunks, {:?})", kept.text.len(), kept.chunks.len(), kept.pii)
            }
        }
    }
}

/// What is stored of a record.
#[derive(Clone, PartialEq)]
pub struct Kept {
    /// Canonical text, redacted if so set.
    pub text: String,
    /// Parts of `text`, in order; at least one.
    pub chunks: Vec<chunk::Chunk>,
    /// Under what the record counts as known; `None` if not looked for.
    pub dedupe_key: Option<[u8; 32]>,
    /// How much personal data of each kind was found.
    pub pii: BTreeMap<pii::Kind, usize>,
    /// The first step of relaxation at which it passed.
    pub step: u32,
}

/// Decides what becomes of `record` with `step` steps of relaxation in force.
/// `scanner` is made of `settings.pii`.
///
/// The text is brought into canonical form, judged, scanned, keyed and cut, in
/// this order. The key is of the text *before* redaction: two contacts that
/// differ in nothing but a number are two records, and a change of the PII
/// settings must not make every known record new. Whoever can read keys can
/// test a guess of a whole text and its tenant, as with any content digest.
pub fn derive(
    record: &Record,
    settings: &Settings,
    scanner: &pii::Scanner,
    step: u32,
    tokens: &dyn TokenSpans,
) -> Derived {
    let canonical = prepare::canonical(&record.text);
    let verdict = quality::Measures::of(&canonical).judge(record.tier, &settings.quality, step);
    let mut tally = relax::Tally::default();
    tally.count(&verdict, step);
    let outcome = match verdict {
        quality::Verdict::Reject { reason, detail } => Outcome::Rejected { reason, detail },
        quality::Verdict::Pass { step } => cleared(record, &canonical, settings, scanner, step, tokens),
    };
    Derived { tally, outcome }
}

fn cleared(
    record: &Record,
    canonical: &str,
    settings: &Settings,
    scanner: &pii::Scanner,
    step: u32,
    tokens: &dyn TokenSpans,
) -> Outcome {
    let scan = scanner.scan(canonical);
    let pii = scan.counts();
    if scanner.action() == pii::Action::Reject && !pii.is_empty() {
        let found: Vec<_> = pii.iter().map(|(kind, n)| format!("{n} {kind}")).collect();
        return Outcome::Rejected { reason: "pii", detail: format!("found {}", found.join(", ")) };
    }
    Outcome::Kept(Kept {
        chunks: chunk::chunk(&scan.text, &settings.chunk, tokens),
        dedupe_key: dedupe::key(record, canonical, &settings.dedupe),
        text: scan.text.into_owned(),
        pii,
        step,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Tier;

    fn record(text: &str) -> Record {
        Record {
            id: None,
            ts_ms: 0,
            tenant: "acme".into(),
            session: None,
            source: "chat".into(),
            tier: Tier::Event,
            text: text.into(),
            attrs: serde_json::Map::new(),
        }
    }

    fn derived(text: &str, settings: &Settings) -> Derived {
        derive(&record(text), settings, &pii::Scanner::new(&settings.pii), 0, &Words)
    }

    fn kept(text: &str) -> Kept {
        match derived(text, &Settings::default()).outcome {
            Outcome::Kept(kept) => kept,
            rejected @ Outcome::Rejected { .. } => panic!("{rejected:?}"),
        }
    }

    #[test]
    fn what_is_stored_is_canonical_and_redacted() {
        let kept = kept(" Write to cafe\u{301}@example.com\r\n");
        assert_eq!(kept.text, "Write to [EMAIL]");
        assert_eq!(kept.chunks, [chunk::Chunk { range: 0..16, tokens: 3 }]);
        assert_eq!(kept.pii, BTreeMap::from([(pii::Kind::Email, 1)]));
    }

    #[test]
    fn two_contacts_that_redact_alike_stay_two() {
        let (a, b) = (kept("mail a@example.com"), kept("mail b@example.com"));
        assert_eq!(a.text, b.text);
        assert_ne!(a.dedupe_key, b.dedupe_key);
        assert_eq!(kept("mail a@example.com\r\n").dedupe_key, a.dedupe_key);
    }

    #[test]
    fn a_record_refused_for_personal_data_still_counts_as_good() {
        let mut settings = Settings::default();
        settings.pii.action = pii::Action::Reject;
        let refused = derived("mail a@example.com or call +1 555 123 4567", &settings);
        assert_eq!(refused.tally, relax::Tally { total: 1, passed: 1, passed_tighter: 0 });
        assert_eq!(
            refused.outcome,
            Outcome::Rejected { reason: "pii", detail: "found 1 email, 1 phone".into() }
        );
    }

    #[test]
    fn an_empty_record_is_refused() {
        let refused = derived("\u{0}\r\n ", &Settings::default());
        assert_eq!(refused.tally, relax::Tally { total: 1, passed: 0, passed_tighter: 0 });
        assert!(matches!(refused.outcome, Outcome::Rejected { reason: "empty", .. }));
    }

    #[test]
    fn debug_output_shows_no_text() {
        let shown = format!("{:?}", derived("a secret", &Settings::default()));
        assert!(shown.contains("8 bytes") && !shown.contains("secret"), "{shown}");
    }

    #[test]
    fn a_refused_setting_is_named_with_its_section() {
        let settings: Settings = toml::from_str("[quality.relax]\nwindow = 0").unwrap();
        assert_eq!(settings.validate().unwrap_err().key, "quality.relax.window");
        assert_eq!(Settings::default().validate(), Ok(()));
        assert!(toml::from_str::<Settings>("[qualiti]").is_err());
    }
}

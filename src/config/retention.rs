//! How long a pipeline keeps what it has.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{setting::SettingError, units::Period};

/// `[retention]`: how long things are kept. What is left out is kept for ever.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retention {
    /// Records in the index, by their own time.
    pub records: Option<Period>,
    /// Sealed segments, their files and objects, by the time of their latest
    /// record.
    pub segments: Option<Period>,
    /// Corpus packs, by the time they were made.
    pub packs: Option<Period>,
    /// Dead letters, by the time they failed.
    pub dead_letters: Option<Period>,
    /// What is kept whatever its age.
    pub pins: Pins,
}

/// `[retention.pins]`: what is kept whatever its age. A segment with a pinned
/// record is kept whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pins {
    /// Records of these tenants.
    pub tenants: Vec<String>,
    /// Records of these batches, by their tags.
    pub batches: Vec<String>,
    /// Segments and packs with these digests, which may be cut short to 12
    /// digits or more.
    pub artifacts: Vec<String>,
}

/// Digits of a digest that tell an artifact from all others.
const FEWEST_DIGITS: usize = 12;

impl Retention {
    /// Refuses values that cannot be meant.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), SettingError> {
        let ages = [
            ("records", self.records),
            ("segments", self.segments),
            ("packs", self.packs),
            ("dead_letters", self.dead_letters),
        ];
        for (key, age) in ages {
            let fine = age.is_none_or(|age| age >= Period::secs(60));
            SettingError::unless(fine, key, "must be 1m or more, or left out to keep them for ever")?;
        }
        let is_digest = |digest: &String| {
            (FEWEST_DIGITS..=64).contains(&digest.len())
                && digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        SettingError::unless(
            self.pins.artifacts.iter().all(is_digest),
            "pins.artifacts",
            "must be digests of 12 to 64 digits 0-9 and a-f",
        )
    }

    /// Whether anything is ever taken away.
    pub fn is_set(&self) -> bool {
        [self.records, self.segments, self.packs, self.dead_letters].iter().any(Option::is_some)
    }
}

impl Pins {
    /// Whether the artifact with this digest is pinned.
    pub fn holds(&self, digest: &str) -> bool {
        self.artifacts.iter().any(|pinned| digest.starts_with(pinned.as_str()))
    }
}

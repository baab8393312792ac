//! How segments are sealed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{setting::SettingError, units::ByteSize};

/// Whether new segments use a dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DictionaryUse {
    /// Never.
    Off,
    /// The one that `thalweg dictionaries train` adopted last, once there is one.
    Adopted,
}

/// Settings of sealing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Zstandard compression level, 1 (fastest) to 22 (smallest).
    pub level: i32,
    /// Plain bytes of a block in a segment without a dictionary. Smaller
    /// blocks make point reads cheaper, larger ones compress better.
    pub block_bytes: ByteSize,
    /// Which dictionary new segments are sealed with. One that has a
    /// dictionary can be read only together with it.
    pub dictionary: DictionaryUse,
    /// Plain bytes of a block in a segment with a dictionary.
    pub dictionary_block_bytes: ByteSize,
    /// By which share a newly trained dictionary must make segments smaller
    /// than they are without it, to be adopted; 0 to 0.5.
    pub dictionary_margin: f64,
    /// Train a dictionary whenever this many segments were sealed since the
    /// last time; 0 for only by command.
    pub train_after_segments: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            level: 3,
            block_bytes: ByteSize::kib(256),
            dictionary: DictionaryUse::Adopted,
            dictionary_block_bytes: ByteSize::kib(64),
            dictionary_margin: 0.03,
            train_after_segments: 0,
        }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    ///
    /// # Errors
    /// Names the key and the range it must lie in.
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(
            (1..=22).contains(&self.level),
            "level",
            format!("{} is not a Zstandard level; write 1 (fastest) to 22 (smallest)", self.level),
        )?;
        let sizes =
            [("block_bytes", self.block_bytes), ("dictionary_block_bytes", self.dictionary_block_bytes)];
        for (key, size) in sizes {
            let fits = (ByteSize::kib(1)..=ByteSize::mib(64)).contains(&size);
            SettingError::unless(fits, key, format!("{size} is out of range; write 1KiB to 64MiB"))?;
        }
        SettingError::unless(
            self.train_after_segments != 1,
            "train_after_segments",
            "one segment cannot both be trained on and judge; write 0 for never, or 2 or more",
        )?;
        SettingError::unless(
            (0.0..=0.5).contains(&self.dictionary_margin),
            "dictionary_margin",
            format!("{} is out of range; write 0 to 0.5", self.dictionary_margin),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_cannot_be_meant_are_refused_by_key() {
        assert_eq!(Settings::default().validate(), Ok(()));
        let key = |s: Settings| s.validate().unwrap_err().key;
        assert_eq!(key(Settings { level: 0, ..Settings::default() }), "level");
        assert_eq!(key(Settings { level: 23, ..Settings::default() }), "level");
        let tiny = Settings { block_bytes: ByteSize(100), ..Settings::default() };
        assert_eq!(key(tiny), "block_bytes");
        let huge = Settings { block_bytes: ByteSize::mib(65), ..Settings::default() };
        assert_eq!(key(huge), "block_bytes");
        let huge = Settings { dictionary_block_bytes: ByteSize::mib(65), ..Settings::default() };
        assert_eq!(key(huge), "dictionary_block_bytes");
        let one = Settings { train_after_segments: 1, ..Settings::default() };
        assert_eq!(key(one), "train_after_segments");
        for dictionary_margin in [-0.1, 0.6, f64::NAN] {
            let settings = Settings { dictionary_margin, ..Settings::default() };
            assert_eq!(key(settings), "dictionary_margin");
        }
    }

    #[test]
    fn unknown_keys_are_refused_and_missing_ones_have_defaults() {
        let read: Settings = toml::from_str("level = 9").unwrap();
        assert_eq!(read, Settings { level: 9, ..Settings::default() });
        assert!(toml::from_str::<Settings>("levle = 9").is_err());
    }
}

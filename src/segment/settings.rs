//! How segments are sealed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{setting::SettingError, units::ByteSize};

/// Settings of sealing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Zstandard compression level, 1 (fastest) to 22 (smallest).
    pub level: i32,
    /// Plain bytes of a block. Smaller blocks make point reads cheaper, larger
    /// ones compress better.
    pub block_bytes: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { level: 3, block_bytes: ByteSize::kib(256) }
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
        SettingError::unless(
            (ByteSize::kib(1)..=ByteSize::mib(64)).contains(&self.block_bytes),
            "block_bytes",
            format!("{} is out of range; write 1KiB to 64MiB", self.block_bytes),
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
    }

    #[test]
    fn unknown_keys_are_refused_and_missing_ones_have_defaults() {
        let read: Settings = toml::from_str("level = 9").unwrap();
        assert_eq!(read, Settings { level: 9, ..Settings::default() });
        assert!(toml::from_str::<Settings>("levle = 9").is_err());
    }
}

//! What all sections of a pipeline file share.
//!
//! Each module owns its section: a `Settings` struct with defaults that are
//! right for most, and a `validate` that refuses values which parse but
//! cannot be meant. [`crate::config`] puts the sections together and says in
//! which line and column a refused value stands.

/// A value that parses but cannot be meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct SettingError {
    /// Key below the section, dotted: `relax.steps`.
    pub key: String,
    /// What is wrong and what would be right.
    pub message: String,
}

impl SettingError {
    /// `key` is below the section; `message` says what would be right.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }

    /// Fails with `message` unless `holds`.
    pub fn unless(holds: bool, key: &str, message: impl Into<String>) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::new(key, message)) }
    }
}

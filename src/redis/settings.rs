//! Where Redis is, and what is kept there.

use std::{path::PathBuf, time::Duration};

use ::redis::{ConnectionInfo, IntoConnectionInfo};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{secret::Secret, setting::SettingError, units::Period};

const LONGEST_PREFIX: usize = 64;
const LONGEST_CHANNEL: usize = 256;
const LONGEST_TTL: Duration = Duration::from_secs(365 * 24 * 3_600);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(10);

/// `[redis]`: what several daemons share, where there is a Redis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `redis://[user[:password]@]host[:port][/database]`; `rediss://` for TLS,
    /// `unix:///path?db=0` for a socket. Never shown.
    pub url: Secret,
    /// The password, where the URL should not have it. Never shown.
    #[serde(default)]
    pub password: Option<Secret>,
    /// A file with nothing but the password in it.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// What every key begins with.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// How long a vector is kept.
    #[serde(default = "cache_ttl")]
    pub cache_ttl: Period,
    /// How long a command may take before Redis counts as lost.
    #[serde(default = "timeout")]
    pub timeout: Period,
    /// The channel on which a message starts the back-fill at once; empty: none.
    #[serde(default)]
    pub trigger: String,
}

fn prefix() -> String {
    "thalweg:".into()
}

fn cache_ttl() -> Period {
    Period::secs(7 * 24 * 3_600)
}

fn timeout() -> Period {
    Period(Duration::from_millis(250))
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        // Neither the URL nor a part of it: the password is one.
        let url = "write redis://[user[:password]@]host[:port][/database], rediss:// for TLS, or \
                   unix:///path; special characters of a password as %XX";
        SettingError::unless(self.target().is_some(), "url", url)?;
        let one = self.password.is_none() || self.password_file.is_none();
        SettingError::unless(one, "password_file", "the password is given twice; leave one out")?;
        let graphic = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        let fine = self.prefix.len() <= LONGEST_PREFIX && graphic(&self.prefix);
        let message = format!("is at most {LONGEST_PREFIX} visible ASCII characters");
        SettingError::unless(fine, "prefix", message)?;
        let fine = self.trigger.len() <= LONGEST_CHANNEL && graphic(&self.trigger);
        let message = format!("a channel's name is at most {LONGEST_CHANNEL} visible ASCII characters");
        SettingError::unless(fine, "trigger", message)?;
        let fine = (Duration::from_secs(1)..=LONGEST_TTL).contains(&self.cache_ttl.0);
        SettingError::unless(fine, "cache_ttl", "must be between 1s and 365d")?;
        let fine = (Duration::from_millis(5)..=LONGEST_TIMEOUT).contains(&self.timeout.0);
        SettingError::unless(fine, "timeout", "must be between 5ms and 10s")
    }

    /// What the URL says; `None` if it is none.
    pub(super) fn target(&self) -> Option<ConnectionInfo> {
        let url = self.url.reveal();
        // `#insecure` would turn the check of the certificate off.
        if url.contains('#') {
            return None;
        }
        url.into_connection_info().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> Settings {
        serde_json::from_value(serde_json::json!({ "url": url })).unwrap()
    }

    #[test]
    fn urls_are_checked_and_never_told() {
        for fine in [
            "redis://localhost",
            "redis://u:p%40@10.0.0.1:6380/3",
            "rediss://cache",
            "unix:///run/redis.sock",
        ] {
            settings(fine).validate().unwrap();
        }
        for bad in ["", "localhost:6379", "http://sesame", "redis://h/sesame", "rediss://h/#insecure"] {
            let error = settings(bad).validate().unwrap_err();
            assert!(error.key == "url" && !error.message.contains("sesame"), "{error}");
        }
        let secret = settings("redis://:sesame@h");
        let told = format!("{secret:?} {}", serde_json::to_string(&secret).unwrap());
        assert!(!told.contains("sesame"), "{told}");
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let refused = |change: &dyn Fn(&mut Settings)| {
            let mut settings = settings("redis://h");
            change(&mut settings);
            settings.validate().unwrap_err().key
        };
        assert_eq!(refused(&|s| s.prefix = "a b".into()), "prefix");
        assert_eq!(refused(&|s| s.trigger = "a\n".into()), "trigger");
        assert_eq!(refused(&|s| s.timeout = Period::secs(60)), "timeout");
        assert_eq!(refused(&|s| s.cache_ttl = Period::secs(0)), "cache_ttl");
        let twice = |s: &mut Settings| {
            s.password = Some("a".to_owned().into());
            s.password_file = Some("b".into());
        };
        assert_eq!(refused(&twice), "password_file");
    }
}

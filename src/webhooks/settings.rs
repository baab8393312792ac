//! `[[webhook]]`: who is told what.

use std::collections::BTreeSet;

use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::EventKind;
use crate::{http_client, secret::Secret, setting::SettingError, units::Period};

/// Fewest bytes of a secret.
const SECRET_BYTES: usize = 16;

/// A `[[webhook]]`: an address that is told what happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// Tells it from other webhooks: 1 to 64 of `a-z`, `0-9`, `_` and `-`.
    pub name: String,
    /// Where it is told: `https`, or `http` on this machine. Many such
    /// addresses are secrets, so it is shown without its path.
    pub url: Secret,
    /// What is told; at least one.
    pub events: Vec<EventKind>,
    /// What deliveries are signed with, 16 bytes or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Secret")]
    pub secret: Option<Secret>,
    /// Instead of `secret`, while receivers change from one to another: the new
    /// one and the old one. Deliveries are signed with each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// How long the receiver may take to answer.
    #[serde(default = "timeout")]
    pub timeout: Period,
}

fn timeout() -> Period {
    Period::secs(10)
}

impl WebhookSettings {
    /// What deliveries are signed with.
    pub fn secrets(&self) -> Vec<&Secret> {
        self.secret.iter().chain(&self.secrets).collect()
    }

    /// Whether this machine is told, in plain text.
    pub fn is_plain(&self) -> bool {
        Url::parse(self.url.reveal()).is_ok_and(|url| url.scheme() == "http")
    }

    /// Where it is told, without what may be secret.
    pub fn shown_url(&self) -> String {
        let shown = |url: Url| format!("{}/…", url.origin().ascii_serialization());
        Url::parse(self.url.reveal()).map(shown).unwrap_or_default()
    }

    /// Refuses values that cannot be meant.
    ///
    /// # Errors
    /// Names the key and what would be right.
    pub fn validate(&self) -> Result<(), SettingError> {
        let is_name = (1..=64).contains(&self.name.len())
            && self.name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        SettingError::unless(is_name, "name", "write 1 to 64 of a-z, 0-9, `_` and `-`")?;
        self.validate_url()?;
        SettingError::unless(!self.events.is_empty(), "events", "name at least one event")?;
        let secrets = self.secrets();
        let one_way = self.secret.is_none() || self.secrets.is_empty();
        SettingError::unless(one_way, "secrets", "write either `secret` or `secrets`")?;
        let some = (1..=2).contains(&secrets.len());
        SettingError::unless(some, "secret", "write one secret, or two of them as `secrets`")?;
        let long = secrets.iter().all(|secret| secret.reveal().len() >= SECRET_BYTES);
        SettingError::unless(long, "secret", "is too short; write 16 bytes or more")?;
        let fine = (Period::secs(1)..=Period::secs(60)).contains(&self.timeout);
        SettingError::unless(fine, "timeout", "must be between 1s and 60s")
    }

    fn validate_url(&self) -> Result<(), SettingError> {
        let url = Url::parse(self.url.reveal())
            .map_err(|error| SettingError::new("url", format!("is no URL: {error}")))?;
        let safe = url.scheme() == "https" || url.scheme() == "http" && http_client::stays_here(&url);
        let message = "must be https; http only to this machine (127.0.0.1, [::1], localhost)";
        SettingError::unless(safe, "url", message)?;
        let plain = url.username().is_empty() && url.password().is_none();
        SettingError::unless(plain, "url", "has a user or a password, which are not sent; leave them out")
    }
}

/// Everything that cannot be meant; keys are paths from the top of the file.
pub fn refused(written: &[WebhookSettings]) -> Vec<SettingError> {
    let mut names = BTreeSet::new();
    let mut found = Vec::new();
    for (i, one) in written.iter().enumerate() {
        let mut refuse = |key: &str, message: String| {
            found.push(SettingError::new(format!("webhook[{i}].{key}"), message));
        };
        if let Err(error) = one.validate() {
            refuse(&error.key, error.message);
        }
        if !names.insert(&one.name) {
            refuse("name", format!("the name `{}` is taken; give each webhook its own", one.name));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(url: &str, rest: &str) -> WebhookSettings {
        toml::from_str(&format!("name = \"ops\"\nurl = \"{url}\"\nevents = [\"job.done\"]\n{rest}")).unwrap()
    }

    const SECRET: &str = "secret = \"0123456789abcdef\"";

    #[test]
    fn what_is_told_leaves_this_machine_only_encrypted() {
        let of = |url: &str| written(url, SECRET).validate().map_err(|error| error.key);
        for url in ["https://example.com/x", "http://127.0.0.1:1/", "http://[::1]:1/", "http://localhost/"] {
            assert_eq!(of(url), Ok(()), "{url}");
        }
        for url in [
            "http://example.com/",
            "http://127.0.0.1.example.com/",
            "ftp://localhost/",
            "x",
            "https://a:b@c/",
        ] {
            assert_eq!(of(url), Err("url".to_owned()), "{url}");
        }
    }

    #[test]
    fn there_are_one_or_two_secrets_long_enough() {
        let of = |rest: &str| written("https://example.com/", rest).validate().map_err(|error| error.key);
        let two = "secrets = [\"0123456789abcdef\", \"fedcba9876543210\"]";
        assert_eq!((of(SECRET), of(two)), (Ok(()), Ok(())));
        assert_eq!(of(""), Err("secret".to_owned()));
        assert_eq!(of("secret = \"short\""), Err("secret".to_owned()));
        assert_eq!(of(&format!("{SECRET}\n{two}")), Err("secrets".to_owned()));
    }

    #[test]
    fn neither_path_nor_secret_is_shown() {
        let hook = written("https://example.com:8443/T0K3N?key=T0K3N", SECRET);
        assert_eq!(hook.shown_url(), "https://example.com:8443/…");
        let shown = format!("{hook:?} {}", serde_json::to_string(&hook).unwrap());
        assert!(!shown.contains("T0K3N") && !shown.contains("0123456789"), "{shown}");
    }

    #[test]
    fn two_webhooks_have_two_names() {
        let hook = written("https://example.com/", SECRET);
        let keys: Vec<String> = refused(&[hook.clone(), hook]).into_iter().map(|error| error.key).collect();
        assert_eq!(keys, ["webhook[1].name"]);
    }
}

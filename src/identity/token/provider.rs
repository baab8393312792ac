//! The identity provider: where its keys are, and when to ask for them.
//!
//! They are fetched every [`PERIOD_MS`], and at once when a token names a key
//! that is not among them, but not more often than every [`PAUSE_MS`]: who
//! makes up names of keys cannot have us hammer the provider. While it is
//! away its keys hold for [`MOST_AGE_MS`].

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use reqwest::{Client, Url, redirect};
use serde::Deserialize;

use super::jwk::KeySet;
use crate::{
    clock,
    http_client::{self, ClientError},
    identity::{Jwt, Unauthenticated},
};

/// How often the keys are fetched, in milliseconds. So long a key may be used
/// that the provider has taken back.
const PERIOD_MS: i64 = 300_000;
/// Least time between two attempts, in milliseconds.
const PAUSE_MS: i64 = 10_000;
/// How long keys hold while the provider is away, in milliseconds.
const MOST_AGE_MS: i64 = 3_600_000;
/// How long an answer of the provider may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 256 << 10;

pub(super) struct Provider {
    client: Client,
    issuer: String,
    jwks_url: Option<String>,
    held: RwLock<Held>,
    /// One fetch at a time; others wait for what it brings.
    fetching: tokio::sync::Mutex<()>,
}

/// What is known of the provider's keys.
#[derive(Clone, Debug, Default)]
struct Held {
    keys: Arc<KeySet>,
    /// When they were fetched.
    fetched_ms: Option<i64>,
    /// When that was last attempted.
    tried_ms: Option<i64>,
}

/// What to do about a key that a token names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// It is known.
    Use,
    /// It may be new, or all that is known too old.
    Fetch,
    /// It is not the provider's.
    Unknown,
    /// Nobody can tell whether it is.
    Away,
}

impl Held {
    fn decide(&self, key_id: Option<&str>, now_ms: i64) -> Decision {
        let holds = is_within(self.fetched_ms, MOST_AGE_MS, now_ms);
        if holds && self.keys.has(key_id) {
            return Decision::Use;
        }
        if !is_within(self.tried_ms, PAUSE_MS, now_ms) {
            return Decision::Fetch;
        }
        // The last attempt brought them.
        match holds && self.fetched_ms >= self.tried_ms {
            true => Decision::Unknown,
            false => Decision::Away,
        }
    }

    fn is_due(&self, now_ms: i64) -> bool {
        !is_within(self.fetched_ms, PERIOD_MS, now_ms) && !is_within(self.tried_ms, PAUSE_MS, now_ms)
    }
}

/// Whether it happened, less than `age_ms` ago.
fn is_within(at_ms: Option<i64>, age_ms: i64, now_ms: i64) -> bool {
    at_ms.is_some_and(|at_ms| clock::is_within(at_ms, age_ms, now_ms))
}

/// Why the keys could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{url} cannot be asked: {source}")]
    Request { url: String, source: reqwest::Error },
    #[error("{url} answered with status {status}")]
    Status { url: String, status: u16 },
    #[error("the answer of {url} is longer than {MAX_ANSWER} bytes")]
    TooLong { url: String },
    #[error("the answer of {url} cannot be read: {reason}")]
    Unreadable { url: String, reason: String },
}

/// What is read of a provider's description (OpenID Connect Discovery 1.0).
#[derive(Deserialize)]
struct Description {
    issuer: String,
    jwks_uri: String,
}

impl Provider {
    pub fn new(settings: &Jwt) -> Result<Self, ClientError> {
        let urls = [Some(&settings.issuer), settings.jwks_url.as_ref()];
        let tls = urls.into_iter().flatten().any(|url| url.starts_with("https:"));
        let builder = if tls { http_client::trusting()? } else { http_client::plain()? };
        // Who may redirect could name other keys.
        let client = builder.timeout(TIMEOUT).redirect(redirect::Policy::none()).build()?;
        Ok(Self {
            client,
            issuer: settings.issuer.clone(),
            jwks_url: settings.jwks_url.clone(),
            held: RwLock::default(),
            fetching: tokio::sync::Mutex::default(),
        })
    }

    /// Whether it is the one that `settings` name.
    pub fn is_that_of(&self, settings: &Jwt) -> bool {
        self.issuer == settings.issuer && self.jwks_url == settings.jwks_url
    }

    /// Whether it has ever said what its keys are.
    pub fn has_keys(&self) -> bool {
        self.held().fetched_ms.is_some()
    }

    /// The keys, among which is one that a token may be signed with that names
    /// `key_id`.
    pub async fn keys_for(&self, key_id: Option<&str>, now_ms: i64) -> Result<Arc<KeySet>, Unauthenticated> {
        if self.held().decide(key_id, now_ms) == Decision::Fetch {
            let _turn = self.fetching.lock().await;
            if self.held().decide(key_id, now_ms) == Decision::Fetch {
                self.fetch(now_ms).await;
            }
        }
        let held = self.held();
        match held.decide(key_id, now_ms) {
            Decision::Use => Ok(held.keys),
            Decision::Unknown => Err(Unauthenticated::UnknownSigningKey),
            Decision::Fetch | Decision::Away => Err(Unauthenticated::IdentityProviderAway),
        }
    }

    /// Fetches the keys if it is time.
    pub async fn refresh(&self, now_ms: i64) {
        if self.held().is_due(now_ms) {
            let _turn = self.fetching.lock().await;
            if self.held().is_due(now_ms) {
                self.fetch(now_ms).await;
            }
        }
    }

    async fn fetch(&self, now_ms: i64) {
        let fetched = self.fetched().await;
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        held.tried_ms = Some(now_ms);
        match fetched {
            Ok(keys) => {
                if keys.is_empty() {
                    tracing::warn!(
                        issuer = self.issuer,
                        "the identity provider has no keys that can be used"
                    );
                }
                held.fetched_ms = Some(now_ms);
                let same = keys.has_same_keys(&held.keys);
                if !same {
                    let generation = held.keys.generation + 1;
                    held.keys = Arc::new(keys.of_generation(generation));
                }
            }
            Err(error) => {
                tracing::warn!(%error, issuer = self.issuer, "the identity provider's keys cannot be fetched");
            }
        }
    }

    async fn fetched(&self) -> Result<KeySet, FetchError> {
        let url = match &self.jwks_url {
            Some(url) => url.clone(),
            None => self.discovered().await?,
        };
        let answer = self.get(&url).await?;
        KeySet::parse(&answer).map_err(|error| FetchError::Unreadable { url, reason: error.to_string() })
    }

    /// Where the provider says that its keys are.
    async fn discovered(&self) -> Result<String, FetchError> {
        let url = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let answer = self.get(&url).await?;
        let unreadable = |reason: String| FetchError::Unreadable { url: url.clone(), reason };
        let description: Description =
            serde_json::from_slice(&answer).map_err(|error| unreadable(error.to_string()))?;
        if description.issuer != self.issuer {
            return Err(unreadable(format!("it is of the issuer {}", description.issuer)));
        }
        let scheme = |url: &str| url.parse::<Url>().map(|url| url.scheme().to_owned()).ok();
        if scheme(&description.jwks_uri) != scheme(&self.issuer) {
            return Err(unreadable("its `jwks_uri` has another scheme than the issuer".into()));
        }
        Ok(description.jwks_uri)
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, FetchError> {
        let failed = |source| FetchError::Request { url: url.to_owned(), source };
        let mut answer = self.client.get(url).send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(FetchError::Status { url: url.to_owned(), status: answer.status().as_u16() });
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > MAX_ANSWER {
                return Err(FetchError::TooLong { url: url.to_owned() });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    fn held(&self) -> Held {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
impl Provider {
    /// Has the keys of `json`, as if fetched at `now_ms`.
    pub fn give(&self, json: &[u8], now_ms: i64) {
        let mut held = self.held.write().unwrap();
        let generation = held.keys.generation + 1;
        held.keys = Arc::new(KeySet::parse(json).unwrap().of_generation(generation));
        (held.fetched_ms, held.tried_ms) = (Some(now_ms), Some(now_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &[u8] = br#"{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "AA"}]}"#;

    fn held(fetched_ms: Option<i64>, tried_ms: Option<i64>) -> Held {
        Held { keys: Arc::new(KeySet::parse(SET).unwrap()), fetched_ms, tried_ms }
    }

    #[test]
    fn an_unknown_key_is_asked_for_at_most_every_ten_seconds() {
        assert_eq!(Held::default().decide(Some("a"), 0), Decision::Fetch);
        let held = held(Some(0), Some(0));
        assert_eq!(held.decide(Some("a"), 1), Decision::Use);
        assert_eq!(held.decide(None, 1), Decision::Use);
        assert_eq!(held.decide(Some("b"), 9_999), Decision::Unknown);
        assert_eq!(held.decide(Some("b"), 10_000), Decision::Fetch);
    }

    #[test]
    fn known_keys_hold_for_an_hour_while_the_provider_is_away() {
        let away = |tried_ms| held(Some(0), Some(tried_ms));
        assert_eq!(away(3_599_000).decide(Some("a"), 3_599_999), Decision::Use);
        assert_eq!(away(3_599_000).decide(Some("b"), 3_599_999), Decision::Away);
        assert_eq!(away(3_599_999).decide(Some("a"), 3_600_000), Decision::Away);
        assert_eq!(away(3_500_000).decide(Some("a"), 3_600_000), Decision::Fetch);
        let never = Held { tried_ms: Some(0), ..Held::default() };
        assert_eq!(never.decide(Some("a"), 1), Decision::Away);
    }

    #[test]
    fn keys_are_fetched_every_five_minutes_and_after_a_failure_every_ten_seconds() {
        assert!(Held::default().is_due(0));
        assert!(!held(Some(0), Some(0)).is_due(299_999));
        assert!(held(Some(0), Some(0)).is_due(300_000));
        assert!(!held(Some(0), Some(300_000)).is_due(309_999));
        assert!(held(Some(0), Some(300_000)).is_due(310_000));
        assert!(held(Some(1_000_000), Some(1_000_000)).is_due(0), "the clock was put back");
    }
}

//! What is said of remote endpoints in a pipeline file, and what is refused.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{secret::Secret, setting::SettingError, units::Period};

/// Names are metric labels.
const MOST_NAME_BYTES: usize = 64;
const MOST_CONCURRENCY: usize = 256;
const LONGEST_TIMEOUT: Period = Period::secs(600);

/// How an endpoint is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// `POST {url}/embeddings` as OpenAI has it, and many others.
    Openai,
    /// `POST {url}/embeddings` as Voyage has it: documents and queries are told apart.
    Voyage,
    /// `POST {url}/embed` of text-embeddings-inference.
    Tei,
}

/// `[[embed.endpoint]]`: a service that computes vectors of the model. They
/// are tried in the order of the file; all compute the same model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// Its name in messages and metrics: 1 to 64 of `a-z`, `0-9`, `_` and `-`.
    pub name: String,
    /// How it is spoken to.
    pub api: Api,
    /// Where it is, without `/embeddings` or `/embed`: `https://api.openai.com/v1`.
    pub url: String,
    /// The key it wants, as `"${VARIABLE}"`; none if left out.
    #[serde(default)]
    pub key: Option<Secret>,
    /// The model's name there; `embed.model` if empty.
    #[serde(default)]
    pub model: String,
    /// Whether `embed.dimensions` is sent along: for models that can shorten
    /// their vectors. Others refuse it.
    #[serde(default)]
    pub send_dimensions: bool,
    /// How long one request may take in all.
    #[serde(default = "timeout")]
    pub timeout: Period,
    /// Requests under way at once at most.
    #[serde(default = "concurrency")]
    pub concurrency: usize,
    /// Texts in one request at most; what the API allows less a tenth if left
    /// out: 1843 for `openai`, 900 for `voyage`, 28 for `tei`.
    #[serde(default)]
    pub max_inputs: Option<usize>,
    /// Tokens in one request at most; what the API allows less a tenth if left
    /// out: 270000 for `openai`, 108000 for `voyage`, 180000 for `tei`.
    #[serde(default)]
    pub max_request_tokens: Option<u64>,
    /// Requests a minute at most; what its answers say if left out.
    #[serde(default)]
    pub requests_per_minute: Option<u64>,
    /// Tokens a minute at most; what its answers say if left out.
    #[serde(default)]
    pub tokens_per_minute: Option<u64>,
    /// What a million tokens cost, in any currency.
    #[serde(default)]
    pub price_per_million_tokens: f64,
    /// Whether requests are sent compressed: only where the service takes it.
    #[serde(default)]
    pub gzip_requests: bool,
    /// Whether vectors are asked for in base64, which makes answers a third as
    /// large: `openai` and `voyage` only.
    #[serde(default)]
    pub base64: bool,
}

/// `[embed.quota]`: what all endpoints together may spend from midnight to
/// midnight, UTC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Tokens a day; no limit if left out.
    pub daily_tokens: Option<u64>,
    /// Requests a day; no limit if left out.
    pub daily_requests: Option<u64>,
    /// Money a day, in the currency of the endpoints' prices; no limit if left out.
    pub daily_budget: Option<f64>,
    /// Share that back-fill leaves to live records and queries, from 0 to 1.
    pub live_share: f64,
}

impl Default for Quota {
    fn default() -> Self {
        Self { daily_tokens: None, daily_requests: None, daily_budget: None, live_share: 0.2 }
    }
}

fn timeout() -> Period {
    Period::secs(30)
}

fn concurrency() -> usize {
    4
}

/// Refuses endpoints that cannot be meant. `max_tokens` is the longest text.
pub fn validate(endpoints: &[Endpoint], quota: &Quota, max_tokens: usize) -> Result<(), SettingError> {
    let missing = "provider \"remote\" needs at least one `[[embed.endpoint]]`";
    SettingError::unless(!endpoints.is_empty(), "endpoint", missing)?;
    let mut names = HashSet::new();
    for (i, endpoint) in endpoints.iter().enumerate() {
        let refused = endpoint.refused(max_tokens as u64).or_else(|| {
            let taken = !names.insert(&endpoint.name);
            taken.then(|| ("name", format!("the name `{}` is taken; names are unique", endpoint.name)))
        });
        if let Some((key, message)) = refused {
            return Err(SettingError::new(format!("endpoint[{i}].{key}"), message));
        }
    }
    quota.validate(endpoints)
}

impl Endpoint {
    /// Which key cannot be meant, and what would be right.
    fn refused(&self, longest: u64) -> Option<(&'static str, String)> {
        let name = (1..=MOST_NAME_BYTES).contains(&self.name.len())
            && self.name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        let price = self.price_per_million_tokens;
        let least = |limit: Option<u64>| limit.is_none_or(|tokens| tokens >= longest);
        let too_few =
            format!("must be at least embed.max_tokens ({longest}), or the longest text never fits");
        [
            (name, "name", "write 1 to 64 of a-z, 0-9, `_` and `-`".to_owned()),
            (is_base(&self.url), "url", BASE.to_owned()),
            (
                self.key.as_ref().is_none_or(|key| is_header(key.reveal())),
                "key",
                "the key is empty or has characters that no key has; write one, or leave the setting out"
                    .into(),
            ),
            (
                self.timeout.0.as_millis() >= 10 && self.timeout <= LONGEST_TIMEOUT,
                "timeout",
                "must be between 10ms and 10m".into(),
            ),
            (
                (1..=MOST_CONCURRENCY).contains(&self.concurrency),
                "concurrency",
                format!("must be between 1 and {MOST_CONCURRENCY}"),
            ),
            (self.max_inputs != Some(0), "max_inputs", "must be at least 1".into()),
            (least(self.max_request_tokens), "max_request_tokens", too_few.clone()),
            (self.requests_per_minute != Some(0), "requests_per_minute", "must be at least 1".into()),
            (least(self.tokens_per_minute), "tokens_per_minute", too_few),
            (
                price.is_finite() && price >= 0.0,
                "price_per_million_tokens",
                format!("a price is 0 or more, not {price}"),
            ),
            (
                !(self.base64 && self.api == Api::Tei),
                "base64",
                "text-embeddings-inference knows no base64; leave it out".into(),
            ),
            (
                !(self.send_dimensions && self.api == Api::Tei),
                "send_dimensions",
                "`tei` has the dimensions of its model; leave it out".into(),
            ),
        ]
        .into_iter()
        .find_map(|(fine, key, message)| (!fine).then_some((key, message)))
    }
}

impl Quota {
    fn validate(&self, endpoints: &[Endpoint]) -> Result<(), SettingError> {
        let fine = |key: &str, holds: bool, message: &str| {
            SettingError::unless(holds, &format!("quota.{key}"), message)
        };
        fine("live_share", (0.0..=1.0).contains(&self.live_share), "a share is from 0 to 1")?;
        fine("daily_tokens", self.daily_tokens != Some(0), "must be at least 1; leave it out for no limit")?;
        fine(
            "daily_requests",
            self.daily_requests != Some(0),
            "must be at least 1; leave it out for no limit",
        )?;
        let Some(budget) = self.daily_budget else {
            return Ok(());
        };
        fine(
            "daily_budget",
            budget.is_finite() && budget > 0.0,
            "must be more than 0; leave it out for no limit",
        )?;
        let priced = endpoints.iter().any(|endpoint| endpoint.price_per_million_tokens > 0.0);
        fine("daily_budget", priced, "no endpoint has a `price_per_million_tokens`, so nothing is ever spent")
    }
}

const BASE: &str = "write an address that begins with http:// or https://, without user, `?` and `#`";

fn is_base(url: &str) -> bool {
    reqwest::Url::parse(url).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    })
}

/// Whether `key` may stand in a header.
fn is_header(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Endpoint {
        toml::from_str("name = 'a'\napi = 'openai'\nurl = 'https://api.openai.com/v1'\nkey = 'sk-1'").unwrap()
    }

    fn key_of(endpoints: &[Endpoint], quota: &Quota) -> String {
        validate(endpoints, quota, 512).unwrap_err().key
    }

    #[test]
    fn the_shortest_endpoint_is_valid_and_its_key_is_not_written() {
        validate(&[endpoint()], &Quota::default(), 512).unwrap();
        assert!(!format!("{:?}", endpoint()).contains("sk-1"));
        assert!(!toml::to_string(&endpoint()).unwrap().contains("sk-1"));
    }

    #[test]
    fn endpoints_that_cannot_be_meant_are_refused_by_key() {
        let refused = |change: fn(&mut Endpoint)| {
            let mut changed = endpoint();
            change(&mut changed);
            key_of(&[changed], &Quota::default())
        };
        assert_eq!(key_of(&[], &Quota::default()), "endpoint");
        assert_eq!(key_of(&[endpoint(), endpoint()], &Quota::default()), "endpoint[1].name");
        assert_eq!(refused(|e| e.name = "A b".into()), "endpoint[0].name");
        for url in ["api.openai.com", "ftp://a", "https://u:p@a", "https://a/?k=1", "https://a/#x"] {
            let changed = Endpoint { url: url.into(), ..endpoint() };
            assert_eq!(key_of(&[changed], &Quota::default()), "endpoint[0].url", "{url}");
        }
        assert_eq!(refused(|e| e.key = serde_json::from_str("\"\"").unwrap()), "endpoint[0].key");
        assert_eq!(refused(|e| e.key = serde_json::from_str("\"a\\nb\"").unwrap()), "endpoint[0].key");
        assert_eq!(refused(|e| e.timeout = Period::secs(601)), "endpoint[0].timeout");
        assert_eq!(refused(|e| e.concurrency = 0), "endpoint[0].concurrency");
        assert_eq!(refused(|e| e.max_inputs = Some(0)), "endpoint[0].max_inputs");
        assert_eq!(refused(|e| e.max_request_tokens = Some(511)), "endpoint[0].max_request_tokens");
        assert_eq!(refused(|e| e.tokens_per_minute = Some(511)), "endpoint[0].tokens_per_minute");
        assert_eq!(refused(|e| e.requests_per_minute = Some(0)), "endpoint[0].requests_per_minute");
        let price = refused(|e| e.price_per_million_tokens = f64::NAN);
        assert_eq!(price, "endpoint[0].price_per_million_tokens");
        assert_eq!(refused(|e| (e.api, e.base64) = (Api::Tei, true)), "endpoint[0].base64");
    }

    #[test]
    fn a_budget_needs_a_price() {
        let budget = Quota { daily_budget: Some(5.0), ..Quota::default() };
        assert_eq!(key_of(&[endpoint()], &budget), "quota.daily_budget");
        let priced = Endpoint { price_per_million_tokens: 0.02, ..endpoint() };
        validate(&[priced], &budget, 512).unwrap();
        let share = Quota { live_share: 1.1, ..Quota::default() };
        assert_eq!(key_of(&[endpoint()], &share), "quota.live_share");
    }
}

//! Who is let in.

use std::time::Duration;

use reqwest::Url;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{http_client, setting::SettingError, units::Period};

use super::token::Algorithm;

const LONGEST_LEEWAY: Duration = Duration::from_secs(300);

/// `[auth]`: who is let in. Without this section everybody is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whether API keys are taken: those of `thalweg keys create`.
    pub keys: bool,
    /// The identity provider whose tokens are taken; without it, none are.
    #[schemars(with = "Jwt")]
    pub jwt: Option<Jwt>,
}

/// `[auth.jwt]`: an identity provider (OpenID Connect), and what its tokens
/// must say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwt {
    /// The provider, as its tokens name it in `iss`: an `https://` address.
    pub issuer: String,
    /// What tokens must name in `aud`.
    pub audience: String,
    /// Where the provider's keys are; if left out, where its
    /// `/.well-known/openid-configuration` says.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// By how much the provider's clock may differ from this one.
    #[serde(default = "leeway")]
    pub leeway: Period,
    /// The claim with the tenant that a token speaks for; `*` is any. A token
    /// without it is refused. Dots lead into nested claims.
    #[serde(default = "tenant_claim")]
    pub tenant_claim: String,
    /// The claim with the roles: a list, or words with spaces between them.
    /// Roles that are none of `viewer`, `ingester`, `operator` and `admin` are
    /// passed over.
    #[serde(default = "roles_claim")]
    pub roles_claim: String,
    /// The claim with the rate tier; a token without it is `free`.
    #[serde(default = "tier_claim")]
    pub tier_claim: String,
    /// How tokens may be signed.
    #[serde(default = "algorithms")]
    #[schemars(extend("minItems" = 1))]
    pub algorithms: Vec<Algorithm>,
}

fn leeway() -> Period {
    Period::secs(60)
}

fn tenant_claim() -> String {
    "tenant".into()
}

fn roles_claim() -> String {
    "roles".into()
}

fn tier_claim() -> String {
    "tier".into()
}

fn algorithms() -> Vec<Algorithm> {
    vec![Algorithm::Rs256, Algorithm::Es256]
}

impl Default for Settings {
    fn default() -> Self {
        Self { keys: true, jwt: None }
    }
}

impl Settings {
    /// Refuses values that cannot be meant.
    pub fn validate(&self) -> Result<(), SettingError> {
        let some = self.keys || self.jwt.is_some();
        let message =
            "without keys and without [auth.jwt] nobody could come in; leave [auth] out to let everybody in";
        SettingError::unless(some, "keys", message)?;
        let Some(jwt) = &self.jwt else { return Ok(()) };
        jwt.validate().map_err(|error| SettingError::new(format!("jwt.{}", error.key), error.message))
    }
}

impl Jwt {
    fn validate(&self) -> Result<(), SettingError> {
        let urls = [("issuer", Some(&self.issuer)), ("jwks_url", self.jwks_url.as_ref())];
        for (key, url) in urls.into_iter().filter_map(|(key, url)| Some((key, url?))) {
            let message = "must be an https:// address; http:// only on this machine";
            SettingError::unless(is_safe(url), key, message)?;
        }
        SettingError::unless(!self.audience.is_empty(), "audience", "names whom the tokens are for")?;
        let message = "must be at most 5m: it is for clocks that differ, and lengthens every token's life";
        SettingError::unless(self.leeway.0 <= LONGEST_LEEWAY, "leeway", message)?;
        let claims = [
            ("tenant_claim", &self.tenant_claim),
            ("roles_claim", &self.roles_claim),
            ("tier_claim", &self.tier_claim),
        ];
        for (key, claim) in claims {
            SettingError::unless(!claim.is_empty(), key, "is the name of a claim")?;
        }
        SettingError::unless(!self.algorithms.is_empty(), "algorithms", "name at least one, such as RS256")
    }
}

/// Whether nobody on the way can put their own keys in the provider's place.
fn is_safe(url: &str) -> bool {
    url.parse::<Url>().is_ok_and(|url| match url.scheme() {
        // Messages show the address.
        _ if !url.username().is_empty() || url.password().is_some() => false,
        "https" => url.has_host(),
        "http" => http_client::stays_here(&url),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(jwt: Value) -> Option<String> {
        let settings: Settings = serde_json::from_value(json!({"keys": false, "jwt": jwt})).unwrap();
        settings.validate().err().map(|error| error.key)
    }

    #[test]
    fn a_provider_is_reached_safely_or_not_at_all() {
        for fine in
            ["https://id.example.com/realms/a", "http://127.0.0.1:9000", "http://[::1]:9", "http://localhost"]
        {
            assert_eq!(refused(json!({"issuer": fine, "audience": "a"})), None, "{fine}");
        }
        for bad in [
            "",
            "id.example.com",
            "http://id.example.com",
            "file:///etc/passwd",
            "http://127.0.0.1.example.com",
        ] {
            assert_eq!(
                refused(json!({"issuer": bad, "audience": "a"})).as_deref(),
                Some("jwt.issuer"),
                "{bad}"
            );
            let settings = json!({"issuer": "https://i", "audience": "a", "jwks_url": bad});
            assert_eq!(refused(settings).as_deref(), Some("jwt.jwks_url"), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let with = |key: &str, value: Value| {
            let mut jwt = json!({"issuer": "https://i", "audience": "a"});
            jwt[key] = value;
            refused(jwt)
        };
        assert_eq!(with("audience", json!("")).as_deref(), Some("jwt.audience"));
        assert_eq!(with("leeway", json!("6m")).as_deref(), Some("jwt.leeway"));
        assert_eq!(with("algorithms", json!([])).as_deref(), Some("jwt.algorithms"));
        assert_eq!(with("tenant_claim", json!("")).as_deref(), Some("jwt.tenant_claim"));
        let nobody = Settings { keys: false, jwt: None };
        assert_eq!(nobody.validate().unwrap_err().key, "keys");
    }

    #[test]
    fn no_algorithm_of_a_shared_secret_can_be_named() {
        for name in ["HS256", "none", "rs256"] {
            let jwt = json!({"issuer": "https://i", "audience": "a", "algorithms": [name]});
            assert!(serde_json::from_value::<Jwt>(jwt).is_err(), "{name}");
        }
    }
}

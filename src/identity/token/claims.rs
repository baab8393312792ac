//! What a token claims, once its signature holds.

use serde_json::{Map, Value};

use super::jws::Jws;
use crate::identity::{Jwt, Principal, RateTier, Role, Roles, Scheme, Unauthenticated};

/// Longest subject and tenant, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// The tenant of a token that speaks for all of them.
const ANY_TENANT: &str = "*";

pub(super) struct Claims(Map<String, Value>);

impl Claims {
    pub fn parse(jws: &Jws<'_>) -> Result<Self, Unauthenticated> {
        jws.claims().map(Self)
    }

    /// Fails unless the token is the provider's, for us, and good now. Returns
    /// until when it is, in milliseconds since the Unix epoch.
    pub fn check(&self, settings: &Jwt, now_ms: i64) -> Result<i64, Unauthenticated> {
        if self.0.get("iss").and_then(Value::as_str) != Some(&settings.issuer) {
            return Err(Unauthenticated::WrongIssuer);
        }
        let ours = |name: &Value| name.as_str() == Some(&settings.audience);
        let for_us = match self.0.get("aud") {
            Some(Value::Array(names)) => names.iter().any(ours),
            Some(name) => ours(name),
            None => false,
        };
        if !for_us {
            return Err(Unauthenticated::WrongAudience);
        }
        let leeway_ms = i64::try_from(settings.leeway.0.as_millis()).unwrap_or(i64::MAX);
        let expires_ms = self.time("exp")?.ok_or_else(|| bad("exp", "is missing"))?;
        let until_ms = expires_ms.saturating_add(leeway_ms);
        if now_ms >= until_ms {
            return Err(Unauthenticated::ExpiredToken);
        }
        match self.time("nbf")? {
            Some(from_ms) if now_ms < from_ms.saturating_sub(leeway_ms) => {
                Err(Unauthenticated::ImmatureToken)
            }
            _ => Ok(until_ms),
        }
    }

    /// Who the token speaks for; until when, [`Claims::check`] says.
    pub fn principal(&self, settings: &Jwt) -> Result<Principal, Unauthenticated> {
        let subject = name("sub", self.0.get("sub"))?;
        let tenant = name(&settings.tenant_claim, self.claim(&settings.tenant_claim))?;
        Ok(Principal {
            id: subject.into(),
            scheme: Scheme::Token,
            tenant: (tenant != ANY_TENANT).then(|| tenant.into()),
            roles: self.roles(&settings.roles_claim)?,
            tier: self.tier(&settings.tier_claim)?,
            expires_ms: None,
        })
    }

    fn roles(&self, claim: &str) -> Result<Roles, Unauthenticated> {
        match self.claim(claim) {
            None | Some(Value::Null) => Ok(Roles::default()),
            Some(Value::String(words)) => {
                Ok(words.split_ascii_whitespace().filter_map(Role::named).collect())
            }
            Some(Value::Array(names)) => {
                Ok(names.iter().filter_map(Value::as_str).filter_map(Role::named).collect())
            }
            Some(_) => Err(bad(claim, "must be a list of roles, or words")),
        }
    }

    fn tier(&self, claim: &str) -> Result<RateTier, Unauthenticated> {
        match self.claim(claim) {
            None | Some(Value::Null) => Ok(RateTier::default()),
            Some(tier) => tier
                .as_str()
                .and_then(RateTier::named)
                .ok_or_else(|| bad(claim, "must be free, dev, pro, enterprise or unlimited")),
        }
    }

    /// The claim of that name, or else the one that its dots lead to.
    fn claim(&self, name: &str) -> Option<&Value> {
        self.0.get(name).or_else(|| {
            let mut names = name.split('.');
            let first = self.0.get(names.next()?)?;
            names.try_fold(first, |value, name| value.get(name))
        })
    }

    /// A time (seconds since the Unix epoch, perhaps with a fraction) in
    /// milliseconds.
    fn time(&self, claim: &'static str) -> Result<Option<i64>, Unauthenticated> {
        let Some(value) = self.0.get(claim) else { return Ok(None) };
        let seconds = value.as_f64().filter(|seconds| seconds.is_finite());
        #[expect(clippy::cast_possible_truncation, reason = "saturates; nobody means a time that far off")]
        let ms = seconds.map(|seconds| (seconds * 1_000.0) as i64);
        ms.map(Some).ok_or_else(|| bad(claim, "must be a number of seconds"))
    }
}

fn bad(claim: &str, wanted: &'static str) -> Unauthenticated {
    Unauthenticated::BadClaim { claim: claim.to_owned(), wanted }
}

fn name<'a>(claim: &str, value: Option<&'a Value>) -> Result<&'a str, Unauthenticated> {
    let name = value.and_then(Value::as_str).ok_or_else(|| bad(claim, "is missing, or no text"))?;
    let fine = (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control);
    if fine { Ok(name) } else { Err(bad(claim, "must have 1 to 256 bytes and no control characters")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn settings() -> Jwt {
        serde_json::from_value(json!({"issuer": "https://id", "audience": "thalweg"})).unwrap()
    }

    fn claims(changed: Value) -> Claims {
        let mut claims = json!({
            "iss": "https://id", "aud": "thalweg", "sub": "svc", "tenant": "acme",
            "exp": NOW_MS / 1_000 + 300,
        });
        for (key, value) in changed.as_object().unwrap() {
            match value {
                Value::Null => drop(claims.as_object_mut().unwrap().remove(key)),
                value => claims[key] = value.clone(),
            }
        }
        Claims(claims.as_object().unwrap().clone())
    }

    fn code(changed: Value) -> &'static str {
        claims(changed).check(&settings(), NOW_MS).map_or_else(|refused| refused.code(), |_| "good")
    }

    #[test]
    fn issuer_and_audience_must_be_those_of_the_settings() {
        assert_eq!(code(json!({})), "good");
        assert_eq!(code(json!({"aud": ["x", "thalweg"]})), "good");
        for issuer in [json!("https://id/"), json!("https://evil"), json!(null), json!(["https://id"])] {
            assert_eq!(code(json!({"iss": issuer})), "wrong_issuer");
        }
        for audience in [json!("other"), json!(["other"]), json!([]), json!(null), json!({"thalweg": 1})] {
            assert_eq!(code(json!({"aud": audience})), "wrong_audience");
        }
    }

    #[test]
    fn times_hold_but_for_the_difference_of_clocks() {
        let s = NOW_MS / 1_000;
        assert_eq!(code(json!({"exp": s - 59})), "good");
        assert_eq!(code(json!({"exp": s - 60})), "expired_token");
        assert_eq!(code(json!({"exp": -1e300})), "expired_token");
        assert_eq!(code(json!({"nbf": s + 60})), "good");
        assert_eq!(code(json!({"nbf": s + 61})), "immature_token");
        assert_eq!(code(json!({"nbf": 1e300})), "immature_token");
        assert_eq!(code(json!({"exp": 1e300})), "good");
        for exp in [json!(null), json!("soon"), json!([s + 300])] {
            assert_eq!(code(json!({"exp": exp})), "bad_claim");
        }
        assert_eq!(code(json!({"nbf": "now"})), "bad_claim");
    }

    #[test]
    fn a_token_without_a_tenant_speaks_for_none() {
        let tenant = |changed| claims(changed).principal(&settings()).map(|principal| principal.tenant);
        assert_eq!(tenant(json!({})), Ok(Some("acme".into())));
        assert_eq!(tenant(json!({"tenant": "*"})), Ok(None));
        for none in [json!(null), json!(""), json!(7), json!(["acme"]), json!("a\n"), json!("x".repeat(257))]
        {
            assert_eq!(tenant(json!({"tenant": none})).unwrap_err().code(), "bad_claim");
        }
        assert_eq!(tenant(json!({"sub": null})).unwrap_err().code(), "bad_claim");
    }

    #[test]
    fn roles_are_found_where_the_settings_say() {
        let roles = |claim: &str, changed| {
            let settings = Jwt { roles_claim: claim.into(), ..settings() };
            claims(changed).principal(&settings).unwrap().roles.to_string()
        };
        assert_eq!(roles("roles", json!({"roles": ["viewer", "baker", 7, "admin"]})), "viewer, admin");
        assert_eq!(roles("scope", json!({"scope": "openid ingester"})), "ingester");
        assert_eq!(roles("realm.roles", json!({"realm": {"roles": ["operator"]}})), "operator");
        assert_eq!(roles("https://x/roles", json!({"https://x/roles": ["viewer"]})), "viewer");
        assert_eq!(roles("roles", json!({"roles": "Admin"})), "", "names are as they are written");
        assert_eq!(roles("roles", json!({})), "");
    }

    #[test]
    fn a_tier_is_one_of_the_five() {
        let tier = |changed| claims(changed).principal(&settings()).map(|principal| principal.tier);
        assert_eq!(tier(json!({})), Ok(RateTier::Free));
        assert_eq!(tier(json!({"tier": "pro"})), Ok(RateTier::Pro));
        assert_eq!(tier(json!({"tier": "gold"})).unwrap_err().code(), "bad_claim");
    }
}

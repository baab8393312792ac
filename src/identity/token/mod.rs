//! JSON Web Tokens (RFC 7519) of one identity provider.
//!
//! ```text
//! token ─► header: algorithm taken? ─► key of that name, for that algorithm
//!       ─► signature holds? ─► claims: issuer, audience, times ─► principal
//! ```
//!
//! Nothing of a token is believed before its signature is checked, but for the
//! names of algorithm and key, and these only choose among what the pipeline
//! file and the provider name. The key says what it is for, too: a public key
//! is never taken for a shared secret. The checks are our own few lines over
//! `ring`: they need `now` as an argument and no state of the process.

mod algorithm;
mod claims;
mod jwk;
mod jws;
mod provider;
mod seen;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::{Jwt, Principal, Unauthenticated};
use crate::http_client::ClientError;

pub use algorithm::Algorithm;

use self::{claims::Claims, jws::Jws, provider::Provider, seen::Seen};

/// Takes the tokens of one provider.
pub struct Tokens {
    settings: Jwt,
    provider: Arc<Provider>,
    seen: Seen,
}

impl Tokens {
    /// Asks the provider for nothing yet. Reads this machine's certificate
    /// authorities and blocks meanwhile.
    pub fn new(settings: &Jwt) -> Result<Self, ClientError> {
        let provider = Arc::new(Provider::new(settings)?);
        Ok(Self { provider, settings: settings.clone(), seen: Seen::default() })
    }

    /// As [`Self::new`], with what is known already of the same provider.
    pub fn after(&self, settings: &Jwt) -> Result<Self, ClientError> {
        match self.provider.is_that_of(settings) {
            true => {
                let provider = self.provider.clone();
                Ok(Self { provider, settings: settings.clone(), seen: Seen::default() })
            }
            false => Self::new(settings),
        }
    }

    /// Whether the provider's keys are known; it is asked for them if they are
    /// not.
    pub async fn has_keys(&self, now_ms: i64) -> bool {
        self.provider.refresh(now_ms).await;
        self.provider.has_keys()
    }

    /// Whose `token` is. Asks the provider if it names a key that is not
    /// known.
    pub async fn principal(&self, token: &str, now_ms: i64) -> Result<Principal, Unauthenticated> {
        let jws = Jws::parse(token)?;
        if !self.settings.algorithms.contains(&jws.algorithm) {
            return Err(Unauthenticated::AlgorithmRefused);
        }
        let keys = self.provider.keys_for(jws.key_id.as_deref(), now_ms).await?;
        if let Some(principal) = self.seen.get(token, keys.generation, now_ms) {
            return Ok(principal);
        }
        keys.verify(&jws)?;
        let claims = Claims::parse(&jws)?;
        let until_ms = claims.check(&self.settings, now_ms)?;
        let principal = Principal { expires_ms: Some(until_ms), ..claims.principal(&self.settings)? };
        self.seen.put(token, keys.generation, (now_ms, until_ms), &principal);
        Ok(principal)
    }

    /// Gets the provider's keys anew, if it is time.
    pub async fn refresh(&self, now_ms: i64) {
        self.provider.refresh(now_ms).await;
    }
}

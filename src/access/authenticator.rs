//! Credentials to principals.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::keyring::{KeyUse, Keyring};
use crate::{
    clock::Clock,
    http_client::ClientError,
    identity::{Credential, Principal, Settings, Shown, Unauthenticated, token::Tokens},
    metrics,
    store::Store,
};

/// Says who somebody is. Cheap to clone; clones share what they know.
#[derive(Clone)]
pub struct Authenticator {
    /// None where nobody is asked.
    asking: Option<Arc<Asking>>,
}

struct Asking {
    keys: Option<Keyring>,
    tokens: Option<Tokens>,
    clock: Clock,
}

/// Why nobody could be authenticated.
#[derive(Debug, thiserror::Error)]
#[error("[auth.jwt] cannot be used: {0}")]
pub struct OpenError(#[from] ClientError);

impl Authenticator {
    /// Takes everybody for [`Principal::open`].
    pub fn open() -> Self {
        Self { asking: None }
    }

    /// Takes the keys of `store` and the tokens that `settings` say.
    pub(super) fn new(
        settings: &Settings,
        store: Store,
        used: mpsc::Sender<KeyUse>,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        let asking = Asking {
            keys: settings.keys.then(|| Keyring::new(store, used)),
            tokens: settings.jwt.as_ref().map(Tokens::new).transpose()?,
            clock,
        };
        Ok(Self { asking: Some(Arc::new(asking)) })
    }

    /// Whether anybody is asked who they are.
    pub fn is_on(&self) -> bool {
        self.asking.is_some()
    }

    /// Who it is that shows `credential`.
    pub async fn authenticate(&self, credential: Option<&Credential>) -> Result<Principal, Unauthenticated> {
        let Some(asking) = &self.asking else { return Ok(Principal::open()) };
        let known = asking.authenticate(credential).await;
        metrics::authenticated(known.as_ref().map_or_else(Unauthenticated::code, |_| "known"));
        known
    }

    /// Gets the provider's keys anew, if it is time.
    pub(super) async fn refresh(&self) {
        if let Some(asking) = &self.asking
            && let Some(tokens) = &asking.tokens
        {
            tokens.refresh((asking.clock)()).await;
        }
    }
}

impl Asking {
    async fn authenticate(&self, credential: Option<&Credential>) -> Result<Principal, Unauthenticated> {
        let now_ms = (self.clock)();
        match credential.ok_or(Unauthenticated::MissingCredentials)?.shown()? {
            Shown::Key { id, secret } => {
                let keys = self.keys.as_ref().ok_or(Unauthenticated::KeysNotTaken)?;
                keys.principal(id, &secret, now_ms).await
            }
            Shown::Token(token) => {
                let tokens = self.tokens.as_ref().ok_or(Unauthenticated::TokensNotTaken)?;
                tokens.principal(token, now_ms).await
            }
        }
    }
}

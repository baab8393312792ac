//! Credentials to principals.

use std::sync::{Arc, PoisonError, RwLock};

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
    asking: Arc<RwLock<Way>>,
    store: Store,
    used: mpsc::Sender<KeyUse>,
    clock: Clock,
}

/// How it is found out who somebody is; none where nobody is asked.
#[derive(Clone)]
pub struct Way(Option<Arc<Asking>>);

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
    /// Takes everybody for [`Principal::open`], until a [`Way`] is taken.
    pub(super) fn open(store: Store, used: mpsc::Sender<KeyUse>, clock: Clock) -> Self {
        Self { asking: Arc::new(RwLock::new(Way(None))), store, used, clock }
    }

    /// The way that `settings` describe; without any, everybody is let in.
    pub fn prepare(&self, settings: Option<&Settings>) -> Result<Way, OpenError> {
        let Some(settings) = settings else { return Ok(Way(None)) };
        let asking = Asking {
            keys: settings.keys.then(|| Keyring::new(self.store.clone(), self.used.clone())),
            tokens: settings.jwt.as_ref().map(Tokens::new).transpose()?,
            clock: self.clock.clone(),
        };
        Ok(Way(Some(Arc::new(asking))))
    }

    /// Goes that way from now on. Connections that are open are looked at
    /// again soon, and are let in by it or ended.
    pub fn take(&self, way: Way) {
        *self.asking.write().unwrap_or_else(PoisonError::into_inner) = way;
    }

    fn way(&self) -> Option<Arc<Asking>> {
        self.asking.read().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Whether anybody is asked who they are.
    pub fn is_on(&self) -> bool {
        self.way().is_some()
    }

    /// Who it is that shows `credential`.
    pub async fn authenticate(&self, credential: Option<&Credential>) -> Result<Principal, Unauthenticated> {
        let Some(asking) = self.way() else { return Ok(Principal::open()) };
        let known = asking.authenticate(credential).await;
        metrics::authenticated(known.as_ref().map_or_else(Unauthenticated::code, |_| "known"));
        known
    }

    /// Gets the provider's keys anew, if it is time.
    pub(super) async fn refresh(&self) {
        if let Some(asking) = self.way()
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

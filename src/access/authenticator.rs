//! Credentials to principals.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::mpsc;

use super::keyring::{KeyUse, Keyring};
use crate::{
    clock::Clock,
    http_client::ClientError,
    identity::{Credential, Jwt, Principal, Settings, Shown, Unauthenticated, token::Tokens},
    metrics,
    store::Store,
};

/// Says who somebody is. Cheap to clone; clones share what they know.
#[derive(Clone)]
pub struct Authenticator {
    asking: Arc<RwLock<Way>>,
    keyring: Arc<Keyring>,
    clock: Clock,
}

/// How it is found out who somebody is; none where nobody is asked.
#[derive(Clone)]
pub struct Way(Option<Arc<Asking>>);

struct Asking {
    keys: Option<Arc<Keyring>>,
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
        let keyring = Arc::new(Keyring::new(store, used));
        Self { asking: Arc::new(RwLock::new(Way(None))), keyring, clock }
    }

    /// The way that `settings` describe; without any, everybody is let in.
    pub fn prepare(&self, settings: Option<&Settings>) -> Result<Way, OpenError> {
        let Some(settings) = settings else { return Ok(Way(None)) };
        let asking = Asking {
            keys: settings.keys.then(|| self.keyring.clone()),
            tokens: settings.jwt.as_ref().map(|jwt| self.tokens(jwt)).transpose()?,
            clock: self.clock.clone(),
        };
        Ok(Way(Some(Arc::new(asking))))
    }

    /// Takes the tokens of `jwt`, with what is known of the provider.
    fn tokens(&self, jwt: &Jwt) -> Result<Tokens, ClientError> {
        match self.way().as_ref().and_then(|asking| asking.tokens.as_ref()) {
            Some(before) => before.after(jwt),
            None => Tokens::new(jwt),
        }
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

impl Way {
    /// Whether everybody can be asked for that has to be: false if it needs an
    /// identity provider that does not answer.
    pub async fn is_open(&self) -> bool {
        let Some(asking) = &self.0 else { return true };
        match &asking.tokens {
            Some(tokens) => tokens.has_keys((asking.clock)()).await,
            None => true,
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

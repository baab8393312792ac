//! Who sends on a connection, as long as it is open.

use std::time::{Duration, Instant};

use crate::{
    access::{Access, NotAdmitted, Visit},
    identity::{Credential, Principal, Right},
};

/// How long it holds that somebody may send. So it is as long until a key that
/// is revoked, and a token that expires, ends a connection.
const HOLDS: Duration = Duration::from_secs(10);

/// Looks who sends, at the beginning and again and again.
pub(super) struct Guard {
    access: Access,
    visit: Visit,
    credential: Option<Credential>,
    looked: Instant,
}

impl Guard {
    /// Of a connection from `peer`, which begins.
    pub fn new(access: Access, peer: Option<String>) -> Self {
        let visit = Visit { act: "frames.send", peer, request_id: None };
        Self { access, visit, credential: None, looked: Instant::now() }
    }

    /// Whether senders have to say who they are.
    pub fn asks(&self) -> bool {
        self.access.authenticator.is_on()
    }

    /// Who shows `credential`, if they may send.
    pub async fn enter(&mut self, credential: Option<Credential>) -> Result<Principal, NotAdmitted> {
        self.credential = credential;
        self.look().await
    }

    /// Fails if they may no longer. What cannot be looked up holds on.
    pub async fn look_again(&mut self) -> Result<(), NotAdmitted> {
        if !self.asks() || self.looked.elapsed() < HOLDS {
            return Ok(());
        }
        match self.look().await {
            Err(refused) if !refused.is_transient() => Err(refused),
            _ => Ok(()),
        }
    }

    async fn look(&mut self) -> Result<Principal, NotAdmitted> {
        self.looked = Instant::now();
        self.access.admit(self.credential.as_ref(), Right::Ingest, &self.visit).await
    }
}

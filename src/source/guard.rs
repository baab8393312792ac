//! Who sends on a connection, as long as it is open.

use std::sync::Arc;

use crate::{
    access::{Access, NotAdmitted, Visit},
    clock::is_within,
    identity::{Credential, Principal, Right},
};

/// How long it holds that somebody may send, in milliseconds. So it is as long
/// until a key that is revoked ends a connection.
const HOLDS_MS: i64 = 10_000;
/// How long it holds while it cannot be looked up, in milliseconds.
const STALE_MS: i64 = 300_000;

/// Looks who sends, at the beginning and again and again.
pub(super) struct Guard {
    access: Access,
    visit: Visit,
    credential: Option<Credential>,
    /// When it was last looked, in milliseconds since the Unix epoch.
    looked_ms: i64,
    /// When that last gave an answer.
    known_ms: i64,
    /// From when on what was shown is no longer good.
    expires_ms: Option<i64>,
    /// The only tenant they speak for.
    tenant: Option<Arc<str>>,
}

impl Guard {
    /// Of a connection from `peer`, which begins.
    pub fn new(access: Access, peer: Option<String>) -> Self {
        let visit = Visit { act: "frames.send", peer, request_id: None };
        let now_ms = access.now_ms();
        Self {
            access,
            visit,
            credential: None,
            looked_ms: now_ms,
            known_ms: now_ms,
            expires_ms: None,
            tenant: None,
        }
    }

    /// Whether senders have to say who they are.
    pub fn asks(&self) -> bool {
        self.access.authenticator.is_on()
    }

    /// Who shows `credential`, if they may send.
    pub async fn enter(&mut self, credential: Option<Credential>) -> Result<Principal, NotAdmitted> {
        self.credential = credential;
        let principal = self.look().await?;
        self.tenant = principal.tenant.clone();
        Ok(principal)
    }

    /// Fails if they may no longer; false if they may, for another tenant than
    /// before. What cannot be looked up holds on, for [`STALE_MS`] and not beyond
    /// the end of what was shown.
    pub async fn look_again(&mut self) -> Result<bool, NotAdmitted> {
        let now_ms = self.access.now_ms();
        let is_over = self.expires_ms.is_some_and(|expires_ms| now_ms >= expires_ms);
        if !self.asks() || !is_over && is_within(self.looked_ms, HOLDS_MS, now_ms) {
            return Ok(true);
        }
        match self.look().await {
            Err(refused)
                if refused.is_transient() && !is_over && is_within(self.known_ms, STALE_MS, now_ms) =>
            {
                Ok(true)
            }
            looked => looked.map(|principal| principal.tenant == self.tenant),
        }
    }

    async fn look(&mut self) -> Result<Principal, NotAdmitted> {
        self.looked_ms = self.access.now_ms();
        let principal = self.access.admit(self.credential.as_ref(), Right::Ingest, &self.visit).await?;
        (self.known_ms, self.expires_ms) = (self.looked_ms, principal.expires_ms);
        Ok(principal)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    };

    use super::*;
    use crate::{
        access::{self, keys},
        identity::{NewKey, RateTier, Role, Settings},
        store::Store,
    };

    const BEGIN_MS: i64 = 1_000_000;

    /// A connection that was let in with a key that expires at `expires_ms`;
    /// the store that knows the key; the clock; the folder of the store.
    async fn let_in(expires_ms: Option<i64>) -> (Guard, Store, Arc<AtomicI64>, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.sqlite")).await.unwrap();
        let now = Arc::new(AtomicI64::new(BEGIN_MS));
        let clock = now.clone();
        let clock = Arc::new(move || clock.load(Ordering::Relaxed));
        let (access, _) = access::open(Some(&Settings::default()), &store, clock).unwrap();
        let new = NewKey {
            name: "n".into(),
            tenant: None,
            roles: [Role::Ingester].into_iter().collect(),
            tier: RateTier::Free,
            expires_ms,
        };
        let by = Principal::local("me");
        let minted = keys::create(&store, new, &by, &rand::random(), BEGIN_MS).await.unwrap();
        let mut guard = Guard::new(access, None);
        guard.enter(Some(Credential::new(minted.text))).await.unwrap();
        (guard, store, now, folder)
    }

    #[tokio::test]
    async fn what_was_shown_ends_the_connection_when_it_expires_also_while_nobody_can_be_asked() {
        for away in [false, true] {
            let (mut guard, store, now, _folder) = let_in(Some(BEGIN_MS + 400_000)).await;
            if away {
                store.close().await;
            }
            let mut code_at = async |ms| {
                now.store(BEGIN_MS + ms, Ordering::Relaxed);
                guard.look_again().await.map(|same| assert!(same)).map_err(|refused| refused.code())
            };
            for ms in (0..400_000).step_by(9_999) {
                assert_eq!(code_at(ms).await, Ok(()), "{away} {ms}");
            }
            assert_eq!(code_at(399_999).await, Ok(()), "{away}");
            let code = code_at(400_000).await.unwrap_err();
            assert_eq!(code, if away { "key_store_away" } else { "expired_key" });
        }
    }

    #[tokio::test]
    async fn what_cannot_be_looked_up_for_long_ends_the_connection() {
        let (mut guard, store, now, _folder) = let_in(None).await;
        store.close().await;
        let mut went_on_ms = 0;
        for ms in (0..1_000_000).step_by(10_000) {
            now.store(BEGIN_MS + ms, Ordering::Relaxed);
            match guard.look_again().await {
                Ok(_) => went_on_ms = ms,
                Err(refused) => {
                    assert_eq!(refused.code(), "key_store_away");
                    break;
                }
            }
        }
        // As long as the key is remembered, and as long again.
        assert!((500_000..600_000).contains(&went_on_ms), "{went_on_ms}");
    }
}

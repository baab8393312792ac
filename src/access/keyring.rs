//! API keys, remembered.
//!
//! What the store said of a key, that there is none included, holds for
//! [`FRESH_MS`]: within that time a revocation takes effect, everywhere. A
//! store that does not answer locks nobody out at once: what it said last
//! holds for [`STALE_MS`] then, and nobody waits for it longer than
//! [`PATIENCE`].

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use quick_cache::sync::Cache;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use crate::{
    clock::is_within,
    identity::{ApiKey, Principal, Unauthenticated},
    store::Store,
};

/// How long what is known of a key holds, in milliseconds.
const FRESH_MS: i64 = 10_000;
/// How long it holds while the store does not answer.
const STALE_MS: i64 = 300_000;
/// How long a query may take.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nothing is asked of a store since it was asked in vain, in
/// milliseconds: those that wait for their turn must not all find out one by
/// one.
const PAUSE_MS: u64 = 2_000;
/// Keys that are remembered. Somebody who makes up ids drives out others'
/// keys, which costs them a query.
const REMEMBERED: usize = 10_000;
/// Queries at once: made-up ids must not take the store's connections.
const LOOKUPS: usize = 4;
/// How exactly the last use of a key is noted, in milliseconds.
const USE_MS: i64 = 60_000;
/// Uses that wait to be noted. Those beyond are noted a minute later.
const USES_WAITING: usize = 1_024;

/// A key's id, and when it was used, in milliseconds since the Unix epoch.
pub(super) type KeyUse = (String, i64);

/// Uses of keys, on their way to be noted.
pub(super) fn uses() -> (mpsc::Sender<KeyUse>, mpsc::Receiver<KeyUse>) {
    mpsc::channel(USES_WAITING)
}

pub(super) struct Keyring {
    store: Store,
    known: Cache<String, Known>,
    lookups: Semaphore,
    /// When the store was last asked in vain.
    failed_ms: AtomicI64,
    used: mpsc::Sender<KeyUse>,
}

#[derive(Clone)]
struct Known {
    key: Option<Arc<Held>>,
    /// When the store said so.
    at_ms: i64,
}

struct Held {
    key: ApiKey,
    used_ms: AtomicI64,
}

impl Known {
    fn is_within(&self, age_ms: i64, now_ms: i64) -> bool {
        is_within(self.at_ms, age_ms, now_ms)
    }
}

impl Keyring {
    pub fn new(store: Store, used: mpsc::Sender<KeyUse>) -> Self {
        let (known, lookups) = (Cache::new(REMEMBERED), Semaphore::new(LOOKUPS));
        Self { store, known, lookups, failed_ms: i64::MIN.into(), used }
    }

    /// Whose the key `id` with `secret` is.
    pub async fn principal(
        &self,
        id: &str,
        secret: &[u8; 32],
        now_ms: i64,
    ) -> Result<Principal, Unauthenticated> {
        let known = self.known(id, now_ms).await?;
        let held = known.key.ok_or(Unauthenticated::UnknownKey)?;
        let principal = held.key.principal(secret, now_ms)?;
        self.note_use(&held, now_ms);
        Ok(principal)
    }

    async fn known(&self, id: &str, now_ms: i64) -> Result<Known, Unauthenticated> {
        let remembered = || self.known.get(id);
        if let Some(known) = remembered().filter(|known| known.is_within(FRESH_MS, now_ms)) {
            return Ok(known);
        }
        if self.is_away(now_ms) {
            return stale(remembered(), now_ms);
        }
        // Never closed.
        let _turn = self.lookups.acquire().await.map_err(|_| Unauthenticated::KeyStoreAway)?;
        // Whoever had the turn before may have asked the same, or in vain.
        let remembered = remembered();
        if let Some(known) = remembered.clone().filter(|known| known.is_within(FRESH_MS, now_ms)) {
            return Ok(known);
        }
        if self.is_away(now_ms) {
            return stale(remembered, now_ms);
        }
        match timeout(PATIENCE, self.store.key(id)).await {
            Ok(Ok(key)) => {
                let held = key.map(|key| Arc::new(Held { used_ms: key.used_ms.unwrap_or(0).into(), key }));
                let known = Known { key: held, at_ms: now_ms };
                self.known.insert(id.to_owned(), known.clone());
                return Ok(known);
            }
            Ok(Err(error)) => tracing::warn!(%error, key = id, "an API key cannot be looked up"),
            Err(_) => tracing::warn!(key = id, "an API key cannot be looked up: the store does not answer"),
        }
        self.failed_ms.store(now_ms, Ordering::Relaxed);
        stale(remembered, now_ms)
    }

    /// Whether the store failed so lately that it is not asked.
    fn is_away(&self, now_ms: i64) -> bool {
        // Others may have begun before the one that found out.
        now_ms.abs_diff(self.failed_ms.load(Ordering::Relaxed)) < PAUSE_MS
    }

    fn note_use(&self, held: &Held, now_ms: i64) {
        let before = held.used_ms.load(Ordering::Relaxed);
        let due = now_ms.saturating_sub(before) >= USE_MS;
        let swap =
            |now_ms| held.used_ms.compare_exchange(before, now_ms, Ordering::Relaxed, Ordering::Relaxed);
        if due && swap(now_ms).is_ok() {
            // Without room it is noted with the next use, a minute from now.
            let _ = self.used.try_send((held.key.id.clone(), now_ms));
        }
    }
}

/// What the store said last, if that holds without it.
fn stale(remembered: Option<Known>, now_ms: i64) -> Result<Known, Unauthenticated> {
    remembered.filter(|known| known.is_within(STALE_MS, now_ms)).ok_or(Unauthenticated::KeyStoreAway)
}

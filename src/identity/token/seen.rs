//! Tokens that were proven before.
//!
//! A client shows the same token with each request, and checking a signature
//! costs more than admitting a hundred records. So what came of it is
//! remembered by the token's SHA-256: until the token expires, and only as
//! long as the provider's keys are those it was proven with.

use std::sync::Arc;

use quick_cache::sync::Cache;
use sha2::{Digest, Sha256};

use crate::identity::Principal;

/// Tokens that are remembered.
const REMEMBERED: usize = 10_000;

pub(super) struct Seen(Cache<[u8; 32], Proven>);

#[derive(Clone)]
struct Proven {
    principal: Arc<Principal>,
    generation: u64,
    from_ms: i64,
    until_ms: i64,
}

impl Default for Seen {
    fn default() -> Self {
        Self(Cache::new(REMEMBERED))
    }
}

impl Seen {
    /// Whose the token is, if it was proven with these keys and is good now.
    pub fn get(&self, token: &str, generation: u64, now_ms: i64) -> Option<Principal> {
        let proven = self.0.get(&key(token))?;
        // A clock that was put back: look again whether it is good yet.
        let holds = proven.generation == generation && (proven.from_ms..proven.until_ms).contains(&now_ms);
        holds.then(|| Principal::clone(&proven.principal))
    }

    /// Remembers whose the token is, which was proven good from `now_ms` until
    /// `until_ms`.
    pub fn put(&self, token: &str, generation: u64, (from_ms, until_ms): (i64, i64), principal: &Principal) {
        let principal = Arc::new(principal.clone());
        self.0.insert(key(token), Proven { principal, generation, from_ms, until_ms });
    }
}

fn key(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

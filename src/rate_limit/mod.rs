//! How many requests a minute a tenant may make.
//!
//! A bucket of a minute's requests fills evenly; each request takes one. The
//! buckets are this daemon's own, or, with `[redis]`, those of all daemons
//! together: one limit, however many there are.

mod bucket;
mod settings;
mod shared;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

pub use bucket::Decision;
pub use settings::{Fail, Settings, Tiers};

use crate::{identity::Principal, redis::Redis};

/// Buckets beyond which full ones are thrown away: a full one is as none.
const SWEEP_AT: usize = 4_096;

/// Counts requests. Cheap to clone.
#[derive(Clone)]
pub struct Limiter(Arc<Parts>);

struct Parts {
    settings: Settings,
    redis: Option<Redis>,
    here: Mutex<Buckets>,
    begun: Instant,
}

/// When each bucket is full again, in microseconds.
struct Buckets {
    full_at: HashMap<String, i64>,
    sweep_at: usize,
}

/// The buckets of all daemons cannot be had, and the pipeline file says that
/// nobody is let through then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("requests are counted in Redis, which is away, and `limits.fail` is `closed`")]
pub struct CountingAway;

impl Limiter {
    /// Counts in `redis` if there is one.
    pub fn new(settings: Settings, redis: Option<Redis>) -> Self {
        let redis = redis.filter(|_| settings.shared);
        let here = Mutex::new(Buckets { full_at: HashMap::new(), sweep_at: SWEEP_AT });
        Self(Arc::new(Parts { settings, redis, here, begun: Instant::now() }))
    }

    /// Takes one request of `principal` to `route`; `None` if they are not
    /// limited.
    ///
    /// # Errors
    /// See [`CountingAway`].
    pub async fn take(&self, principal: &Principal, route: &str) -> Result<Option<Decision>, CountingAway> {
        let Some((limit, own)) = self.0.settings.limit_of(principal.tier, route) else { return Ok(None) };
        let whose = match &principal.tenant {
            Some(tenant) => format!("tenant:{tenant}"),
            None => format!("principal:{}", principal.id),
        };
        let bucket = format!("{}\0{whose}", if own { route } else { "" });
        if let Some(redis) = &self.0.redis {
            match shared::take(redis, &bucket, limit).await {
                Ok(decision) => return Ok(Some(decision)),
                Err(_) if self.0.settings.fail == Fail::Closed => return Err(CountingAway),
                // The connection reports itself that it is away.
                Err(_) => {}
            }
        }
        let now_us = i64::try_from(self.0.begun.elapsed().as_micros()).unwrap_or(i64::MAX);
        Ok(Some(self.here().take(bucket, limit, now_us)))
    }

    fn here(&self) -> MutexGuard<'_, Buckets> {
        self.0.here.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buckets {
    fn take(&mut self, bucket: String, limit: u32, now_us: i64) -> Decision {
        if self.full_at.len() >= self.sweep_at {
            self.full_at.retain(|_, full_at| *full_at > now_us);
            self.sweep_at = SWEEP_AT.max(2 * self.full_at.len());
        }
        let full_at = self.full_at.entry(bucket).or_insert(now_us);
        let (next, decision) = bucket::take(*full_at, now_us, limit);
        *full_at = next;
        decision
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{RateTier, Scheme};

    fn principal(id: &str, tenant: Option<&str>, tier: RateTier) -> Principal {
        let tenant = tenant.map(Arc::from);
        let roles = Default::default();
        Principal { id: id.into(), scheme: Scheme::Key, tenant, roles, tier, expires_ms: None }
    }

    #[tokio::test]
    async fn two_keys_of_a_tenant_share_its_limit_and_other_tenants_have_their_own() {
        let limiter = Limiter::new(Settings { free: 2, ..Settings::default() }, None);
        let take = async |id, tenant| {
            let principal = principal(id, tenant, RateTier::Free);
            limiter.take(&principal, "/api/v1/search").await.unwrap().unwrap().allowed
        };
        assert!(take("a", Some("acme")).await);
        assert!(take("b", Some("acme")).await);
        assert!(!take("b", Some("acme")).await);
        assert!(take("c", Some("other")).await);
        assert!(take("d", None).await);
    }

    #[tokio::test]
    async fn an_endpoint_with_its_own_limit_has_its_own_bucket() {
        let endpoints = [("/api/v1/search".to_owned(), Tiers { free: Some(1), ..Tiers::default() })];
        let settings = Settings { free: 2, endpoints: endpoints.into(), ..Settings::default() };
        let limiter = Limiter::new(settings, None);
        let free = principal("a", None, RateTier::Free);
        let take = async |route| limiter.take(&free, route).await.unwrap().unwrap();
        assert_eq!((take("/api/v1/search").await.limit, take("/api/v1/search").await.allowed), (1, false));
        assert_eq!((take("/api/v1/status").await.remaining, take("/api/v1/ingest").await.remaining), (1, 0));
    }

    #[tokio::test]
    async fn nobody_counts_for_those_without_a_limit() {
        let limiter = Limiter::new(Settings::default(), None);
        let decision = limiter.take(&principal("a", None, RateTier::Unlimited), "/api/v1/search").await;
        assert_eq!(decision, Ok(None));
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let mut buckets = Buckets { full_at: HashMap::new(), sweep_at: 3 };
        for (n, now_us) in [("a", 0), ("b", 0), ("c", 0), ("d", 2_000_000)] {
            buckets.take(n.into(), 60, now_us);
        }
        assert_eq!(buckets.full_at.len(), 1);
    }
}

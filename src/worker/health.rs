//! Tells webhooks when something is not right, and when it is again.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    pipeline::progress::Progress,
    store::Store,
    webhooks::{Event, EventKind, Outbox},
};

/// How often it is looked.
const LOOKING: Duration = Duration::from_secs(1);
/// Trouble that is over sooner is told to nobody.
const PASSING_MS: i64 = 30_000;

/// What is known of the daemon's health, and what was told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Since when something is not right.
    bad_since_ms: Option<i64>,
    is_told: bool,
}

impl Health {
    /// What is to be told now, and what is known once it is.
    fn seen(self, is_bad: bool, now_ms: i64) -> (Option<EventKind>, Self) {
        match (is_bad, self.bad_since_ms) {
            (false, _) => (self.is_told.then_some(EventKind::HealthReady), Self::default()),
            (true, None) => (None, Self { bad_since_ms: Some(now_ms), ..self }),
            (true, Some(since)) if !self.is_told && now_ms - since >= PASSING_MS => {
                (Some(EventKind::HealthDegraded), Self { is_told: true, ..self })
            }
            (true, Some(_)) => (None, self),
        }
    }
}

/// Watches until `stop`, from where `health` was left. What the store does not
/// take is told when it does, unless it is not so any more.
pub async fn tell_health(
    health: Arc<Mutex<Health>>,
    progress: Arc<Progress>,
    (store, outbox): (Store, Outbox),
    clock: Clock,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut health = health.lock().await;
    while stop.run_until_cancelled(tokio::time::sleep(LOOKING)).await.is_some() {
        let (trouble, now_ms) = (progress.snapshot().trouble, clock());
        let (kind, next) = health.seen(!trouble.is_empty(), now_ms);
        let Some(kind) = kind else {
            *health = next;
            continue;
        };
        let event = Event { kind, at_ms: now_ms, tenant: None, data: json!({"trouble": trouble}) };
        match store.add_deliveries(&outbox.deliveries(&event)).await {
            Ok(()) => *health = next,
            Err(error) => tracing::warn!(%error, event = kind.as_str(), "webhooks are told later"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_once_it_has_lasted_and_its_end_only_then() {
        let mut health = Health::default();
        let mut told = Vec::new();
        let seen = [(0, true), (29_000, true), (29_500, false), (40_000, true), (70_000, true)];
        for (now_ms, is_bad) in seen.into_iter().chain([(90_000, true), (91_000, false), (92_000, false)]) {
            let (kind, next) = health.seen(is_bad, now_ms);
            told.extend(kind.map(|kind| (now_ms, kind)));
            health = next;
        }
        assert_eq!(told, [(70_000, EventKind::HealthDegraded), (91_000, EventKind::HealthReady)]);
    }
}

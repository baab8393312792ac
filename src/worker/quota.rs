//! Tells webhooks how much of a day's embedding quota is spent.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde_json::json;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    embed::{Budget, QuotaState},
    store::Store,
    webhooks::{Event, EventKind, Outbox},
};

/// How often it is looked.
const LOOKING: Duration = Duration::from_secs(1);

/// What there is to tell of a limit.
fn reached(state: &QuotaState) -> Option<EventKind> {
    let most = state.daily_quota?.saturating_mul(4) / 5;
    match (state.exceeded, state.current_count >= most) {
        (true, _) => Some(EventKind::QuotaSpent),
        (false, true) => Some(EventKind::QuotaWarning),
        (false, false) => None,
    }
}

/// What was told of each limit, and until when that holds.
#[derive(Debug, Default)]
pub struct QuotaTold(BTreeMap<&'static str, (i64, EventKind)>);

impl QuotaTold {
    /// What is to be told of a limit that was not told today.
    fn due(&self, limit: &'static str, state: &QuotaState) -> Option<EventKind> {
        let told = self.0.get(limit).filter(|(reset_at, _)| *reset_at == state.reset_at);
        reached(state).filter(|now| told.is_none_or(|(_, before)| before < now))
    }
}

/// Watches `budget` until `stop`; what was `told` already is not told again.
/// What the store does not take is told when it does.
pub async fn tell_quota(
    told: Arc<Mutex<QuotaTold>>,
    budget: Arc<Budget>,
    (store, outbox): (Store, Outbox),
    clock: Clock,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut told = told.lock().await;
    while stop.run_until_cancelled(tokio::time::sleep(LOOKING)).await.is_some() {
        for (limit, state) in budget.states() {
            let Some(kind) = told.due(limit.name(), &state) else { continue };
            let data = json!({
                "limit": limit.name(),
                "daily_quota": state.daily_quota,
                "spent": state.current_count,
                "reset_at_ms": state.reset_at,
            });
            let event = Event { kind, at_ms: clock(), tenant: None, data };
            match store.add_deliveries(&outbox.deliveries(&event)).await {
                Ok(()) => drop(told.0.insert(limit.name(), (state.reset_at, kind))),
                Err(error) => tracing::warn!(%error, event = kind.as_str(), "webhooks are told later"),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_told_once_a_day_as_it_is_nearly_and_as_it_is_spent() {
        let state = |current_count, exceeded, reset_at| QuotaState {
            daily_quota: Some(100),
            current_count,
            remaining: Some(100 - current_count),
            exceeded,
            reset_at,
        };
        let mut told = QuotaTold::default();
        let mut kinds = Vec::new();
        for (spent, exceeded, day) in
            [(79, false, 1), (80, false, 1), (90, false, 1), (99, true, 1), (99, false, 1), (85, false, 2)]
        {
            let state = state(spent, exceeded, day);
            if let Some(kind) = told.due("tokens", &state) {
                kinds.push((spent, kind));
                told.0.insert("tokens", (day, kind));
            }
        }
        let [warning, over] = [EventKind::QuotaWarning, EventKind::QuotaSpent];
        assert_eq!(kinds, [(80, warning), (99, over), (85, warning)]);
        assert_eq!(told.due("money", &state(100, true, 2)), Some(over), "another limit");
        let unlimited = QuotaState { daily_quota: None, ..state(100, false, 2) };
        assert_eq!(told.due("requests", &unlimited), None);
    }
}

//! What embedding may cost, and how its services do.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};

use super::{Problem, Shared};
use crate::{
    clock,
    embed::{Budget, Circuit, Embedder, EndpointState, QuotaKind, QuotaState},
};

const DAY_MS: i64 = 86_400_000;

/// `GET /api/v1/embedding/quota`: the limit that is nearest to being reached,
/// and all of them.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Quota {
    /// What may be spent in a day; null: no limit.
    pub daily_quota: Option<u64>,
    /// What was spent today.
    pub current_count: u64,
    /// What is left; null: no limit.
    pub remaining: Option<u64>,
    /// Whether something was refused today, or nothing is left.
    pub exceeded: bool,
    /// When a new day begins, as RFC 3339 has it.
    pub reset_at: String,
    /// What is counted above: `tokens`, `requests`, or `money` in millionths
    /// of the currency of the prices; null where embedding costs nothing.
    pub unit: Option<QuotaKind>,
    /// Every kind, limited or not.
    pub kinds: Vec<QuotaKindState>,
}

/// What is spent of one kind.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct QuotaKindState {
    /// What is counted.
    pub unit: QuotaKind,
    /// What may be spent in a day; null: no limit.
    pub daily_quota: Option<u64>,
    /// What was spent today.
    pub current_count: u64,
    /// What is left; null: no limit.
    pub remaining: Option<u64>,
    /// Whether something was refused today, or nothing is left.
    pub exceeded: bool,
}

/// `GET /health/providers`.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Providers {
    /// `ok` if all services are in use, `degraded` if some are left alone,
    /// `down` if all are; `local` where vectors are computed here.
    pub status: String,
    /// Why records wait for vectors, if they do.
    pub trouble: Option<String>,
    /// Records that wait for vectors.
    pub deferred: u64,
    /// Share of the stored records that have no vector.
    pub fallback_fraction: f64,
    /// The services, in the order in which they are asked.
    pub providers: Vec<EndpointState>,
    /// What they may cost.
    pub quota: Quota,
}

impl Quota {
    fn of(budget: Option<&Arc<Budget>>, now_ms: i64) -> Self {
        let states = budget.map(|budget| budget.states()).unwrap_or_default();
        let nearest = budget.map(|budget| budget.state());
        let unit = states.iter().find(|(_, state)| Some(state) == nearest.as_ref()).map(|(unit, _)| *unit);
        let kind = |(unit, state): (QuotaKind, QuotaState)| QuotaKindState {
            unit,
            daily_quota: state.daily_quota,
            current_count: state.current_count,
            remaining: state.remaining,
            exceeded: state.exceeded,
        };
        let reset_ms =
            nearest.as_ref().map_or((now_ms.div_euclid(DAY_MS) + 1) * DAY_MS, |state| state.reset_at);
        Self {
            daily_quota: nearest.as_ref().and_then(|state| state.daily_quota),
            current_count: nearest.as_ref().map_or(0, |state| state.current_count),
            remaining: nearest.as_ref().and_then(|state| state.remaining),
            exceeded: nearest.is_some_and(|state| state.exceeded),
            reset_at: jiff::Timestamp::from_millisecond(reset_ms).unwrap_or_default().to_string(),
            unit,
            kinds: states.into_iter().map(kind).collect(),
        }
    }
}

/// What embedding may cost today, and what it has cost
#[utoipa::path(get, path = "/api/v1/embedding/quota", responses((status = 200, body = Quota)))]
pub(super) async fn quota(State(api): Shared) -> Result<Json<Quota>, Problem> {
    let served = api.searcher.serving.now().await?;
    Ok(Json(Quota::of(served.model.budget(), clock::system_ms())))
}

/// How the embedding services do
#[utoipa::path(get, path = "/health/providers", responses((status = 200, body = Providers)))]
pub(super) async fn providers(State(api): Shared) -> Result<Json<Providers>, Problem> {
    let served = api.searcher.serving.now().await?;
    let providers = served.model.endpoints();
    let in_use = providers.iter().filter(|endpoint| endpoint.circuit == Circuit::Closed).count();
    Ok(Json(Providers {
        status: match (providers.len(), in_use) {
            (0, _) => "local",
            (_, 0) => "down",
            (all, in_use) if in_use < all => "degraded",
            _ => "ok",
        }
        .to_owned(),
        trouble: api.progress.trouble_of("embed"),
        deferred: api.progress.deferred(),
        fallback_fraction: api.progress.fallback_fraction(),
        quota: Quota::of(served.model.budget(), clock::system_ms()),
        providers,
    }))
}

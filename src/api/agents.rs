//! `capabilities`, `query` and `simulate`: what an agent asks before it acts.

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Problem, RIGHTS, Shared, Status,
    extract::{Caller, Input},
    routes_of,
    status::Reason,
};
use crate::{
    embed::Embedder,
    identity::RateTier,
    pipeline::{
        estimate::{Estimate, Extent, Plan, estimate},
        why::{Standing, Whereabouts, why},
    },
};

/// What this engine can do, and what whoever asks may have it do.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// The engine's version.
    pub version: String,
    /// The pipeline.
    pub pipeline: String,
    /// Its stream.
    pub stream: String,
    /// Whether it takes records over HTTP.
    pub ingest: bool,
    /// The embedding space that is searched.
    pub space: String,
    /// Ways to search.
    pub search_modes: [String; 3],
    /// Bytes of the longest body that is taken.
    pub max_body_bytes: u64,
    /// Who asks.
    pub principal: Who,
    /// What may be asked for, and what cannot be for want of a right.
    pub operations: Vec<Operation>,
}

/// Whoever asks.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Who {
    /// The key's id or the token's subject.
    pub id: String,
    /// The only tenant they speak for; null: any.
    pub tenant: Option<String>,
    /// What they are there for.
    pub roles: Vec<String>,
    /// How much they may ask.
    pub rate_tier: RateTier,
}

/// One thing that can be asked for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// `GET`, `POST` or another.
    pub method: String,
    /// Where.
    pub path: String,
    /// What it does.
    pub summary: Option<String>,
    /// The right that it needs.
    pub right: String,
    /// Whether whoever asks has it.
    pub allowed: bool,
}

/// A question about the state of things.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "about", rename_all = "snake_case", deny_unknown_fields)]
pub enum Question {
    /// Where does the pipeline stand, and is anything amiss?
    State,
    /// Where is this record, and what blocks it?
    Record {
        /// Its offset in the stream.
        offset: u64,
    },
}

/// Its answer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "about", rename_all = "snake_case")]
pub enum Answer {
    /// Where the pipeline stands.
    State {
        /// All its numbers.
        status: Box<Status>,
        /// What is amiss; empty if nothing is.
        reasons: Vec<String>,
    },
    /// Where a record is.
    Record {
        /// Where.
        record: Box<Whereabouts>,
    },
}

/// What the engine can do, and what of that whoever asks may
#[utoipa::path(get, path = "/api/v1/capabilities", responses((status = 200, body = Capabilities)))]
pub(super) async fn capabilities(
    State(api): Shared,
    Caller(principal, _): Caller,
) -> Result<Json<Capabilities>, Problem> {
    let mut operations = Vec::new();
    for right in RIGHTS {
        let allowed = principal.require(right).is_ok();
        for (path, item) in routes_of(right).into_openapi().paths.paths {
            let methods = [("GET", item.get), ("POST", item.post), ("DELETE", item.delete)];
            let there = methods.into_iter().filter_map(|(method, operation)| Some((method, operation?)));
            operations.extend(there.map(|(method, operation)| Operation {
                method: method.to_owned(),
                path: path.clone(),
                summary: operation.summary,
                right: right.name().to_owned(),
                allowed,
            }));
        }
    }
    Ok(Json(Capabilities {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pipeline: api.pipeline.clone(),
        stream: api.log.stream().to_owned(),
        ingest: api.http_source.is_some(),
        space: api.searcher.serving.now().await?.model.space().to_string(),
        search_modes: ["union", "vector", "keyword"].map(str::to_owned),
        max_body_bytes: api.bodies.longest() as u64,
        principal: Who {
            id: principal.id.to_string(),
            tenant: principal.tenant.as_ref().map(ToString::to_string),
            roles: principal.roles.iter().map(|role| role.name().to_owned()).collect(),
            rate_tier: principal.tier,
        },
        operations,
    }))
}

/// Ask where things stand, or where a record is and what blocks it
#[utoipa::path(post, path = "/api/v1/query", request_body = Question, responses((status = 200, body = Answer)))]
pub(super) async fn query(
    State(api): Shared,
    Input(question): Input<Question>,
) -> Result<Json<Answer>, Problem> {
    let answer = match question {
        Question::State => {
            let (hindering, degrading) = api.reasons();
            let reasons = hindering.iter().chain(&degrading).map(Reason::to_string).collect();
            Answer::State { status: Box::new(api.status().await?), reasons }
        }
        Question::Record { offset } => {
            let derived = api.progress.snapshot();
            let standing = Standing {
                end_offset: api.log.end_offset(),
                next_offset: derived.next_offset,
                trouble: derived.trouble,
            };
            let space_key = api.searcher.serving.now().await?.space_key;
            let place = (api.pipeline.as_str(), api.log.stream());
            let record = why(&api.searcher.store, place, offset, space_key, &standing).await?;
            Answer::Record { record: Box::new(record) }
        }
    };
    Ok(Json(answer))
}

/// What an ingest, a replay or a new embedding would cost before it is done
#[utoipa::path(post, path = "/api/v1/simulate", request_body = Plan, responses((status = 200, body = Estimate)))]
pub(super) async fn simulate(
    State(api): Shared,
    Input(plan): Input<Plan>,
) -> Result<Json<Estimate>, Problem> {
    let derived = api.progress.snapshot();
    let extent = Extent {
        start: api.log.start_offset(),
        end: api.log.end_offset(),
        stored: derived.indexed + derived.deferred,
    };
    let served = match plan {
        Plan::ReEmbed => api.searcher.serving.members().last().cloned(),
        _ => None,
    };
    let served = match served {
        Some(served) => served,
        None => api.searcher.serving.now().await?,
    };
    Ok(Json(estimate(plan, &api.searcher.store, &served, &api.embed, extent).await?))
}

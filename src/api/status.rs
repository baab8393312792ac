//! Health, metrics, and where the pipeline stands.

use axum::{
    Json,
    extract::{Request, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};

use super::{Api, Problem, Shared};
use crate::{
    embed::Embedder,
    metrics,
    pipeline::{
        progress::Snapshot,
        stages::{Stage, Standing, stages},
    },
    store::Damage,
};

/// Where a pipeline stands.
#[derive(Clone, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Status {
    /// The pipeline.
    pub pipeline: String,
    /// Its stream.
    pub stream: String,
    /// Name of this ingestion batch.
    pub batch_tag: String,
    /// Seconds since the daemon started.
    pub uptime_s: f64,
    /// The offset after the last durable frame.
    pub end_offset: u64,
    /// Durable frames that are not derived yet.
    pub in_flight: u64,
    /// What became of the others.
    pub derived: Snapshot,
    /// The stages that records pass, in this order.
    #[serde(default)]
    pub stages: Vec<Stage>,
    /// Sealed segments.
    pub segments: Segments,
    /// Bytes of the database.
    pub index_bytes: u64,
    /// The embedding space.
    pub space: String,
}

/// Sealed segments, added up.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Segments {
    /// How many.
    pub sealed: u64,
    /// Frames in them.
    pub records: u64,
    /// Bytes of the frames.
    pub plain_bytes: u64,
    /// Bytes of the files.
    pub object_bytes: u64,
}

/// Records are taken, stored and found by keyword without these.
const DEGRADING: [&str; 11] = [
    "embed",
    "backfill",
    "migration",
    "archive",
    "artifacts",
    "model description",
    "redis",
    "audit",
    "jobs",
    "scheduler",
    "scheduled jobs",
];

impl Api {
    /// Where the pipeline stands now.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn status(&self) -> Result<Status, Problem> {
        let derived = self.progress.snapshot();
        let end_offset = self.log.end_offset();
        let mut segments = Segments::default();
        let mut sealed_end = 0;
        for row in self.searcher.store.segments(self.log.stream()).await? {
            sealed_end = row.end_offset.max(sealed_end);
            segments.sealed += 1;
            segments.records += row.records;
            segments.plain_bytes += row.plain_bytes;
            segments.object_bytes += row.object_bytes;
        }
        let standing = Standing {
            now_ms: (self.clock)(),
            end_offset,
            closed_end: self.log.durable().borrow().active_base,
            sealed_end,
            log: self.intake.backlog(),
            log_trouble: self
                .log
                .failed()
                .map(ToString::to_string)
                .or(self.log.full().map(|why| why.to_string())),
            derived: &derived,
            underway: self.progress.flow.loads(),
        };
        let stages = stages(&standing);
        Ok(Status {
            stages,
            pipeline: self.pipeline.clone(),
            stream: self.log.stream().to_owned(),
            batch_tag: self.batch_tag.clone(),
            uptime_s: self.started.elapsed().as_secs_f64(),
            end_offset,
            in_flight: end_offset.saturating_sub(derived.next_offset),
            derived,
            segments,
            index_bytes: self.searcher.store.database_bytes().await?,
            space: self.searcher.serving.now().await?.model.space().to_string(),
        })
    }

    /// What keeps the daemon from being ready, and what it only works less well
    /// without; empty if nothing does.
    pub(super) fn reasons(&self) -> (Vec<Reason>, Vec<Reason>) {
        let of = |component: &str, what: String| Reason { component: component.to_owned(), what };
        let mut reasons: Vec<_> =
            self.log.failed().map(|why| of("log", why.to_string())).into_iter().collect();
        reasons.extend(self.log.full().map(|why| of("log", why.to_string())));
        if self.closing.is_cancelled() {
            reasons.push(of("daemon", "the daemon is shutting down".into()));
        }
        let trouble = self.progress.snapshot().trouble;
        let (degrading, hindering): (Vec<_>, Vec<_>) =
            trouble.into_iter().partition(|(component, _)| DEGRADING.contains(&component.as_str()));
        let said = |(component, what)| Reason { what: format!("{component}: {what}"), component };
        reasons.extend(hindering.into_iter().map(said));
        (reasons, degrading.into_iter().map(said).collect())
    }
}

/// Something that is amiss.
pub(super) struct Reason {
    /// With what.
    component: String,
    /// What it is, which names the component where that is not plain.
    what: String,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

/// Where the pipeline stands
#[utoipa::path(get, path = "/api/v1/status", responses((status = 200, body = Status)))]
pub(super) async fn status(State(api): Shared) -> Result<Json<Status>, Problem> {
    api.status().await.map(Json)
}

/// The process runs.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Live {
    /// `live`.
    pub status: String,
}

/// Whether records are taken and found, and if not, why.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Readiness {
    /// `ready`; `degraded` if something is amiss that keeps nobody from
    /// sending; `not ready`.
    pub status: String,
    /// What is amiss; with what only, for who may not see where the pipeline
    /// stands.
    pub reasons: Vec<String>,
    /// What is damaged in the log and not repaired yet, for who may see it.
    pub damage: Vec<Damage>,
}

/// Whether the process runs
#[utoipa::path(get, path = "/health/live", responses((status = 200, body = Live)))]
pub(super) async fn live() -> Json<Live> {
    Json(Live { status: "live".to_owned() })
}

/// Whether records are taken and found
#[utoipa::path(get, path = "/health", responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub(super) async fn health(api: Shared, request: Request) -> (StatusCode, Json<Readiness>) {
    ready(api, request).await
}

/// Whether records are taken and found
#[utoipa::path(
    get,
    path = "/health/ready",
    responses((status = 200, body = Readiness), (status = 503, body = Readiness))
)]
pub(super) async fn ready(State(api): Shared, request: Request) -> (StatusCode, Json<Readiness>) {
    let (hindering, degrading) = api.reasons();
    let damage = api.damage.open_damage();
    // What is damaged is lost or not whether frames are sent here or not; so
    // damage alone keeps nobody from sending.
    let (code, status) = match (hindering.is_empty(), damage.is_empty() && degrading.is_empty()) {
        (true, true) => (StatusCode::OK, "ready"),
        (true, false) => (StatusCode::OK, "degraded"),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let status = status.to_owned();
    let amiss = hindering.into_iter().chain(degrading);
    if api.may_observe(request).await {
        let reasons = amiss.map(|reason| reason.what).collect();
        return (code, Json(Readiness { status, reasons, damage }));
    }
    // A stranger learns with what, and nothing of where and how.
    let mut reasons: Vec<String> = amiss.map(|reason| reason.component).collect();
    reasons.extend((!damage.is_empty()).then(|| "damage".to_owned()));
    (code, Json(Readiness { status, reasons, damage: Vec::new() }))
}

/// Metrics as Prometheus reads them
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(api): Shared) -> Result<String, Problem> {
    metrics::index_bytes(api.searcher.store.database_bytes().await?);
    api.metrics.run_upkeep();
    Ok(api.metrics.render())
}

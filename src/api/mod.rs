//! The HTTP interface.

mod bodies;
mod embedding;
mod idempotency;
mod ingest;
mod problem;
mod search;
mod status;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use bodies::Bodies;
pub use idempotency::Idempotency;
pub use problem::Problem;
pub use status::{Segments, Status};

use crate::{
    dataflow::Cpu,
    log::LogReader,
    metrics,
    pipeline::{Ingest, damage::DamageRegister, progress::Progress, search::Searcher},
};

/// What the handlers need of a running pipeline.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

/// See [`Api`].
pub struct Parts {
    /// The pipeline's name.
    pub pipeline: String,
    /// Name of this ingestion batch.
    pub batch_tag: String,
    /// The way in; `None` if the pipeline has no `http` source.
    pub ingest: Option<(String, Ingest)>,
    /// Room for the bodies of ingest requests.
    pub bodies: Bodies,
    /// What became of ingest requests that may come again.
    pub idempotency: Idempotency,
    /// Reads the stream.
    pub log: LogReader,
    /// Answers searches.
    pub searcher: Searcher,
    /// Where the pipeline stands.
    pub progress: Arc<Progress>,
    /// What is damaged in the log.
    pub damage: Arc<DamageRegister>,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Where JSON is turned into frames.
    pub cpu: Cpu,
    /// Cancelled when the daemon shuts down.
    pub closing: CancellationToken,
    /// When the daemon started.
    pub started: Instant,
}

/// Largest body of a request.
pub const MAX_BODY_BYTES: usize = 64 << 20;

impl Api {
    /// From its parts.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// All routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/api/v1/ingest", post(ingest::ingest))
            .route("/api/v1/search", post(search::search))
            .route("/api/v1/status", get(status::status))
            .route("/health", get(status::ready))
            .route("/health/live", get(status::live))
            .route("/health/ready", get(status::ready))
            .route("/health/providers", get(embedding::providers))
            .route("/api/v1/embedding/quota", get(embedding::quota))
            .route("/metrics", get(status::metrics))
            .fallback(problem::not_found)
            .method_not_allowed_fallback(problem::method_not_allowed)
            .layer(middleware::from_fn(measured))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(self)
    }

    /// Serves until `stop` is cancelled and the open requests are answered.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let idempotency = self.idempotency.clone();
        axum::serve(listener, self.router()).with_graceful_shutdown(stop.cancelled_owned()).await?;
        // Work whose client has gone away is finished all the same.
        idempotency.drain().await;
        Ok(())
    }
}

impl std::ops::Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Counts and times every request, by route.
pub(crate) async fn measured(route: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = route.map_or_else(|| "unknown".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    metrics::http_request(&route, response.status().as_u16(), started.elapsed());
    response
}

/// How long an ingest request waits for room in the log before it is refused.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(5);

type Shared = State<Api>;

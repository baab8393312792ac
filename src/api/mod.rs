//! The HTTP interface.

mod access;
mod agents;
mod artifacts;
mod bodies;
mod bounds;
mod dead_letters;
mod embedding;
mod extract;
mod idempotency;
mod ingest;
mod jobs;
mod models;
mod openapi;
mod page;
mod problem;
mod reload;
mod request_id;
mod search;
mod segments;
mod status;
mod trail;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    middleware::{self, Next},
    response::Response,
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower_http::{
    catch_panic::CatchPanicLayer, compression::CompressionLayer, decompression::RequestDecompressionLayer,
};
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

pub use agents::{Answer, Capabilities, Operation, Question, Who};
pub use artifacts::Artifact;
pub use bodies::Bodies;
pub use dead_letters::{Letter, Redrive, RedriveOutcome, Redriven};
pub use embedding::{Providers, Quota, QuotaKindState};
pub use idempotency::Idempotency;
pub use jobs::Schedules;
pub use models::{EmbeddingSpace, Models};
pub use page::{Page, cursor};
pub use problem::Problem;
pub use segments::Segment;
pub use status::{Live, Readiness, Segments, Status};
pub use trail::Act;

use self::access::Gate;
use crate::{
    access::Access,
    clock::Clock,
    config::Http,
    dataflow::Cpu,
    embed,
    identity::Right,
    jobs::Jobs,
    log::LogReader,
    metrics,
    pipeline::{Ingest, damage::DamageRegister, progress::Progress, search::Searcher},
    rate_limit::Limiter,
    reload::Reloads,
};

/// What the handlers need of a running pipeline.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

/// See [`Api`].
pub struct Inner {
    parts: Parts,
    /// Places of requests that are under way.
    places: Semaphore,
    document: OpenApi,
}

/// See [`Api`].
pub struct Parts {
    /// The pipeline's name.
    pub pipeline: String,
    /// Name of this ingestion batch.
    pub batch_tag: String,
    /// The way into the log.
    pub intake: Ingest,
    /// Name of the `http` source, if the pipeline has one.
    pub http_source: Option<String>,
    /// Long work.
    pub jobs: Jobs,
    /// What time it is.
    pub clock: Clock,
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
    /// What requests may take.
    pub http: Http,
    /// How texts are embedded, and for what price.
    pub embed: embed::Settings,
    /// Who is let in.
    pub access: Access,
    /// Counts the requests of each tenant.
    pub limiter: Limiter,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Where JSON is turned into frames.
    pub cpu: Cpu,
    /// Cancelled when the daemon shuts down.
    pub closing: CancellationToken,
    /// Where it is asked that the pipeline file be taken anew.
    pub reloads: Reloads,
    /// When the daemon started.
    pub started: Instant,
}

/// Largest body of an ingest request.
pub const MAX_BODY_BYTES: usize = 64 << 20;
/// Largest body of any other request.
const MAX_JSON_BYTES: usize = 1 << 20;

impl Api {
    /// From its parts.
    pub fn new(parts: Parts) -> Self {
        let places = Semaphore::new(parts.http.max_requests as usize);
        Self(Arc::new(Inner { parts, places, document: Self::document() }))
    }

    /// The OpenAPI document; `docs/openapi.json` is its committed copy.
    pub fn document() -> OpenApi {
        let mut document = openapi::complete(open_routes().into_openapi(), None);
        for right in RIGHTS {
            document.merge(openapi::complete(routes_of(right).into_openapi(), Some(right)));
        }
        openapi::open_parts(&mut document);
        document
    }

    /// All routes.
    ///
    /// The layers stand from the inside out. A request comes the other way:
    ///
    /// ```text
    /// id ─► answer compressed ─► errors in one shape ─► counted and timed ─► a place, a limit of time
    ///    ─► panics are errors ─► length of the body ─► who asks, with what right, how often
    ///    ─► body decompressed (the length counts what comes out) ─► handler
    /// ```
    pub fn router(self) -> Router {
        let guarded = RIGHTS.iter().fold(OpenApiRouter::new(), |routes, right| {
            let gate = Gate { api: self.clone(), right: *right };
            let decompress = RequestDecompressionLayer::new();
            let of_right = routes_of(*right)
                .route_layer(decompress)
                .route_layer(middleware::from_fn_with_state(gate, access::guarded));
            routes.merge(of_right)
        });
        let (routes, _) = open_routes().merge(guarded).split_for_parts();
        routes
            .fallback(problem::not_found)
            .method_not_allowed_fallback(problem::method_not_allowed)
            .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
            .layer(CatchPanicLayer::new())
            .layer(middleware::from_fn_with_state(self.clone(), bounds::bounded))
            .layer(middleware::from_fn(measured))
            .layer(middleware::from_fn(problem::shaped))
            .layer(CompressionLayer::new())
            .layer(middleware::from_fn(request_id::identified))
            .with_state(self)
    }

    fn now_ms(&self) -> i64 {
        (self.clock)()
    }
}

/// The rights that routes need.
const RIGHTS: [Right; 5] = [Right::Search, Right::Ingest, Right::Observe, Right::Operate, Right::Administer];

/// The routes that anybody may ask.
fn open_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::with_openapi(openapi::outline())
        .routes(routes!(status::health))
        .routes(routes!(status::live))
        .routes(routes!(status::ready))
        .routes(routes!(openapi::document))
}

/// The routes that need `right`.
fn routes_of(right: Right) -> OpenApiRouter<Api> {
    let routes = OpenApiRouter::new();
    match right {
        Right::Search => routes.routes(routes!(search::search)).routes(routes!(agents::capabilities)),
        Right::Ingest => routes.routes(routes!(ingest::ingest)),
        Right::Observe => routes
            .routes(routes!(status::status))
            .routes(routes!(agents::query))
            .routes(routes!(agents::simulate))
            .routes(routes!(segments::list))
            .routes(routes!(segments::show))
            .routes(routes!(artifacts::list))
            .routes(routes!(artifacts::show))
            .routes(routes!(models::list))
            .routes(routes!(embedding::quota))
            .routes(routes!(embedding::providers))
            .routes(routes!(status::metrics)),
        Right::Operate => routes
            .routes(routes!(dead_letters::list))
            .routes(routes!(dead_letters::show))
            .routes(routes!(dead_letters::redrive))
            .routes(routes!(jobs::list, jobs::ask))
            .routes(routes!(jobs::show, jobs::cancel))
            .routes(routes!(jobs::replay))
            .routes(routes!(jobs::schedules)),
        Right::Administer => routes.routes(routes!(trail::list)).routes(routes!(reload::reload)),
    }
}

impl std::ops::Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0.parts
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

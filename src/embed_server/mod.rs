//! An embedding service in OpenAI's words, over the local model.
//!
//! The way of a request: key, body (room in bytes, as it arrives), texts (room
//! in texts), model, answer. Nobody waits for room: a request that finds none
//! is refused at once and told when to come again, and what was taken in is
//! answered. Few short texts have room of their own and go before longer lists,
//! so that a query is not kept waiting by a back-fill.
//!
//! The service is ready once the model has computed something on every
//! thread. Told to stop, it is not ready any more and refuses new texts, but
//! listens on until what it took is answered.

mod answer;
mod body;
mod embeddings;
mod error;
mod health;
mod key;
mod models;
mod request;
mod room;
mod run;

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::{
    Router, middleware,
    routing::{get, post},
};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use error::ApiError;
pub use key::{ApiKey, KeyError};
pub use run::{Ended, Options, Ready, ServeError, run};

use crate::{api, dataflow::Cpu, embed::LocalModel, units::ByteSize};
use room::Room;

/// What one request, and all together, may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a body, unpacked.
    pub body_bytes: ByteSize,
    /// Texts in a request.
    pub inputs: usize,
    /// Texts of all requests that are being answered.
    pub queue_texts: usize,
    /// Bytes of the bodies of all requests that are being answered.
    pub queue_bytes: ByteSize,
    /// How long a request may take, once its body is there.
    pub request_timeout: Duration,
}

/// The service.
#[derive(Clone)]
struct Server(Arc<Parts>);

struct Parts {
    limits: Limits,
    room: Room,
    /// Set once the model is ready.
    served: OnceLock<Served>,
    key: Option<ApiKey>,
    cpu: Cpu,
    metrics: PrometheusHandle,
    /// Requests for vectors that are being answered.
    under_way: TaskTracker,
    /// Cancelled when no new texts are taken.
    closing: CancellationToken,
}

/// A model, and what clients know of it.
struct Served {
    model: LocalModel,
    name: String,
    /// When it became ready, in seconds since the Unix epoch.
    since: i64,
}

impl Server {
    fn router(self) -> Router {
        let guarded = Router::new()
            .route("/v1/embeddings", post(embeddings::embeddings))
            .route("/v1/models", get(models::list))
            // A model's name may have a slash in it.
            .route("/v1/models/{*id}", get(models::one))
            .route("/metrics", get(health::metrics))
            .layer(middleware::from_fn_with_state(self.clone(), key::authorised));
        Router::new()
            .route("/health", get(health::ready))
            .route("/health/live", get(health::live))
            .route("/health/ready", get(health::ready))
            .merge(guarded)
            .fallback(error::not_found)
            .method_not_allowed_fallback(error::method_not_allowed)
            .layer(middleware::from_fn(api::measured))
            .with_state(self)
    }

    /// The model, if it is ready.
    fn served(&self) -> Result<&Served, ApiError> {
        self.served.get().ok_or_else(|| ApiError::unavailable("loading", "the model is not loaded yet", 1))
    }
}

impl std::ops::Deref for Server {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

type Shared = axum::extract::State<Server>;

//! Starting the service, and stopping it in order.

use std::{
    io,
    sync::{Arc, OnceLock},
    thread,
    time::Duration,
};

use futures::future::try_join_all;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::{net::TcpListener, time::timeout_at};
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};

use super::{ApiKey, Limits, Parts, Served, Server, room::Room};
use crate::{
    clock::{self, Clock},
    config::Listen,
    dataflow::Cpu,
    embed::{DeviceChoice, EmbedError, Embedder, LocalModel, OpenError, Settings, gather},
    http_server,
};

/// Connections at once.
const CONNECTIONS: usize = 1_024;

/// How to serve.
pub struct Options {
    /// Where. Any address but loopback needs a key.
    pub listen: Listen,
    /// Which model, and how it computes.
    pub embed: Settings,
    /// What computes, if it is there.
    pub device: DeviceChoice,
    /// What clients call the model; its own name if empty.
    pub name: String,
    /// What requests have to bring.
    pub key: Option<ApiKey>,
    /// What requests may take.
    pub limits: Limits,
    /// How long a stop waits for what was taken.
    pub drain: Duration,
}

/// A service that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Where it listens.
    pub http: String,
    /// What clients call the model.
    pub model: String,
    /// The space of its vectors.
    pub space: String,
    /// What computes: `cpu`, or what a device calls itself.
    pub device: String,
}

/// How a service ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything taken is answered.
    Drained,
    /// Stopped at the deadline, without an answer to so many requests.
    Unanswered(usize),
}

/// Why there is no service.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Anyone could use it.
    #[error(
        "without an API key the service listens on loopback only, not on {listen}; set THALWEG_EMBED_API_KEY or --api-key-file"
    )]
    NeedsKey {
        /// The address asked for.
        listen: Listen,
    },
    /// The address cannot be had.
    #[error("cannot listen on {listen}: {source}")]
    Bind {
        /// The address.
        listen: Listen,
        /// What the system says.
        source: io::Error,
    },
    /// The model cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The model is there and computes nothing.
    #[error("the model does not work: {0}")]
    Warm(#[from] EmbedError),
    /// The threads cannot be started.
    #[error("cannot start a thread: {0}")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// The listener failed.
    #[error("the service broke off: {0}")]
    Serve(#[from] io::Error),
    /// Loading the model panicked.
    #[error("loading the model failed; its message is on standard error")]
    Lost,
}

/// Serves until `stop` is cancelled. `ready` is told when the model has
/// computed something; liveness and readiness answer before that.
pub async fn run(
    options: Options,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    ready: impl FnOnce(&Ready),
) -> Result<Ended, ServeError> {
    let Options { listen, embed, device, name, key, limits, drain } = options;
    if key.is_none() && !listen.is_local() {
        return Err(ServeError::NeedsKey { listen });
    }
    let bound = TcpListener::bind(listen.0).await;
    let listener = bound.map_err(|source| ServeError::Bind { listen, source })?;
    let http = listener.local_addr()?.to_string();
    tracing::info!(http, key = key.is_some(), "listening; loading the model");
    let server = Server(Arc::new(Parts {
        room: Room::new(limits.queue_texts, limits.queue_bytes.as_usize()),
        limits,
        served: OnceLock::new(),
        key,
        cpu: Cpu::new(0)?,
        metrics,
        under_way: TaskTracker::new(),
        closing: CancellationToken::new(),
    }));
    let finish = CancellationToken::new();
    let serving = http_server::Server::new(Arc::new(listener), None, CONNECTIONS);
    let serving = serving.serve(http_server::Routes::new(server.clone().router()), finish.clone());
    let mut serving = AbortOnDropHandle::new(tokio::spawn(serving));

    let loading = load(embed, device, name, clock::system());
    let served = tokio::select! {
        served = loading => served?,
        () = stop.cancelled() => return Ok(Ended::Drained),
    };
    let space = served.model.space().to_string();
    let (model, device) = (served.name.clone(), served.model.device().to_owned());
    // Nobody else sets it.
    let _ = server.served.set(served);
    tracing::info!(http, model, space, device, "ready");
    ready(&Ready { http, model, space, device });

    tokio::select! {
        () = stop.cancelled() => {}
        ended = &mut serving => return Err(broke_off(ended)),
    }
    let deadline = tokio::time::Instant::now() + drain;
    server.closing.cancel();
    server.under_way.close();
    tracing::info!(requests = server.under_way.len(), "stopping: answering what was taken");
    let answered = timeout_at(deadline, server.under_way.wait()).await;
    finish.cancel();
    // Answers are written; connections without one close.
    let closed = timeout_at(deadline, &mut serving).await;
    match (answered, closed) {
        (Ok(()), Ok(_)) => Ok(Ended::Drained),
        _ => Ok(Ended::Unanswered(server.under_way.len())),
    }
}

fn broke_off(ended: Result<io::Result<()>, tokio::task::JoinError>) -> ServeError {
    match ended {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => io::Error::other("its task ended").into(),
    }
}

/// Loads the model and has it compute something, as often as it has threads:
/// the first request should not wait for memory to be touched.
async fn load(
    settings: Settings,
    device: DeviceChoice,
    name: String,
    clock: Clock,
) -> Result<Served, ServeError> {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let threads = if settings.threads == 0 { cores } else { settings.threads };
    let open = move || {
        let model = LocalModel::open_on(device, &settings)?;
        model.read()?;
        Ok::<_, OpenError>(model)
    };
    let model = tokio::task::spawn_blocking(open).await.map_err(|_| ServeError::Lost)??;
    // Too long to be computed together with the others.
    let text = "warm ".repeat(model.space().max_tokens.max(gather::SMALL_BYTES));
    try_join_all((0..threads).map(|_| model.embed(vec![text.clone()]))).await?;
    let name = if name.is_empty() { model.description().name.clone() } else { name };
    Ok(Served { model, name, since: clock() / 1_000 })
}

//! The connection, and the task that sees to it.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ::redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, FromRedisValue, Pipeline, RedisResult,
    aio::MultiplexedConnection,
};
use tokio::sync::{Notify, watch};
use tokio_rustls::rustls::crypto::ring;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{
    link::{Link, Next, Said},
    settings::Settings,
};
use crate::metrics;

/// A new connection may take longer than a command: nobody waits for it.
const LEAST_CONNECT: Duration = Duration::from_secs(1);
/// How long the key lives that shows whether Redis takes a key.
const PROBE_SECONDS: u64 = 60;

/// Why a command came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RedisError {
    /// The settings cannot be used.
    #[error("[redis] {0}")]
    Settings(String),
    /// Redis is lost, or was lost by this command.
    #[error("Redis is away: {0}")]
    Away(String),
}

/// A Redis that is asked as long as it answers. Cheap to clone; the task that
/// sees to the connection ends with the last clone.
#[derive(Clone)]
pub struct Redis {
    inner: Arc<Inner>,
    _keeper: Arc<AbortOnDropHandle<()>>,
}

struct Inner {
    client: Client,
    /// Where it is, without who asks.
    address: String,
    prefix: String,
    timeout: Duration,
    state: Mutex<State>,
    lost: Notify,
    away: watch::Sender<Option<String>>,
}

struct State {
    link: Link,
    connection: Option<MultiplexedConnection>,
}

impl Redis {
    /// The Redis that `settings` name. One that is not there is no error: it
    /// is tried again until it is.
    ///
    /// # Errors
    /// [`RedisError::Settings`] if the URL or the password cannot be used.
    pub async fn open(settings: &Settings) -> Result<Self, RedisError> {
        let inner = Arc::new(Inner::new(settings)?);
        inner.connect().await;
        let keeper = tokio::spawn(keep(inner.clone()).in_current_span());
        Ok(Self { inner, _keeper: Arc::new(AbortOnDropHandle::new(keeper)) })
    }

    /// A key of ours.
    pub fn key(&self, rest: &str) -> String {
        format!("{}{rest}", self.inner.prefix)
    }

    /// Why Redis is away; `None` while it answers.
    pub fn away(&self) -> watch::Receiver<Option<String>> {
        self.inner.away.subscribe()
    }

    /// How long a command may take.
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    /// What Redis answers to `command`.
    ///
    /// # Errors
    /// [`RedisError::Away`], at once if it was away before.
    pub async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, RedisError> {
        self.inner.asked(|mut connection| async move { command.query_async(&mut connection).await }).await
    }

    /// What Redis answers to the commands of `pipeline`, sent at once.
    ///
    /// # Errors
    /// As [`Redis::ask`].
    pub async fn ask_all<T: FromRedisValue>(&self, pipeline: &Pipeline) -> Result<T, RedisError> {
        self.inner.asked(|mut connection| async move { pipeline.query_async(&mut connection).await }).await
    }
}

impl Inner {
    fn new(settings: &Settings) -> Result<Self, RedisError> {
        let bad = |what: &str| RedisError::Settings(what.to_owned());
        let target = settings.target().ok_or_else(|| bad("url cannot be used"))?;
        let mut login = target.redis_settings().clone();
        let written = settings.password_file.as_ref().map(|path| {
            let read = std::fs::read_to_string(path);
            read.map_err(|error| bad(&format!("password_file {} cannot be read: {error}", path.display())))
        });
        let written = written.transpose()?;
        let given = settings.password.as_ref().map(|password| password.reveal());
        if let Some(password) = written.as_deref().map(str::trim).or(given) {
            login = login.set_password(password);
        }
        if matches!(target.addr(), ConnectionAddr::TcpTls { .. }) {
            // Whoever came first has installed the same: there is one here.
            let _ = ring::default_provider().install_default();
        }
        let address = target.addr().to_string();
        let client = Client::open(target.set_redis_settings(login))
            .map_err(|error| bad(&format!("cannot be used: {error}")))?;
        Ok(Self {
            client,
            address,
            prefix: settings.prefix.clone(),
            timeout: settings.timeout.0,
            state: Mutex::new(State { link: Link::new(), connection: None }),
            lost: Notify::new(),
            away: watch::Sender::new(None),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn asked<T, F: Future<Output = RedisResult<T>>>(
        &self,
        ask: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, RedisError> {
        let (generation, connection) = {
            let State { link, connection } = &*self.state();
            let away = || RedisError::Away(link.away().unwrap_or("not connected yet").to_owned());
            (link.generation(), connection.clone().ok_or_else(away)?)
        };
        let reason = match within(self.timeout, ask(connection)).await {
            Ok(answer) => return Ok(answer),
            Err(reason) => reason,
        };
        self.failed(generation, reason.clone());
        Err(RedisError::Away(reason))
    }

    /// Makes a connection and tries it, once.
    async fn connect(&self) {
        let generation = self.state().link.generation();
        let most = self.timeout.max(LEAST_CONNECT);
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        let connecting = async {
            let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
            self.probe().exec_async(&mut connection).await?;
            Ok(connection)
        };
        match within(most, connecting).await {
            Ok(connection) => {
                let said = {
                    let mut state = self.state();
                    state.connection = Some(connection);
                    let said = state.link.connected(Instant::now());
                    // With the lock, so that what is told last is so.
                    self.away.send_replace(None);
                    metrics::redis_up(true);
                    said
                };
                if let Some(Said::Back(after)) = said {
                    let seconds = after.as_secs_f64();
                    tracing::info!(address = self.address, seconds, "Redis is back");
                }
            }
            Err(reason) => self.failed(generation, reason),
        }
    }

    /// One that takes no keys is of no use: a reader's, a full one's.
    fn probe(&self) -> Cmd {
        let mut command = ::redis::cmd("SET");
        command.arg(format!("{}probe", self.prefix)).arg(1).arg("EX").arg(PROBE_SECONDS);
        command
    }

    fn failed(&self, generation: u64, reason: String) {
        metrics::redis_failed();
        let said = {
            let mut state = self.state();
            let said = state.link.failed(generation, reason, Instant::now(), rand::random());
            if state.link.away().is_some() {
                state.connection = None;
                self.away.send_replace(state.link.away().map(ToOwned::to_owned));
                metrics::redis_up(false);
            }
            said
        };
        if let Some(Said::Lost(reason)) = said {
            tracing::warn!(
                address = self.address,
                reason,
                "Redis is lost; the work goes on without it, and it is tried again"
            );
            self.lost.notify_one();
        }
    }
}

/// Sees to the connection.
async fn keep(inner: Arc<Inner>) {
    loop {
        let next = inner.state().link.next(Instant::now());
        match next {
            Next::Connect => inner.connect().await,
            Next::Wait(wait) => tokio::time::sleep(wait).await,
            Next::Check(wait) => {
                let lost = tokio::time::timeout(wait, inner.lost.notified()).await.is_ok();
                if !lost {
                    let probe = inner.probe();
                    let _ = inner.asked(|mut link| async move { probe.exec_async(&mut link).await }).await;
                }
            }
        }
    }
}

async fn within<T>(most: Duration, asking: impl Future<Output = RedisResult<T>>) -> Result<T, String> {
    match tokio::time::timeout(most, asking).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} ms", most.as_millis())),
    }
}

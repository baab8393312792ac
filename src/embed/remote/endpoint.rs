//! One endpoint: how it is asked, and its state.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    answer::{self, Answer, Wanted},
    classify::{Fault, classify},
    count::Prepared,
    gate::Gate,
    headers::{self, RateLimits},
    request::Request,
    settings::{Api, Endpoint as Settings},
    state::EndpointState,
    transport::{Reply, Transport, Unanswered},
};
use crate::{http_client::ClientError, metrics, secret::Secret};

/// A service that computes vectors of the space.
pub struct Endpoint {
    pub name: String,
    pub price: f64,
    api: Api,
    model: String,
    dimensions: Option<usize>,
    base64: bool,
    key: Option<Secret>,
    wanted: Wanted,
    transport: Transport,
    gate: Mutex<Gate>,
}

/// What came of a request.
pub struct Exchange {
    /// What the headers said of rates.
    pub told: RateLimits,
    pub result: Result<Answer, Fault>,
    /// Whether it may have been paid for.
    pub billed: bool,
}

impl Endpoint {
    /// Prepares the way to it; `model` is the space's, `misconfigured` how
    /// long it is left alone when it is configured wrongly.
    pub fn new(
        settings: &Settings,
        model: &str,
        wanted: Wanted,
        misconfigured: Duration,
    ) -> Result<Self, ClientError> {
        let model = if settings.model.is_empty() { model } else { &settings.model };
        Ok(Self {
            name: settings.name.clone(),
            price: settings.price_per_million_tokens,
            api: settings.api,
            model: model.to_owned(),
            dimensions: settings.send_dimensions.then_some(wanted.dimensions),
            base64: settings.base64,
            key: settings.key.clone(),
            wanted,
            transport: Transport::new(settings)?,
            gate: Mutex::new(Gate::new(settings, misconfigured, Instant::now())),
        })
    }

    /// Its state. Never held over an `await`.
    pub fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for the vectors of those texts. `now_ms` is the time that dates in
    /// the answer are compared with.
    pub async fn ask(
        self: &Arc<Self>,
        texts: Arc<Vec<Prepared>>,
        which: Vec<usize>,
        query: bool,
        now_ms: i64,
    ) -> Exchange {
        let (started, count) = (Instant::now(), which.len());
        let this = Arc::clone(self);
        let most = answer::most_bytes(count, self.wanted.dimensions);
        let body = match compute(move || this.body(&texts, &which, query)).await {
            Ok(body) => body,
            Err(fault) => return Exchange { told: RateLimits::default(), result: Err(fault), billed: false },
        };
        let exchange = match self.transport.post(body, most).await {
            Ok(reply) => {
                let told = headers::read(&reply.headers, now_ms);
                let billed = (200..300).contains(&reply.status);
                let this = Arc::clone(self);
                let result = compute(move || this.understand(reply, count, most, told)).await;
                Exchange { told, result, billed }
            }
            Err(Unanswered { fault, received }) => {
                Exchange { told: RateLimits::default(), result: Err(fault), billed: received }
            }
        };
        let outcome = exchange.result.as_ref().map_or_else(Fault::class, |_| "answered");
        metrics::embed_request(&self.name, outcome, started.elapsed());
        Exchange { result: exchange.result.map_err(|fault| self.without_key(fault)), ..exchange }
    }

    fn body(&self, texts: &[Prepared], which: &[usize], query: bool) -> Result<Bytes, Fault> {
        let texts: Vec<&str> =
            which.iter().filter_map(|index| texts.get(*index)).map(|text| text.text.as_str()).collect();
        let request = Request {
            api: self.api,
            model: &self.model,
            texts: &texts,
            query,
            dimensions: self.dimensions,
            base64: self.base64,
            normalise: self.wanted.normalised,
        };
        let body = request
            .body()
            .map_err(|error| Fault::transient(format!("no request can be written: {error}")))?;
        Ok(self.transport.encoded(body).into())
    }

    fn understand(&self, reply: Reply, texts: usize, most: usize, told: RateLimits) -> Result<Answer, Fault> {
        let status = reply.status;
        if (200..300).contains(&status) {
            let answer = answer::read(self.api, &reply.plain(most)?, texts, self.wanted)?;
            return Ok(Answer { tokens: answer.tokens.or(told.taken), ..answer });
        }
        // An error message that cannot be read is an error all the same.
        let body = reply.plain(most).unwrap_or_default();
        // Before it is cut to a length that would leave a part of the key.
        let body = match self.key.as_ref().map(Secret::reveal) {
            Some(key) => String::from_utf8_lossy(&body).replace(key, "(secret)").into_bytes(),
            None => body,
        };
        Err(classify(status, told.retry_after, &body))
    }

    /// Some services repeat the key in what they say.
    fn without_key(&self, mut fault: Fault) -> Fault {
        if let Some(key) = self.key.as_ref().map(Secret::reveal) {
            let reason = fault.reason_mut();
            if reason.contains(key) {
                *reason = reason.replace(key, "(secret)");
            }
        }
        fault
    }

    /// Shows its state.
    pub fn show(&self, now: Instant) {
        let (circuit, requests, tokens) = self.gate().gauges(now);
        metrics::embed_endpoint(&self.name, circuit.number(), requests, tokens);
    }

    /// Its state, as it is shown; `now_ms` is the time of day.
    pub fn state(&self, now: Instant, now_ms: i64) -> EndpointState {
        self.gate().state(&self.name, now, now_ms)
    }
}

/// Runs `job` off the threads that wait for sockets.
async fn compute<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let (reply, result) = oneshot::channel();
    rayon::spawn(move || {
        // The caller may have gone away.
        let _ = reply.send(job());
    });
    result.await.unwrap_or_else(|_| Err(Fault::transient("its computation was interrupted")))
}

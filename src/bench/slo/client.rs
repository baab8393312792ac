//! One way to ask a daemon over HTTP, and what it answered.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use anyhow::{Result, ensure};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use serde::Deserialize;

use crate::{bench::daemon::Daemon, http_client};

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ingest { records: u64 },
    Search,
}

/// A request that has not been sent.
#[derive(Debug)]
pub struct Request {
    pub kind: Kind,
    pub body: String,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answer {
    /// From when it was due, or where it was not due at a time of its own, from
    /// when it was sent.
    pub ms: f64,
    /// The answer's status; `None` if none came.
    pub status: Option<u16>,
    /// Whether the answer says when to come again.
    pub retry_after: bool,
}

impl Answer {
    /// Whether the daemon did all that was asked.
    pub fn is_done(&self) -> bool {
        self.status == Some(200)
    }

    /// Whether the daemon was not there for it.
    pub fn is_absent(&self) -> bool {
        self.status.is_none_or(|status| status >= 500)
    }

    /// Whether it says that there is too much, and when to come again.
    pub fn is_clear_refusal(&self) -> bool {
        self.retry_after && matches!(self.status, Some(429 | 503 | 507))
    }
}

/// All clients of one daemon. They share a pool of connections; each that waits
/// for an answer has one of its own.
pub struct Client {
    http: reqwest::Client,
    ingest: String,
    search: String,
    key: Option<String>,
    end_offset: AtomicU64,
}

#[derive(Deserialize)]
struct Ingested {
    acknowledged: u64,
    ranges: Vec<Range>,
}

#[derive(Deserialize)]
struct Range {
    offset: u64,
    count: u64,
}

impl Client {
    /// Of `daemon`, with the API key `key` if it asks for one.
    pub fn new(daemon: &Daemon, key: Option<String>) -> Result<Self> {
        Ok(Self {
            http: http_client::local()?,
            ingest: daemon.url("/api/v1/ingest"),
            search: daemon.url("/api/v1/search"),
            key,
            end_offset: AtomicU64::new(0),
        })
    }

    /// The offset after the last record that was acknowledged. Offsets have no
    /// gaps: if a log reaches up to it, every one is there.
    pub fn end_offset(&self) -> u64 {
        self.end_offset.load(Ordering::Relaxed)
    }

    /// Sends `request`; the time counts from `since`.
    pub async fn ask(&self, request: Request, since: Instant) -> Answer {
        let answer = self.answered(request).await;
        let ms = since.elapsed().as_secs_f64() * 1e3;
        let (status, retry_after) = answer.map_or((None, false), |(status, again)| (Some(status), again));
        Answer { ms, status, retry_after }
    }

    /// Sends `request`, which must be done.
    pub async fn done(&self, request: Request) -> Result<()> {
        let answer = self.ask(request, Instant::now()).await;
        ensure!(answer.is_done(), "a request to {} was not done: {answer:?}", self.ingest);
        Ok(())
    }

    async fn answered(&self, request: Request) -> Result<(u16, bool)> {
        let (url, content) = match request.kind {
            Kind::Ingest { .. } => (&self.ingest, "application/x-ndjson"),
            Kind::Search => (&self.search, "application/json"),
        };
        let mut asked = self.http.post(url).header(CONTENT_TYPE, content).body(request.body);
        if let Some(key) = &self.key {
            asked = asked.bearer_auth(key);
        }
        let response = asked.send().await?;
        let (status, retry_after) = (response.status(), response.headers().contains_key(RETRY_AFTER));
        let body = response.bytes().await?;
        if let Kind::Ingest { records } = request.kind
            && status.is_success()
        {
            let done: Ingested = serde_json::from_slice(&body)?;
            let end = done.ranges.iter().map(|range| range.offset + range.count).max().unwrap_or(0);
            self.end_offset.fetch_max(end, Ordering::Relaxed);
            ensure!(done.acknowledged == records, "{} of {records} records were taken", done.acknowledged);
        }
        Ok((status.as_u16(), retry_after))
    }
}

//! The daemon: puts a pipeline together, starts it in order and stops it in
//! order.
//!
//! ```text
//! start  store, model, artifacts ─► log (recovered) ─► derive, archive ─► HTTP ─► sources
//! stop   sources answer what they took ─► log writes and syncs the rest
//!        ─► derive follows to the end, until the deadline ─► archive, HTTP, store
//! ```
//!
//! Whatever is not derived by the deadline is in the log, and derived at the
//! next start.
//!
//! Three parts stand around the log, which stays: [`sources`] bring frames in,
//! the [`crew`] does what is done with them, the [`front`] answers requests.
//! [`reloading`] exchanges what another pipeline file wants otherwise.

mod crew;
mod front;
mod reloading;
mod sources;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::{
    crew::Crew,
    front::{Bound, Front, Opened},
    sources::Sources,
};
use crate::{
    clock::{self, Clock},
    config::Pipeline,
    dataflow::{Drained, Outcome, Supervisor},
    embed::Embedder,
    log::Log,
    pipeline::{Ingest, damage::DamageRegister, ownership, progress::Progress},
    reload::{Load, Reloads, Requests},
    source::{entrance::Entrance, sessions::Sessions},
    workbench::{self, Workbench, open_log_of},
    worker::{Failing, Health, QuotaTold},
};

/// How a daemon ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything taken is derived.
    Drained,
    /// Stopped at the deadline with these things unfinished; they go on at
    /// the next start.
    Unfinished(Vec<String>),
}

/// How to run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Stop by itself once all files and standard input are read and derived.
    pub once: bool,
    /// Take the stream from the data directory that it belongs to.
    pub take_over: bool,
    /// Folder of PostgreSQL's programs, if it is not to be looked for.
    pub pg_bin: Option<PathBuf>,
}

/// Where a running daemon can be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// The HTTP interface.
    pub http: String,
    /// Sockets that take frames: source name and address.
    pub sources: Vec<(String, String)>,
}

/// How a daemon comes by another configuration.
pub struct Reloading {
    /// Reads the pipeline file again.
    pub load: Load,
    /// Where it is asked to.
    pub requests: Requests,
    /// Who asks over HTTP.
    pub reloads: Reloads,
}

/// Runs `pipeline` until `stop` is cancelled, or until it is done if
/// `options.once`. `ready` is told the addresses once everything is up.
pub async fn run(
    pipeline: Pipeline,
    options: Options,
    reloading: Reloading,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    ready: impl FnOnce(&Addresses),
) -> Result<Ended> {
    let clock = clock::system();
    let started_ms = clock();
    let batch_tag = workbench::batch_tag(&pipeline, started_ms);
    // An error's level, so that no filter can take the names off the events.
    let span =
        tracing::error_span!("pipeline", pipeline = pipeline.name, stream = pipeline.stream, batch_tag);
    async move {
        let daemon = Daemon::start(pipeline, options, reloading, metrics, (clock, started_ms)).await?;
        ready(&daemon.addresses()?);
        daemon.run(stop).await
    }
    .instrument(span)
    .await
}

struct Daemon {
    base: Base,
    bench: Workbench,
    sources: Sources,
    /// The places of those who connect to sources that are opened.
    sessions: Sessions,
    front: Front,
    /// What is done beside the requests.
    upkeep: Supervisor,
    crew: Crew,
    load: Load,
    requests: Requests,
}

/// What stays from the start to the end, however often the pipeline file is
/// taken anew.
struct Base {
    log: Log,
    progress: Arc<Progress>,
    damage: Arc<DamageRegister>,
    options: Options,
    clock: Clock,
    started: Instant,
    started_ms: i64,
    /// Cancelled when no more frames are taken.
    closing: CancellationToken,
    ingest: Ingest,
    /// Held by whoever changes what is sealed.
    sealing: Arc<Mutex<()>>,
    /// What webhooks were told of the daemon's health.
    health_told: Arc<Mutex<Health>>,
    /// What they were told of the quotas of `[embed]` and `[migrate]`.
    quota_told: [Arc<Mutex<QuotaTold>>; 2],
    /// Schedules whose last job failed.
    failing: Arc<Failing>,
}

impl Base {
    fn batch_tag(&self, pipeline: &Pipeline) -> String {
        workbench::batch_tag(pipeline, self.started_ms)
    }
}

impl Daemon {
    async fn start(
        pipeline: Pipeline,
        options: Options,
        reloading: Reloading,
        metrics: PrometheusHandle,
        (clock, started_ms): (Clock, i64),
    ) -> Result<Self> {
        let started = Instant::now();
        let bench = Workbench::open(pipeline).await?;
        // One that ends by itself may find nothing to embed.
        if !options.once {
            for served in bench.serving.members() {
                served.model.prepare().await?;
            }
        }
        let pipeline = bench.pipeline.clone();
        tracing::info!(space = %bench.serving.now().await?.model.space(), "embedding space");
        ownership::claim(&pipeline.data_dir, &bench.store, &pipeline.stream, options.take_over, started_ms)
            .await?;
        let (log, damage) = open_log_of(&pipeline, &bench.store, clock.clone()).await?;
        bench.artifacts.sweep()?;
        let start = log.reader().start_offset();
        let lease = bench.store.acquire(&pipeline.name, &pipeline.stream, start, clock()).await?;
        let progress = Arc::new(Progress::new(lease.checkpoint()));
        let closing = CancellationToken::new();
        let ingest = Ingest::new(
            &pipeline.name,
            log.writer(),
            bench.store.clone(),
            progress.clone(),
            clock.clone(),
            pipeline.log.max_frame_bytes,
            closing.clone(),
        );
        let base = Base {
            log,
            progress,
            damage,
            options,
            clock,
            started,
            started_ms,
            closing,
            ingest,
            sealing: Arc::default(),
            health_told: Arc::default(),
            quota_told: Default::default(),
            failing: Arc::default(),
        };
        // Every address is bound before anything is served: a daemon that
        // cannot have them all does not half start.
        let bound = Bound::bind(&pipeline.http, None).await?;
        let mut sources = Sources::new(bench.store.clone(), bench.cpu.clone(), base.closing.clone());
        let ready = sources.prepare(&pipeline, |_| true).await?;
        let Reloading { load, requests, reloads } = reloading;
        let opened = Opened { ingest: base.ingest.clone(), metrics, reloads };
        let (mut front, beside) = Front::open(bound, opened, &bench, &base)?;
        let crew = Crew::start(&base, &bench, lease, true).await?;
        front.answer(&base, &bench, &crew.jobs);
        let mut upkeep = Supervisor::new(CancellationToken::new());
        upkeep.spawn("access", beside.run(upkeep.stop_token()));
        let (ingest, access) = (base.ingest.clone(), front.access.clone());
        let sessions = Sessions::new(pipeline.sessions.clone());
        sources.open(ready, &Entrance { ingest, sessions: sessions.clone(), access });
        Ok(Self { base, bench, sources, sessions, front, upkeep, crew, load, requests })
    }

    fn addresses(&self) -> Result<Addresses> {
        Ok(Addresses { http: self.front.address()?, sources: self.sources.addresses() })
    }

    async fn run(mut self, stop: CancellationToken) -> Result<Ended> {
        let failed = self.work(&stop).await;
        let ended = self.stop().await?;
        match failed {
            Some(error) => Err(error),
            None => Ok(ended),
        }
    }

    /// Works until told to stop. An error is one that the daemon cannot work
    /// on with.
    async fn work(&mut self, stop: &CancellationToken) -> Option<anyhow::Error> {
        loop {
            if self.base.options.once && !self.sources.awaits_an_end() {
                self.settled(stop).await;
                return None;
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                Some(ended) = self.sources.next() => {
                    if let Err(error) = ended {
                        return Some(error);
                    }
                }
                Some(ended) = self.crew.next() => return Some(unexpected(ended)),
                Some(ended) = self.front.next() => return Some(unexpected(ended)),
                Some(ended) = self.upkeep.next() => return Some(unexpected(ended)),
                Some(request) = self.requests.next() => {
                    if let Err(error) = self.reload(request, stop).await {
                        return Some(error);
                    }
                }
            }
        }
    }

    /// Waits until everything in the log is derived, and has its vectors
    /// unless the embedder refuses them.
    async fn settled(&self, stop: &CancellationToken) {
        let (reader, progress) = (self.base.log.reader(), &self.base.progress);
        let derived = || progress.next_offset() >= reader.end_offset();
        let embedded = || progress.deferred() == 0 || progress.trouble_of("backfill").is_some();
        while self.bench.pipeline.derive.enabled && !(derived() && embedded()) {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    async fn stop(mut self) -> Result<Ended> {
        // Whoever asks for a reload now is told that it is too late.
        drop(self.requests);
        let Base { log, progress, options, closing, ingest, .. } = self.base;
        let deadline = Instant::now() + self.bench.pipeline.shutdown.deadline.0;
        let left = || deadline.saturating_duration_since(Instant::now());
        tracing::info!(deadline_s = left().as_secs_f64(), "stopping");
        closing.cancel();
        let mut unfinished = Vec::new();
        note("source", self.sources.drain(left()).await, &mut unfinished);
        note("server", self.front.drain(left()).await, &mut unfinished);
        drop(ingest);
        let reader = log.reader();
        // Ends once the queue is written and synced: whoever could add to it
        // has ended.
        let writing = tokio::task::spawn_blocking(move || log.shut_down());
        if tokio::time::timeout(left().max(Duration::from_secs(1)), writing).await.is_err() {
            unfinished.push("log writer".to_owned());
        }
        note("worker", self.crew.finish(left()).await, &mut unfinished);
        note("worker", self.upkeep.drain(left() + Duration::from_secs(2)).await, &mut unfinished);
        let rest = reader.end_offset().saturating_sub(progress.next_offset());
        if rest > 0 && self.bench.pipeline.derive.enabled {
            unfinished.push(format!("{rest} records in the log are not derived yet"));
        }
        if options.once && unfinished.is_empty() {
            // A bulk load is followed by searches, not by another look in half
            // a minute.
            self.bench.store.maintain(clock::system_ms()).await?;
        }
        let waiting = progress.deferred();
        if waiting > 0 && options.once {
            unfinished.push(format!("{waiting} records are stored without vectors"));
        } else if waiting > 0 {
            tracing::info!(waiting, "records are stored without vectors; the next start embeds them");
        }
        self.bench.close().await?;
        Ok(if unfinished.is_empty() { Ended::Drained } else { Ended::Unfinished(unfinished) })
    }
}

fn unexpected(ended: Outcome) -> anyhow::Error {
    match ended.result {
        Ok(()) => anyhow!("`{}` ended by itself", ended.name),
        Err(error) => error.context(format!("`{}` failed", ended.name)),
    }
}

fn note(kind: &str, drained: Drained, unfinished: &mut Vec<String>) {
    for outcome in drained.failed {
        if let Err(error) = outcome.result {
            tracing::error!(error = format!("{error:#}"), kind, name = outcome.name, "failed while stopping");
            unfinished.push(format!("{kind} {}: {error:#}", outcome.name));
        }
    }
    unfinished.extend(drained.survivors.into_iter().map(|name| format!("{kind} {name} did not end in time")));
}

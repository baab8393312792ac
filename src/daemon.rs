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

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::{
    access::{self, Access},
    api::{Api, Bodies, Idempotency, Parts},
    artifact::{ArtifactError, Description},
    clock::{self, Clock},
    config::{Format, Pipeline, Source},
    dataflow::{Cpu, Drained, Supervisor},
    embed::Embedder,
    http_server::Server,
    jobs::{Claimant, Jobs, WorkerId},
    log::Log,
    pipeline::{
        Ingest, archive::Archive, backfill::Backfill, damage::DamageRegister, derive::Derive, erase::Eraser,
        ownership, progress::Progress, shadow::Shadow, upkeep,
    },
    rate_limit::Limiter,
    redis::Trigger,
    source::{
        entrance::Entrance,
        file::{self, Content, Files},
        forward,
        sessions::Sessions,
        socket::Listener,
    },
    store::Lease,
    tls::Tls,
    webhooks::EventKind,
    workbench::{Workbench, archive_of, batch_tag, open_log_of},
    worker::{Deliverer, Failing, Worker, keep_schedules, tell_health, tell_quota},
};

/// Time to the next attempt at an object store that does not answer.
const AWAY: Duration = Duration::from_secs(5);

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

/// Runs `pipeline` until `stop` is cancelled, or until it is done if
/// `options.once`. `ready` is told the addresses once everything is up.
pub async fn run(
    pipeline: Pipeline,
    options: Options,
    metrics: PrometheusHandle,
    stop: CancellationToken,
    ready: impl FnOnce(&Addresses),
) -> Result<Ended> {
    let clock = clock::system();
    let batch_tag = batch_tag(&pipeline, clock());
    // An error's level, so that no filter can take the names off the events.
    let span =
        tracing::error_span!("pipeline", pipeline = pipeline.name, stream = pipeline.stream, batch_tag);
    async move {
        let daemon = Daemon::start(pipeline, &options, batch_tag, metrics, clock).await?;
        ready(&daemon.addresses);
        daemon.run(options, stop).await
    }
    .instrument(span)
    .await
}

struct Daemon {
    bench: Workbench,
    log: Log,
    progress: Arc<Progress>,
    addresses: Addresses,
    /// Tasks that bring frames in; those of finite sources end by themselves.
    sources: Supervisor,
    finite: usize,
    /// HTTP.
    server: Supervisor,
    /// Derive and archive.
    workers: Supervisor,
    abandon: CancellationToken,
    closing: CancellationToken,
    damage: Arc<DamageRegister>,
    jobs: Jobs,
}

impl Daemon {
    async fn start(
        pipeline: Pipeline,
        options: &Options,
        batch_tag: String,
        metrics: PrometheusHandle,
        clock: Clock,
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
        let described = keep_model_description(&bench).await;
        ownership::claim(&pipeline.data_dir, &bench.store, &pipeline.stream, options.take_over, clock())
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
        // Every address is bound before anything is served: a daemon that
        // cannot have them all does not half start.
        let http = TcpListener::bind(pipeline.http.listen.to_string())
            .await
            .with_context(|| format!("[http] cannot listen on {}", pipeline.http.listen))?;
        let tls = pipeline.http.tls.as_ref().map(Tls::open).transpose().context("[http]")?;
        let listeners = bind_all(&pipeline).await?;
        let forwards = bind_forwards(&pipeline).await?;
        let forward_addresses = forwards.iter().map(|bound| (bound.name().to_owned(), bound.address()));
        let addresses = Addresses {
            http: http.local_addr()?.to_string(),
            sources: listeners
                .iter()
                .map(|(name, listener)| (name.clone(), listener.address()))
                .chain(forward_addresses)
                .collect(),
        };
        let (access, upkeep) = access::open(pipeline.auth.as_ref(), &bench.store, clock.clone())?;
        if !access.authenticator.is_on() {
            tracing::info!("nobody is asked who they are, so only this machine can connect ([auth] is off)");
        }
        let names = (pipeline.name.as_str(), pipeline.stream.as_str());
        let jobs = Jobs::new(bench.store.clone(), names, pipeline.schedules(), clock.clone());
        let mut daemon = Self {
            addresses,
            sources: Supervisor::new(closing.clone()),
            finite: 0,
            server: Supervisor::new(CancellationToken::new()),
            workers: Supervisor::new(CancellationToken::new()),
            abandon: CancellationToken::new(),
            progress,
            closing,
            log,
            damage,
            jobs,
            bench,
        };
        if let Err(error) = described {
            daemon.describe_later(error)?;
        }
        // One that ends by itself checks its model when it needs it.
        daemon.start_workers(lease, &batch_tag, options, clock).await?;
        daemon.start_server((http, tls), &ingest, &access, batch_tag, metrics, started);
        let stop = daemon.workers.stop_token();
        daemon.workers.spawn("access", upkeep.run(stop));
        let sessions = Sessions::new(pipeline.sessions.clone());
        let entrance = Entrance { ingest, sessions, access };
        daemon.start_sources(listeners, &entrance);
        daemon.start_forwards(forwards, &entrance);
        Ok(daemon)
    }

    /// An object store that does not answer holds up no start; one that
    /// refuses does, because somebody has to do something about it.
    fn describe_later(&mut self, error: anyhow::Error) -> Result<()> {
        if !error.downcast_ref().is_some_and(ArtifactError::is_away) {
            return Err(error);
        }
        tracing::warn!(%error, "the object store is away; what is to be kept there waits");
        self.progress.trouble("model description", error.to_string());
        let (bench, progress, stop) = (self.bench.clone(), self.progress.clone(), self.workers.stop_token());
        let task = async move {
            let again = async {
                while let Err(error) = keep_model_description(&bench).await {
                    progress.trouble("model description", error.to_string());
                    tokio::time::sleep(AWAY).await;
                }
                progress.well("model description");
            };
            stop.run_until_cancelled(again).await;
            stop.cancelled().await;
            Ok::<_, anyhow::Error>(())
        };
        self.workers.spawn("model description", task);
        Ok(())
    }

    async fn start_workers(
        &mut self,
        lease: Lease,
        batch_tag: &str,
        options: &Options,
        clock: Clock,
    ) -> Result<()> {
        // One that ends by itself checks its model when it needs it, and has
        // no time for jobs.
        let watched = !options.once;
        let pipeline = &self.bench.pipeline;
        let (store, artifacts) = (&self.bench.store, &self.bench.artifacts);
        let archive = archive_of(&self.log, pipeline, store, artifacts, &self.damage, clock.clone())?;
        let derive = Derive {
            log: self.log.reader(),
            deriver: self.bench.deriver(),
            store: self.bench.store.clone(),
            lease,
            serving: self.bench.serving.clone(),
            patience: pipeline.embed.patience.0,
            batch_tag: batch_tag.to_owned(),
            config_digest: pipeline.digest(),
            progress: self.progress.clone(),
            damage: self.damage.clone(),
            clock: clock.clone(),
        };
        let backfill = Backfill {
            serving: self.bench.serving.clone(),
            store: self.bench.store.clone(),
            pipeline: pipeline.name.clone(),
            stream: pipeline.stream.clone(),
            rate: pipeline.embed.backfill_rate,
            progress: self.progress.clone(),
            wake: Arc::default(),
            clock,
        };
        let stop = self.workers.stop_token();
        if let Some((redis, settings)) = self.bench.redis.as_ref().zip(pipeline.redis.as_ref()) {
            let following = self.progress.clone().follow("redis", redis.away(), stop.clone());
            self.workers.spawn("redis", following);
            if !settings.trigger.is_empty() {
                let (redis, channel) = (redis.clone(), settings.trigger.clone());
                let trigger = Trigger { redis, channel, wake: backfill.wake.clone() };
                self.workers.spawn("trigger", trigger.run(stop.clone()));
            }
        }
        let (members, mut shadows) = (self.bench.serving.members(), Vec::new());
        let rates = [Some(&pipeline.embed), pipeline.migrate.as_ref()];
        for (served, settings) in members.iter().zip(rates.into_iter().flatten()) {
            if members.len() > 1 {
                let (served, store, progress) =
                    (served.clone(), self.bench.store.clone(), self.progress.clone());
                let (rate, turn) = (settings.backfill_rate, Arc::default());
                let shadow = Shadow { served, store, rate, progress, turn };
                shadows.push(shadow.clone());
                self.workers.spawn("shadow", shadow.run(stop.clone()));
            }
            if watched {
                let watching = served.model.clone().watch(self.progress.clone(), stop.clone());
                self.workers.spawn("canary", watching);
            }
        }
        if pipeline.derive.enabled {
            self.workers.spawn("backfill", backfill.run(stop.clone()));
            self.workers.spawn("derive", derive.run(stop.clone(), self.abandon.clone()));
        }
        let eraser = Eraser::new(pipeline, self.log.writer(), archive.clone(), self.bench.redis.clone());
        let eraser = match pipeline.derive.enabled {
            true => eraser.beside(self.progress.clone()),
            false => eraser,
        };
        // Ends with the sources: it holds the log open.
        self.workers.spawn("erasure", eraser.run(self.progress.clone(), self.closing.clone()));
        self.workers.spawn("upkeep", upkeep::run(self.bench.store.clone(), stop.clone()));
        if watched {
            self.start_webhooks(&archive).await?;
            self.start_jobs(options, batch_tag, archive.clone(), shadows)?;
        }
        self.workers.spawn("archive", archive.run(self.progress.clone(), stop));
        Ok(())
    }

    /// What is told stays queued while no daemon tells it.
    async fn start_webhooks(&mut self, archive: &Archive) -> Result<()> {
        let (pipeline, store) = (&self.bench.pipeline, &self.bench.store);
        if pipeline.webhooks.is_empty() {
            return Ok(());
        }
        let (clock, stop) = (archive.clock.clone(), self.closing.clone());
        let hooks = (pipeline.name.as_str(), pipeline.webhooks.clone());
        let deliverer = Deliverer::open(hooks, store.clone(), Arc::new(rand::random), clock.clone())
            .await
            .context("[[webhook]]")?;
        self.workers.spawn("webhooks", deliverer.run(self.progress.clone(), stop.clone()));
        let outbox = archive.outbox.clone();
        if [EventKind::HealthDegraded, EventKind::HealthReady].into_iter().any(|kind| outbox.wants(kind)) {
            let told = (store.clone(), outbox.clone());
            let telling = tell_health(self.progress.clone(), told, clock.clone(), stop.clone());
            self.workers.spawn("health", telling);
        }
        if [EventKind::QuotaWarning, EventKind::QuotaSpent].into_iter().any(|kind| outbox.wants(kind)) {
            let told = (store.clone(), outbox);
            for budget in self.bench.serving.members().iter().filter_map(|served| served.model.budget()) {
                let telling = tell_quota(budget.clone(), told.clone(), clock.clone(), stop.clone());
                self.workers.spawn("quota", telling);
            }
        }
        Ok(())
    }

    /// Jobs end with the sources: what they do not get done is given back, and
    /// leaves the processor to what drains.
    fn start_jobs(
        &mut self,
        options: &Options,
        batch_tag: &str,
        archive: Archive,
        shadows: Vec<Shadow>,
    ) -> Result<()> {
        let (pipeline, store) = (&self.bench.pipeline, &self.bench.store);
        let (jobs, clock) = (self.jobs.clone(), archive.clock.clone());
        let home = ownership::identity(&pipeline.data_dir)?;
        let start = format!("{:016x}", rand::random::<u64>());
        let scheduling = keep_schedules(
            jobs.clone(),
            (store.clone(), pipeline.jobs.keep),
            self.progress.clone(),
            clock.clone(),
            self.closing.clone(),
        );
        self.workers.spawn("scheduler", scheduling);
        let worker = Worker {
            bench: self.bench.clone(),
            jobs,
            claimant: Claimant {
                id: WorkerId { home, start },
                pipeline: pipeline.name.clone(),
                stream: pipeline.stream.clone(),
                at_once: pipeline.jobs.at_once,
            },
            archive,
            progress: self.progress.clone(),
            shadows,
            batch_tag: batch_tag.to_owned(),
            pg_bin: options.pg_bin.clone(),
            cpu: Cpu::background()?,
            clock,
            failing: Failing::default(),
        };
        self.workers.spawn("jobs", worker.run(self.closing.clone()));
        Ok(())
    }

    fn start_server(
        &mut self,
        http: (TcpListener, Option<Tls>),
        ingest: &Ingest,
        access: &Access,
        batch_tag: String,
        metrics: PrometheusHandle,
        started: Instant,
    ) {
        let (listener, tls) = http;
        let pipeline = &self.bench.pipeline;
        let http = pipeline.sources.iter().find(|source| matches!(source, Source::Http(_)));
        let api = Api::new(Parts {
            pipeline: pipeline.name.clone(),
            batch_tag,
            intake: ingest.clone(),
            http_source: http.map(|source| source.name().to_owned()),
            jobs: self.jobs.clone(),
            clock: clock::system(),
            bodies: Bodies::new(pipeline.http.body_bytes),
            idempotency: Idempotency::new(pipeline.http.idempotency_ttl.0, self.bench.redis.clone()),
            log: self.log.reader(),
            searcher: self.bench.searcher(),
            progress: self.progress.clone(),
            damage: self.damage.clone(),
            http: pipeline.http.clone(),
            embed: pipeline.migrate.as_ref().unwrap_or(&pipeline.embed).clone(),
            access: access.clone(),
            limiter: Limiter::new(pipeline.limits.clone(), self.bench.redis.clone()),
            metrics,
            cpu: self.bench.cpu.clone(),
            closing: self.closing.clone(),
            started,
        });
        let stop = self.server.stop_token();
        let server = Server::new(listener, tls, pipeline.http.max_connections as usize);
        self.server.spawn("http", api.serve(server, stop));
    }

    fn start_sources(&mut self, listeners: Vec<(String, Listener)>, entrance: &Entrance) {
        let ingest = &entrance.ingest;
        for (name, listener) in listeners {
            let task = listener.run(name.clone(), entrance.clone());
            self.sources.spawn(name, task);
        }
        for source in &self.bench.pipeline.sources {
            match source {
                Source::File(source) => {
                    let files = Files {
                        source: source.name.clone(),
                        path: source.path.clone(),
                        content: content_of(source.format),
                        watch: source.watch,
                    };
                    self.finite += usize::from(!source.watch);
                    let task = files.run(self.bench.store.clone(), ingest.clone());
                    self.sources.spawn(source.name.clone(), task);
                }
                Source::Stdin(source) => {
                    self.finite += 1;
                    let content = content_of(source.format).unwrap_or(Content::JsonLines);
                    let task = file::stdin(source.name.clone(), content, ingest.clone());
                    self.sources.spawn(source.name.clone(), task);
                }
                Source::Tcp(_) | Source::Unix(_) | Source::Http(_) | Source::Forward(_) => {}
            }
        }
    }

    fn start_forwards(&mut self, listeners: Vec<forward::Listener>, entrance: &Entrance) {
        for listener in listeners {
            let name = listener.name().to_owned();
            let task = listener.run(entrance.clone(), self.bench.cpu.clone(), Box::new(rand::random));
            self.sources.spawn(name, task);
        }
    }

    async fn run(mut self, options: Options, stop: CancellationToken) -> Result<Ended> {
        let failed = self.work(&options, &stop).await;
        let ended = self.stop(options.once).await?;
        match failed {
            Some(error) => Err(error),
            None => Ok(ended),
        }
    }

    /// Works until told to stop. An error is one that the daemon cannot work
    /// on with.
    async fn work(&mut self, options: &Options, stop: &CancellationToken) -> Option<anyhow::Error> {
        let once = options.once;
        loop {
            if once && self.finite == 0 {
                self.settled(stop).await;
                return None;
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                Some(ended) = self.sources.next() => {
                    self.finite = self.finite.saturating_sub(1);
                    match ended.result {
                        Ok(()) => tracing::info!(source = ended.name, "source ended"),
                        Err(error) => return Some(error.context(format!("source `{}` failed", ended.name))),
                    }
                }
                Some(ended) = self.workers.next() => return Some(unexpected(ended)),
                Some(ended) = self.server.next() => return Some(unexpected(ended)),
            }
        }
    }

    /// Waits until everything in the log is derived, and has its vectors
    /// unless the embedder refuses them.
    async fn settled(&self, stop: &CancellationToken) {
        let reader = self.log.reader();
        let derived = || self.progress.next_offset() >= reader.end_offset();
        let embedded = || self.progress.deferred() == 0 || self.progress.trouble_of("backfill").is_some();
        while self.bench.pipeline.derive.enabled && !(derived() && embedded()) {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }

    async fn stop(self, once: bool) -> Result<Ended> {
        let deadline = Instant::now() + self.bench.pipeline.shutdown.deadline.0;
        let left = || deadline.saturating_duration_since(Instant::now());
        tracing::info!(deadline_s = left().as_secs_f64(), "stopping");
        self.closing.cancel();
        let mut unfinished = Vec::new();
        note("source", self.sources.drain(left()).await, &mut unfinished);
        note("server", self.server.drain(left()).await, &mut unfinished);
        let reader = self.log.reader();
        let log = self.log;
        // Ends once the queue is written and synced: whoever could add to it
        // has ended.
        let writing = tokio::task::spawn_blocking(move || log.shut_down());
        if tokio::time::timeout(left().max(Duration::from_secs(1)), writing).await.is_err() {
            unfinished.push("log writer".to_owned());
        }
        let abandon = self.abandon.clone();
        let giving_up = tokio::spawn({
            let left = left();
            async move {
                tokio::time::sleep(left).await;
                abandon.cancel();
            }
        });
        note("worker", self.workers.drain(left() + Duration::from_secs(2)).await, &mut unfinished);
        giving_up.abort();
        let rest = reader.end_offset().saturating_sub(self.progress.next_offset());
        if rest > 0 && self.bench.pipeline.derive.enabled {
            unfinished.push(format!("{rest} records in the log are not derived yet"));
        }
        if once && unfinished.is_empty() {
            // A bulk load is followed by searches, not by another look in half
            // a minute.
            self.bench.store.maintain(clock::system_ms()).await?;
        }
        let waiting = self.progress.deferred();
        if waiting > 0 && once {
            unfinished.push(format!("{waiting} records are stored without vectors"));
        } else if waiting > 0 {
            tracing::info!(waiting, "records are stored without vectors; the next start embeds them");
        }
        self.bench.close().await?;
        Ok(if unfinished.is_empty() { Ended::Drained } else { Ended::Unfinished(unfinished) })
    }
}

fn unexpected(ended: crate::dataflow::Outcome) -> anyhow::Error {
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

async fn bind_all(pipeline: &Pipeline) -> Result<Vec<(String, Listener)>> {
    let mut bound = Vec::new();
    for source in &pipeline.sources {
        let listener = match source {
            Source::Tcp(tcp) => Listener::tcp(&tcp.listen.to_string()).await,
            Source::Unix(unix) => Listener::unix(&unix.path).await,
            Source::File(_) | Source::Stdin(_) | Source::Http(_) | Source::Forward(_) => continue,
        };
        let listener = listener.with_context(|| format!("source `{}` cannot listen", source.name()))?;
        bound.push((source.name().to_owned(), listener));
    }
    Ok(bound)
}

async fn bind_forwards(pipeline: &Pipeline) -> Result<Vec<forward::Listener>> {
    let mut bound = Vec::new();
    for source in &pipeline.sources {
        let Source::Forward(settings) = source else { continue };
        let listener = forward::Listener::bind(settings).await;
        bound.push(listener.with_context(|| format!("source `{}` cannot listen", settings.name))?);
    }
    Ok(bound)
}

fn content_of(format: Format) -> Option<Content> {
    match format {
        Format::Auto => None,
        Format::Frames => Some(Content::Frames),
        Format::Jsonl => Some(Content::JsonLines),
    }
}

/// What the vectors were made with is an artifact of its own, so that they
/// can be traced after the model is gone.
async fn keep_model_description(bench: &Workbench) -> Result<()> {
    let served = bench.serving.now().await?;
    let space = served.model.space();
    let description = serde_json::to_vec_pretty(space)?;
    let what = Description {
        kind: "model",
        name: space.to_string(),
        extension: "json",
        meta: serde_json::json!({"space": space.id()}),
        now_ms: clock::system_ms(),
    };
    bench.artifacts.put_bytes(description, what).await?;
    Ok(())
}

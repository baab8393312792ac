//! The HTTP server, and what it answers by.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::Base;
use crate::{
    access::{self, Access, Upkeep},
    api::{Api, Bodies, Idempotency, Parts},
    clock,
    config::{Http, Listen, Pipeline, Source},
    dataflow::{Drained, Outcome, Supervisor},
    http_server::{Routes, Server},
    jobs::Jobs,
    pipeline::Ingest,
    rate_limit::Limiter,
    reload::Reloads,
    tls::Tls,
    workbench::Workbench,
};

/// Answers requests, and keeps count of who asks.
pub(super) struct Front {
    /// Who is let in.
    pub access: Access,
    ingest: Ingest,
    limiter: Limiter,
    bodies: Bodies,
    idempotency: Idempotency,
    metrics: PrometheusHandle,
    reloads: Reloads,
    bound: Bound,
    routes: Option<Routes>,
    servers: Supervisor,
    /// Ends the server that takes connections.
    stop: CancellationToken,
    /// Servers that only answer what they have.
    leaving: usize,
}

/// An address that is bound.
#[derive(Clone)]
pub(super) struct Bound {
    listen: Listen,
    listener: Arc<TcpListener>,
    tls: Option<Tls>,
    connections: usize,
}

/// What a front is made of.
pub(super) struct Opened {
    /// The way into the log.
    pub ingest: Ingest,
    /// Renders the metrics.
    pub metrics: PrometheusHandle,
    /// Where a reload is asked for.
    pub reloads: Reloads,
}

impl Bound {
    /// Binds what `http` names; where `before` listens is not bound again.
    ///
    /// # Errors
    /// If the address cannot be had, or the certificate cannot be used.
    pub async fn bind(http: &Http, before: Option<&Self>) -> Result<Self> {
        let listener = match before.filter(|before| before.listen == http.listen) {
            Some(before) => before.listener.clone(),
            None => {
                let bound = TcpListener::bind(http.listen.0).await;
                Arc::new(bound.with_context(|| format!("[http] cannot listen on {}", http.listen))?)
            }
        };
        let tls = http.tls.as_ref().map(Tls::open).transpose().context("[http]")?;
        Ok(Self { listen: http.listen, listener, tls, connections: http.max_connections as usize })
    }
}

impl Front {
    /// At `bound`, which is served once there are answers. The second part has
    /// to be done beside it.
    pub fn open(bound: Bound, opened: Opened, bench: &Workbench, base: &Base) -> Result<(Self, Upkeep)> {
        let pipeline = &bench.pipeline;
        let (access, upkeep) = access::open(pipeline.auth.as_ref(), &bench.store, base.clock.clone())?;
        if !access.authenticator.is_on() {
            tracing::info!("nobody is asked who they are, so only this machine can connect ([auth] is off)");
        }
        let Opened { ingest, metrics, reloads } = opened;
        let front = Self {
            access,
            ingest,
            limiter: Limiter::new(pipeline.limits.clone(), bench.redis.clone()),
            bodies: Bodies::new(pipeline.http.body_bytes),
            idempotency: Idempotency::new(pipeline.http.idempotency_ttl.0, bench.redis.clone()),
            metrics,
            reloads,
            bound,
            routes: None,
            servers: Supervisor::new(CancellationToken::new()),
            stop: CancellationToken::new(),
            leaving: 0,
        };
        Ok((front, upkeep))
    }

    /// The address to connect to.
    pub fn address(&self) -> Result<String> {
        Ok(self.bound.listener.local_addr()?.to_string())
    }

    /// Where it listens.
    pub fn bound(&self) -> &Bound {
        &self.bound
    }

    /// What counts differently than in `before` is counted anew from now on.
    pub fn recount(&mut self, before: &Pipeline, bench: &Workbench) {
        let pipeline = &bench.pipeline;
        if before.limits != pipeline.limits {
            self.limiter = Limiter::new(pipeline.limits.clone(), bench.redis.clone());
        }
        if before.http.body_bytes != pipeline.http.body_bytes {
            self.bodies = Bodies::new(pipeline.http.body_bytes);
        }
    }

    /// Answers as `bench` and `jobs` do from now on; requests under way are
    /// answered by what was before.
    pub fn answer(&mut self, base: &Base, bench: &Workbench, jobs: &Jobs) {
        let pipeline = &bench.pipeline;
        let http = pipeline.sources.iter().find(|source| matches!(source, Source::Http(_)));
        let api = Api::new(Parts {
            pipeline: pipeline.name.clone(),
            batch_tag: base.batch_tag(pipeline),
            intake: self.ingest.clone(),
            http_source: http.map(|source| source.name().to_owned()),
            jobs: jobs.clone(),
            clock: clock::system(),
            bodies: self.bodies.clone(),
            idempotency: self.idempotency.clone(),
            log: base.log.reader(),
            searcher: bench.searcher(),
            progress: base.progress.clone(),
            damage: base.damage.clone(),
            http: pipeline.http.clone(),
            embed: pipeline.migrate.as_ref().unwrap_or(&pipeline.embed).clone(),
            access: self.access.clone(),
            limiter: self.limiter.clone(),
            metrics: self.metrics.clone(),
            cpu: bench.cpu.clone(),
            closing: base.closing.clone(),
            reloads: self.reloads.clone(),
            started: base.started,
        });
        match &self.routes {
            Some(routes) => routes.replace(api.router()),
            None => {
                self.routes = Some(Routes::new(api.router()));
                self.serve();
            }
        }
    }

    /// Listens at `bound` from now on; those connected already are served to
    /// the end of their requests.
    pub fn move_to(&mut self, bound: Bound) {
        self.bound = bound;
        self.stop.cancel();
        self.leaving += 1;
        self.serve();
    }

    fn serve(&mut self) {
        let Some(routes) = self.routes.clone() else { return };
        let Bound { listener, tls, connections, .. } = self.bound.clone();
        self.stop = self.servers.stop_token().child_token();
        let serving = Server::new(listener, tls, connections).serve(routes, self.stop.clone());
        self.servers.spawn("http", serving);
    }

    /// Waits until a server ends that should not.
    pub async fn next(&mut self) -> Option<Outcome> {
        loop {
            let ended = self.servers.next().await?;
            if ended.result.is_err() || self.leaving == 0 {
                return Some(ended);
            }
            self.leaving -= 1;
        }
    }

    /// Answers the open requests and ends.
    pub async fn drain(self, deadline: Duration) -> Drained {
        let drained = self.servers.drain(deadline).await;
        // Work whose client has gone away is finished all the same.
        if drained.survivors.is_empty() {
            self.idempotency.drain().await;
        }
        drained
    }
}

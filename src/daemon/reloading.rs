//! Taking the pipeline file anew, while frames come in.
//!
//! ```text
//! file read and checked whole ─► difference ─► what is new is opened beside what runs
//!   ─► tasks behind the log end, the new ones go on where they ended
//!   ─► requests are answered anew ─► sources close, open, change
//! ```
//!
//! Whatever fails before the tasks behind the log end changes nothing; if the
//! new ones do not start, those before them are started again. The log, and
//! sources without a difference, notice none of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio_util::sync::CancellationToken;

use super::{Daemon, crew::Crew, front::Bound, note, sources::Ready};
use crate::{
    access::Way,
    config::{Difference, Pipeline},
    embed::Embedder,
    identity::{Entry, Principal},
    metrics,
    reload::{By, ReloadError, Reloaded, Request},
    source::{entrance::Entrance, sessions::Sessions},
    store::StoreError,
    workbench::Workbench,
};

/// What jobs found, which holds until they find something else.
const FINDINGS: [&str; 3] = ["artifacts", "audit", "scheduled jobs"];

/// Time to the next attempt where the store is away.
const AWAY: Duration = Duration::from_secs(1);

/// What is new, opened; nothing of it is in use.
struct Prepared {
    bench: Workbench,
    bound: Option<Bound>,
    way: Option<Way>,
    sources: Vec<Ready>,
}

impl Daemon {
    /// Answers `request`.
    ///
    /// # Errors
    /// If neither the new configuration nor the one before it can go on.
    pub(super) async fn reload(&mut self, request: Request, stop: &CancellationToken) -> Result<()> {
        let started = Instant::now();
        let (answer, fatal) = match self.try_reload(&request, stop).await {
            Ok(answer) => (answer, Ok(())),
            Err(fatal) => (Err(ReloadError::Ending), Err(fatal)),
        };
        match &answer {
            Ok(done) if done.applied => tracing::info!(
                changed = ?done.changed,
                took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                "the pipeline file was taken anew"
            ),
            Ok(done) => tracing::info!(changed = ?done.changed, "the pipeline file was looked at"),
            Err(error) => tracing::error!(%error, code = error.code(), "the pipeline file was not taken"),
        }
        if !request.dry_run {
            metrics::reloaded(answer.as_ref().map_or_else(ReloadError::code, |_| "done"));
        }
        // Whoever asked may have gone away.
        let _ = request.answer.send(answer);
        fatal
    }

    async fn try_reload(
        &mut self,
        request: &Request,
        stop: &CancellationToken,
    ) -> Result<Result<Reloaded, ReloadError>> {
        let prepared = async {
            if self.base.options.once {
                return Err(ReloadError::Ending);
            }
            let next = tokio::task::block_in_place(&self.load)?;
            let difference = Difference::between(&self.bench.pipeline, &next);
            let fixed: Vec<_> = difference.fixed().into_iter().map(str::to_owned).collect();
            if !fixed.is_empty() {
                return Err(ReloadError::NeedsRestart { keys: fixed });
            }
            if request.dry_run || difference.is_none() {
                return Ok((difference, None));
            }
            if request.by == By::Signal {
                self.write_down().await?;
            }
            let prepared = self.prepare(next, &difference).await;
            let prepared = prepared.map_err(|error| ReloadError::NotUp { reason: format!("{error:#}") })?;
            Ok((difference, Some(prepared)))
        };
        let (difference, prepared) = match stop.run_until_cancelled(prepared).await {
            Some(Ok(prepared)) => prepared,
            Some(Err(error)) => return Ok(Err(error)),
            None => return Ok(Err(ReloadError::Ending)),
        };
        let applied = match prepared {
            None => false,
            Some(prepared) => match self.change_over(prepared, &difference, stop).await? {
                None => true,
                Some(reason) => return Ok(Err(ReloadError::NotUp { reason })),
            },
        };
        Ok(Ok(Reloaded::of(&difference, applied, self.sources.addresses().into_iter().collect())))
    }

    /// What cannot be written down is not done.
    async fn write_down(&self) -> Result<(), ReloadError> {
        let (principal, name) = (Principal::local("signal"), &self.bench.pipeline.name);
        let entry = Entry::done((self.base.clock)(), &principal, "pipeline.reload", name);
        let written = self.front.access.trail.record(entry).await;
        written
            .map_err(|error| ReloadError::NotUp { reason: format!("the trail cannot be written: {error}") })
    }

    /// Opens what `next` wants otherwise.
    async fn prepare(&self, next: Pipeline, difference: &Difference) -> Result<Prepared> {
        let bound = match difference.is_of_listening() {
            true => Some(Bound::bind(&next.http, Some(self.front.bound())).await?),
            false => None,
        };
        let way = match next.auth == self.bench.pipeline.auth {
            true => None,
            false => Some(self.front.access.authenticator.prepare(next.auth.as_ref())?),
        };
        if let Some(way) = &way {
            ensure!(
                way.is_open().await,
                "[auth.jwt] cannot be used: the identity provider does not say what its keys are (the log says why)"
            );
        }
        let wanted = |name: &str| difference.opened.iter().chain(&difference.changed).any(|new| new == name);
        let sources = self.sources.prepare(&next, wanted).await?;
        // Last: what it opens is seen in the store.
        let bench = self.bench.reopened(next).await?;
        for served in bench.serving.members() {
            served.model.prepare().await?;
        }
        Ok(Prepared { bench, bound, way, sources })
    }

    /// Puts what is new in the place of what runs. Gives the reason if it did
    /// not come up and everything is as it was.
    async fn change_over(
        &mut self,
        new: Prepared,
        difference: &Difference,
        stop: &CancellationToken,
    ) -> Result<Option<String>> {
        let Prepared { bench, bound, way, sources } = new;
        if difference.is_behind_the_log()
            && let Err(error) = self.change_crew(&bench, difference.has("artifacts"), stop).await?
        {
            self.front.answer(&self.base, &self.bench, &self.crew.jobs);
            return Ok(Some(format!("{error:#}")));
        }
        let before = std::mem::replace(&mut self.bench, bench);
        // What has been spent since the new ones were opened.
        if let Err(error) = before.settle().await {
            tracing::warn!(%error, "what embedding cost in the last moment may not be written down");
        }
        // Who asks nobody does so once the doors are closed that were for
        // those who were asked.
        let (sooner, later) = match self.bench.pipeline.auth.is_some() {
            true => (way, None),
            false => (None, way),
        };
        if let Some(way) = sooner {
            self.front.access.authenticator.take(way);
        }
        self.front.recount(&before.pipeline, &self.bench);
        self.front.answer(&self.base, &self.bench, &self.crew.jobs);
        if let Some(bound) = bound {
            self.front.move_to(bound);
        }
        let Difference { closed, changed, .. } = difference;
        self.sources.close(&[closed.as_slice(), changed.as_slice()].concat()).await;
        if let Some(way) = later {
            self.front.access.authenticator.take(way);
        }
        let settings = self.bench.pipeline.sessions.clone();
        if settings != before.pipeline.sessions {
            self.sessions = Sessions::new(settings);
        }
        let (ingest, sessions) = (self.base.ingest.clone(), self.sessions.clone());
        let entrance = Entrance { ingest, sessions, access: self.front.access.clone() };
        self.sources.open(sources, &entrance);
        Ok(None)
    }

    /// Has the tasks that `bench` wants go on where those that run end; or,
    /// if they cannot, others like those before.
    ///
    /// # Errors
    /// The inner one if they could not; the outer if those before cannot go on
    /// either.
    async fn change_crew(
        &mut self,
        bench: &Workbench,
        insists: bool,
        stop: &CancellationToken,
    ) -> Result<Result<()>> {
        let deadline = self.bench.pipeline.shutdown.deadline.0;
        let mut unfinished = Vec::new();
        note("worker", self.crew.leave(deadline, stop).await, &mut unfinished);
        if !unfinished.is_empty() {
            tracing::warn!(?unfinished, "tasks were broken off; those that follow do it again");
        }
        // Those that follow say themselves what is not well, but for what is
        // looked for once in a while only.
        self.base.progress.forget_trouble_but(&FINDINGS);
        let failed = match self.crew_for(bench, insists).await {
            Ok(crew) => {
                self.crew = crew;
                return Ok(Ok(()));
            }
            Err(error) => error,
        };
        tracing::error!(error = format!("{failed:#}"), "what the new pipeline file asks for did not start");
        let mut again = self.crew_for(&self.bench, false).await;
        // A store that is away for a moment ends no daemon.
        while let Err(error) = &again
            && error.downcast_ref().is_some_and(StoreError::is_transient)
            && stop.run_until_cancelled(tokio::time::sleep(AWAY)).await.is_some()
        {
            again = self.crew_for(&self.bench, false).await;
        }
        self.crew = again.with_context(|| {
            format!("the new pipeline file did not come up ({failed:#}), and the one before it neither")
        })?;
        Ok(Err(failed))
    }

    async fn crew_for(&self, bench: &Workbench, insists: bool) -> Result<Crew> {
        bench.take_space().await?;
        let (base, pipeline) = (&self.base, &bench.pipeline);
        let start = base.log.reader().start_offset();
        let lease = bench.store.acquire(&pipeline.name, &pipeline.stream, start, (base.clock)()).await?;
        Crew::start(base, bench, lease, insists).await
    }
}

//! The tasks behind the log, as one configuration wants them.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;

use super::Base;
use crate::{
    artifact::{ArtifactError, Description},
    clock,
    dataflow::{Cpu, Drained, Outcome, Supervisor},
    embed::Embedder,
    jobs::{Claimant, Jobs, WorkerId},
    pipeline::{
        archive::Archive,
        backfill::Backfill,
        derive::{Derive, Ends},
        erase::Eraser,
        ownership,
        shadow::Shadow,
        upkeep,
    },
    redis::Trigger,
    store::Lease,
    webhooks::EventKind,
    workbench::{Workbench, archive_of},
    worker::{Deliverer, Worker, keep_schedules, tell_health, tell_quota},
};

/// Time to the next attempt at an object store that does not answer.
const AWAY: Duration = Duration::from_secs(5);

/// Derives, archives, and does whatever else is done with what is in the log.
pub(super) struct Crew {
    tasks: Supervisor,
    /// Tells those to end that end with the sources.
    closing: CancellationToken,
    derive: Ends,
    /// Long work, as the schedules of this configuration want it.
    pub jobs: Jobs,
}

impl Crew {
    /// Starts the tasks that the pipeline of `bench` wants; they move the
    /// checkpoint by `lease`. If it `insists`, an object store that refuses
    /// holds up the start.
    pub async fn start(base: &Base, bench: &Workbench, lease: Lease, insists: bool) -> Result<Self> {
        let described = keep_model_description(bench).await;
        let pipeline = &bench.pipeline;
        let archive = archive_of(
            &base.log,
            pipeline,
            &bench.store,
            &bench.artifacts,
            &base.damage,
            base.clock.clone(),
        )?;
        let archive = Archive { turn: base.sealing.clone(), ..archive };
        let deliverer = deliverer(base, bench).await?;
        let names = (pipeline.name.as_str(), pipeline.stream.as_str());
        let mut crew = Self {
            tasks: Supervisor::new(CancellationToken::new()),
            closing: base.closing.child_token(),
            derive: Ends::default(),
            jobs: Jobs::new(bench.store.clone(), names, pipeline.schedules(), base.clock.clone()),
        };
        if let Err(error) = described {
            crew.describe_later(base, bench, error, insists)?;
        }
        crew.start_deriving(base, bench, lease);
        let shadows = crew.start_models(base, bench);
        let eraser = Eraser::new(pipeline, base.log.writer(), archive.clone(), bench.redis.clone());
        let eraser = match pipeline.derive.enabled {
            true => eraser.beside(base.progress.clone()),
            false => eraser,
        };
        // Ends with the sources: it holds the log open.
        crew.tasks.spawn("erasure", eraser.run(base.progress.clone(), crew.closing.clone()));
        let stop = crew.tasks.stop_token();
        crew.tasks.spawn("upkeep", upkeep::run(bench.store.clone(), stop.clone()));
        if let Some(deliverer) = deliverer {
            crew.start_webhooks(base, bench, deliverer, &archive);
        }
        // One that ends by itself has no time for jobs.
        if !base.options.once {
            crew.start_jobs(base, bench, archive.clone(), shadows)?;
        }
        crew.tasks.spawn("archive", archive.run(base.progress.clone(), stop));
        Ok(crew)
    }

    /// Waits for a task to end, which none should.
    pub async fn next(&mut self) -> Option<Outcome> {
        self.tasks.next().await
    }

    /// Ends the tasks, for others that go on where these end: what is under
    /// way is finished, at most until `deadline` or until `stop`.
    pub async fn leave(&mut self, deadline: Duration, stop: &CancellationToken) -> Drained {
        self.closing.cancel();
        self.derive.leave.cancel();
        self.end(deadline, stop).await
    }

    /// Ends the tasks once everything in the log is derived, at most until
    /// `deadline`.
    pub async fn finish(&mut self, deadline: Duration) -> Drained {
        self.closing.cancel();
        self.derive.finish.cancel();
        self.end(deadline, &CancellationToken::new()).await
    }

    async fn end(&mut self, deadline: Duration, stop: &CancellationToken) -> Drained {
        let abandon = self.derive.abandon.clone();
        let draining = std::mem::take(&mut self.tasks).drain(deadline + Duration::from_secs(2));
        tokio::pin!(draining);
        tokio::select! {
            drained = &mut draining => return drained,
            () = tokio::time::sleep(deadline) => {}
            () = stop.cancelled() => {}
        }
        abandon.cancel();
        draining.await
    }

    /// An object store that does not answer holds up no start; one that
    /// refuses does, because somebody has to do something about it, unless it
    /// is the one that was there before.
    fn describe_later(
        &mut self,
        base: &Base,
        bench: &Workbench,
        error: anyhow::Error,
        insists: bool,
    ) -> Result<()> {
        if insists && !error.downcast_ref().is_some_and(ArtifactError::is_away) {
            return Err(error);
        }
        tracing::warn!(%error, "the object store takes nothing; what is to be kept there waits");
        base.progress.trouble("model description", error.to_string());
        let (bench, progress, stop) = (bench.clone(), base.progress.clone(), self.tasks.stop_token());
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
        self.tasks.spawn("model description", task);
        Ok(())
    }

    fn start_deriving(&mut self, base: &Base, bench: &Workbench, lease: Lease) {
        let pipeline = &bench.pipeline;
        let backfill = Backfill {
            serving: bench.serving.clone(),
            store: bench.store.clone(),
            pipeline: pipeline.name.clone(),
            stream: pipeline.stream.clone(),
            rate: pipeline.embed.backfill_rate,
            progress: base.progress.clone(),
            wake: Arc::default(),
            clock: base.clock.clone(),
        };
        let stop = self.tasks.stop_token();
        if let Some((redis, settings)) = bench.redis.as_ref().zip(pipeline.redis.as_ref()) {
            let following = base.progress.clone().follow("redis", redis.away(), stop.clone());
            self.tasks.spawn("redis", following);
            if !settings.trigger.is_empty() {
                let (redis, channel) = (redis.clone(), settings.trigger.clone());
                let trigger = Trigger { redis, channel, wake: backfill.wake.clone() };
                self.tasks.spawn("trigger", trigger.run(stop.clone()));
            }
        }
        if !pipeline.derive.enabled {
            return;
        }
        let derive = Derive {
            log: base.log.reader(),
            deriver: bench.deriver(),
            store: bench.store.clone(),
            lease,
            serving: bench.serving.clone(),
            patience: pipeline.embed.patience.0,
            batch_tag: base.batch_tag(pipeline),
            config_digest: pipeline.digest(),
            progress: base.progress.clone(),
            damage: base.damage.clone(),
            clock: base.clock.clone(),
        };
        self.tasks.spawn("backfill", backfill.run(stop));
        self.tasks.spawn("derive", derive.run(self.derive.clone()));
    }

    /// Who fills the spaces that are not live, and who looks after the models.
    fn start_models(&mut self, base: &Base, bench: &Workbench) -> Vec<Shadow> {
        let (pipeline, stop) = (&bench.pipeline, self.tasks.stop_token());
        let (members, mut shadows) = (bench.serving.members(), Vec::new());
        let rates = [Some(&pipeline.embed), pipeline.migrate.as_ref()];
        for (served, settings) in members.iter().zip(rates.into_iter().flatten()) {
            if members.len() > 1 {
                let (served, store, progress) = (served.clone(), bench.store.clone(), base.progress.clone());
                let (rate, turn) = (settings.backfill_rate, Arc::default());
                let shadow = Shadow { served, store, rate, progress, turn };
                shadows.push(shadow.clone());
                self.tasks.spawn("shadow", shadow.run(stop.clone()));
            }
            // One that ends by itself checks its model when it needs it.
            if !base.options.once {
                let watching = served.model.clone().watch(base.progress.clone(), stop.clone());
                self.tasks.spawn("canary", watching);
            }
        }
        shadows
    }

    /// What is told stays queued while no daemon tells it.
    fn start_webhooks(&mut self, base: &Base, bench: &Workbench, deliverer: Deliverer, archive: &Archive) {
        let (store, clock, stop) = (&bench.store, base.clock.clone(), self.closing.clone());
        self.tasks.spawn("webhooks", deliverer.run(base.progress.clone(), stop.clone()));
        let outbox = archive.outbox.clone();
        if [EventKind::HealthDegraded, EventKind::HealthReady].into_iter().any(|kind| outbox.wants(kind)) {
            let told = (store.clone(), outbox.clone());
            let telling = tell_health(
                base.health_told.clone(),
                base.progress.clone(),
                told,
                clock.clone(),
                stop.clone(),
            );
            self.tasks.spawn("health", telling);
        }
        if [EventKind::QuotaWarning, EventKind::QuotaSpent].into_iter().any(|kind| outbox.wants(kind)) {
            let told = (store.clone(), outbox);
            for (member, of_member) in bench.serving.members().iter().zip(&base.quota_told) {
                let Some(budget) = member.model.budget() else { continue };
                let telling =
                    tell_quota(of_member.clone(), budget.clone(), told.clone(), clock.clone(), stop.clone());
                self.tasks.spawn("quota", telling);
            }
        }
    }

    /// Jobs end with the sources: what they do not get done is given back, and
    /// leaves the processor to what drains.
    fn start_jobs(
        &mut self,
        base: &Base,
        bench: &Workbench,
        archive: Archive,
        shadows: Vec<Shadow>,
    ) -> Result<()> {
        let pipeline = &bench.pipeline;
        let home = ownership::identity(&pipeline.data_dir)?;
        let start = format!("{:016x}", rand::random::<u64>());
        let scheduling = keep_schedules(
            self.jobs.clone(),
            (bench.store.clone(), pipeline.jobs.keep),
            base.progress.clone(),
            base.clock.clone(),
            self.closing.clone(),
        );
        self.tasks.spawn("scheduler", scheduling);
        let worker = Worker {
            bench: bench.clone(),
            jobs: self.jobs.clone(),
            claimant: Claimant {
                id: WorkerId { home, start },
                pipeline: pipeline.name.clone(),
                stream: pipeline.stream.clone(),
                at_once: pipeline.jobs.at_once,
            },
            archive,
            progress: base.progress.clone(),
            shadows,
            batch_tag: base.batch_tag(pipeline),
            pg_bin: base.options.pg_bin.clone(),
            cpu: Cpu::background()?,
            clock: base.clock.clone(),
            failing: base.failing.clone(),
        };
        self.tasks.spawn("jobs", worker.run(self.closing.clone()));
        Ok(())
    }
}

async fn deliverer(base: &Base, bench: &Workbench) -> Result<Option<Deliverer>> {
    let pipeline = &bench.pipeline;
    if pipeline.webhooks.is_empty() || base.options.once {
        return Ok(None);
    }
    let hooks = (pipeline.name.as_str(), pipeline.webhooks.clone());
    let opened =
        Deliverer::open(hooks, bench.store.clone(), Arc::new(rand::random), base.clock.clone()).await;
    Ok(Some(opened.context("[[webhook]]")?))
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

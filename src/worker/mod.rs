//! The worker: does the jobs that a daemon may do, beside its streams.
//!
//! It claims a job, works on it, says every few seconds how far it is, and
//! ends the claim with what came of it. Whatever it says counts only while the
//! claim is its own, so that one which was taken for dead and is not does no
//! harm. A stop of the daemon gives its jobs back; after a crash they are taken
//! up again ([`perform`] says where each kind goes on).
//!
//! A job is cancelled, given back or lost between two steps of it: where it
//! awaits something. All that jobs do is safe to break off there.

mod deliver;
mod health;
mod meter;
mod perform;
mod quota;
mod scheduler;
mod tell;

use std::{
    collections::BTreeMap,
    panic::AssertUnwindSafe,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::{meter::Told, perform::PerformError};
use crate::{
    clock::Clock,
    dataflow::Cpu,
    jobs::{
        Claimant, Jobs, Work,
        policy::{LEASE_MS, after_failure},
    },
    metrics,
    pipeline::{archive::Archive, progress::Progress, shadow::Shadow},
    store::{HeldJob, JobClaim, JobEnd, JobRow, NewDelivery, StoreError},
    workbench::Workbench,
};
pub use deliver::Deliverer;
pub use health::{Health, tell_health};
pub use quota::{QuotaTold, tell_quota};
pub use scheduler::keep_schedules;

/// How often it is looked for a job to begin.
const LOOKING: Duration = Duration::from_secs(1);
/// How often it is said how far a job is.
const SAYING: Duration = Duration::from_secs(2);
/// How often the end of a job is said again where the store does not take it.
const ENDINGS: u32 = 10;

/// Does the jobs of one daemon.
pub struct Worker {
    /// The pipeline's data.
    pub bench: Workbench,
    /// What is asked for.
    pub jobs: Jobs,
    /// Who this is.
    pub claimant: Claimant,
    /// The stream's log, and what seals it.
    pub archive: Archive,
    /// Where the stream stands, and where it is shown if something is wrong.
    pub progress: Arc<Progress>,
    /// Who fills the spaces that are not live.
    pub shadows: Vec<Shadow>,
    /// Batch tag of rows that are put back.
    pub batch_tag: String,
    /// Folder of PostgreSQL's programs, if it is not to be looked for.
    pub pg_bin: Option<PathBuf>,
    /// Where jobs compute: threads of the lowest priority.
    pub cpu: Cpu,
    /// What time it is.
    pub clock: Clock,
    /// Schedules whose last job failed, and why.
    pub failing: Arc<Failing>,
}

/// What is shown of schedules that fail, by their names.
pub type Failing = Mutex<BTreeMap<String, String>>;

/// Why a claim ends before its job does.
enum Over {
    /// Somebody cancelled the job.
    Cancelled,
    /// The claim is not this worker's any more.
    Void,
}

impl Worker {
    /// Works until `stop`, and then gives back what is not done. A store that
    /// fails is shown, and asked again.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let worker = Arc::new(self);
        let mut under_way = JoinSet::new();
        while !stop.is_cancelled() {
            match worker.begin(&mut under_way, &stop).await {
                Ok(()) => worker.progress.well("jobs"),
                Err(error) => worker.progress.trouble("jobs", error.to_string()),
            }
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = under_way.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a job broke off; it is taken up again when its lease is over");
                    }
                }
                () = worker.jobs.changed() => {}
                () = tokio::time::sleep(LOOKING) => {}
            }
        }
        while under_way.join_next().await.is_some() {}
        Ok(())
    }

    /// Ends what nobody works on any more, and begins whatever may begin.
    async fn begin(
        self: &Arc<Self>,
        under_way: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let store = &self.bench.store;
        loop {
            let (open, now_ms) = (store.open_jobs().await?, (self.clock)());
            for row in &open {
                if let Some(end) = self.claimant.loss(row, now_ms) {
                    tracing::error!(job = row.job_id, kind = row.kind, ?end, "a job lost its daemon");
                    let told = self.told(row, &end, now_ms);
                    store.end_job(row.held(), &end, &told, now_ms).await?;
                }
            }
            // Looking costs no lock.
            if self.claimant.next(&open, now_ms).is_none() {
                return Ok(());
            }
            let worker = self.claimant.id.to_string();
            let claim = JobClaim { worker, now_ms, lease_ms: now_ms + LEASE_MS };
            let choose = |open: &[JobRow]| self.claimant.next(open, now_ms);
            let Some(row) = store.claim_job(&claim, &choose).await? else { return Ok(()) };
            let span = tracing::error_span!("job", job = row.job_id, kind = row.kind);
            let (worker, stop) = (self.clone(), stop.clone());
            under_way.spawn(async move { worker.work_on(row, stop).await }.instrument(span));
        }
    }

    async fn work_on(&self, row: JobRow, stop: CancellationToken) {
        let held = row.held();
        let pipeline = &self.bench.pipeline;
        let stream = pipeline.derive.enabled.then(|| (self.archive.log.clone(), self.progress.clone()));
        let told = Told::new(&row, pipeline.jobs.rate, stream);
        tracing::info!(attempt = row.attempts, "a job is begun");
        let _running = metrics::job_begun();
        let end = tokio::select! {
            done = AssertUnwindSafe(self.perform(&row, &told)).catch_unwind() => match done {
                Ok(Ok(result)) => JobEnd::Done(result.to_string()),
                Ok(Err(error)) => self.failed(&row, &told, &error),
                Err(_) => JobEnd::Failed("it panicked; the daemon's log says where".into()),
            },
            over = self.say(held, &told) => match over {
                Over::Cancelled => JobEnd::Cancelled,
                Over::Void => {
                    tracing::error!("the job is not this daemon's any more: another has taken it, or it is gone");
                    return;
                }
            },
            () = stop.cancelled() => JobEnd::GivenBack,
        };
        self.end(&row, &told, &end).await;
        metrics::job_ended(&row.kind, end.state().as_str());
        self.show(&row, &end);
        match &end {
            JobEnd::Failed(reason) => tracing::error!(reason, "a job failed"),
            JobEnd::Again(_, reason) => tracing::warn!(reason, "a job failed for now; it is tried again"),
            _ => tracing::info!(state = end.state().as_str(), "a job ended"),
        }
    }

    /// Nobody waits for the job of a schedule, so it is shown that it failed,
    /// until one is done.
    fn show(&self, row: &JobRow, end: &JobEnd) {
        let Some(schedule) = &row.schedule else { return };
        let mut failing = self.failing.lock().unwrap_or_else(PoisonError::into_inner);
        match end {
            JobEnd::Failed(why) | JobEnd::Again(_, why) => {
                failing.insert(schedule.clone(), format!("`{schedule}` failed (job {}): {why}", row.job_id));
            }
            JobEnd::Done(_) => drop(failing.remove(schedule)),
            JobEnd::Cancelled | JobEnd::GivenBack => {}
        }
        match failing.is_empty() {
            true => self.progress.well("scheduled jobs"),
            false => {
                let all: Vec<&str> = failing.values().map(String::as_str).collect();
                self.progress.trouble("scheduled jobs", all.join("; "));
            }
        }
    }

    /// What webhooks are told of the end of a job.
    fn told(&self, row: &JobRow, end: &JobEnd, now_ms: i64) -> Vec<NewDelivery> {
        tell::of_end(row, end, now_ms).map(|event| self.archive.outbox.deliveries(&event)).unwrap_or_default()
    }

    fn failed(&self, row: &JobRow, told: &Told, error: &PerformError) -> JobEnd {
        let attempts = if told.has_moved() { 1 } else { row.attempts };
        after_failure(attempts, error.is_transient(), error.to_string(), (self.clock)())
    }

    async fn perform(&self, row: &JobRow, told: &Told) -> Result<serde_json::Value, PerformError> {
        let work: Work = serde_json::from_str(&row.work)?;
        perform::perform(self, row, &work, told).await
    }

    /// Says how far the job is, and that it is worked on, until it is not to
    /// be any more.
    async fn say(&self, held: HeldJob, told: &Told) -> Over {
        let mut lease_ms = (self.clock)() + LEASE_MS;
        loop {
            tokio::select! {
                () = tokio::time::sleep(SAYING) => {}
                () = self.jobs.changed() => {}
            }
            let next_ms = (self.clock)() + LEASE_MS;
            match self.bench.store.report_job(held, &told.progress(), next_ms).await {
                Ok(Some(true)) => return Over::Cancelled,
                Ok(Some(false)) => lease_ms = next_ms,
                Ok(None) => return Over::Void,
                Err(error) if (self.clock)() > lease_ms => {
                    tracing::error!(%error, "the store was away for longer than the lease of a job");
                    return Over::Void;
                }
                Err(error) => tracing::warn!(%error, "the progress of a job could not be noted"),
            }
        }
    }

    /// Says how the claim ends. Where the store takes it not at all, the lease
    /// ends by itself, and the job is taken up again.
    async fn end(&self, row: &JobRow, told: &Told, end: &JobEnd) {
        let (store, held) = (&self.bench.store, row.held());
        for _ in 0..ENDINGS {
            let now_ms = (self.clock)();
            let ended = async {
                store.report_job(held, &told.progress(), now_ms + LEASE_MS).await?;
                store.end_job(held, end, &self.told(row, end, now_ms), now_ms).await
            };
            match ended.await {
                Ok(true) => return,
                Ok(false) => {
                    return tracing::error!(
                        "the end of a job was not noted: another daemon has taken it, or it is gone"
                    );
                }
                Err(error) => tracing::warn!(%error, "the end of a job could not be noted"),
            }
            tokio::time::sleep(LOOKING).await;
        }
    }
}

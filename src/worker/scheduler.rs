//! The scheduler: queues the jobs of schedules when they are due, and forgets
//! those that ended long ago.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::{
    clock::Clock,
    jobs::Jobs,
    pipeline::progress::Progress,
    store::{Store, StoreError},
    units::Period,
};

/// How often it is looked at the clock.
const LOOKING: Duration = Duration::from_secs(1);
/// How often old jobs are forgotten.
const FORGETTING_MS: i64 = 3_600_000;

/// Keeps the schedules of `jobs` until `stop`. A store that fails is shown, and
/// asked again: a due time is not lost by it. Jobs that ended longer ago than
/// `keep` are forgotten.
pub async fn keep_schedules(
    jobs: Jobs,
    (store, keep): (Store, Period),
    progress: Arc<Progress>,
    clock: Clock,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let keep_ms = i64::try_from(keep.0.as_millis()).unwrap_or(i64::MAX);
    let (mut settled, mut forget_ms) = (BTreeMap::new(), i64::MIN);
    while !stop.is_cancelled() {
        let now_ms = clock();
        let kept = async {
            keep_all(&jobs, &mut settled).await?;
            if now_ms >= forget_ms {
                store.remove_old_jobs(now_ms.saturating_sub(keep_ms)).await?;
                forget_ms = now_ms + FORGETTING_MS;
            }
            Ok::<_, StoreError>(())
        };
        match kept.await {
            Ok(()) => progress.well("scheduler"),
            Err(error) => progress.trouble("scheduler", error.to_string()),
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(LOOKING) => {}
        }
    }
    Ok(())
}

/// `settled`: up to when each is seen to, as far as this process knows. What it
/// does not know of another's doing, the store does.
async fn keep_all(jobs: &Jobs, settled: &mut BTreeMap<String, i64>) -> Result<(), StoreError> {
    for schedule in jobs.in_force() {
        let at = jobs.keep(schedule, settled.get(&schedule.name).copied()).await?;
        settled.insert(schedule.name.clone(), at);
    }
    Ok(())
}

//! Tasks with an owner.
//!
//! Every task of a daemon is spawned here, with a name. A task that fails
//! stops the others in good order; on the way out, those that do not end in
//! time are named.

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    time::Duration,
};

use tokio::{
    task::{AbortHandle, Id, JoinSet},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// How a task ended.
#[derive(Debug)]
pub struct Outcome {
    /// The task's name.
    pub name: String,
    /// What it returned; a panic is an error too.
    pub result: anyhow::Result<()>,
}

/// What was left when the deadline came.
#[derive(Debug, Default)]
pub struct Drained {
    /// Tasks that failed, with their errors.
    pub failed: Vec<Outcome>,
    /// Names of the tasks that had not ended and were aborted.
    pub survivors: Vec<String>,
}

/// Owns tasks and the token that asks them to stop.
#[derive(Debug, Default)]
pub struct Supervisor {
    tasks: JoinSet<anyhow::Result<()>>,
    names: BTreeMap<Id, (String, AbortHandle)>,
    /// Ended while another was waited for.
    ended: VecDeque<Outcome>,
    stop: CancellationToken,
}

impl Supervisor {
    /// Owns tasks that stop when `stop` is cancelled.
    pub fn new(stop: CancellationToken) -> Self {
        Self { stop, ..Self::default() }
    }

    /// Spawns a task. It should end, with `Ok`, when the token is cancelled
    /// or its input ends. Its log events carry the caller's span.
    pub fn spawn<E: Into<anyhow::Error>>(
        &mut self,
        name: impl Into<String>,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let handle = self.tasks.spawn(async move { task.await.map_err(Into::into) }.in_current_span());
        self.names.insert(handle.id(), (name.into(), handle));
    }

    /// The token that tells the tasks to stop.
    pub fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Waits for the next task to end. `None` when there is none left.
    pub async fn next(&mut self) -> Option<Outcome> {
        match self.ended.pop_front() {
            Some(outcome) => Some(outcome),
            None => self.join_next().await,
        }
    }

    /// Waits for the task `name`, which has been told to end, and aborts it
    /// if it has not by `deadline`. `None` if there is none of that name.
    pub async fn join(&mut self, name: &str, deadline: Duration) -> Option<Outcome> {
        if let Some(at) = self.ended.iter().position(|outcome| outcome.name == name) {
            return self.ended.remove(at);
        }
        let until = Instant::now() + deadline;
        let mut late = false;
        while let Some((_, abort)) = self.names.values().find(|(named, _)| named == name) {
            let abort = abort.clone();
            let outcome = match late {
                false => timeout_at(until, self.join_next()).await,
                true => Ok(self.join_next().await),
            };
            match outcome {
                Ok(Some(outcome)) if outcome.name == name => return Some(outcome),
                Ok(Some(other)) => self.ended.push_back(other),
                Ok(None) => return None,
                Err(_) => {
                    abort.abort();
                    late = true;
                }
            }
        }
        None
    }

    async fn join_next(&mut self) -> Option<Outcome> {
        let (id, result) = match self.tasks.join_next_with_id().await? {
            Ok((id, result)) => (id, result),
            Err(e) => (e.id(), Err(e.into())),
        };
        let name = self.names.remove(&id).map(|(name, _)| name).unwrap_or_default();
        Some(Outcome { name, result })
    }

    /// Cancels the token and waits for all tasks, at most until `deadline`;
    /// what has not ended by then is named and aborted.
    pub async fn drain(mut self, deadline: Duration) -> Drained {
        self.stop.cancel();
        let until = Instant::now() + deadline;
        let mut drained = Drained::default();
        loop {
            match timeout_at(until, self.next()).await {
                Ok(Some(outcome)) if outcome.result.is_err() => drained.failed.push(outcome),
                Ok(Some(_)) => {}
                Ok(None) => return drained,
                Err(_) => {
                    drained.survivors = self.names.into_values().map(|(name, _)| name).collect();
                    self.tasks.abort_all();
                    return drained;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_that_do_not_end_in_time_are_named() {
        let stop = CancellationToken::new();
        let mut tasks = Supervisor::new(stop.clone());
        let obedient = stop.clone();
        tasks.spawn("obedient", async move {
            obedient.cancelled().await;
            anyhow::Ok(())
        });
        tasks.spawn("broken", async { Err(anyhow::anyhow!("torn")) });
        tasks.spawn("deaf", std::future::pending::<anyhow::Result<()>>());
        let drained = tasks.drain(Duration::from_millis(50)).await;
        assert_eq!(drained.survivors, ["deaf"]);
        assert_eq!(drained.failed.len(), 1);
        assert!(drained.failed[0].result.as_ref().unwrap_err().to_string().contains("torn"));
    }

    #[tokio::test]
    async fn one_task_is_waited_for_and_the_others_are_not_forgotten() {
        let stop = CancellationToken::new();
        let mut tasks = Supervisor::default();
        tasks.spawn("other", async { anyhow::Ok(()) });
        tasks.spawn("deaf", std::future::pending::<anyhow::Result<()>>());
        let told = stop.clone();
        tasks.spawn("one", async move {
            told.cancelled().await;
            anyhow::Ok(())
        });
        assert!(tasks.join("nobody", Duration::from_secs(60)).await.is_none());
        stop.cancel();
        assert!(tasks.join("one", Duration::from_secs(60)).await.unwrap().result.is_ok());
        let aborted = tasks.join("deaf", Duration::from_millis(20)).await.unwrap();
        assert!(aborted.result.is_err(), "it did not end by itself");
        assert_eq!(tasks.next().await.unwrap().name, "other");
        assert!(tasks.next().await.is_none());
    }

    #[tokio::test]
    async fn a_panic_is_an_outcome_with_its_name() {
        let mut tasks = Supervisor::default();
        tasks.spawn("clumsy", async {
            if true {
                panic!("fell");
            }
            anyhow::Ok(())
        });
        let outcome = tasks.next().await.unwrap();
        assert_eq!(outcome.name, "clumsy");
        assert!(outcome.result.is_err());
    }
}

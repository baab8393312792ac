//! Asking a running daemon to take its pipeline file anew.
//!
//! Whoever asks, a signal or a request, waits for the daemon's answer. The
//! daemon reads the file whole, finds what is different, opens what is new
//! beside what runs, and only then changes over; whatever fails before that
//! leaves everything as it was.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::config::{ConfigErrors, Difference, Pipeline};

/// Reads the pipeline file as it is now.
pub type Load = Box<dyn Fn() -> Result<Pipeline, ConfigErrors> + Send + Sync>;

/// Requests that wait while one is done.
const WAITING: usize = 4;

/// Asks the daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reloads(mpsc::Sender<Request>);

/// Where the daemon is asked.
#[derive(Debug)]
pub struct Requests(mpsc::Receiver<Request>);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Somebody over HTTP, whose act is in the trail already.
    Request,
    /// Somebody on this machine.
    Signal,
}

/// That the pipeline file be taken anew.
#[derive(Debug)]
pub struct Request {
    /// Who asks.
    pub by: By,
    /// Only say what would change.
    pub dry_run: bool,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Reloaded, ReloadError>>,
}

/// What a reload changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reloaded {
    /// Whether it is done; false if it was only asked for, or nothing is
    /// different.
    pub applied: bool,
    /// Keys of the pipeline file that are different: `embed`, `http.listen`.
    pub changed: Vec<String>,
    /// Sources that came.
    pub sources_opened: Vec<String>,
    /// Sources that went.
    pub sources_closed: Vec<String>,
    /// Sources that are served otherwise; their connections are told to come
    /// again.
    pub sources_changed: Vec<String>,
    /// Where the sources that listen can be reached now, by their names.
    pub addresses: BTreeMap<String, String>,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be used.
    #[error("the pipeline file cannot be used:\n{}", .0.places())]
    Refused(#[from] ConfigErrors),
    /// It changes what cannot change while the pipeline runs.
    #[error("{} can change only at a restart; nothing was changed", list(keys))]
    NeedsRestart {
        /// The keys.
        keys: Vec<String>,
    },
    /// Something that the file asks for does not come up.
    #[error("nothing was changed: {reason}")]
    NotUp {
        /// What, and why.
        reason: String,
    },
    /// The daemon ends by itself (`--once`), or is about to end.
    #[error("the daemon is about to end, so it takes no new configuration")]
    Ending,
}

fn list(keys: &[String]) -> String {
    keys.iter().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ")
}

impl ReloadError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(_) => "invalid_pipeline",
            Self::NeedsRestart { .. } => "needs_restart",
            Self::NotUp { .. } => "not_up",
            Self::Ending => "closing",
        }
    }
}

impl Reloaded {
    /// That `difference` is applied, or not.
    pub fn of(difference: &Difference, applied: bool, addresses: BTreeMap<String, String>) -> Self {
        let Difference { keys, opened, closed, changed, .. } = difference.clone();
        Self {
            applied,
            changed: keys.into_iter().map(str::to_owned).collect(),
            sources_opened: opened,
            sources_closed: closed,
            sources_changed: changed,
            addresses,
        }
    }
}

/// A way to ask, and where it is asked.
pub fn channel() -> (Reloads, Requests) {
    let (ask, asked) = mpsc::channel(WAITING);
    (Reloads(ask), Requests(asked))
}

impl Reloads {
    /// Has the pipeline file taken anew, or only says what would change.
    pub async fn ask(&self, dry_run: bool, by: By) -> Result<Reloaded, ReloadError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Request { by, dry_run, answer }).await.map_err(|_| ReloadError::Ending)?;
        answered.await.map_err(|_| ReloadError::Ending)?
    }
}

impl Requests {
    /// The next request; `None` once nobody can ask.
    pub async fn next(&mut self) -> Option<Request> {
        self.0.recv().await
    }
}

//! How many connections are served, over all socket sources.
//!
//! A connection is *active* while its frames are read. When all places are
//! taken further ones wait, unread, for a bounded time in a bounded queue, in
//! the order of their coming; those that find no place are told when to try
//! again, and closed.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{intake::LargeFrames, wire::Reply};
use crate::{config, metrics};

/// When a connection that waited in vain should try again.
const RETRY: Duration = Duration::from_secs(1);
/// Refusals that are being told at once; beyond them connections are closed
/// without a word.
const TELLING: usize = 256;

/// The places of a pipeline's sessions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    settings: Arc<config::Sessions>,
    active: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    telling: Arc<Semaphore>,
    large: LargeFrames,
}

/// A place; free again when dropped.
#[derive(Debug)]
pub struct Place(#[expect(dead_code, reason = "held for its place")] OwnedSemaphorePermit);

/// Why a connection is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many wait already.
    Full,
    /// No place came free in time.
    Waited,
    /// The pipeline is about to stop.
    Closing,
}

impl Sessions {
    /// With the places that `settings` say.
    pub fn new(settings: config::Sessions) -> Self {
        let places = |n: usize| Arc::new(Semaphore::new(n.min(Semaphore::MAX_PERMITS)));
        Self {
            active: places(settings.max_active),
            waiting: places(settings.max_waiting),
            telling: places(TELLING),
            large: LargeFrames::new(settings.large_frame_bytes),
            settings: Arc::new(settings),
        }
    }

    /// What a session may use.
    pub fn settings(&self) -> &config::Sessions {
        &self.settings
    }

    /// The room for large frames that all sessions share.
    pub(super) fn large_frames(&self) -> &LargeFrames {
        &self.large
    }

    /// Waits for a place, no longer than the settings say.
    pub async fn admit(&self, closing: &CancellationToken) -> Result<Place, Refused> {
        if let Ok(place) = self.active.clone().try_acquire_owned() {
            return Ok(Place(place));
        }
        let _turn = self.waiting.clone().try_acquire_owned().map_err(|_| Refused::Full)?;
        let _counted = metrics::session_waiting();
        tokio::select! {
            biased;
            () = closing.cancelled() => Err(Refused::Closing),
            place = timeout(self.settings.max_wait.0, self.active.clone().acquire_owned()) => match place {
                Ok(place) => place.map(Place).map_err(|_| Refused::Closing),
                Err(_) => Err(Refused::Waited),
            }
        }
    }

    /// A place among those that are told why they are not served; `None` if
    /// there are too many of them.
    pub(super) fn tell(&self) -> Option<Place> {
        self.telling.clone().try_acquire_owned().ok().map(Place)
    }

    /// What a connection that is not served is told.
    pub(super) fn refusal(&self, refused: Refused) -> Reply {
        let config::Sessions { max_active, max_waiting, max_wait, .. } = &*self.settings;
        let (reason, retry) = match refused {
            Refused::Full => (
                format!("all {max_active} sessions are taken and {max_waiting} more wait"),
                max_wait.0.max(RETRY),
            ),
            Refused::Waited => {
                (format!("all {max_active} sessions are taken and none ended within {max_wait}"), RETRY)
            }
            Refused::Closing => ("the source is closing; connect again".to_owned(), RETRY),
        };
        Reply::Closing { reason, retry_after_ms: u64::try_from(retry.as_millis()).unwrap_or(u64::MAX) }
    }
}

impl Refused {
    /// Label of the metric.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Waited => "waited",
            Self::Closing => "closing",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Period;

    const WAIT: Duration = Duration::from_millis(300);

    fn sessions(max_active: usize, max_waiting: usize) -> Sessions {
        let max_wait = Period(WAIT);
        Sessions::new(config::Sessions { max_active, max_waiting, max_wait, ..config::Sessions::default() })
    }

    #[tokio::test]
    async fn those_who_wait_get_the_places_in_their_order_and_one_too_many_is_refused() {
        let (sessions, closing) = (sessions(1, 2), CancellationToken::new());
        let first = sessions.admit(&closing).await.unwrap();
        let waiting = |_| {
            let (sessions, closing) = (sessions.clone(), closing.clone());
            tokio::spawn(async move { sessions.admit(&closing).await })
        };
        let waiters = [0, 1].map(waiting);
        while sessions.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(sessions.admit(&closing).await.unwrap_err(), Refused::Full);
        drop(first);
        let [second, third] = waiters;
        let place = second.await.unwrap().unwrap();
        assert!(!third.is_finished());
        drop(place);
        third.await.unwrap().unwrap();
        assert!(sessions.admit(&closing).await.is_ok(), "all places are free again");
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_said_or_beyond_the_end() {
        let (sessions, closing) = (sessions(1, 1), CancellationToken::new());
        let _place = sessions.admit(&closing).await.unwrap();
        let began = std::time::Instant::now();
        assert_eq!(sessions.admit(&closing).await.unwrap_err(), Refused::Waited);
        assert!(began.elapsed() >= WAIT);
        closing.cancel();
        assert_eq!(sessions.admit(&closing).await.unwrap_err(), Refused::Closing);
    }
}

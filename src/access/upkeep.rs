//! What is done beside the requests.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Interval, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{authenticator::Authenticator, flood::Flood, keyring::KeyUse};
use crate::{
    clock::Clock,
    identity::Entry,
    metrics,
    store::{NewTrailRow, Store},
};

/// How often what has gathered is written.
const EVERY: Duration = Duration::from_secs(1);
/// Most rows that wait while the store does not take them.
const UNWRITTEN: usize = 1_000;

/// Writes refusals and the use of keys, and keeps the provider's keys new.
pub struct Upkeep {
    store: Store,
    authenticator: Authenticator,
    refusals: mpsc::Receiver<Entry>,
    uses: mpsc::Receiver<KeyUse>,
    clock: Clock,
    flood: Flood,
    rows: Vec<NewTrailRow>,
    used: HashMap<String, i64>,
}

impl Upkeep {
    pub(super) fn new(
        store: Store,
        authenticator: Authenticator,
        refusals: mpsc::Receiver<Entry>,
        uses: mpsc::Receiver<KeyUse>,
        clock: Clock,
    ) -> Self {
        let (flood, rows, used) = (Flood::default(), Vec::new(), HashMap::new());
        Self { store, authenticator, refusals, uses, clock, flood, rows, used }
    }

    /// Runs until `stop`, and writes then what is left. What cannot be written
    /// stops nothing: it is logged, and tried again as long as there is room.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), Infallible> {
        // A provider that hangs keeps no refusal unwritten.
        let refreshing = refresh(self.authenticator.clone());
        tokio::select! {
            () = self.gather(&stop) => {}
            never = refreshing => match never {},
        }
        while let Ok(entry) = self.refusals.try_recv() {
            self.rows.extend(self.flood.take(entry));
        }
        while let Ok((id, used_ms)) = self.uses.try_recv() {
            self.used.insert(id, used_ms);
        }
        self.write(true).await;
        Ok(())
    }

    async fn gather(&mut self, stop: &CancellationToken) {
        let mut tick = ticking();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = tick.tick() => self.write(false).await,
                Some(entry) = self.refusals.recv() => self.rows.extend(self.flood.take(entry)),
                Some((id, used_ms)) = self.uses.recv() => drop(self.used.insert(id, used_ms)),
            }
        }
    }

    async fn write(&mut self, end: bool) {
        let (rows, beyond) = self.flood.settle((self.clock)(), end);
        metrics::trail_dropped(beyond);
        self.rows.extend(rows);
        if !self.rows.is_empty() {
            match self.store.append_trail(&self.rows).await {
                Ok(()) => self.rows.clear(),
                Err(error) => {
                    tracing::error!(%error, rows = self.rows.len(), "refusals cannot be written to the trail");
                    let excess = self.rows.len().saturating_sub(UNWRITTEN);
                    metrics::trail_dropped(self.rows.drain(..excess).map(|row| row.times).sum());
                }
            }
        }
        if !self.used.is_empty() {
            let uses: Vec<_> = self.used.drain().collect();
            // Noted with the next use otherwise.
            if let Err(error) = self.store.note_key_uses(&uses).await {
                tracing::warn!(%error, keys = uses.len(), "the use of API keys cannot be noted");
            }
        }
    }
}

/// Keeps the provider's keys new.
async fn refresh(authenticator: Authenticator) -> Infallible {
    let mut tick = ticking();
    loop {
        tick.tick().await;
        authenticator.refresh().await;
    }
}

fn ticking() -> Interval {
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

//! The day's spending, shared by all endpoints: the [`Ledger`] with its clock,
//! its warnings and its metrics.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::{
    quota::{Amount, Kind, Ledger, QuotaState, Reservation, Spending},
    settings::Quota as Settings,
};
use crate::{
    clock::Clock,
    embed::{EmbedError, Work},
    metrics,
};

/// What may be spent in a day, and what has been. Whoever keeps things writes
/// down what is [`unwritten`](Self::unwritten) and gives back what all
/// processes have [`written`](Self::written); without that a restart forgets
/// what was spent.
pub struct Budget {
    ledger: Mutex<Ledger>,
    clock: Clock,
}

impl Budget {
    /// Nothing is spent yet.
    pub fn new(settings: &Settings, clock: Clock) -> Self {
        Self { ledger: Mutex::new(Ledger::new(settings)), clock }
    }

    /// The state of the limit that is nearest to being reached.
    pub fn state(&self) -> QuotaState {
        self.ledger().state((self.clock)())
    }

    /// The state of every kind, limited or not.
    pub fn states(&self) -> Vec<(Kind, QuotaState)> {
        self.ledger().states((self.clock)())
    }

    /// Whether anything is limited.
    pub fn is_limited(&self) -> bool {
        self.states().iter().any(|(_, state)| state.daily_quota.is_some())
    }

    /// What was spent here and is not written down yet.
    pub fn unwritten(&self) -> Spending {
        self.ledger().unwritten((self.clock)())
    }

    /// `added` is written down, and `total` is what all processes have.
    pub fn written(&self, added: &Spending, total: &Spending) {
        self.ledger().written(added, total);
        self.show();
    }

    /// How many tokens a request may have at this price.
    pub(super) fn room(&self, work: Work, price: f64) -> u64 {
        self.ledger().room(work, price, (self.clock)())
    }

    /// Takes room for a request.
    pub(super) fn reserve(&self, amount: Amount, work: Work) -> Result<Reservation, EmbedError> {
        let taken = self.ledger().reserve(amount, work, (self.clock)());
        self.show();
        taken.map_err(spent)
    }

    /// Work was refused: the next text does not fit into what is left.
    pub(super) fn refuse(&self, work: Work) {
        self.ledger().refuse(work, (self.clock)());
        self.show();
    }

    /// The error for work that is refused, and how long it is to the reset.
    pub(super) fn spent(&self) -> (EmbedError, Duration) {
        let now = (self.clock)();
        let reset_at = self.ledger().state(now).reset_at;
        (spent(reset_at), Duration::from_millis(u64::try_from(reset_at - now).unwrap_or(0)))
    }

    /// What a request really took.
    pub(super) fn settle(&self, reservation: Reservation, used: Amount) {
        self.ledger().settle(reservation, used, (self.clock)());
        self.show();
    }

    /// Metrics, and the warnings that are due.
    fn show(&self) {
        let now = (self.clock)();
        let (due, states) = {
            let mut ledger = self.ledger();
            (ledger.warnings(now), ledger.states(now))
        };
        for (kind, state) in &states {
            if let (Some(quota), Some(remaining)) = (state.daily_quota, state.remaining) {
                #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
                let used = state.current_count as f64 / quota.max(1) as f64;
                metrics::embed_quota(kind.name(), used, remaining);
            }
        }
        for reached in due {
            let kind = reached.kind.name();
            if reached.all {
                tracing::error!(kind, "the daily embedding quota is spent; it is reset at midnight UTC");
            } else {
                tracing::warn!(kind, "80 % of the daily embedding quota are spent");
            }
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spent(reset_at: i64) -> EmbedError {
    EmbedError::Quota { reason: "the daily quota of this pipeline".to_owned(), reset_at: Some(reset_at) }
}

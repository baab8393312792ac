//! What may be spent in a day, and what has been.
//!
//! A day is a day of UTC. Spending is reserved before a request and settled
//! after it; what is reserved counts as spent, so that a daemon that dies in
//! between has paid for it. Back-fill leaves a share of every limit to live
//! work. What other processes of the pipeline spend counts as well, as far as
//! it is written down. Pure: whoever calls brings the time.

use serde::{Deserialize, Serialize};

use super::settings::Quota as Settings;
use crate::embed::Work;

const DAY_MS: i64 = 86_400_000;
/// Share of a limit at which a warning is due.
const WARNING: f64 = 0.8;

/// Something that is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = QuotaUnit)]
pub enum Kind {
    /// Tokens.
    Tokens,
    /// Requests.
    Requests,
    /// Millionths of the currency that prices are in.
    Money,
}

impl Kind {
    /// Its name in metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Requests => "requests",
            Self::Money => "money",
        }
    }
}

/// An amount of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    tokens: u64,
    requests: u64,
    micros: u64,
}

/// What was spent, or, where it is negative, given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Tokens.
    pub tokens: i64,
    /// Requests.
    pub requests: i64,
    /// Millionths of the currency.
    pub micros: i64,
}

/// Spending of one day, by what it was for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spending {
    /// Days since 1970-01-01.
    pub day: i64,
    /// Spent on live work.
    pub live: Spent,
    /// Spent on back-fill.
    pub backfill: Spent,
}

/// The state of a limit, for people and programs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QuotaState {
    /// What may be spent in a day; `None`: no limit.
    pub daily_quota: Option<u64>,
    /// What was spent today.
    pub current_count: u64,
    /// What is left; `None`: no limit.
    pub remaining: Option<u64>,
    /// Whether something was refused today, or nothing is left.
    pub exceeded: bool,
    /// When a new day begins, in milliseconds since the Unix epoch.
    pub reset_at: i64,
}

/// Room for a request, taken. Not to be lost: what it holds counts as spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Reservation {
    day: i64,
    work: Work,
    amount: Amount,
}

/// Which share of a limit is spent, for a warning that is due once a day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Of what.
    pub kind: Kind,
    /// All of it, and not only most.
    pub all: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Buckets {
    live: Amount,
    backfill: Amount,
}

/// Limits, and what was spent of them.
#[derive(Clone, Debug)]
pub struct Ledger {
    limits: [(Kind, Option<u64>); 3],
    live_share: f64,
    /// The day that the three below are of.
    day: i64,
    /// Spent here.
    own: Buckets,
    /// Of `own`, what is written down where others see it.
    written: Buckets,
    /// Spent by other processes, and by this one before its start.
    others: Buckets,
    /// Live work was refused today.
    refused: bool,
    warned: Vec<Reached>,
}

impl Amount {
    /// One request of `tokens`, at a price per million tokens.
    pub fn request(tokens: u64, price_per_million: f64) -> Self {
        Self { tokens, requests: 1, micros: micros(tokens, price_per_million) }
    }

    /// Its tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    fn of(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Tokens => self.tokens,
            Kind::Requests => self.requests,
            Kind::Money => self.micros,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_add(other.tokens),
            requests: self.requests.saturating_add(other.requests),
            micros: self.micros.saturating_add(other.micros),
        }
    }

    fn minus(self, other: Self) -> Self {
        Self {
            tokens: self.tokens.saturating_sub(other.tokens),
            requests: self.requests.saturating_sub(other.requests),
            micros: self.micros.saturating_sub(other.micros),
        }
    }

    /// What came to `earlier` since.
    fn since(self, earlier: Self) -> Spent {
        let change = |now: u64, then: u64| now.cast_signed().saturating_sub(then.cast_signed());
        Spent {
            tokens: change(self.tokens, earlier.tokens),
            requests: change(self.requests, earlier.requests),
            micros: change(self.micros, earlier.micros),
        }
    }

    fn and(self, change: Spent) -> Self {
        Self {
            tokens: self.tokens.saturating_add_signed(change.tokens),
            requests: self.requests.saturating_add_signed(change.requests),
            micros: self.micros.saturating_add_signed(change.micros),
        }
    }
}

/// What `tokens` cost, in millionths of the currency, rounded up: a price per
/// million tokens is the millionths that one token costs.
#[expect(clippy::cast_precision_loss, reason = "no day sees 2^53 tokens")]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates, prices are not negative"
)]
pub fn micros(tokens: u64, price_per_million: f64) -> u64 {
    (tokens as f64 * price_per_million).ceil() as u64
}

impl Ledger {
    /// Nothing is spent yet.
    pub fn new(settings: &Settings) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "validated to be positive"
        )]
        let money = settings.daily_budget.map(|budget| (budget * 1e6) as u64);
        Self {
            limits: [
                (Kind::Tokens, settings.daily_tokens),
                (Kind::Requests, settings.daily_requests),
                (Kind::Money, money),
            ],
            live_share: settings.live_share,
            day: 0,
            own: Buckets::default(),
            written: Buckets::default(),
            others: Buckets::default(),
            refused: false,
            warned: Vec::new(),
        }
    }

    /// What was spent here and is not written down yet.
    pub fn unwritten(&mut self, now_ms: i64) -> Spending {
        self.turn(now_ms);
        Spending {
            day: self.day,
            live: self.own.live.since(self.written.live),
            backfill: self.own.backfill.since(self.written.backfill),
        }
    }

    /// `added` is written down, and `total` is what everybody has written.
    pub fn written(&mut self, added: &Spending, total: &Spending) {
        if added.day == self.day && total.day == self.day {
            self.written.live = self.written.live.and(added.live);
            self.written.backfill = self.written.backfill.and(added.backfill);
            let nothing = Amount::default();
            self.others.live = nothing.and(total.live).minus(self.written.live);
            self.others.backfill = nothing.and(total.backfill).minus(self.written.backfill);
        }
    }

    /// How many tokens a request may have at this price: 0 if none may go.
    #[expect(clippy::cast_precision_loss, reason = "no day sees 2^53 tokens")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
    pub fn room(&self, work: Work, price_per_million: f64, now_ms: i64) -> u64 {
        self.limits.iter().fold(u64::MAX, |room, (kind, _)| {
            let Some(left) = self.left(*kind, work, now_ms) else { return room };
            room.min(match kind {
                Kind::Tokens => left,
                Kind::Requests if left == 0 => 0,
                Kind::Requests => u64::MAX,
                Kind::Money if price_per_million <= 0.0 => u64::MAX,
                Kind::Money => (left as f64 / price_per_million).floor() as u64,
            })
        })
    }

    /// Takes room for a request.
    ///
    /// # Errors
    /// With the time of the reset, if there is no room for it.
    pub fn reserve(&mut self, amount: Amount, work: Work, now_ms: i64) -> Result<Reservation, i64> {
        self.turn(now_ms);
        let short = |kind| self.left(kind, work, now_ms).is_some_and(|left| left < amount.of(kind));
        if self.limits.iter().any(|(kind, _)| short(*kind)) {
            self.refuse(work, now_ms);
            return Err(self.reset_at());
        }
        *self.bucket(work) = self.bucket(work).plus(amount);
        Ok(Reservation { day: self.day, work, amount })
    }

    /// Work was refused because too little is left.
    pub fn refuse(&mut self, work: Work, now_ms: i64) {
        self.turn(now_ms);
        self.refused |= work == Work::Live;
    }

    /// What a request really took. One of yesterday counts for yesterday.
    pub fn settle(&mut self, reservation: Reservation, used: Amount, now_ms: i64) {
        self.turn(now_ms);
        if reservation.day == self.day {
            let bucket = self.bucket(reservation.work);
            *bucket = bucket.minus(reservation.amount).plus(used);
        }
    }

    /// Warnings that are due and have not been given today.
    pub fn warnings(&mut self, now_ms: i64) -> Vec<Reached> {
        self.turn(now_ms);
        let mut due = Vec::new();
        for (kind, limit) in self.limits {
            let Some(limit) = limit else { continue };
            let spent = self.spent(kind, now_ms);
            for (all, reached) in [(false, share(spent, limit) >= WARNING), (true, spent >= limit)] {
                if reached {
                    due.push(Reached { kind, all });
                }
            }
        }
        if self.refused
            && let Some(tightest) = self.tightest(now_ms)
        {
            due.push(Reached { kind: tightest, all: true });
        }
        due.dedup();
        due.retain(|reached| !self.warned.contains(reached));
        self.warned.extend(&due);
        due
    }

    /// The state of the limit that is nearest to being reached; of tokens if
    /// there is none.
    pub fn state(&self, now_ms: i64) -> QuotaState {
        self.state_of(self.tightest(now_ms).unwrap_or(Kind::Tokens), now_ms)
    }

    /// The state of every kind, limited or not.
    pub fn states(&self, now_ms: i64) -> Vec<(Kind, QuotaState)> {
        self.limits.iter().map(|(kind, _)| (*kind, self.state_of(*kind, now_ms))).collect()
    }

    fn state_of(&self, kind: Kind, now_ms: i64) -> QuotaState {
        let daily_quota = self.limit(kind);
        let current_count = self.spent(kind, now_ms);
        let remaining = daily_quota.map(|limit| limit.saturating_sub(current_count));
        let refused = self.refused && self.is_today(now_ms) && self.tightest(now_ms) == Some(kind);
        QuotaState {
            daily_quota,
            current_count,
            remaining,
            exceeded: remaining == Some(0) || refused,
            reset_at: (now_ms.div_euclid(DAY_MS) + 1) * DAY_MS,
        }
    }

    fn tightest(&self, now_ms: i64) -> Option<Kind> {
        let limited = self.limits.iter().filter_map(|(kind, limit)| Some((*kind, (*limit)?)));
        limited
            .map(|(kind, limit)| (kind, share(self.spent(kind, now_ms), limit)))
            .max_by(|a, b| a.1.total_cmp(&b.1))
            .map(|(kind, _)| kind)
    }

    fn limit(&self, kind: Kind) -> Option<u64> {
        self.limits.iter().find(|(limited, _)| *limited == kind).and_then(|(_, limit)| *limit)
    }

    fn is_today(&self, now_ms: i64) -> bool {
        self.day >= now_ms.div_euclid(DAY_MS)
    }

    fn spent(&self, kind: Kind, now_ms: i64) -> u64 {
        if !self.is_today(now_ms) {
            return 0;
        }
        let all = self.own.live.plus(self.own.backfill).plus(self.others.live).plus(self.others.backfill);
        all.of(kind)
    }

    /// What is left for this work; `None`: no limit.
    #[expect(clippy::cast_precision_loss, reason = "no day sees 2^53 tokens")]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the limit")]
    fn left(&self, kind: Kind, work: Work, now_ms: i64) -> Option<u64> {
        let limit = self.limit(kind)?;
        let left = limit.saturating_sub(self.spent(kind, now_ms));
        if work == Work::Live {
            return Some(left);
        }
        let share = (limit as f64 * (1.0 - self.live_share)) as u64;
        let taken = self.own.backfill.plus(self.others.backfill).of(kind);
        let taken = if self.is_today(now_ms) { taken } else { 0 };
        Some(left.min(share.saturating_sub(taken)))
    }

    fn bucket(&mut self, work: Work) -> &mut Amount {
        match work {
            Work::Live => &mut self.own.live,
            Work::Backfill => &mut self.own.backfill,
        }
    }

    fn reset_at(&self) -> i64 {
        (self.day + 1) * DAY_MS
    }

    /// A new day, a new ledger. A clock that goes back changes nothing.
    fn turn(&mut self, now_ms: i64) {
        let day = now_ms.div_euclid(DAY_MS);
        if day > self.day {
            self.day = day;
            (self.own, self.written, self.others) = Default::default();
            self.refused = false;
            self.warned.clear();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a share")]
fn share(spent: u64, limit: u64) -> f64 {
    spent as f64 / limit.max(1) as f64
}

#[cfg(test)]
#[path = "tests/quota.rs"]
mod tests;

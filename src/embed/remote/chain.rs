//! All endpoints of a space, and who is asked next.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, futures::Notified};

use super::{
    answer::Wanted,
    budget::Budget,
    choose::{Blocked, choose},
    endpoint::Endpoint,
    gate::Outlook,
    place::Place,
    quota::Amount,
    settings::Endpoint as Settings,
    state::EndpointState,
};
use crate::{
    clock::Clock,
    embed::{EmbedError, Work},
    http_client::ClientError,
};

/// Draws a number in `0..1`.
pub type Random = Arc<dyn Fn() -> f64 + Send + Sync>;

/// How patient the chain is.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Attempts that fail in passing, before a request is given back.
    pub attempts: u32,
    /// The first wait between them, doubled each time ...
    pub backoff: Duration,
    /// ... up to this.
    pub longest_backoff: Duration,
    /// How long records wait for an endpoint without any progress.
    pub patience: Duration,
    /// How long a query does, with and without an endpoint.
    pub query_patience: Duration,
    /// After this long without an answer, a query is put to a second endpoint.
    pub second_opinion: Duration,
    /// How much slower than another an endpoint may be in any case.
    pub grace: Duration,
    /// How long an endpoint that has worked is believed to work.
    pub trust: Duration,
    /// What is configured wrongly is tried again after this: it may be put
    /// right on the other side.
    pub misconfigured: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 5,
            backoff: Duration::from_millis(250),
            longest_backoff: Duration::from_secs(10),
            patience: Duration::from_secs(30),
            query_patience: Duration::from_secs(10),
            second_opinion: Duration::from_millis(700),
            grace: Duration::from_secs(1),
            trust: Duration::from_secs(60),
            misconfigured: Duration::from_secs(60),
        }
    }
}

/// The endpoints of one space, in the order of the file.
pub struct Chain {
    endpoints: Vec<Arc<Endpoint>>,
    pub budget: Arc<Budget>,
    /// A request ended, and with it something may have become possible.
    pub changed: Notify,
    pub clock: Clock,
    random: Random,
    pub policy: Policy,
}

/// Texts for one request, and where they come from.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    pub work: Work,
    /// Somebody waits for it, and it is a query.
    pub query: bool,
}

/// What is to be asked, and of whom.
#[derive(Clone, Copy, Debug)]
pub struct Wish<'a> {
    /// Tokens and bytes of the texts, in order.
    pub texts: &'a [(u64, usize)],
    pub asking: Asking,
    /// An endpoint that is not asked before its time, as long as there is
    /// another.
    pub avoid: Option<(usize, Instant)>,
    /// An endpoint that is not asked at all.
    pub never: Option<usize>,
    /// Whether what was learned of sizes is to be put to the test.
    pub whole: bool,
    /// Nothing else of the call is under way, so a refusal is the last word.
    pub last: bool,
}

impl Chain {
    /// Prepares the ways to all endpoints; nothing is sent yet.
    pub fn new(
        settings: &[Settings],
        model: &str,
        wanted: Wanted,
        budget: Arc<Budget>,
        (clock, random, policy): (Clock, Random, Policy),
    ) -> Result<Self, (String, ClientError)> {
        let endpoint = |one: &Settings| {
            Endpoint::new(one, model, wanted, policy.misconfigured)
                .map(Arc::new)
                .map_err(|error| (one.name.clone(), error))
        };
        let endpoints = settings.iter().map(endpoint).collect::<Result<_, _>>()?;
        Ok(Self { endpoints, budget, changed: Notify::new(), clock, random, policy })
    }

    /// Ends when a request has ended. To be enabled before it is looked at
    /// what is possible.
    pub fn change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// The state of each.
    pub fn states(&self) -> Vec<EndpointState> {
        let (now, now_ms) = (Instant::now(), (self.clock)());
        self.endpoints.iter().map(|endpoint| endpoint.state(now, now_ms)).collect()
    }

    pub fn draw(&self) -> f64 {
        (self.random)()
    }

    /// Takes a place for as many of the texts as one request holds, from the
    /// first on; how many that are.
    pub fn place(&self, wish: Wish<'_>) -> Result<(Place<'_>, usize), Blocked> {
        let Wish { texts, asking, avoid, never, whole, last } = wish;
        let now = Instant::now();
        let paces: Vec<Option<Duration>> =
            self.endpoints.iter().map(|endpoint| endpoint.gate().pace()).collect();
        let mut counts = vec![0; self.endpoints.len()];
        let mut spent = false;
        let mut outlooks = Vec::with_capacity(self.endpoints.len());
        for (index, endpoint) in self.endpoints.iter().enumerate().filter(|(index, _)| Some(*index) != never)
        {
            let room = self.budget.room(asking.work, endpoint.price);
            let gate = endpoint.gate();
            let count = gate.limits(room, whole).fit(texts.iter().copied());
            if let Some(known) = counts.get_mut(index) {
                *known = count;
            }
            let tokens = tokens_of(texts, count);
            let outlook = if tokens > room {
                spent = true;
                let (error, wait) = self.budget.spent();
                Outlook::Closed { until: Some(now + wait), error }
            } else {
                gate.outlook(tokens, asking.query, fastest_but(index, &paces), now)
            };
            outlooks.push((index, outlook.not_before(avoid.filter(|(avoided, _)| *avoided == index), now)));
        }
        let chosen = choose(&outlooks, self.policy.grace, now);
        if spent && last && matches!(chosen, Err(Blocked::Failed(EmbedError::Quota { .. }))) {
            self.budget.refuse(asking.work);
        }
        let index = chosen?;
        let count = counts.get(index).copied().unwrap_or(1);
        let place = self.take(index, tokens_of(texts, count), asking, now)?;
        Ok((place, count))
    }

    fn take(&self, index: usize, tokens: u64, asking: Asking, now: Instant) -> Result<Place<'_>, Blocked> {
        let endpoint = Arc::clone(self.endpoints.get(index).ok_or(Blocked::Until(Some(now)))?);
        let amount = Amount::request(tokens, endpoint.price);
        let (reservation, flight) = {
            let mut gate = endpoint.gate();
            // Another call may have taken the last place since it was looked at.
            if !matches!(gate.outlook(tokens, asking.query, Duration::ZERO, now), Outlook::Now { .. }) {
                return Err(Blocked::Until(Some(now)));
            }
            let reservation = self.budget.reserve(amount, asking.work).map_err(Blocked::Failed)?;
            (reservation, gate.begin(tokens, now))
        };
        endpoint.show(now);
        let (flight, reservation) = (Some(flight), Some(reservation));
        Ok(Place { chain: self, index, endpoint, flight, reservation, tokens })
    }
}

/// The pace of the fastest endpoint but that one; one that has not been asked
/// yet may be as fast as any.
fn fastest_but(index: usize, paces: &[Option<Duration>]) -> Duration {
    let others = paces.iter().enumerate().filter(|(other, _)| *other != index);
    others.map(|(_, pace)| pace.unwrap_or_default()).min().unwrap_or_default()
}

fn tokens_of(texts: &[(u64, usize)], count: usize) -> u64 {
    texts.iter().take(count).map(|(tokens, _)| tokens).sum()
}

impl Outlook {
    /// An endpoint that has just failed is left to others for a while.
    fn not_before(self, avoid: Option<(usize, Instant)>, now: Instant) -> Self {
        match (self, avoid) {
            (Self::Now { expected }, Some((_, at))) if at > now => Self::Later { at, expected },
            (other, _) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_compared_with_the_fastest_of_the_others() {
        let pace = |millis| Some(Duration::from_millis(millis));
        let paces = [pace(100), pace(900), pace(400)];
        let compared = [0, 1, 2].map(|index| fastest_but(index, &paces).as_millis());
        assert_eq!(compared, [400, 100, 100]);
        assert_eq!(fastest_but(0, &[pace(100), None]), Duration::ZERO, "not asked yet");
        assert_eq!(fastest_but(0, &[pace(100)]), Duration::ZERO);
    }
}

//! All endpoints of a space: who is asked next, and what becomes of what was
//! asked.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::{Notify, futures::Notified};

use super::{
    answer::{Answer, Wanted},
    budget::Budget,
    choose::{Blocked, choose},
    classify::Fault,
    count::Prepared,
    endpoint::{Endpoint, Exchange},
    gate::{Ending, Flight, Outlook},
    quota::{self, Amount, Reservation},
    settings::Endpoint as Settings,
};
use crate::{
    clock::Clock,
    embed::{EmbedError, Work},
    http_client::ClientError,
    metrics,
};

/// A text that every endpoint must be able to embed. One that refuses a text
/// is asked for this one too, unless it has answered another meanwhile: a text
/// is bad only by the word of an endpoint that works.
pub const CANARY: &str = "hello world";
const CANARY_TOKENS: u64 = 6;

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
        }
    }
}

/// The endpoints of one space, in the order of the file.
pub struct Chain {
    endpoints: Vec<Arc<Endpoint>>,
    budget: Arc<Budget>,
    /// A request ended, and with it something may have become possible.
    changed: Notify,
    clock: Clock,
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
    /// Nothing else of the call is under way, so a refusal is the last word.
    pub last: bool,
}

/// A place at an endpoint, with what is reserved for the request. Dropped
/// without an ending it gives the place back, but not what may be paid for.
pub struct Place<'a> {
    chain: &'a Chain,
    pub index: usize,
    endpoint: Arc<Endpoint>,
    flight: Option<Flight>,
    reservation: Option<Reservation>,
    tokens: u64,
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
            Endpoint::new(one, model, wanted).map(Arc::new).map_err(|error| (one.name.clone(), error))
        };
        let endpoints = settings.iter().map(endpoint).collect::<Result<_, _>>()?;
        Ok(Self { endpoints, budget, changed: Notify::new(), clock, random, policy })
    }

    /// Ends when a request has ended. To be enabled before it is looked at
    /// what is possible.
    pub fn change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    pub fn draw(&self) -> f64 {
        (self.random)()
    }

    /// Takes a place for as many of the texts as one request holds, from the
    /// first on; how many that are.
    pub fn place(&self, wish: Wish<'_>) -> Result<(Place<'_>, usize), Blocked> {
        let Wish { texts, asking, avoid, never, last } = wish;
        let now = Instant::now();
        let mut counts = vec![0; self.endpoints.len()];
        let mut spent = false;
        let mut outlooks = Vec::with_capacity(self.endpoints.len());
        for (index, endpoint) in self.endpoints.iter().enumerate().filter(|(index, _)| Some(*index) != never)
        {
            let room = self.budget.room(asking.work, endpoint.price);
            let gate = endpoint.gate();
            let count = gate.limits(room).fit(texts.iter().copied());
            if let Some(known) = counts.get_mut(index) {
                *known = count;
            }
            let tokens = tokens_of(texts, count);
            let outlook = if tokens > room {
                spent = true;
                let (error, wait) = self.budget.spent();
                Outlook::Closed { until: Some(now + wait), error }
            } else {
                gate.outlook(tokens, asking.query, now)
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
        let reservation = self.budget.reserve(amount, asking.work).map_err(Blocked::Failed)?;
        let flight = endpoint.gate().begin(tokens, now);
        endpoint.show(now);
        let (flight, reservation) = (Some(flight), Some(reservation));
        Ok(Place { chain: self, index, endpoint, flight, reservation, tokens })
    }
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

impl Place<'_> {
    /// Sends the texts and settles what it cost. If all of it is refused, the
    /// endpoint must have worked since `since`, or work now, to be believed.
    pub async fn ask(
        mut self,
        texts: Arc<Vec<Prepared>>,
        which: Vec<usize>,
        asking: Asking,
        since: Instant,
    ) -> Result<Answer, Fault> {
        let inputs = which.len();
        let exchange = self.exchange(texts, which, asking).await;
        let doubtful = match &exchange.result {
            Err(Fault::Input { .. }) => true,
            Err(Fault::TooLarge { .. }) => inputs == 1,
            Err(_) => false,
            Ok(answer) => answer.vectors.iter().all(Result::is_err),
        };
        let used = exchange.used(self.tokens, self.endpoint.price);
        let mut result = exchange.result;
        if doubtful && !self.endpoint.gate().has_worked_since(since) {
            result = self.doubted(result, asking).await;
        }
        self.finish(&result, inputs, used);
        result
    }

    async fn exchange(&self, texts: Arc<Vec<Prepared>>, which: Vec<usize>, asking: Asking) -> Exchange {
        let exchange = self.endpoint.ask(texts, which, asking.query, (self.chain.clock)()).await;
        self.endpoint.gate().observe(&exchange.told, Instant::now());
        exchange
    }

    /// What a refusal is worth, by what the endpoint says to a text that it
    /// must take.
    async fn doubted(&self, refusal: Result<Answer, Fault>, asking: Asking) -> Result<Answer, Fault> {
        let amount = Amount::request(CANARY_TOKENS, self.endpoint.price);
        let Ok(reservation) = self.chain.budget.reserve(amount, asking.work) else {
            return Err(Fault::transient(
                "too little of the quota is left to tell a bad text from a bad endpoint",
            ));
        };
        let canary = Arc::new(vec![Prepared { text: CANARY.to_owned(), tokens: CANARY_TOKENS }]);
        let exchange = self.exchange(canary, vec![0], asking).await;
        let used = exchange.used(CANARY_TOKENS, self.endpoint.price);
        self.spend(reservation, used);
        match exchange.result {
            Ok(answer) if answer.vectors.iter().all(Result::is_ok) => {
                self.endpoint.gate().worked(Instant::now());
                refusal
            }
            Ok(_) => Err(Fault::transient("its vectors are missing, zero or not finite, whatever the text")),
            Err(Fault::Input { reason } | Fault::TooLarge { reason, .. }) => {
                Err(Fault::Configuration { reason: format!("it refuses every text: {reason}") })
            }
            Err(other) => Err(other),
        }
    }

    fn finish(&mut self, result: &Result<Answer, Fault>, inputs: usize, used: Amount) {
        let (now, now_ms) = (Instant::now(), (self.chain.clock)());
        if let Some(reservation) = self.reservation.take() {
            self.spend(reservation, used);
        }
        if let Some(flight) = self.flight.take() {
            let random = self.chain.draw();
            let mut gate = self.endpoint.gate();
            match result {
                Ok(answer) if answer.vectors.iter().any(Result::is_ok) => {
                    let ending = Ending::Answered(answer.tokens.unwrap_or(self.tokens));
                    gate.end(flight, inputs, ending, random, now, now_ms);
                }
                Ok(_) => {
                    let refused = Fault::Input { reason: String::new() };
                    gate.end(flight, inputs, Ending::Failed(&refused), random, now, now_ms);
                }
                Err(fault) => gate.end(flight, inputs, Ending::Failed(fault), random, now, now_ms),
            }
        }
        if let Err(fault) = result {
            let (class, reason) = (fault.class(), fault.reason());
            match fault {
                Fault::Configuration { .. } | Fault::Quota { .. } => {
                    tracing::error!(
                        endpoint = self.endpoint.name,
                        class,
                        reason,
                        "an endpoint is left alone for a while"
                    );
                }
                _ => tracing::warn!(
                    endpoint = self.endpoint.name,
                    class,
                    reason,
                    "a request for vectors failed"
                ),
            }
        }
    }

    fn spend(&self, reservation: Reservation, used: Amount) {
        let tokens = used.tokens();
        metrics::embed_spent(&self.endpoint.name, tokens, quota::micros(tokens, self.endpoint.price));
        self.chain.budget.settle(reservation, used);
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        if let Some(flight) = self.flight.take() {
            self.endpoint.gate().abandon(flight, now);
        }
        self.endpoint.show(now);
        self.chain.changed.notify_waiters();
    }
}

impl Exchange {
    /// What is to be taken as spent: what the answer says, else what was
    /// reserved; nothing but the request itself where it was refused.
    fn used(&self, reserved: u64, price: f64) -> Amount {
        let tokens = match &self.result {
            Ok(answer) => answer.tokens.unwrap_or(reserved),
            Err(_) if self.billed => reserved,
            Err(_) => 0,
        };
        Amount::request(tokens, price)
    }
}

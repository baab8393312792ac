//! A place at an endpoint: a request that may go, what is reserved for it, and
//! what becomes of both.

use std::{sync::Arc, time::Instant};

use super::{
    answer::Answer,
    chain::{Asking, Chain},
    classify::Fault,
    count::Prepared,
    endpoint::{Endpoint, Exchange},
    gate::{Ending, Flight},
    quota::{self, Amount, Reservation},
};
use crate::metrics;

/// A text that every endpoint must be able to embed. One that refuses a text
/// is asked for this one too, unless it has answered another meanwhile: a text
/// is bad only by the word of an endpoint that works. One that was configured
/// wrongly is asked for it before anything else.
pub const CANARY: &str = "hello world";
const CANARY_TOKENS: u64 = 6;

/// When an endpoint's word against texts is believed.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// If it refuses them: when it has worked since then.
    pub refused_since: Instant,
    /// If it fails at them: when it has worked since then; `None`: it may have
    /// failed in passing.
    pub failed_since: Option<Instant>,
}

/// A place at an endpoint, with what is reserved for the request. Dropped
/// without an ending it gives the place back, but not what may be paid for.
pub struct Place<'a> {
    pub chain: &'a Chain,
    pub index: usize,
    pub endpoint: Arc<Endpoint>,
    pub flight: Option<Flight>,
    pub reservation: Option<Reservation>,
    pub tokens: u64,
}

impl Place<'_> {
    /// Sends the texts and settles what it cost. What it says against them
    /// must be believed on these terms.
    pub async fn ask(
        mut self,
        texts: Arc<Vec<Prepared>>,
        which: Vec<usize>,
        asking: Asking,
        terms: Terms,
    ) -> Result<Answer, Fault> {
        let inputs = which.len();
        if self.flight.is_some_and(|flight| flight.rehearsed)
            && let Err(fault) = self.try_out(inputs.min(2), asking).await
        {
            let result = Err(fault);
            self.finish(&result, inputs, Amount::default());
            return result;
        }
        let exchange = self.exchange(texts, which, asking).await;
        let used = exchange.used(self.tokens, self.endpoint.price);
        let result = self.believed(exchange.result, inputs, asking, terms).await;
        self.finish(&result, inputs, used);
        result
    }

    /// What its word against texts is worth, by what it says to one that it
    /// must take.
    async fn believed(
        &self,
        said: Result<Answer, Fault>,
        inputs: usize,
        asking: Asking,
        terms: Terms,
    ) -> Result<Answer, Fault> {
        let has_worked_since = |then: Instant| self.endpoint.gate().has_worked_since(then);
        let against_all = match &said {
            Err(Fault::Input { .. } | Fault::TooLong { .. }) => true,
            Err(Fault::TooLarge { .. }) => inputs == 1,
            Err(_) => false,
            Ok(answer) => answer.vectors.iter().all(Result::is_err),
        };
        match said {
            Err(Fault::ServerError { reason }) => match self.suspected_since(terms) {
                None => Err(Fault::ServerError { reason }),
                // A service that fails now and then would soon have failed at
                // one text often enough: for that, it must work at once.
                Some(since) if inputs > 1 && has_worked_since(since) => Err(Fault::Poison { reason }),
                Some(_) => self.try_out(1, asking).await.and(Err(Fault::Poison { reason })),
            },
            said if against_all && !has_worked_since(terms.refused_since) => {
                self.try_out(1, asking).await.and(said)
            }
            said => said,
        }
    }

    /// Since when it must have worked for its failure to be that of a text;
    /// `None` if it is not asked about that yet.
    fn suspected_since(&self, terms: Terms) -> Option<Instant> {
        let last = self.flight.filter(|flight| self.endpoint.gate().is_last_straw(*flight));
        terms.failed_since.or(last.map(|flight| flight.began))
    }

    async fn exchange(&self, texts: Arc<Vec<Prepared>>, which: Vec<usize>, asking: Asking) -> Exchange {
        let exchange = self.endpoint.ask(texts, which, asking.query, (self.chain.clock)()).await;
        self.endpoint.gate().observe(&exchange.told, Instant::now());
        exchange
    }

    /// Asks for a text that it must take, as often as said in one request.
    async fn try_out(&self, times: usize, asking: Asking) -> Result<(), Fault> {
        let tokens = CANARY_TOKENS.saturating_mul(times as u64);
        let amount = Amount::request(tokens, self.endpoint.price);
        let Ok(reservation) = self.chain.budget.reserve(amount, asking.work) else {
            return Err(Fault::transient(
                "too little of the quota is left to tell a bad text from a bad endpoint",
            ));
        };
        let canary = Prepared { text: CANARY.to_owned(), tokens: CANARY_TOKENS };
        let texts = Arc::new(vec![canary; times]);
        let exchange = self.exchange(texts, (0..times).collect(), asking).await;
        let used = exchange.used(tokens, self.endpoint.price);
        self.spend(reservation, used);
        match exchange.result {
            Ok(answer) if answer.vectors.iter().all(Result::is_ok) => {
                self.endpoint.gate().worked(Instant::now());
                Ok(())
            }
            Ok(_) => Err(Fault::transient("its vectors are missing, zero or not finite, whatever the text")),
            Err(Fault::Input { reason } | Fault::TooLong { reason } | Fault::TooLarge { reason, .. }) => {
                Err(Fault::Configuration { reason: format!("it refuses every text: {reason}") })
            }
            Err(Fault::ServerError { reason }) => Err(Fault::transient(reason)),
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
            self.endpoint.gate().abandon(flight, self.chain.policy.second_opinion, now);
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

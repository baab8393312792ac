//! One call: texts in, vectors out, over as many requests, endpoints and
//! attempts as it takes.
//!
//! What is left to do is a queue of [`Unit`]s. A unit goes to an endpoint in
//! requests that fit it; if one fails, the unit itself says what becomes of it.
//! Vectors that have come are kept whatever happens to the rest, so nothing is
//! paid for twice.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use futures::{
    StreamExt,
    future::{BoxFuture, FutureExt},
    stream::FuturesUnordered,
};

use super::{
    answer::Answer,
    chain::{Asking, Chain, Wish},
    choose::Blocked,
    classify::Fault,
    count::Prepared,
    unit::{Unit, Verdict},
};
use crate::embed::{EmbedError, Partial, Refused};

/// A unit comes back.
struct Done {
    unit: Unit,
    index: usize,
    result: Result<Answer, Fault>,
}

/// The state of a call.
pub struct Job<'a> {
    chain: &'a Chain,
    texts: Arc<Vec<Prepared>>,
    asking: Asking,
    queue: VecDeque<Unit>,
    in_flight: FuturesUnordered<BoxFuture<'a, Done>>,
    partial: Partial,
    /// When patience ends; later with every answer.
    deadline: Instant,
    /// When a query is put to another endpoint, and which has it.
    second: Option<(Instant, usize)>,
    /// How an endpoint failed last.
    failed_lately: Option<String>,
}

impl<'a> Job<'a> {
    /// For those of `texts` that are in `wanted`. `partial` has a place for
    /// each text.
    pub fn new(
        chain: &'a Chain,
        texts: Vec<Prepared>,
        wanted: Vec<usize>,
        partial: Partial,
        asking: Asking,
    ) -> Self {
        let unit = Unit { texts: wanted, ..Unit::default() };
        let mut job = Self {
            chain,
            texts: Arc::new(texts),
            asking,
            queue: [unit].into(),
            in_flight: FuturesUnordered::new(),
            partial,
            deadline: Instant::now(),
            failed_lately: None,
            second: None,
        };
        job.queue.retain(|unit| !unit.texts.is_empty());
        job.extend_deadline();
        job
    }

    /// Does all of it.
    pub async fn run(mut self) -> Partial {
        let chain = self.chain;
        loop {
            let changed = chain.change();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let wake = self.dispatch();
            if self.in_flight.is_empty() && self.queue.is_empty() {
                return self.partial;
            }
            let second = self.second.map(|(at, _)| at);
            let too_late = self.asking.query.then_some(self.deadline);
            tokio::select! {
                Some(done) = self.in_flight.next(), if !self.in_flight.is_empty() => {
                    self.take_in(done);
                    if self.asking.query && self.partial.vectors.iter().all(Option::is_some) {
                        // What the other endpoint had to say is of no interest.
                        return Partial { vectors: self.partial.vectors, ..Partial::default() };
                    }
                }
                () = sleep_until(wake) => {}
                () = sleep_until(second) => self.ask_another(),
                () = sleep_until(too_late) => {
                    self.give_up(EmbedError::Transient { reason: "no endpoint answered in time".to_owned() });
                    return self.partial;
                }
                () = changed, if !self.queue.is_empty() => {}
            }
        }
    }

    /// Sends what can be sent; when to look again at what cannot.
    fn dispatch(&mut self) -> Option<Instant> {
        let mut waiting = VecDeque::new();
        let mut wake: Option<Instant> = None;
        while let Some(unit) = self.queue.pop_front() {
            let sizes: Vec<(u64, usize)> = unit.texts.iter().map(|index| self.size(*index)).collect();
            let wish = Wish {
                texts: &sizes,
                asking: self.asking,
                avoid: unit.avoid,
                never: unit.never,
                whole: unit.whole,
                last: self.in_flight.is_empty(),
            };
            match self.chain.place(wish) {
                Ok((place, count)) => {
                    let (mut now, later) = unit.split(count);
                    if let Some(later) = later {
                        self.queue.push_front(later);
                    }
                    self.begin_second_opinion(place.index);
                    let (texts, asking) = (Arc::clone(&self.texts), self.asking);
                    let terms = now.terms(&self.chain.policy, Instant::now());
                    let request = async move {
                        let index = place.index;
                        let result = place.ask(texts, now.texts.clone(), asking, terms).await;
                        Done { unit: now, index, result }
                    };
                    self.in_flight.push(request.boxed());
                }
                // What is under way may answer, and may leave something of
                // what was reserved for it.
                Err(Blocked::Failed(_)) if !self.in_flight.is_empty() => {
                    waiting.extend(unit.never.is_none().then_some(unit));
                }
                // A second opinion that cannot be had is no loss.
                Err(Blocked::Failed(_)) if unit.never.is_some() => {}
                Err(Blocked::Failed(error)) => {
                    self.give_up(error);
                    return None;
                }
                Err(Blocked::Until(at)) => {
                    if Instant::now() >= self.deadline || at.is_some_and(|at| at > self.deadline) {
                        if unit.never.is_some() {
                            continue;
                        }
                        let error = impatient(at, self.failed_lately.take());
                        self.give_up(error);
                        return None;
                    }
                    let at = at.unwrap_or(self.deadline);
                    wake = Some(wake.map_or(at, |earlier| earlier.min(at)));
                    waiting.push_back(unit);
                }
            }
        }
        self.queue = waiting;
        wake
    }

    fn size(&self, index: usize) -> (u64, usize) {
        self.texts.get(index).map_or((0, 0), |text| (text.tokens, text.text.len()))
    }

    fn begin_second_opinion(&mut self, index: usize) {
        if self.asking.query && self.second.is_none() && self.in_flight.is_empty() {
            self.second = Some((Instant::now() + self.chain.policy.second_opinion, index));
        }
    }

    /// A query has waited for long: whichever endpoint answers first is heard.
    /// One that only waits to be sent again is not helped by another copy.
    fn ask_another(&mut self) {
        if let Some((_, never)) = self.second.take().filter(|_| !self.in_flight.is_empty()) {
            let texts = (0..self.texts.len()).collect();
            self.queue.push_back(Unit { texts, never: Some(never), ..Unit::default() });
        }
    }

    /// What is under way may still end well; nothing more is sent.
    fn give_up(&mut self, error: EmbedError) {
        self.partial.failed.get_or_insert(error);
        self.queue.clear();
    }

    fn extend_deadline(&mut self) {
        let policy = &self.chain.policy;
        let patience = if self.asking.query { policy.query_patience } else { policy.patience };
        self.deadline = Instant::now() + patience;
    }

    fn take_in(&mut self, done: Done) {
        let Done { unit, index, result } = done;
        let again = match result {
            Ok(answer) => {
                self.extend_deadline();
                self.keep(unit, index, answer)
            }
            Err(fault) => self.decide(unit, index, fault),
        };
        if self.partial.failed.is_none() {
            // First, so that a bad text is soon alone: if it is not the text
            // but the endpoint that is bad, this is how it comes out.
            again.into_iter().rev().for_each(|unit| self.queue.push_front(unit));
        }
    }

    /// Keeps the good vectors; a text whose vector is bad twice is refused.
    fn keep(&mut self, unit: Unit, index: usize, answer: Answer) -> Vec<Unit> {
        let mut bad = Vec::new();
        for (text, vector) in unit.texts.iter().zip(answer.vectors) {
            match vector {
                Ok(vector) => {
                    if let Some(place) = self.partial.vectors.get_mut(*text) {
                        *place = Some(vector);
                    }
                }
                Err(reason) if unit.spoiled => {
                    self.partial.refused.push(Refused { index: *text, reason: reason.to_owned() });
                }
                Err(_) => bad.push(*text),
            }
        }
        if bad.is_empty() {
            return Vec::new();
        }
        let now = Instant::now();
        let doubted_at = unit.doubted_at.or(Some(now));
        vec![Unit { texts: bad, spoiled: true, doubted_at, avoid: Some((index, now)), ..unit }]
    }

    /// Does what follows from a failure.
    fn decide(&mut self, unit: Unit, index: usize, fault: Fault) -> Vec<Unit> {
        if let Fault::Transient { reason, .. } = &fault {
            self.failed_lately = Some(reason.clone());
        }
        if matches!(fault, Fault::Poison { .. }) && !self.asking.query {
            // The endpoint works, and the bad text is being found.
            self.extend_deadline();
        }
        let seconded = self.asking.query && !self.in_flight.is_empty();
        let unit = if seconded { unit.seconded() } else { unit };
        let random = self.chain.draw();
        match unit.after(fault, index, &self.chain.policy, random, Instant::now()) {
            Verdict::Again(units) => return units,
            Verdict::Cut(unit, text) => {
                if let Some(text) = Arc::make_mut(&mut self.texts).get_mut(text) {
                    text.shorten();
                }
                return vec![unit];
            }
            Verdict::Refuse(index, reason) => self.partial.refused.push(Refused { index, reason }),
            Verdict::GiveUp(reason) => self.give_up(EmbedError::Transient { reason }),
        }
        Vec::new()
    }
}

/// Why no longer is waited, where an endpoint could be asked at `at`.
fn impatient(at: Option<Instant>, failed_lately: Option<String>) -> EmbedError {
    if let Some(reason) = failed_lately {
        return EmbedError::Transient { reason };
    }
    match at {
        Some(at) => EmbedError::Rate {
            reason: "the endpoints are at the limit of their rate".to_owned(),
            retry_after: Some(at.saturating_duration_since(Instant::now())),
        },
        None => EmbedError::Transient { reason: "no endpoint was free in time".to_owned() },
    }
}

/// Never, if there is no time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

//! Small requests of several callers, computed together.
//!
//! While every worker is busy, small requests wait here. A worker that becomes
//! free takes as many of them as make a batch. So batches grow with the load,
//! and without load nothing waits; there is no timer.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::oneshot;

/// Texts that a small request has at most.
pub const SMALL_TEXTS: usize = 8;
/// Bytes of all texts of a small request: about as many tokens as half a batch.
pub const SMALL_BYTES: usize = 4 << 10;
/// Bytes of texts that are computed together; more would keep those waiting
/// that come meanwhile.
const BATCH_BYTES: usize = 2 * SMALL_BYTES;

/// Whether someone who asks for these texts should not wait behind a long list.
pub fn is_small(texts: &[String]) -> bool {
    texts.len() <= SMALL_TEXTS && bytes_of(texts) <= SMALL_BYTES
}

/// The requests that wait, with answers of type `A`.
pub struct Gather<A> {
    waiting: Mutex<Waiting<A>>,
}

struct Waiting<A> {
    next_id: u64,
    requests: VecDeque<(u64, Request<A>)>,
}

/// A request that waits.
pub struct Request<A> {
    /// What it is about.
    pub texts: Vec<String>,
    /// Where its answer goes. The caller may be gone.
    pub reply: oneshot::Sender<A>,
}

/// A request's place among those that wait. Dropping it takes the request
/// back, unless somebody has begun it.
pub struct Place<A> {
    gather: Arc<Gather<A>>,
    /// The request's number.
    pub id: u64,
}

impl<A> Default for Gather<A> {
    fn default() -> Self {
        Self { waiting: Mutex::new(Waiting { next_id: 0, requests: VecDeque::new() }) }
    }
}

impl<A> Gather<A> {
    /// Puts a request among those that wait. Somebody has to [`take`](Self::take)
    /// it by its number; an answer comes at the latest then.
    pub fn join(self: &Arc<Self>, texts: Vec<String>) -> (Place<A>, oneshot::Receiver<A>) {
        let (reply, answer) = oneshot::channel();
        let mut waiting = self.lock();
        let id = waiting.next_id;
        waiting.next_id += 1;
        waiting.requests.push_back((id, Request { texts, reply }));
        drop(waiting);
        (Place { gather: Arc::clone(self), id }, answer)
    }

    /// Request `id` and as many of the oldest others as make a batch with it;
    /// nothing if `id` was taken before or is gone.
    pub fn take(&self, id: u64) -> Vec<Request<A>> {
        let mut waiting = self.lock();
        let Some(own) = waiting.remove(id) else { return Vec::new() };
        let mut bytes = bytes_of(&own.texts);
        let mut taken = vec![own];
        while let Some((_, oldest)) = waiting.requests.front() {
            bytes += bytes_of(&oldest.texts);
            if bytes > BATCH_BYTES {
                break;
            }
            taken.extend(waiting.requests.pop_front().map(|(_, request)| request));
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<A>> {
        // Nothing that is done under the lock can leave it half done.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<A> Waiting<A> {
    fn remove(&mut self, id: u64) -> Option<Request<A>> {
        // Numbers rise from front to back.
        let at = self.requests.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.requests.remove(at).map(|(_, request)| request)
    }
}

impl<A> Drop for Place<A> {
    fn drop(&mut self) {
        self.gather.lock().remove(self.id);
    }
}

fn bytes_of(texts: &[String]) -> usize {
    texts.iter().map(String::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(requests: &[Request<()>]) -> Vec<&str> {
        requests.iter().flat_map(|request| &request.texts).map(String::as_str).collect()
    }

    fn join(gather: &Arc<Gather<()>>, text: &str) -> Place<()> {
        gather.join(vec![text.to_owned()]).0
    }

    #[test]
    fn whoever_is_first_takes_those_that_wait_along_and_nobody_is_taken_twice() {
        let gather = Arc::default();
        let places: Vec<Place<()>> = ["a", "b", "c"].map(|text| join(&gather, text)).into();
        assert_eq!(texts(&gather.take(places[1].id)), ["b", "a", "c"]);
        assert!(places.iter().all(|place| gather.take(place.id).is_empty()));
    }

    #[test]
    fn a_batch_has_an_end_and_the_rest_is_left_in_order() {
        let gather = Arc::default();
        let long = |c: &str| c.repeat(BATCH_BYTES / 2);
        let places: Vec<Place<()>> = ["a", "b", "c", "d"].map(|c| join(&gather, &long(c))).into();
        assert_eq!(texts(&gather.take(places[2].id)), [long("c"), long("a")]);
        assert_eq!(texts(&gather.take(places[3].id)), [long("d"), long("b")]);
    }

    #[test]
    fn a_request_longer_than_a_batch_is_taken_alone() {
        let gather = Arc::default();
        let place = join(&gather, &"x".repeat(3 * BATCH_BYTES));
        let _other = join(&gather, "y");
        assert_eq!(gather.take(place.id).len(), 1);
    }

    #[test]
    fn whoever_goes_away_is_not_taken() {
        let gather = Arc::default();
        let (gone, stays) = (join(&gather, "gone"), join(&gather, "stays"));
        let id = gone.id;
        drop(gone);
        assert!(gather.take(id).is_empty());
        assert_eq!(texts(&gather.take(stays.id)), ["stays"]);
    }

    #[test]
    fn few_short_texts_are_small() {
        let of = |count: usize, bytes: usize| is_small(&vec!["x".repeat(bytes); count]);
        assert!(of(1, SMALL_BYTES) && of(SMALL_TEXTS, 512) && is_small(&[]));
        assert!(!of(1, SMALL_BYTES + 1) && !of(SMALL_TEXTS + 1, 1) && !of(SMALL_TEXTS, 513));
    }
}

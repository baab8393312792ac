//! The keys of one daemon: who is at work, and what came of it.
//!
//! Bounded in keys and in bytes. Answers leave in the order in which they were
//! given, when their time is over or a newer one needs their room.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{Answer, Digest, Key, Outcome};
use crate::metrics;

/// Keys at most.
const MOST_KEYS: usize = 100_000;
/// Bytes of all answers at most.
const MOST_BYTES: usize = 32 << 20;
/// What an entry takes beside its answer.
const ENTRY_BYTES: usize = 256;

/// See the module.
pub(super) struct Table {
    ttl: Duration,
    entries: HashMap<Key, Entry>,
    /// Those that are done, the oldest first, and when they are forgotten.
    done: VecDeque<(Instant, Key)>,
    bytes: usize,
    limits: (usize, usize),
}

struct Entry {
    digest: Digest,
    state: State,
}

enum State {
    UnderWay(watch::Receiver<Option<Outcome>>),
    Done(Answer),
}

/// What a request finds.
pub(super) enum Begun {
    /// Nothing: the work is its own. To be told what came of it.
    Claimed(watch::Sender<Option<Outcome>>),
    /// Another one is at work.
    UnderWay(watch::Receiver<Option<Outcome>>),
    /// It was done.
    Done(Answer),
    /// The key came with another request.
    Reused,
    /// As many are at work as there may be.
    Full,
}

impl Table {
    /// Keeps answers for `ttl`.
    pub fn new(ttl: Duration) -> Self {
        let limits = (MOST_KEYS, MOST_BYTES);
        Self { ttl, entries: HashMap::new(), done: VecDeque::new(), bytes: 0, limits }
    }

    /// A request with `key` comes at `now`.
    pub fn begin(&mut self, key: Key, digest: Digest, now: Instant) -> Begun {
        while self.done.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
        match self.entries.get(&key) {
            Some(entry) if entry.digest != digest => return Begun::Reused,
            Some(Entry { state: State::Done(answer), .. }) => return Begun::Done(answer.clone()),
            Some(Entry { state: State::UnderWay(told), .. }) => return Begun::UnderWay(told.clone()),
            None => {}
        }
        self.make_room(0);
        if self.entries.len() >= self.limits.0 {
            return Begun::Full;
        }
        let (told, waiting) = watch::channel(None);
        self.entries.insert(key, Entry { digest, state: State::UnderWay(waiting) });
        Begun::Claimed(told)
    }

    /// The work for `key` came to `answer`.
    pub fn finish(&mut self, key: Key, digest: Digest, answer: Answer, now: Instant) {
        let bytes = answer.body.len() + ENTRY_BYTES;
        self.release(key);
        self.make_room(bytes);
        self.bytes += bytes;
        self.entries.insert(key, Entry { digest, state: State::Done(answer) });
        self.done.push_back((now + self.ttl, key));
    }

    /// Nobody is at work for `key` any more.
    pub fn release(&mut self, key: Key) {
        if matches!(self.entries.get(&key), Some(Entry { state: State::UnderWay(_), .. })) {
            self.entries.remove(&key);
        }
    }

    fn make_room(&mut self, bytes: usize) {
        let (keys, most) = self.limits;
        let mut evicted = 0;
        while (self.entries.len() >= keys || self.bytes + bytes > most) && self.forget_oldest() {
            evicted += 1;
        }
        if evicted > 0 {
            metrics::idempotency_evicted(evicted);
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some((_, key)) = self.done.pop_front() else { return false };
        if let Some(Entry { state: State::Done(answer), .. }) = self.entries.remove(&key) {
            self.bytes -= answer.body.len() + ENTRY_BYTES;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TTL: Duration = Duration::from_secs(60);

    fn answer(bytes: usize) -> Answer {
        Answer { status: 200, problem: false, body: vec![b'x'; bytes].into() }
    }

    fn key(n: u8) -> Key {
        Key([n; 32])
    }

    #[test]
    fn one_is_at_work_the_others_wait_and_later_ones_get_the_answer_until_its_time_is_over() {
        let (mut table, now) = (Table::new(TTL), Instant::now());
        let Begun::Claimed(_told) = table.begin(key(1), [1; 32], now) else { panic!() };
        assert!(matches!(table.begin(key(1), [1; 32], now), Begun::UnderWay(_)));
        assert!(matches!(table.begin(key(1), [2; 32], now), Begun::Reused));
        table.finish(key(1), [1; 32], answer(3), now);
        table.release(key(1));
        let later = now + TTL - Duration::from_secs(1);
        assert!(matches!(table.begin(key(1), [1; 32], later), Begun::Done(_)));
        assert!(matches!(table.begin(key(1), [2; 32], later), Begun::Reused));
        assert!(matches!(table.begin(key(1), [2; 32], now + TTL), Begun::Claimed(_)), "forgotten");
        assert_eq!(table.bytes, 0);
    }

    #[test]
    fn work_that_came_to_nothing_leaves_the_key_free() {
        let (mut table, now) = (Table::new(TTL), Instant::now());
        assert!(matches!(table.begin(key(1), [1; 32], now), Begun::Claimed(_)));
        table.release(key(1));
        assert!(matches!(table.begin(key(1), [2; 32], now), Begun::Claimed(_)));
    }

    #[test]
    fn work_under_way_is_never_forgotten_for_want_of_room() {
        let (mut table, now) = (Table::new(TTL), Instant::now());
        table.limits = (2, MOST_BYTES);
        assert!(matches!(table.begin(key(1), [1; 32], now), Begun::Claimed(_)));
        assert!(matches!(table.begin(key(2), [1; 32], now), Begun::Claimed(_)));
        assert!(matches!(table.begin(key(3), [1; 32], now), Begun::Full));
        table.finish(key(1), [1; 32], answer(0), now);
        assert!(matches!(table.begin(key(3), [1; 32], now), Begun::Claimed(_)));
        assert!(matches!(table.begin(key(2), [1; 32], now), Begun::UnderWay(_)));
    }

    proptest! {
        #[test]
        fn it_never_holds_more_than_it_may(
            events in proptest::collection::vec((0..20_u8, 0..4_u8, 0..3_000_usize, 0..30_u64), 0..200)
        ) {
            let (mut table, mut now) = (Table::new(TTL), Instant::now());
            table.limits = (8, 6_000);
            for (n, event, bytes, seconds) in events {
                now += Duration::from_secs(seconds);
                let begun = table.begin(key(n), [0; 32], now);
                if matches!(begun, Begun::Claimed(_)) && event > 0 {
                    match event {
                        1 => table.release(key(n)),
                        _ => table.finish(key(n), [0; 32], answer(bytes), now),
                    }
                }
                let answers = table.entries.values().map(|entry| match &entry.state {
                    State::Done(answer) => answer.body.len() + ENTRY_BYTES,
                    State::UnderWay(_) => 0,
                });
                prop_assert_eq!(answers.sum::<usize>(), table.bytes);
                prop_assert!(table.entries.len() <= 8 && table.bytes <= 6_000);
                prop_assert!(table.done.len() <= table.entries.len());
            }
        }
    }
}

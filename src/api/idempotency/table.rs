//! The keys of one daemon: who is at work, and what came of it.
//!
//! Bounded in keys and in bytes. Answers leave when their time is over, or when
//! a newer one needs their room: then the oldest of the tenant whose answers
//! take the most. So however many one tenant brings, they drive out its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{Answer, Digest, Key, Outcome, Owner};
use crate::metrics;

/// Keys at most.
const MOST_KEYS: usize = 100_000;
/// Bytes of all answers at most.
const MOST_BYTES: usize = 32 << 20;
/// What an entry takes beside its answer.
const ENTRY_BYTES: usize = 384;

/// See the module.
pub(super) struct Table {
    ttl: Duration,
    entries: HashMap<Key, Entry>,
    /// Those that are done, by the number of their end: the oldest first.
    done: BTreeMap<u64, Key>,
    /// The numbers of those of each owner, and their bytes.
    owners: HashMap<Owner, Share>,
    /// Owners by their bytes.
    heaviest: BTreeSet<(usize, Owner)>,
    /// The next number.
    next: u64,
    bytes: usize,
    limits: (usize, usize),
}

#[derive(Default)]
struct Share {
    done: BTreeSet<u64>,
    bytes: usize,
}

struct Entry {
    digest: Digest,
    state: State,
}

enum State {
    UnderWay(watch::Receiver<Option<Outcome>>),
    Done { answer: Answer, until: Instant },
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
        Self {
            ttl,
            entries: HashMap::new(),
            done: BTreeMap::new(),
            owners: HashMap::new(),
            heaviest: BTreeSet::new(),
            next: 0,
            bytes: 0,
            limits: (MOST_KEYS, MOST_BYTES),
        }
    }

    /// A request with `key` comes at `now`.
    pub fn begin(&mut self, key: Key, digest: Digest, now: Instant) -> Begun {
        while let Some((number, key)) = self.done.first_key_value().map(|(number, key)| (*number, *key)) {
            match self.entries.get(&key) {
                Some(Entry { state: State::Done { until, .. }, .. }) if *until > now => break,
                _ => self.forget(number, key),
            }
        }
        match self.entries.get(&key) {
            Some(entry) if entry.digest != digest => return Begun::Reused,
            Some(Entry { state: State::Done { answer, .. }, .. }) => return Begun::Done(answer.clone()),
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
        let (number, until) = (self.next, now + self.ttl);
        self.next += 1;
        self.entries.insert(key, Entry { digest, state: State::Done { answer, until } });
        self.done.insert(number, key);
        self.bytes += bytes;
        self.weigh(key.owner, |share| {
            share.done.insert(number);
            share.bytes += bytes;
        });
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
        while self.entries.len() >= keys || self.bytes + bytes > most {
            let heaviest = self.heaviest.last().and_then(|(_, owner)| self.owners.get(owner));
            let oldest = heaviest.and_then(|share| share.done.first().copied());
            let Some((number, key)) = oldest.and_then(|number| Some((number, *self.done.get(&number)?)))
            else {
                break;
            };
            self.forget(number, key);
            evicted += 1;
        }
        if evicted > 0 {
            metrics::idempotency_evicted(evicted);
        }
    }

    /// Forgets what is done for `key`.
    fn forget(&mut self, number: u64, key: Key) {
        self.done.remove(&number);
        let Some(Entry { state: State::Done { answer, .. }, .. }) = self.entries.remove(&key) else { return };
        let bytes = answer.body.len() + ENTRY_BYTES;
        self.bytes -= bytes;
        self.weigh(key.owner, |share| {
            share.done.remove(&number);
            share.bytes -= bytes;
        });
    }

    fn weigh(&mut self, owner: Owner, change: impl FnOnce(&mut Share)) {
        let share = self.owners.entry(owner).or_default();
        self.heaviest.remove(&(share.bytes, owner));
        change(share);
        match share.done.is_empty() {
            true => drop(self.owners.remove(&owner)),
            false => drop(self.heaviest.insert((share.bytes, owner))),
        }
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
        key_of(0, n)
    }

    fn key_of(owner: u8, n: u8) -> Key {
        Key { owner: [owner; 32], id: [n; 32] }
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

    #[test]
    fn who_brings_many_drives_out_only_what_is_their_own() {
        let (mut table, now) = (Table::new(TTL), Instant::now());
        table.limits = (MOST_KEYS, 20 * (1_000 + ENTRY_BYTES));
        let mut bring = |owner, n, bytes| {
            let key = key_of(owner, n);
            if let Begun::Claimed(_) = table.begin(key, [0; 32], now) {
                table.finish(key, [0; 32], answer(bytes), now);
                return false;
            }
            true
        };
        for n in 0..5 {
            bring(1, n, 1_000);
        }
        for n in 0..200 {
            bring(2, n, 1_000);
        }
        assert!((0..5).all(|n| bring(1, n, 1_000)), "another's are still there");
        assert!(bring(2, 199, 1_000), "of their own the newest are");
        assert!(!bring(2, 0, 1_000), "and the oldest are not");
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
                let key = key_of(n % 3, n);
                let begun = table.begin(key, [0; 32], now);
                if matches!(begun, Begun::Claimed(_)) && event > 0 {
                    match event {
                        1 => table.release(key),
                        _ => table.finish(key, [0; 32], answer(bytes), now),
                    }
                }
                let answers = table.entries.values().map(|entry| match &entry.state {
                    State::Done { answer, .. } => answer.body.len() + ENTRY_BYTES,
                    State::UnderWay(_) => 0,
                });
                prop_assert_eq!(answers.sum::<usize>(), table.bytes);
                prop_assert!(table.entries.len() <= 8 && table.bytes <= 6_000);
                prop_assert!(table.done.len() <= table.entries.len());
                prop_assert_eq!(table.owners.values().map(|share| share.bytes).sum::<usize>(), table.bytes);
                prop_assert_eq!(table.owners.values().map(|share| share.done.len()).sum::<usize>(), table.done.len());
                prop_assert_eq!(table.owners.len(), table.heaviest.len());
            }
        }
    }
}

//! How much may be under way: texts, and the bytes of their requests.
//!
//! There are two lanes, because a long list that waits should not keep out a
//! query that would go before it: an eighth of the room is for small requests
//! alone. Room is never waited for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes that one permit stands for.
const UNIT_BYTES: usize = 1 << 10;
/// Part of the room that is for small requests.
const SMALL_SHARE: usize = 8;
/// Bodies up to this length may use it.
pub const SMALL_BODY_BYTES: usize = 16 << 10;
/// Bounds of the time after which to come again, in seconds.
const RETRY_AFTER: (u64, u64) = (1, 30);

/// The room of all requests.
#[derive(Debug)]
pub struct Room {
    texts: Lanes,
    bytes: Lanes,
    /// How long requests took lately, in milliseconds.
    pace_ms: AtomicU64,
}

#[derive(Debug)]
struct Lanes {
    all: Arc<Semaphore>,
    small: Arc<Semaphore>,
    most: usize,
}

/// Room taken, free again when dropped.
#[derive(Debug)]
pub struct Held(OwnedSemaphorePermit);

impl Held {
    fn is_in(&self, lane: &Arc<Semaphore>) -> bool {
        Arc::ptr_eq(self.0.semaphore(), lane)
    }

    /// The same with `permits` permits, if the lane has as many.
    fn grow(mut self, permits: usize) -> Option<Self> {
        let more = u32::try_from(permits.saturating_sub(self.0.num_permits())).ok()?;
        self.0.merge(Arc::clone(self.0.semaphore()).try_acquire_many_owned(more).ok()?);
        Some(self)
    }
}

impl Room {
    /// Room for as many texts, and for as many bytes.
    pub fn new(texts: usize, bytes: usize) -> Self {
        Self {
            texts: Lanes::new(texts),
            bytes: Lanes::new(bytes.div_ceil(UNIT_BYTES)),
            pace_ms: AtomicU64::new(0),
        }
    }

    /// Room for `texts` texts, if there is any.
    pub fn texts(&self, texts: usize, small: bool) -> Option<Held> {
        self.texts.take(texts, small)
    }

    /// Room for a body that has come to `bytes` bytes, of which some are
    /// `held`; if there is any.
    pub fn bytes(&self, held: Option<Held>, bytes: usize) -> Option<Held> {
        let permits = bytes.div_ceil(UNIT_BYTES);
        match held {
            Some(held) if held.is_in(&self.bytes.all) => held.grow(permits),
            // One that has outgrown the small lane moves.
            _ => self.bytes.take(permits, bytes <= SMALL_BODY_BYTES),
        }
    }

    /// Texts and bytes under way.
    pub fn used(&self) -> (usize, usize) {
        (self.texts.used(), self.bytes.used() * UNIT_BYTES)
    }

    /// Takes note of how long a request took.
    pub fn note(&self, took: Duration) {
        let took = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        // Two notes at once may lose one: it is a hint.
        let pace = self.pace_ms.load(Ordering::Relaxed);
        self.pace_ms.store(smoothed(pace, took), Ordering::Relaxed);
    }

    /// Seconds after which to come again: as long as requests take just now.
    pub fn retry_after(&self) -> u64 {
        let (least, most) = RETRY_AFTER;
        self.pace_ms.load(Ordering::Relaxed).div_ceil(1_000).clamp(least, most)
    }
}

/// The mean of times, the last ones weighing most.
fn smoothed(mean: u64, new: u64) -> u64 {
    mean - mean / 8 + new / 8
}

impl Lanes {
    fn new(permits: usize) -> Self {
        let most = permits.clamp(1, Semaphore::MAX_PERMITS);
        let small = most / SMALL_SHARE;
        let lane = |permits| Arc::new(Semaphore::new(permits));
        Self { all: lane(most - small), small: lane(small), most }
    }

    fn take(&self, permits: usize, small: bool) -> Option<Held> {
        let permits = u32::try_from(permits).ok()?;
        let lanes = [Some(&self.all), Some(&self.small).filter(|_| small)];
        lanes
            .into_iter()
            .flatten()
            .find_map(|lane| Arc::clone(lane).try_acquire_many_owned(permits).ok())
            .map(Held)
    }

    fn used(&self) -> usize {
        self.most - self.all.available_permits() - self.small.available_permits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_leave_room_for_queries_which_may_use_all_of_it() {
        let room = Room::new(16, 1 << 20);
        let lists = [room.texts(9, false), room.texts(5, false)];
        assert!(lists.iter().all(Option::is_some) && room.texts(1, false).is_none());
        let query = room.texts(1, true);
        assert!(query.is_some() && room.texts(2, true).is_none());
        assert_eq!(room.used().0, 15);
        drop(lists);
        assert!(room.texts(14, true).is_some());
        drop(query);
        assert_eq!(room.used(), (0, 0));
    }

    #[test]
    fn large_bodies_leave_room_for_small_ones() {
        let room = Room::new(16, 256 << 10);
        let large = room.bytes(room.bytes(None, 100 << 10), 224 << 10);
        assert!(large.is_some() && room.used().1 == 224 << 10);
        assert!(room.bytes(None, SMALL_BODY_BYTES + 1).is_none());
        let small = || room.bytes(None, SMALL_BODY_BYTES);
        let held = [small(), small(), room.bytes(None, 1)];
        assert!(held.each_ref().map(Option::is_some) == [true, true, false]);
        // One that outgrows the small lane finds the other full.
        let [one, two, _] = held;
        assert!(room.bytes(one, SMALL_BODY_BYTES + 1).is_none());
        drop((large, two));
        let one = room.bytes(small(), SMALL_BODY_BYTES + 1);
        assert!(one.is_some());
        drop(one);
        assert_eq!(room.used().1, 0);
    }

    #[test]
    fn whoever_is_refused_is_told_to_wait_as_long_as_requests_take() {
        let room = Room::new(1, 1);
        assert_eq!(room.retry_after(), 1);
        for _ in 0..60 {
            room.note(Duration::from_millis(4_500));
        }
        assert_eq!(room.retry_after(), 5);
        for _ in 0..100 {
            room.note(Duration::from_secs(500));
        }
        assert_eq!(room.retry_after(), 30);
    }
}

//! Vectors in Redis, for every daemon that embeds in the same space.
//!
//! ```text
//! key    prefix "vector:" space ":" SHA-256 of the text in hex
//! value  version  1   u8
//!        crc32c   4   little endian, of the key and the numbers
//!        numbers  4n  f32, little endian, n the dimensions of the space
//! ```
//!
//! The checksum covers the key, so a value that is damaged, or stands where it
//! does not belong, is a miss like any other; so is one that could not be a
//! vector. Texts are not in Redis, and a key tells nothing of whose they are.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore,
    mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

use super::{Known, Shelf, ShelfError, Space, model::hex};
use crate::{metrics, redis::Redis};

const VERSION: u8 = 1;
const HEADER_BYTES: usize = 5;
/// Bytes of values that are asked for, or written, at once: what the time-out
/// of one command is meant for.
const PAGE_BYTES: usize = 256 << 10;
/// Vectors that wait to be written take at most so many bytes; more are not
/// kept.
const QUEUE_BYTES: usize = 16 << 20;
/// What an entry of the queue takes beside its value.
const ENTRY_BYTES: usize = 256;
/// Bytes that one permit stands for.
const UNIT_BYTES: usize = 256;

/// The vectors of one space in Redis.
pub struct SharedVectors {
    redis: Redis,
    space: String,
    dimensions: usize,
    queue: UnboundedSender<Entry>,
    room: Arc<Semaphore>,
    _writer: AbortOnDropHandle<()>,
}

struct Entry {
    key: String,
    value: Vec<u8>,
    /// Held until it is written.
    room: OwnedSemaphorePermit,
}

impl SharedVectors {
    /// Those of `space`, kept for `ttl`. The task that writes ends with this.
    pub fn new(redis: Redis, space: &Space, ttl: Duration) -> Self {
        let (queue, entries) = unbounded_channel();
        let page = (PAGE_BYTES / value_bytes(space.dimensions)).max(1);
        let writer = write(redis.clone(), entries, ttl, page);
        Self {
            redis,
            space: space.id(),
            dimensions: space.dimensions,
            queue,
            room: Arc::new(Semaphore::new(QUEUE_BYTES / UNIT_BYTES)),
            _writer: AbortOnDropHandle::new(tokio::spawn(writer.in_current_span())),
        }
    }

    /// Waits until what was offered is written, at most for `deadline`.
    pub async fn drain(&self, deadline: Duration) {
        let all = u32::try_from(QUEUE_BYTES / UNIT_BYTES).unwrap_or(u32::MAX);
        let drained = tokio::time::timeout(deadline, self.room.acquire_many(all)).await;
        if drained.is_err() {
            tracing::info!(
                "vectors were not written to Redis in time; they are computed again where they are missing"
            );
        }
    }

    /// Takes the vectors of these texts away; how many there were.
    ///
    /// # Errors
    /// If Redis is away: what it holds is then gone after its time to live.
    pub async fn forget(&self, digests: &[[u8; 32]]) -> Result<u64, ShelfError> {
        let mut gone = 0;
        for digests in digests.chunks(1_000) {
            let mut command = ::redis::cmd("DEL");
            command.arg(digests.iter().map(|digest| self.key(digest)).collect::<Vec<_>>());
            let asked = self.redis.ask::<u64>(&command).await;
            gone += asked.map_err(|_| ShelfError("Redis is away".into()))?;
        }
        Ok(gone)
    }

    fn key(&self, digest: &[u8; 32]) -> String {
        self.redis.key(&format!("vector:{}:{}", self.space, hex(digest)))
    }

    async fn found(&self, digests: &[[u8; 32]]) -> Known {
        let mut known = HashMap::new();
        let page = (PAGE_BYTES / value_bytes(self.dimensions)).max(1);
        for digests in digests.chunks(page) {
            let keys: Vec<String> = digests.iter().map(|digest| self.key(digest)).collect();
            let mut command = ::redis::cmd("MGET");
            command.arg(&keys);
            // Away: whatever else it has is computed, or read from the rows.
            let Ok(values) = self.redis.ask::<Vec<Option<Vec<u8>>>>(&command).await else { break };
            let mut damaged = 0;
            for ((digest, key), value) in digests.iter().zip(&keys).zip(values) {
                let Some(value) = value else { continue };
                match decode(key, &value, self.dimensions) {
                    Some(vector) => drop(known.insert(*digest, vector)),
                    None => damaged += 1,
                }
            }
            metrics::embed_cache_damaged(damaged);
        }
        known
    }
}

impl Shelf for SharedVectors {
    fn vectors<'a>(&'a self, digests: &'a [[u8; 32]]) -> BoxFuture<'a, Result<Known, ShelfError>> {
        Box::pin(async move { Ok(self.found(digests).await) })
    }

    fn offer(&self, digest: &[u8; 32], vector: &[f32]) {
        let bytes = value_bytes(vector.len()) + ENTRY_BYTES;
        let units = u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX);
        let Ok(room) = self.room.clone().try_acquire_many_owned(units) else {
            return metrics::embed_cache_unkept(1);
        };
        let key = self.key(digest);
        let value = encode(&key, vector);
        // The writer ends with this, so somebody is there.
        let _ = self.queue.send(Entry { key, value, room });
    }
}

/// Writes what is offered, as many at once as have come.
async fn write(redis: Redis, mut entries: UnboundedReceiver<Entry>, ttl: Duration, page: usize) {
    let mut batch = Vec::with_capacity(page);
    while entries.recv_many(&mut batch, page).await > 0 {
        let (mut pipeline, mut rooms) = (::redis::Pipeline::new(), Vec::with_capacity(batch.len()));
        for Entry { key, value, room } in batch.drain(..) {
            pipeline.cmd("SET").arg(key).arg(value).arg("EX").arg(ttl.as_secs().max(1)).ignore();
            rooms.push(room);
        }
        if redis.ask_all::<()>(&pipeline).await.is_err() {
            metrics::embed_cache_unkept(rooms.len());
        }
    }
}

fn value_bytes(dimensions: usize) -> usize {
    HEADER_BYTES + dimensions * size_of::<f32>()
}

fn checksum(key: &str, numbers: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(key.as_bytes()), numbers)
}

fn encode(key: &str, vector: &[f32]) -> Vec<u8> {
    let numbers: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
    let mut value = Vec::with_capacity(HEADER_BYTES + numbers.len());
    value.push(VERSION);
    value.extend_from_slice(&checksum(key, &numbers).to_le_bytes());
    value.extend_from_slice(&numbers);
    value
}

/// The vector of `key`; `None` if the value is none.
fn decode(key: &str, value: &[u8], dimensions: usize) -> Option<Vec<f32>> {
    let (version, rest) = value.split_first()?;
    let (crc, numbers) = rest.split_first_chunk::<4>()?;
    let fits = *version == VERSION && value.len() == value_bytes(dimensions);
    if !fits || u32::from_le_bytes(*crc) != checksum(key, numbers) {
        return None;
    }
    let (numbers, _) = numbers.as_chunks::<4>();
    let vector: Vec<f32> = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    let good = vector.iter().all(|number| number.is_finite()) && vector.iter().any(|number| *number != 0.0);
    good.then_some(vector)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "thalweg:vector:00:ab";

    #[test]
    fn the_layout_is_the_one_that_others_read() {
        assert_eq!(encode("k", &[1.0, -2.5]), b"\x01\x6f\x2b\x79\x78\x00\x00\x80\x3f\x00\x00\x20\xc0");
    }

    #[test]
    fn what_could_not_be_a_vector_is_a_miss() {
        for bad in [[0.0, 0.0], [f32::NAN, 1.0], [1.0, f32::INFINITY]] {
            assert_eq!(decode(KEY, &encode(KEY, &bad), 2), None);
        }
        for foreign in [&b""[..], b"\x01", b"OK", b"\x01abcd"] {
            assert_eq!(decode(KEY, foreign, 2), None);
            assert_eq!(decode(KEY, foreign, 0), None);
        }
        let fine = encode(KEY, &[1.0, 2.0]);
        assert_eq!(decode(KEY, &fine, 2), Some(vec![1.0, 2.0]));
        assert_eq!(decode(KEY, &fine, 3), None, "of another space");
        assert_eq!(decode("thalweg:vector:00:ac", &fine, 2), None, "of another text");
    }

    proptest! {
        #[test]
        fn a_vector_comes_back_and_one_changed_bit_makes_it_a_miss(
            vector in proptest::collection::vec(0.1..9.0_f32, 1..40),
            bit in 0..10_000_usize,
            cut in 0..200_usize,
        ) {
            let value = encode(KEY, &vector);
            prop_assert_eq!(decode(KEY, &value, vector.len()), Some(vector.clone()));
            let mut damaged = value.clone();
            let bit = bit % (8 * damaged.len());
            damaged[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(KEY, &damaged, vector.len()), None);
            let shorter = value.len().saturating_sub(1 + cut % value.len());
            prop_assert_eq!(decode(KEY, &value[..shorter], vector.len()), None);
        }
    }
}

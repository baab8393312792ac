//! Bodies of ingest requests, in bounded memory and bounded time.
//!
//! They share one room. No body may take more than half of it, nor may all of
//! one tenant together, so that there is room for others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    body::{Body, BodyDataStream, HttpBody},
    http::StatusCode,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{MAX_BODY_BYTES, Problem};
use crate::units::ByteSize;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the rest of a body is read and thrown away that was refused: a
/// client that still sends would see a broken connection and no answer.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that one permit stands for.
const UNIT_BYTES: usize = 1 << 10;

/// The room that all bodies share.
#[derive(Clone, Debug)]
pub struct Bodies {
    room: Arc<Semaphore>,
    /// Units that each tenant holds, of those that hold some.
    held: Arc<Mutex<HashMap<Arc<str>, usize>>>,
    /// Units that a tenant may hold.
    share: usize,
    longest: usize,
}

/// A body and its room, free again when dropped.
#[derive(Debug)]
pub struct Held {
    pub bytes: Bytes,
    _room: Room,
}

/// What a body takes of the room.
#[derive(Debug)]
struct Room {
    bodies: Bodies,
    tenant: Option<Arc<str>>,
    units: usize,
    permits: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// Room for `bytes`; no body may be longer than half of it.
    pub fn new(bytes: ByteSize) -> Self {
        let units = bytes.as_usize().div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self {
            room: Arc::new(Semaphore::new(units)),
            held: Arc::default(),
            share: units / 2,
            longest: MAX_BODY_BYTES.min(bytes.as_usize() / 2),
        }
    }

    /// Bytes of the longest body that is taken.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// Reads `body`, of a request of `tenant` if it is of one only. Room is
    /// taken as it arrives, and never waited for, so that no two bodies can
    /// wait for each other.
    pub async fn read(&self, body: Body, tenant: Option<Arc<str>>) -> Result<Held, Problem> {
        let mut chunks = body.into_data_stream();
        let read = if chunks.size_hint().lower() > self.longest as u64 {
            Err(self.too_long())
        } else {
            timeout(BODY_TIMEOUT, self.gather(&mut chunks, tenant)).await.unwrap_or_else(|_| {
                let detail = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail))
            })
        };
        if read.is_err() {
            let _ = timeout(LINGER, async { while let Some(Ok(_)) = chunks.next().await {} }).await;
        }
        read
    }

    async fn gather(&self, chunks: &mut BodyDataStream, tenant: Option<Arc<str>>) -> Result<Held, Problem> {
        let mut bytes = BytesMut::new();
        let mut room = Room { bodies: self.clone(), tenant, units: 0, permits: None };
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| {
                Problem::new(StatusCode::BAD_REQUEST, "bad_request", format!("the body broke off: {error}"))
            })?;
            let length = bytes.len() + chunk.len();
            if length > self.longest {
                return Err(self.too_long());
            }
            room.grow_to(length.div_ceil(UNIT_BYTES))?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(Held { bytes: bytes.freeze(), _room: room })
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn too_long(&self) -> Problem {
        let detail = format!("a body has at most {} bytes; send it in parts", self.longest);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }
}

impl Room {
    fn grow_to(&mut self, units: usize) -> Result<(), Problem> {
        let more = units.saturating_sub(self.units);
        let refused = |what| Problem::unavailable("overloaded", what, 1);
        if let Some(tenant) = &self.tenant {
            let mut held = self.bodies.held();
            let total = held.get(tenant).copied().unwrap_or(0) + more;
            if total > self.bodies.share {
                return Err(refused("the bodies of your other requests hold all the room of one tenant"));
            }
            held.insert(tenant.clone(), total);
        }
        self.units = units;
        let taken = self
            .bodies
            .room
            .clone()
            .try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX))
            .map_err(|_| refused("too many bodies of other requests are held just now"))?;
        match &mut self.permits {
            Some(permits) => permits.merge(taken),
            None => self.permits = Some(taken),
        }
        Ok(())
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some(tenant) = &self.tenant else { return };
        let mut held = self.bodies.held();
        if let Some(units) = held.get_mut(tenant) {
            *units = units.saturating_sub(self.units);
            if *units == 0 {
                held.remove(tenant);
            }
        }
    }
}

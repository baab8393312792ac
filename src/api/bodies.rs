//! Bodies of ingest requests, in bounded memory and bounded time.

use std::{sync::Arc, time::Duration};

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
    longest: usize,
}

/// A body and its room, free again when dropped.
#[derive(Debug)]
pub struct Held {
    pub bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    /// Room for `bytes`; no body may be longer.
    pub fn new(bytes: ByteSize) -> Self {
        let permits = bytes.as_usize().div_ceil(UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(permits)), longest: MAX_BODY_BYTES.min(bytes.as_usize()) }
    }

    /// Reads `body`. Room is taken as it arrives, and never waited for, so
    /// that no two bodies can wait for each other.
    pub async fn read(&self, body: Body) -> Result<Held, Problem> {
        let mut chunks = body.into_data_stream();
        let read = if chunks.size_hint().lower() > self.longest as u64 {
            Err(self.too_long())
        } else {
            timeout(BODY_TIMEOUT, self.gather(&mut chunks)).await.unwrap_or_else(|_| {
                let detail = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", detail))
            })
        };
        if read.is_err() {
            let _ = timeout(LINGER, async { while let Some(Ok(_)) = chunks.next().await {} }).await;
        }
        read
    }

    async fn gather(&self, chunks: &mut BodyDataStream) -> Result<Held, Problem> {
        let (mut bytes, mut room) = (BytesMut::new(), None::<OwnedSemaphorePermit>);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| {
                Problem::new(StatusCode::BAD_REQUEST, "bad_request", format!("the body broke off: {error}"))
            })?;
            let length = bytes.len() + chunk.len();
            if length > self.longest {
                return Err(self.too_long());
            }
            let held = room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = u32::try_from(length.div_ceil(UNIT_BYTES) - held).unwrap_or(u32::MAX);
            let taken = self.room.clone().try_acquire_many_owned(more).map_err(|_| {
                Problem::unavailable("overloaded", "too many bodies of other requests are held just now", 1)
            })?;
            match &mut room {
                Some(room) => room.merge(taken),
                None => room = Some(taken),
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(Held { bytes: bytes.freeze(), _room: room })
    }

    fn too_long(&self) -> Problem {
        let detail = format!("a body has at most {} bytes; send it in parts", self.longest);
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", detail)
    }
}

//! Bodies of requests, in bounded memory and bounded time.

use std::{io::Read, time::Duration};

use axum::{
    body::{Body, BodyDataStream, Bytes, HttpBody},
    http::{HeaderMap, StatusCode, header},
};
use bytes::BytesMut;
use flate2::bufread::MultiGzDecoder;
use futures::StreamExt;
use tokio::time::timeout;

use super::{ApiError, Server, room::Held};

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the rest of a body is read and thrown away that was refused: a
/// client that still sends would see a broken connection and no answer.
const LINGER: Duration = Duration::from_secs(2);
/// What is unpacked between two looks at the room.
const PIECE_BYTES: usize = 64 << 10;

/// A body, unpacked, and its room.
#[derive(Debug)]
pub struct Received {
    pub bytes: Bytes,
    _room: Option<Held>,
}

/// How a body is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
}

impl Packing {
    fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let given = headers.get(header::CONTENT_ENCODING).map_or("", |value| value.to_str().unwrap_or("?"));
        match given.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Ok(Self::Plain),
            "gzip" | "x-gzip" => Ok(Self::Gzip),
            other => Err(ApiError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_encoding",
                format!("content encoding `{other}` is not taken; send gzip, or none"),
            )),
        }
    }
}

/// Reads and unpacks a body. Room is taken as it arrives, and never waited
/// for, so that no two bodies can wait for each other.
pub async fn read(server: &Server, headers: &HeaderMap, body: Body) -> Result<Received, ApiError> {
    let mut chunks = body.into_data_stream();
    let read = match Packing::of(headers) {
        Err(refused) => Err(refused),
        Ok(_) if chunks.size_hint().lower() > server.limits.body_bytes.0 => Err(too_long(server)),
        Ok(packing) => match timeout(BODY_TIMEOUT, gather(server, &mut chunks)).await {
            Ok(gathered) => gathered.map(|received| (packing, received)),
            Err(_) => {
                let message = format!("the body did not arrive within {} s", BODY_TIMEOUT.as_secs());
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "body_too_slow", message))
            }
        },
    };
    match read {
        Ok((Packing::Plain, received)) => Ok(received),
        Ok((Packing::Gzip, received)) => {
            let unpacking = server.clone();
            server.cpu.run(move || unpack(&unpacking, &received)).await
        }
        Err(refused) => {
            discard_rest(chunks).await;
            Err(refused)
        }
    }
}

/// Reads a body that nobody wants, for a while, so that its sender sees the
/// answer.
pub async fn discard(body: Body) {
    discard_rest(body.into_data_stream()).await;
}

async fn discard_rest(mut chunks: BodyDataStream) {
    let _ = timeout(LINGER, async { while let Some(Ok(_)) = chunks.next().await {} }).await;
}

async fn gather(server: &Server, chunks: &mut BodyDataStream) -> Result<Received, ApiError> {
    let (mut bytes, mut room) = (BytesMut::new(), None);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "bad_request", format!("the body broke off: {error}"))
        })?;
        room = Some(grown(server, room, bytes.len() + chunk.len())?);
        bytes.extend_from_slice(&chunk);
    }
    Ok(Received { bytes: bytes.freeze(), _room: room })
}

fn unpack(server: &Server, packed: &Received) -> Result<Received, ApiError> {
    let mut decoder = MultiGzDecoder::new(packed.bytes.as_ref());
    let (mut bytes, mut room) = (BytesMut::new(), None);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let length = decoder.read(&mut piece).map_err(|error| {
            ApiError::new(StatusCode::BAD_REQUEST, "bad_request", format!("the body is not gzip: {error}"))
        })?;
        let (new, _) = piece.split_at(length);
        if new.is_empty() {
            return Ok(Received { bytes: bytes.freeze(), _room: room });
        }
        room = Some(grown(server, room, bytes.len() + new.len())?);
        bytes.extend_from_slice(new);
    }
}

/// Room for a body that has come to `length` bytes and has some of it.
fn grown(server: &Server, room: Option<Held>, length: usize) -> Result<Held, ApiError> {
    if length > server.limits.body_bytes.as_usize() {
        return Err(too_long(server));
    }
    server.room.bytes(room, length).ok_or_else(|| ApiError::overloaded("bytes", server.room.retry_after()))
}

fn too_long(server: &Server) -> ApiError {
    let message =
        format!("a body has at most {} bytes, unpacked; send fewer texts", server.limits.body_bytes.0);
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
}

//! `POST /v1/embeddings`.

use std::time::Instant;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::Response,
};
use tokio::time::timeout;

use super::{
    ApiError, Served, Server, Shared,
    answer::{answer, takes_gzip},
    body::{self, Received},
    request::{Expected, Request, parse},
    room::SMALL_BODY_BYTES,
};
use crate::{
    embed::{Counted, Embedder, gather},
    metrics,
};

pub(super) async fn embeddings(
    State(server): Shared,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let embedded = embed(&server, &headers, body).await;
    embedded.inspect_err(|error| metrics::embed_server_refused(error.code))
}

async fn embed(server: &Server, headers: &HeaderMap, body: Body) -> Result<Response, ApiError> {
    // First counted, then looked: a stop that does not see this request is
    // seen by it.
    let _under_way = server.under_way.token();
    if server.closing.is_cancelled() {
        body::discard(body).await;
        return Err(ApiError::unavailable("shutting_down", "the service is shutting down; send again", 1));
    }
    let started = Instant::now();
    let received = body::read(server, headers, body).await?;
    let limit = server.limits.request_timeout;
    let response =
        timeout(limit, respond(server, received, takes_gzip(headers))).await.unwrap_or_else(|_| {
            let message =
                format!("it took longer than {} s; send fewer texts, or later", limit.as_secs_f64());
            Err(ApiError::unavailable("timeout", message, server.room.retry_after()))
        })?;
    server.room.note(started.elapsed());
    Ok(response)
}

async fn respond(server: &Server, received: Received, gzip: bool) -> Result<Response, ApiError> {
    let Request { texts, encoding } = understand(server, received.bytes.clone()).await?;
    let (count, small) = (texts.len(), gather::is_small(&texts));
    let _room = server
        .room
        .texts(count, small)
        .ok_or_else(|| ApiError::overloaded("texts", server.room.retry_after()))?;
    let started = Instant::now();
    let embedded = server.served()?.model.embed_counted(texts).await?;
    metrics::embedded(started.elapsed(), count);
    metrics::embed_server_tokens(embedded.tokens);
    let write = move |served: &Served, embedded: &Counted| answer(embedded, &served.name, encoding, gzip);
    let written = if small {
        write(server.served()?, &embedded)
    } else {
        let writing = server.clone();
        server.cpu.run(move || writing.served().map(|served| write(served, &embedded))).await?
    };
    written
        .map_err(|error| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "answer_failed", error.to_string()))
}

/// Reads a body: a small one here, which takes less than to hand it over.
async fn understand(server: &Server, body: bytes::Bytes) -> Result<Request, ApiError> {
    if body.len() <= SMALL_BODY_BYTES {
        return parse(&body, server.served()?.expected(server.limits.inputs));
    }
    let server_there = server.clone();
    server.cpu.run(move || parse(&body, server_there.served()?.expected(server_there.limits.inputs))).await
}

impl Served {
    fn expected(&self, inputs: usize) -> Expected<'_> {
        Expected { model: &self.name, dimensions: self.model.space().dimensions, inputs }
    }
}

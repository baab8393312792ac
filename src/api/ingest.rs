//! `POST /api/v1/ingest`.

use std::collections::VecDeque;

use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio_util::codec::Decoder;

use super::{Problem, Shared, WAIT_FOR_ROOM, bodies::Held, extract::Caller, idempotency, problem};
use crate::{
    dataflow::Cpu,
    frame::{FrameCodec, Unit},
    pipeline::{Answer, Bounds, Ingest, Origin, Refusal, Submitted},
    source::{
        json::{self, LineParser, Parsed},
        wire::Level,
    },
    units::ByteSize,
};

/// What became of a request's records.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
struct Ingested {
    level: Level,
    received: u64,
    acknowledged: u64,
    ranges: Vec<OffsetRange>,
    errors: Vec<Refusal>,
}

/// Consecutive offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
struct OffsetRange {
    offset: u64,
    count: u64,
}

/// Records of a request that may be refused; the next one ends it.
const MOST_REFUSALS: u32 = 1_000;

#[derive(Clone, Copy)]
enum Encoding {
    Frames,
    Json,
    NdJson,
}

impl Encoding {
    fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let given = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        match given.split(';').next().unwrap_or("").trim().to_ascii_lowercase().as_str() {
            "application/msgpack" | "application/x-msgpack" | "application/x-thalweg-frames" => {
                Ok(Self::Frames)
            }
            "application/json" => Ok(Self::Json),
            "application/x-ndjson" | "application/jsonl" => Ok(Self::NdJson),
            other => Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported_content_type",
                format!(
                    "content type `{other}` is not taken; send application/msgpack (frames), application/json or application/x-ndjson"
                ),
            )),
        }
    }
}

/// Append records
///
/// Frames, a JSON record or list of records, or JSON Lines. The answer comes once they are durable.
#[utoipa::path(
    post,
    path = "/api/v1/ingest",
    params(("Idempotency-Key" = Option<String>, Header, description = "What is done for a key is done once", min_length = 1, max_length = 255)),
    request_body(
        content(
            (serde_json::Value = "application/json"),
            (String = "application/x-ndjson"),
            (Vec<u8> = "application/msgpack"),
        ),
        description = "Records; docs/protocol.md says what is in one"
    ),
    responses(
        (status = 200, body = Ingested),
        (
            status = 409,
            description = "The request with this key was done, and its answer was too long to be kept",
            body = problem::Body,
            content_type = "application/problem+json",
        ),
        (
            status = 422,
            description = "No record was taken, and each has its error; or the key came with another request before",
            content((Ingested = "application/json"), (problem::Body = "application/problem+json")),
        ),
        (status = 507, description = "The log's disk is full", body = Ingested),
    )
)]
pub(super) async fn ingest(
    State(api): Shared,
    Caller(principal, _): Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (Some(source), ingest) = (&api.http_source, &api.intake) else {
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no_http_source",
            "this pipeline takes no records over HTTP; add a [[source]] of type \"http\"",
        ));
    };
    if ingest.closing().is_cancelled() {
        return Err(Problem::unavailable("closing", "the daemon is shutting down; send again", 1));
    }
    let encoding = Encoding::of(&headers)?;
    // Nobody learns of another tenant's answers by guessing its keys.
    let whose = principal.tenant.as_deref().unwrap_or_default();
    let key = idempotency::Key::of(&headers, &[&api.pipeline, source, whose])?;
    let held = api.bodies.read(body, principal.tenant.clone()).await?;
    let origin = Origin { source: source.clone(), peer: None, tenant: principal.tenant };
    let request = Request { origin, ingest: ingest.clone(), cpu: api.cpu.clone(), encoding, held };
    match key {
        None => request.take().await,
        Some(key) => {
            let (encoding, body) = (request.encoding as u8, request.held.bytes.clone());
            let digest = api.cpu.run(move || idempotency::digest(encoding, &body)).await;
            api.idempotency.once(key, digest, request.take()).await
        }
    }
}

/// A request whose body is there.
struct Request {
    origin: Origin,
    ingest: Ingest,
    cpu: Cpu,
    encoding: Encoding,
    held: Held,
}

impl Request {
    async fn take(self) -> Result<Response, Problem> {
        let Self { origin, ingest, cpu, encoding, held } = self;
        let (body, max_frame) = (held.bytes.clone(), ingest.max_frame());
        let parts = cpu.run(move || parse(encoding, body, max_frame)).await?;
        let mut under_way = VecDeque::new();
        let mut bounds = Bounds { room: WAIT_FOR_ROOM, refusals: MOST_REFUSALS };
        for part in parts {
            let submitted = match part {
                Parsed::Unit { frame, unit } => ingest.submit_within(&origin, frame, unit, &mut bounds).await,
                Parsed::NotJson { frame, byte, .. } if !bounds.take() => {
                    [Submitted::too_many_refused((frame, byte))].into()
                }
                Parsed::NotJson { frame, byte, message, line } => {
                    [ingest.refuse(&origin, (frame, byte), "not_json", message, false, line).await].into()
                }
            };
            let ended = submitted.back().is_some_and(Submitted::is_fatal);
            under_way.extend(submitted);
            // What was taken has to be answered for; the rest is not looked at.
            if ended {
                break;
            }
        }
        answer(&ingest, under_way).await
    }
}

/// The parts of a body, in order.
fn parse(encoding: Encoding, body: Bytes, max_frame: ByteSize) -> Result<Vec<Parsed>, Problem> {
    match encoding {
        Encoding::Json => {
            let (bytes, count) = json::document(&body, MOST_REFUSALS)
                .map_err(|message| Problem::new(StatusCode::BAD_REQUEST, "not_json", message))?;
            parse_frames(bytes, count, max_frame)
        }
        Encoding::NdJson => {
            let mut parser = LineParser::default();
            let mut parts = Vec::new();
            for line in body.split_inclusive(|b| *b == b'\n') {
                parts.extend(parser.line(line));
                // The rest would not be looked at, and costs memory.
                if parser.faults() > MOST_REFUSALS {
                    return Ok(parts);
                }
            }
            parts.extend(parser.finish());
            Ok(parts)
        }
        Encoding::Frames => parse_frames(body, u32::MAX, max_frame),
    }
}

fn parse_frames(body: Bytes, most: u32, max_frame: ByteSize) -> Result<Vec<Parsed>, Problem> {
    let mut codec = FrameCodec::new(max_frame);
    let mut buffer = BytesMut::from(body);
    let (mut parts, mut frame) = (Vec::new(), 0);
    let failed = |e: std::io::Error| Problem::new(StatusCode::BAD_REQUEST, "bad_request", e.to_string());
    while frame < u64::from(most)
        && let Some(unit) = codec.decode_eof(&mut buffer).map_err(failed)?
    {
        let frames = match &unit {
            Unit::Run { count, .. } => u64::from(*count),
            _ => 1,
        };
        parts.push(Parsed::Unit { frame, unit });
        frame += frames;
    }
    Ok(parts)
}

async fn answer(ingest: &Ingest, under_way: VecDeque<Submitted>) -> Result<Response, Problem> {
    let mut done = Ingested {
        level: ingest.ack().into(),
        received: 0,
        acknowledged: 0,
        ranges: Vec::new(),
        errors: Vec::new(),
    };
    for submitted in under_way {
        let frames = submitted.frames();
        done.received += frames;
        match ingest.settle(submitted).await {
            Answer::Taken { offset, count, .. } => done.take(offset, count.into()),
            Answer::Refused(refusal) => done.refuse(&refusal, frames),
        }
    }
    let status = match done.errors.last() {
        Some(refusal) if done.acknowledged == 0 => match refusal.code {
            "log_full" => StatusCode::INSUFFICIENT_STORAGE,
            "log_failed" | "closing" | "overloaded" => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::UNPROCESSABLE_ENTITY,
        },
        _ => StatusCode::OK,
    };
    let mut response = (status, Json(done)).into_response();
    if status.is_server_error() {
        response.headers_mut().insert(header::RETRY_AFTER, 1.into());
    }
    Ok(response)
}

impl Ingested {
    /// One error for each of `frames` records that were refused together.
    fn refuse(&mut self, refusal: &Refusal, frames: u64) {
        let each = (refusal.frame..refusal.frame + frames).map(|frame| Refusal { frame, ..refusal.clone() });
        self.errors.extend(each);
    }

    fn take(&mut self, offset: u64, count: u64) {
        self.acknowledged += count;
        match self.ranges.last_mut() {
            Some(last) if last.offset + last.count == offset => last.count += count,
            _ => self.ranges.push(OffsetRange { offset, count }),
        }
    }
}

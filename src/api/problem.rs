//! Every error an HTTP client sees, and its status.

use std::fmt::Display;

use axum::{
    Json,
    extract::{Request, rejection::JsonRejection},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::request_id::RequestId;
use crate::{clock, embed::EmbedError, pipeline::search::SearchError, store::StoreError};

/// The content type of RFC 9457.
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// An error as RFC 9457 has it, with a stable `code`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// A short, stable name.
    pub code: &'static str,
    /// What happened and what to do.
    pub detail: String,
    /// The same with what happened within the daemon: for the log, and for who
    /// may see where the pipeline stands.
    pub inside: Option<String>,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
}

/// A [`Problem`] as it is sent.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct Body {
    /// `urn:thalweg:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// The status in words.
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// A short, stable name, to be compared by programs.
    code: &'static str,
    /// What happened and what to do, for people.
    detail: String,
    /// The request's id, as the daemon's log has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
}

impl Problem {
    /// Without a time to try again.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), inside: None, retry_after: None }
    }

    /// With the `error` within the daemon that made it; see
    /// [`Problem::inside`].
    pub fn because(self, error: impl Display) -> Self {
        Self { inside: Some(error.to_string()), ..self }
    }

    /// 503, worth another try after `seconds`.
    pub fn unavailable(code: &'static str, detail: impl Into<String>, seconds: u64) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail);
        Self { retry_after: Some(seconds), ..problem }
    }

    /// 400: what the request says cannot be meant.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, detail)
    }

    /// 404, of one thing of a kind.
    pub fn no_such(what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", what)
    }

    /// As it is kept, without the id of a request.
    pub(super) fn into_json(self) -> Vec<u8> {
        json(&self.body(None))
    }

    fn body(self, request_id: Option<String>) -> Body {
        Body {
            kind: format!("urn:thalweg:problem:{}", self.code),
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            code: self.code,
            detail: self.detail,
            request_id,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        if let Some(error) = &self.inside {
            tracing::warn!(code = self.code, error, "a request failed");
        }
        let mut response = (self.status, Json(self.clone().body(None))).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// Has whoever gets `response` learn what happened within the daemon.
pub(super) fn reveal(response: &mut Response) {
    if let Some(problem) = response.extensions_mut().get_mut::<Problem>()
        && let Some(inside) = problem.inside.take()
    {
        problem.detail = inside;
    }
}

/// Gives every error one shape, also those that a library made, and the
/// request's id with it.
pub(super) async fn shaped(request: Request, next: Next) -> Response {
    let id = request.extensions().get::<RequestId>().map(|id| id.0.to_string());
    let response = next.run(request).await;
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let problem = match response.extensions().get::<Problem>() {
        Some(problem) => problem.clone(),
        None if response.headers().get(header::CONTENT_TYPE) == Some(&PROBLEM_JSON) => {
            return of_request(response, id).await;
        }
        // A body that is none of ours to change.
        None if response.headers().contains_key(header::CONTENT_TYPE)
            && !response.headers().get(header::CONTENT_TYPE).is_some_and(is_text) =>
        {
            return response;
        }
        None => of_status(status),
    };
    let (mut parts, _) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
    (parts.status, parts.headers, axum::body::Body::from(json(&problem.body(id)))).into_response()
}

/// A problem that was kept, with the id of the request that it answers now.
async fn of_request(response: Response, id: Option<String>) -> Response {
    let (mut parts, body) = response.into_parts();
    // It is in memory, and has a length.
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    let told = match serde_json::from_slice::<Map<String, Value>>(&bytes) {
        Ok(mut problem) => {
            problem.insert("request_id".to_owned(), id.into());
            serde_json::to_vec(&problem).unwrap_or_default().into()
        }
        Err(_) => bytes,
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, told.into())
}

fn json(body: &Body) -> Vec<u8> {
    // It is made of texts and a number.
    serde_json::to_vec(body).unwrap_or_default()
}

fn is_text(kind: &HeaderValue) -> bool {
    kind.as_bytes().starts_with(b"text/plain")
}

fn of_status(status: StatusCode) -> Problem {
    let (code, detail) = match status {
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            ("unsupported_encoding", "Content-Encoding is taken as gzip, zstd or identity")
        }
        StatusCode::PAYLOAD_TOO_LARGE => ("body_too_large", "the body is longer than this route takes"),
        StatusCode::INTERNAL_SERVER_ERROR => {
            ("internal", "the daemon failed at this request; its log says how, by the request id")
        }
        _ => ("refused", "the request was refused"),
    };
    Problem::new(status, code, detail)
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Query { .. } => Self::bad_request("bad_query", error.to_string()),
            _ if error.is_transient() => {
                Self::unavailable("store_busy", "the store does not answer just now; send again", 1)
                    .because(error)
            }
            _ => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "store_failed",
                "the store failed; the daemon's log says how, by the request id",
            )
            .because(error),
        }
    }
}

impl From<EmbedError> for Problem {
    fn from(error: EmbedError) -> Self {
        let away = |code, detail, seconds| Self::unavailable(code, detail, seconds);
        let problem = match &error {
            EmbedError::Input { .. } => return Self::bad_request("bad_query", error.to_string()),
            EmbedError::Transient { .. } => {
                away("embedder_failed", "the embedder does not answer just now; send again", 5)
            }
            EmbedError::Rate { retry_after, .. } => {
                let seconds = retry_after.map_or(5, |wait| wait.as_secs().max(1));
                away("embedder_busy", "the embedder takes no more just now; send again", seconds)
            }
            EmbedError::Quota { reset_at, .. } => {
                let left = reset_at.map_or(0, |at| (at - clock::system_ms()) / 1_000);
                let seconds = u64::try_from(left).unwrap_or(0).max(60);
                away(
                    "embedding_quota_spent",
                    "what may be spent on embedding is spent; ask by words",
                    seconds,
                )
            }
            EmbedError::Configuration { .. } => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "embedder_failed",
                "the embedder cannot be used; the daemon's log says why, by the request id",
            ),
        };
        problem.because(error)
    }
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Limit { .. } => Self::bad_request("bad_query", error.to_string()),
            SearchError::Embed(error) => error.into(),
            SearchError::Store(error) => error.into(),
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let (status, code) = match rejection.status() {
            status @ StatusCode::UNSUPPORTED_MEDIA_TYPE => (status, "unsupported_content_type"),
            status @ StatusCode::PAYLOAD_TOO_LARGE => (status, "body_too_large"),
            // Whether it is no JSON or not the JSON that is wanted.
            _ => (StatusCode::BAD_REQUEST, "bad_request"),
        };
        Self::new(status, code, rejection.body_text())
    }
}

pub(super) async fn not_found(uri: Uri) -> Problem {
    Problem::no_such(format!("there is nothing at {}; /api/v1/openapi.json lists the routes", uri.path()))
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} does not take {method}", uri.path()),
    )
}

//! Every error an HTTP client sees, and its status.

use axum::{
    Json,
    extract::rejection::JsonRejection,
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{clock, embed::EmbedError, pipeline::search::SearchError, store::StoreError};

/// An error as RFC 9457 has it, with a stable `code`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// A short, stable name.
    pub code: &'static str,
    /// What happened and what to do.
    pub detail: String,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
}

impl Problem {
    /// Without a time to try again.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into(), retry_after: None }
    }

    /// 503, worth another try after `seconds`.
    pub fn unavailable(code: &'static str, detail: impl Into<String>, seconds: u64) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail);
        Self { retry_after: Some(seconds), ..problem }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = json!({
            "title": self.status.canonical_reason(),
            "status": self.status.as_u16(),
            "code": self.code,
            "detail": self.detail,
        });
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Query { .. } => Self::new(StatusCode::BAD_REQUEST, "bad_query", error.to_string()),
            _ if error.is_transient() => Self::unavailable("store_busy", error.to_string(), 1),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "store_failed", error.to_string()),
        }
    }
}

impl From<EmbedError> for Problem {
    fn from(error: EmbedError) -> Self {
        match &error {
            EmbedError::Input { .. } => Self::new(StatusCode::BAD_REQUEST, "bad_query", error.to_string()),
            EmbedError::Transient { .. } => Self::unavailable("embedder_failed", error.to_string(), 5),
            EmbedError::Rate { retry_after, .. } => {
                let seconds = retry_after.map_or(5, |wait| wait.as_secs().max(1));
                Self::unavailable("embedder_busy", error.to_string(), seconds)
            }
            EmbedError::Quota { reset_at, .. } => {
                let left = reset_at.map_or(0, |at| (at - clock::system_ms()) / 1_000);
                let seconds = u64::try_from(left).unwrap_or(0).max(60);
                Self::unavailable("embedding_quota_spent", error.to_string(), seconds)
            }
            EmbedError::Configuration { .. } => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "embedder_failed", error.to_string())
            }
        }
    }
}

impl From<SearchError> for Problem {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Limit { .. } => Self::new(StatusCode::BAD_REQUEST, "bad_query", error.to_string()),
            SearchError::Embed(error) => error.into(),
            SearchError::Store(error) => error.into(),
        }
    }
}

impl From<JsonRejection> for Problem {
    fn from(rejection: JsonRejection) -> Self {
        let code = match rejection.status() {
            StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_content_type",
            StatusCode::PAYLOAD_TOO_LARGE => "body_too_large",
            _ => "bad_request",
        };
        Self::new(rejection.status(), code, rejection.body_text())
    }
}

pub(super) async fn not_found(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is nothing at {}; see docs/protocol.md for the routes", uri.path()),
    )
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        format!("{} does not take {method}", uri.path()),
    )
}

//! Every error that a client sees, in OpenAI's shape.
//!
//! The shape: <https://platform.openai.com/docs/guides/error-codes>. Clients
//! decide by status and `Retry-After`, people by `message`, programs by `code`.

use axum::{
    Json,
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::embed::EmbedError;

/// An error, with a stable `code`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// A short, stable name.
    pub code: &'static str,
    /// The key of the request that is wrong, where one is.
    pub param: Option<&'static str>,
    /// What happened and what to do.
    pub message: String,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
}

impl ApiError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry_after: None }
    }

    /// 400, and which key of the request is to blame.
    pub(super) fn invalid(param: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        Self { param: Some(param), ..Self::new(StatusCode::BAD_REQUEST, code, message) }
    }

    /// 503, worth another try after `seconds`.
    pub(super) fn unavailable(code: &'static str, message: impl Into<String>, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message) }
    }

    /// 429: there is no room just now.
    pub(super) fn overloaded(what: &str, seconds: u64) -> Self {
        let message = format!("too many {what} of other requests wait just now; try again later");
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_exceeded", message);
        Self { retry_after: Some(seconds), ..error }
    }

    /// 404: only the model called `served` is here.
    pub(super) fn model_not_found(asked: &str, served: &str) -> Self {
        let message = format!("the model `{asked}` does not exist here; this service has `{served}`");
        let error = Self::new(StatusCode::NOT_FOUND, "model_not_found", message);
        Self { param: Some("model"), ..error }
    }

    /// OpenAI's `type`.
    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error =
            json!({"message": self.message, "type": self.kind(), "param": self.param, "code": self.code});
        let mut response = (self.status, Json(json!({"error": error}))).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<EmbedError> for ApiError {
    fn from(error: EmbedError) -> Self {
        match error {
            EmbedError::Input { .. } => Self::invalid("input", "invalid_input", error.to_string()),
            // The local model gives no other than a transient one.
            EmbedError::Transient { .. }
            | EmbedError::Rate { .. }
            | EmbedError::Quota { .. }
            | EmbedError::Configuration { .. } => Self::unavailable("model_failed", error.to_string(), 1),
        }
    }
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    let message = format!("there is nothing at {}; see docs/embed-server.md for the routes", uri.path());
    ApiError::new(StatusCode::NOT_FOUND, "unknown_url", message)
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not take {method}", uri.path());
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_supported", message)
}

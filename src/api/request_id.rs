//! What tells a request from others, in the answer and in the log.

use std::sync::Arc;

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue},
    middleware::Next,
    response::Response,
};
use tracing::Instrument;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// A longer one of the client's is not taken over.
const LONGEST: usize = 128;

/// A request's id: the client's own, if it sends a sensible one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub Arc<str>);

impl RequestId {
    fn of(request: &Request) -> Self {
        let given = request.headers().get(HEADER).and_then(|value| value.to_str().ok());
        match given.filter(|id| (1..=LONGEST).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()))
        {
            Some(id) => Self(id.into()),
            None => Self(format!("{:016x}", rand::random::<u64>()).into()),
        }
    }
}

/// Gives every request an id.
pub(super) async fn identified(mut request: Request, next: Next) -> Response {
    let id = RequestId::of(&request);
    request.extensions_mut().insert(id.clone());
    let span = tracing::error_span!("request", request_id = %id.0);
    let mut response = next.run(request).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&id.0) {
        response.headers_mut().insert(HEADER, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    fn id_of(header: Option<&str>) -> String {
        let mut request = Request::new(Body::empty());
        if let Some(header) = header {
            request.headers_mut().insert(HEADER, header.parse().unwrap());
        }
        RequestId::of(&request).0.to_string()
    }

    #[test]
    fn a_sensible_id_is_kept_and_any_other_replaced() {
        assert_eq!(id_of(Some("abc-123")), "abc-123");
        for other in [None, Some(""), Some("a b"), Some(&*"x".repeat(129))] {
            assert_eq!(id_of(other).len(), 16, "{other:?}");
        }
        assert_ne!(id_of(None), id_of(None));
    }
}

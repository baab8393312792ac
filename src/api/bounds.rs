//! What all requests together, and each by itself, may take.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Api, Problem};

/// Refuses what finds no place among those that are under way.
pub(super) async fn bounded(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Ok(_place) = api.0.places.try_acquire() else {
        let detail =
            format!("{} requests are under way, which is all that are done at once", api.http.max_requests);
        return Problem::unavailable("overloaded", detail, 1).into_response();
    };
    in_time(api.http.request_timeout.0, next.run(request)).await
}

async fn in_time(limit: Duration, answer: impl Future<Output = Response>) -> Response {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
        let detail = format!(
            "the request was not done within {} s (`http.request_timeout`); records may be stored all the same: send \
             them again with the same Idempotency-Key",
            limit.as_secs_f64()
        );
        Problem::unavailable("timed_out", detail, 1).into_response()
    })
}

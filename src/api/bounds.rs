//! What all requests together, and each by itself, may take.

use std::time::Duration;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};

use tokio_util::sync::CancellationToken;

use super::{Api, Problem};

/// How long a request that is under way goes on once the daemon shuts down:
/// a body that trickles in must not take the time of what drains.
const CLOSING: Duration = Duration::from_secs(5);

/// Refuses what finds no place among those that are under way.
pub(super) async fn bounded(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Ok(_place) = api.0.places.try_acquire() else {
        let detail =
            format!("{} requests are under way, which is all that are done at once", api.http.max_requests);
        return Problem::unavailable("overloaded", detail, 1).into_response();
    };
    in_time(api.http.request_timeout.0, &api.closing, next.run(request)).await
}

async fn in_time(
    limit: Duration,
    closing: &CancellationToken,
    answer: impl Future<Output = Response>,
) -> Response {
    let closed = async {
        closing.cancelled().await;
        tokio::time::sleep(CLOSING).await;
    };
    let (code, what) = tokio::select! {
        biased;
        answer = answer => return answer,
        () = tokio::time::sleep(limit) => {
            ("timed_out", format!("within {} s (`http.request_timeout`)", limit.as_secs_f64()))
        }
        () = closed => ("closing", "before the daemon shut down".to_owned()),
    };
    let detail = format!(
        "the request was not done {what}, and may be all the same: send records again with the same \
         Idempotency-Key"
    );
    Problem::unavailable(code, detail, 1).into_response()
}

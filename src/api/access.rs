//! Who may do what: every guarded route names its right here once, in the
//! router; whoever asks is known, counted and let through before the request
//! is looked at any further.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Api, Problem};
use crate::{
    identity::{Principal, Right},
    rate_limit::Decision,
};

/// A right that some routes need.
#[derive(Clone)]
pub(super) struct Gate {
    pub api: Api,
    pub right: Right,
}

pub(super) async fn guarded(
    State(gate): State<Gate>,
    route: MatchedPath,
    mut request: Request,
    next: Next,
) -> Response {
    let principal = Principal::open();
    let decision = match gate.api.limiter.take(&principal, route.as_str()).await {
        Ok(decision) => decision,
        Err(away) => return Problem::unavailable("limits_away", away.to_string(), 5).into_response(),
    };
    let mut response = match decision.filter(|decision| !decision.allowed) {
        Some(decision) => too_many(decision).into_response(),
        None => match principal.require(gate.right) {
            Err(denied) => Problem::from(denied).into_response(),
            Ok(()) => {
                request.extensions_mut().insert(principal);
                next.run(request).await
            }
        },
    };
    if let Some(decision) = decision {
        tell(&mut response, decision);
    }
    response
}

fn too_many(decision: Decision) -> Problem {
    let wait = decision.retry_after.as_secs_f64().ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a minute")]
    let seconds = (wait as u64).max(1);
    let detail = format!(
        "the {} requests of a minute are used up; come again in {seconds} s, or ask for a higher tier",
        decision.limit
    );
    Problem {
        retry_after: Some(seconds),
        ..Problem::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
    }
}

/// Tells what is left.
fn tell(response: &mut Response, decision: Decision) {
    let reset = decision.reset.as_secs() + u64::from(decision.reset.subsec_nanos() > 0);
    for (name, value) in [
        ("x-ratelimit-limit", u64::from(decision.limit)),
        ("x-ratelimit-remaining", u64::from(decision.remaining)),
        ("x-ratelimit-reset", reset),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
}

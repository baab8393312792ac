//! Who may do what: every guarded route names its right here once, in the
//! router; whoever asks is known, counted and let through before the request
//! is looked at any further.

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, StatusCode, header::AUTHORIZATION},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{Api, Problem, extract::Caller, problem, request_id::RequestId};
use crate::{
    access::{NotAdmitted, Visit},
    http_server::Peer,
    identity::{Credential, Denied, Entry, Principal, Right, Unauthenticated},
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
    let (shown, visit) = gate.visit(&request);
    let principal = match gate.admit(shown, &visit).await {
        Ok(principal) => principal,
        Err(problem) => return problem.into_response(),
    };
    let decision = match gate.api.limiter.take(&principal, route.as_str()).await {
        Ok(decision) => decision,
        Err(away) => {
            let detail =
                "requests cannot be counted just now, and none are let through uncounted; send again";
            return Problem::unavailable("limits_away", detail, 5).because(away).into_response();
        }
    };
    let sees = principal.require(Right::Observe).is_ok();
    let mut response = match decision.filter(|decision| !decision.allowed) {
        Some(decision) => too_many(decision).into_response(),
        None => {
            request.extensions_mut().insert(principal);
            request.extensions_mut().insert(visit);
            next.run(request).await
        }
    };
    if sees {
        problem::reveal(&mut response);
    }
    if let Some(decision) = decision {
        tell(&mut response, decision);
    }
    response
}

impl Gate {
    /// What the request shows, and what it wants.
    fn visit(&self, request: &Request) -> (Option<Result<Credential, Unauthenticated>>, Visit) {
        let extensions = request.extensions();
        let visit = Visit {
            act: self.right.name(),
            peer: extensions.get::<Peer>().map(|peer| peer.0.ip().to_string()),
            request_id: extensions.get::<RequestId>().map(|id| id.0.to_string()),
        };
        // What is no text is no credential either.
        let header = request.headers().get(AUTHORIZATION);
        let shown = header.map(|value| Credential::of_header(value.to_str().unwrap_or_default()));
        (shown, visit)
    }

    async fn admit(
        &self,
        shown: Option<Result<Credential, Unauthenticated>>,
        visit: &Visit,
    ) -> Result<Principal, Problem> {
        if !self.api.access.authenticator.is_on() {
            return Ok(Principal::open());
        }
        let credential = shown.transpose().inspect_err(|unknown| {
            self.api.access.turned_away(unknown.code(), visit);
        })?;
        Ok(self.api.access.admit(credential.as_ref(), self.right, visit).await?)
    }
}

impl Api {
    /// Whether whoever sends `request` to a route that is open to all may see
    /// where the pipeline stands. Who shows nothing is refused nothing.
    pub(super) async fn may_observe(&self, request: Request) -> bool {
        let gate = Gate { api: self.clone(), right: Right::Observe };
        let (shown, visit) = gate.visit(&request);
        let is_on = self.access.authenticator.is_on();
        !is_on || shown.is_some() && gate.admit(shown, &visit).await.is_ok()
    }

    /// Writes down what somebody does; once this returns it is durable.
    pub(super) async fn record(
        &self,
        Caller(principal, visit): &Caller,
        act: &'static str,
        subject: impl Into<String>,
    ) -> Result<(), Problem> {
        let entry = Entry::done(self.now_ms(), principal, act, subject);
        Ok(self.access.trail.record(visit.sign(entry)).await?)
    }
}

impl From<NotAdmitted> for Problem {
    fn from(refused: NotAdmitted) -> Self {
        match refused {
            NotAdmitted::Unknown(unknown) => unknown.into(),
            NotAdmitted::Denied(denied) => denied.into(),
        }
    }
}

impl From<Unauthenticated> for Problem {
    fn from(unknown: Unauthenticated) -> Self {
        match unknown.is_transient() {
            true => Self::unavailable(unknown.code(), unknown.to_string(), 5),
            false => Self::new(StatusCode::UNAUTHORIZED, unknown.code(), unknown.to_string()),
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::new(StatusCode::FORBIDDEN, denied.code(), denied.to_string())
    }
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

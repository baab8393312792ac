//! What handlers take out of a request, refused in the one shape of errors.

use axum::{
    Json,
    extract::{FromRequest, FromRequestParts, Path, Query, Request, rejection::JsonRejection},
    http::request::Parts,
};
use serde::de::DeserializeOwned;

use super::Problem;
use crate::{access::Visit, identity::Principal};

/// A body in JSON.
pub(super) struct Input<T>(pub T);

/// The parameters after the question mark.
pub(super) struct Params<T>(pub T);

/// What stands in the place of `{…}` in a route.
pub(super) struct Named<T>(pub T);

/// Who asks, and from where.
pub(super) struct Caller(pub Principal, pub Visit);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Input<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let taken: Result<Json<T>, JsonRejection> = Json::from_request(request, state).await;
        taken.map(|Json(value)| Self(value)).map_err(Problem::from)
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let taken = Query::<T>::from_request_parts(parts, state).await;
        taken
            .map(|Query(value)| Self(value))
            .map_err(|rejection| Problem::bad_request("bad_parameter", rejection.body_text()))
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Named<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let taken = Path::<T>::from_request_parts(parts, state).await;
        taken
            .map(|Path(value)| Self(value))
            .map_err(|rejection| Problem::bad_request("bad_parameter", rejection.body_text()))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let principal = parts.extensions.get::<Principal>().cloned();
        let visit = parts.extensions.get::<Visit>().cloned();
        principal.zip(visit).map(|(principal, visit)| Self(principal, visit)).ok_or_else(|| {
            let detail = "nobody asked who sent the request";
            Problem::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
        })
    }
}

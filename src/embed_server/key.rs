//! Who may ask: whoever has the key, if there is one.

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use super::{ApiError, Shared, body};
use crate::secret::Secret;

/// Shorter keys can be guessed.
const LEAST_KEY_BYTES: usize = 16;

/// The digest of a key: the key itself is not kept.
#[derive(Clone)]
pub struct ApiKey([u8; 32]);

/// Why a key cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It could be guessed.
    #[error("the API key has {bytes} bytes; take at least {LEAST_KEY_BYTES} random ones")]
    Short {
        /// How long it is.
        bytes: usize,
    },
    /// It cannot stand in a header.
    #[error("the API key has a character that cannot stand in an HTTP header")]
    Characters,
}

impl ApiKey {
    /// A key that requests have to bring. White space around it is ignored.
    pub fn new(key: &Secret) -> Result<Self, KeyError> {
        let key = key.reveal().trim();
        if key.len() < LEAST_KEY_BYTES {
            return Err(KeyError::Short { bytes: key.len() });
        }
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError::Characters);
        }
        Ok(Self(Sha256::digest(key).into()))
    }

    /// Whether the headers bring the key. Digests are compared, and all of
    /// them, so that the time taken tells nothing about the key.
    fn accepts(&self, headers: &HeaderMap) -> bool {
        let given = headers.get(header::AUTHORIZATION).map_or(&b""[..], |value| value.as_bytes());
        let Some((scheme, key)) = given.split_at_checked(b"Bearer ".len()) else { return false };
        let digest = Sha256::digest(key.trim_ascii());
        let differ = self.0.iter().zip(&digest).fold(0, |differ, (a, b)| differ | (a ^ b));
        scheme.eq_ignore_ascii_case(b"Bearer ") && differ == 0
    }
}

/// Lets requests with the key pass.
pub(super) async fn authorised(State(server): Shared, mut request: Request, next: Next) -> Response {
    if server.key.as_ref().is_none_or(|key| key.accepts(request.headers())) {
        return next.run(request).await;
    }
    body::discard(std::mem::replace(request.body_mut(), Body::empty())).await;
    let message = "no valid API key; send it as `Authorization: Bearer KEY`";
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Result<ApiKey, KeyError> {
        ApiKey::new(&Secret::from(text.to_owned()))
    }

    #[test]
    fn only_the_whole_key_is_accepted() {
        let key = key("an-api-key-of-16+\n").unwrap();
        let accepts = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            key.accepts(&headers)
        };
        assert!(accepts("Bearer an-api-key-of-16+") && accepts("bearer  an-api-key-of-16+ "));
        for wrong in ["Bearer an-api-key-of-16", "Bearer", "Basic an-api-key-of-16+", "an-api-key-of-16+", ""]
        {
            assert!(!accepts(wrong), "{wrong}");
        }
        assert!(!key.accepts(&HeaderMap::new()));
    }

    #[test]
    fn keys_that_can_be_guessed_or_not_be_sent_are_refused() {
        assert_eq!(key("  short  ").err(), Some(KeyError::Short { bytes: 5 }));
        assert_eq!(key("a key with spaces in it").err(), Some(KeyError::Characters));
    }
}

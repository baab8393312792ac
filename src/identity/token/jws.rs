//! A token's three parts (RFC 7515, compact serialization).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::Algorithm;
use crate::identity::Unauthenticated;

/// A token as it lies there; nothing of it is proven.
pub(super) struct Jws<'a> {
    pub algorithm: Algorithm,
    /// Name of the key that it says it is signed with.
    pub key_id: Option<String>,
    /// What the signature is of.
    pub signed: &'a [u8],
    pub signature: Vec<u8>,
    claims: &'a str,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    crit: Option<serde::de::IgnoredAny>,
}

impl<'a> Jws<'a> {
    pub fn parse(token: &'a str) -> Result<Self, Unauthenticated> {
        let three = "a token has three parts with dots between them";
        let (signed, signature) = token.rsplit_once('.').ok_or_else(|| malformed(three))?;
        let (header, claims) = signed.split_once('.').ok_or_else(|| malformed(three))?;
        let header: Header = json(header, "the token's header is no JSON in base64url")?;
        if header.crit.is_some() {
            return Err(malformed("the token's header has `crit`; no extension is known here"));
        }
        let algorithm = Algorithm::named(&header.alg).ok_or(Unauthenticated::AlgorithmRefused)?;
        let signature = URL_SAFE_NO_PAD
            .decode(signature)
            .map_err(|_| malformed("the token's signature is not in base64url"))?;
        Ok(Self { algorithm, key_id: header.kid, signed: signed.as_bytes(), signature, claims })
    }

    /// What it claims; to be asked for once the signature holds.
    pub fn claims<T: serde::de::DeserializeOwned>(&self) -> Result<T, Unauthenticated> {
        json(self.claims, "the token's claims are no JSON object in base64url")
    }
}

fn json<T: serde::de::DeserializeOwned>(part: &str, reason: &'static str) -> Result<T, Unauthenticated> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| malformed(reason))?;
    serde_json::from_slice(&bytes).map_err(|_| malformed(reason))
}

fn malformed(reason: &'static str) -> Unauthenticated {
    Unauthenticated::MalformedCredentials { reason }
}

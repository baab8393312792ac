//! The provider's public keys (RFC 7517, 7518, 8037).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::RsaPublicKeyComponents;
use serde::Deserialize;

use super::{Algorithm, algorithm::Check, jws::Jws};
use crate::identity::Unauthenticated;

/// Keys of a provider that are looked at; the others are passed over.
const MOST_KEYS: usize = 64;

/// A set of keys that was fetched at once.
#[derive(Debug, Default)]
pub(super) struct KeySet {
    /// Counts the sets that differed from the one before.
    pub generation: u64,
    keys: Vec<PublicKey>,
}

#[derive(Debug, PartialEq)]
struct PublicKey {
    id: Option<String>,
    /// The only algorithm it is for, if it says.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug, PartialEq)]
enum Material {
    Rsa { modulus: Vec<u8>, exponent: Vec<u8> },
    Point { curve: String, bytes: Vec<u8> },
}

#[derive(Deserialize)]
struct WrittenSet {
    keys: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct Written {
    kty: String,
    kid: Option<String>,
    #[serde(rename = "use")]
    for_what: Option<String>,
    alg: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// Reads a JWK set. Keys of other kinds than are taken, or for other uses
    /// than signatures, are passed over: providers have them.
    pub fn parse(json: &[u8]) -> Result<Self, serde_json::Error> {
        let WrittenSet { keys } = serde_json::from_slice(json)?;
        let keys = keys.into_iter().take(MOST_KEYS).filter_map(|key| PublicKey::read(key).ok().flatten());
        Ok(Self { generation: 0, keys: keys.collect() })
    }

    /// The set as the `generation`-th.
    pub fn of_generation(self, generation: u64) -> Self {
        Self { generation, ..self }
    }

    /// Whether `other` has the same keys.
    pub fn has_same_keys(&self, other: &Self) -> bool {
        self.keys == other.keys
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a token that names `key_id` may be signed with one of them.
    pub fn has(&self, key_id: Option<&str>) -> bool {
        self.named(key_id).next().is_some()
    }

    /// Fails unless the key that the token names, for the algorithm that it
    /// names, made its signature. One that names no key may be any one's.
    pub fn verify(&self, jws: &Jws<'_>) -> Result<(), Unauthenticated> {
        let mut checked = false;
        for key in self.named(jws.key_id.as_deref()) {
            match key.verify(jws) {
                Some(true) => return Ok(()),
                Some(false) => checked = true,
                None => {}
            }
        }
        match (checked, self.has(jws.key_id.as_deref())) {
            (true, _) => Err(Unauthenticated::BadSignature),
            (false, true) => Err(Unauthenticated::AlgorithmRefused),
            (false, false) => Err(Unauthenticated::UnknownSigningKey),
        }
    }

    fn named<'a>(&'a self, key_id: Option<&'a str>) -> impl Iterator<Item = &'a PublicKey> {
        self.keys.iter().filter(move |key| key_id.is_none() || key.id.as_deref() == key_id)
    }
}

impl PublicKey {
    fn read(key: serde_json::Value) -> Result<Option<Self>, Unreadable> {
        let written: Written = serde_json::from_value(key).map_err(|_| Unreadable)?;
        if written.for_what.is_some_and(|what| what != "sig") {
            return Ok(None);
        }
        let material = match written.kty.as_str() {
            "RSA" => Material::Rsa { modulus: bytes(written.n)?, exponent: bytes(written.e)? },
            // ring takes a point as SEC 1 writes it: 4, x, y.
            "EC" => {
                let point = [vec![4], bytes(written.x)?, bytes(written.y)?].concat();
                Material::Point { curve: written.crv.ok_or(Unreadable)?, bytes: point }
            }
            "OKP" => Material::Point { curve: written.crv.ok_or(Unreadable)?, bytes: bytes(written.x)? },
            _ => return Ok(None),
        };
        Ok(Some(Self { id: written.kid, algorithm: written.alg, material }))
    }

    /// Whether it made the signature; none if it is not for the algorithm.
    fn verify(&self, jws: &Jws<'_>) -> Option<bool> {
        let named = |name: &String| Algorithm::named(name) == Some(jws.algorithm);
        if !self.algorithm.as_ref().is_none_or(named) {
            return None;
        }
        match (jws.algorithm.check(), &self.material) {
            (Check::Rsa(how), Material::Rsa { modulus, exponent }) => {
                let key = RsaPublicKeyComponents { n: modulus, e: exponent };
                Some(key.verify(how, jws.signed, &jws.signature).is_ok())
            }
            (Check::Curve(of, how), Material::Point { curve, bytes }) if of == curve => {
                let verified =
                    ring::signature::UnparsedPublicKey::new(how, bytes).verify(jws.signed, &jws.signature);
                Some(verified.is_ok())
            }
            _ => None,
        }
    }
}

/// A key that lacks something, or has it in another form.
struct Unreadable;

fn bytes(field: Option<String>) -> Result<Vec<u8>, Unreadable> {
    URL_SAFE_NO_PAD.decode(field.ok_or(Unreadable)?).map_err(|_| Unreadable)
}

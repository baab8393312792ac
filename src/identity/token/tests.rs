//! Tokens that nobody should be let in with.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair,
        KeyPair,
    },
};
use serde_json::{Value, json};

use super::*;

const NOW_MS: i64 = 1_700_000_000_000;

/// A provider's key, and the other half of it.
struct Key {
    pair: EcdsaKeyPair,
    jwk: Value,
}

fn key(id: &str) -> Key {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
    let jwk = json!({"kty": "EC", "crv": "P-256", "use": "sig", "kid": id, "x": encode(x), "y": encode(y)});
    Key { pair, jwk }
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()))
}

impl Key {
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let signed = unsigned(header, claims);
        let signature = self.pair.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", encode(signature.as_ref()))
    }

    /// A token that is good.
    fn token(&self) -> String {
        self.sign(&header(), &claims())
    }
}

fn header() -> Value {
    json!({"alg": "ES256", "kid": "k1", "typ": "at+jwt"})
}

fn claims() -> Value {
    json!({
        "iss": "http://127.0.0.1:1", "aud": "thalweg", "sub": "svc", "tenant": "acme", "roles": ["viewer"],
        "exp": NOW_MS / 1_000 + 300,
    })
}

/// Takes the tokens of whoever has one of `keys`.
fn tokens(keys: &[&Value]) -> Tokens {
    let algorithms = ["RS256", "ES256", "ES384", "EdDSA"];
    let settings = json!({"issuer": "http://127.0.0.1:1", "audience": "thalweg", "algorithms": algorithms});
    let tokens = Tokens::new(&serde_json::from_value(settings).unwrap()).unwrap();
    tokens.provider.give(json!({ "keys": keys }).to_string().as_bytes(), NOW_MS);
    tokens
}

async fn code(tokens: &Tokens, token: &str) -> &'static str {
    tokens.principal(token, NOW_MS).await.map_or_else(|refused| refused.code(), |_| "known")
}

#[tokio::test]
async fn a_good_token_says_who_somebody_is() {
    let key = key("k1");
    let tokens = tokens(&[&key.jwk]);
    let principal = tokens.principal(&key.token(), NOW_MS).await.unwrap();
    assert_eq!((&*principal.id, principal.tenant.as_deref()), ("svc", Some("acme")));
    assert_eq!(principal.roles.to_string(), "viewer");
    let no_name = json!({"alg": "ES256"});
    assert_eq!(code(&tokens, &key.sign(&no_name, &claims())).await, "known");
}

#[tokio::test]
async fn the_other_curves_are_known_as_well() {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random).unwrap();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, document.as_ref(), &random).unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
    let p384 = json!({"kty": "EC", "crv": "P-384", "kid": "p", "x": encode(x), "y": encode(y)});
    let document = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
    let ed = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let okp = json!({"kty": "OKP", "crv": "Ed25519", "kid": "e", "x": encode(ed.public_key().as_ref())});
    let tokens = tokens(&[&p384, &okp]);
    let signed = unsigned(&json!({"alg": "ES384", "kid": "p"}), &claims());
    let signature = pair.sign(&random, signed.as_bytes()).unwrap();
    assert_eq!(code(&tokens, &format!("{signed}.{}", encode(signature.as_ref()))).await, "known");
    let signed = unsigned(&json!({"alg": "EdDSA", "kid": "e"}), &claims());
    let signature = ed.sign(signed.as_bytes());
    assert_eq!(code(&tokens, &format!("{signed}.{}", encode(signature.as_ref()))).await, "known");
    let other = unsigned(&json!({"alg": "ES384", "kid": "e"}), &claims());
    assert_eq!(code(&tokens, &format!("{other}.{}", encode(signature.as_ref()))).await, "algorithm_refused");
}

#[tokio::test]
async fn an_unsigned_token_gets_nobody_in() {
    let key = key("k1");
    let tokens = tokens(&[&key.jwk]);
    for none in ["none", "None", "NONE", ""] {
        let signed = unsigned(&json!({"alg": none, "kid": "k1"}), &claims());
        for signature in ["", "AA", key.token().rsplit('.').next().unwrap()] {
            assert_eq!(code(&tokens, &format!("{signed}.{signature}")).await, "algorithm_refused", "{none}");
        }
    }
    let signed = unsigned(&header(), &claims());
    assert_eq!(code(&tokens, &format!("{signed}.")).await, "bad_signature");
}

#[tokio::test]
async fn a_public_key_is_no_shared_secret() {
    let key = key("k1");
    let tokens = tokens(&[&key.jwk]);
    let point = key.pair.public_key().as_ref();
    for secret in [point, key.jwk.to_string().as_bytes(), encode(point).as_bytes()] {
        let signed = unsigned(&json!({"alg": "HS256", "kid": "k1"}), &claims());
        let hmac = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret);
        let tag = ring::hmac::sign(&hmac, signed.as_bytes());
        assert_eq!(code(&tokens, &format!("{signed}.{}", encode(tag.as_ref()))).await, "algorithm_refused");
    }
    let secret = json!({"kty": "oct", "kid": "s", "k": encode(b"sesame")});
    assert_eq!(code(&self::tokens(&[&secret]), &key.token()).await, "unknown_signing_key");
}

#[tokio::test]
async fn a_token_that_somebody_else_signed_or_changed_gets_nobody_in() {
    let (key, other) = (key("k1"), key("k1"));
    let tokens = tokens(&[&key.jwk]);
    assert_eq!(code(&tokens, &other.token()).await, "bad_signature");
    let token = key.token();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let mut raised = claims();
    raised["roles"] = json!(["admin"]);
    assert_eq!(
        code(&tokens, &format!("{}.{signature}", unsigned(&header(), &raised))).await,
        "bad_signature"
    );
    assert_eq!(code(&tokens, &format!("{signed}.{}", &signature[..80])).await, "bad_signature");
    assert_eq!(code(&tokens, &token).await, "known");
    // Known, and still not for another signature.
    assert_eq!(code(&tokens, &format!("{signed}.{}", encode(&[0; 64]))).await, "bad_signature");
}

#[tokio::test]
async fn a_key_within_the_token_is_not_looked_at() {
    let (key, evil) = (key("k1"), key("k1"));
    let tokens = tokens(&[&key.jwk]);
    let header = json!({"alg": "ES256", "kid": "k1", "jwk": evil.jwk, "jku": "http://127.0.0.1:1/", "x5u": "http://127.0.0.1:1/"});
    assert_eq!(code(&tokens, &evil.sign(&header, &claims())).await, "bad_signature");
    let header = json!({"alg": "ES256", "kid": "k1", "crit": ["exp"]});
    assert_eq!(code(&tokens, &key.sign(&header, &claims())).await, "malformed_credentials");
}

#[tokio::test]
async fn what_is_wrong_with_a_token_has_a_name() {
    let key = key("k1");
    let tokens = tokens(&[&key.jwk]);
    for (claim, value, refused) in [
        ("exp", json!(NOW_MS / 1_000 - 60), "expired_token"),
        ("nbf", json!(NOW_MS / 1_000 + 3_600), "immature_token"),
        ("iss", json!("https://evil"), "wrong_issuer"),
        ("aud", json!("other"), "wrong_audience"),
        ("tenant", json!(null), "bad_claim"),
    ] {
        let mut changed = claims();
        changed[claim] = value;
        assert_eq!(code(&tokens, &key.sign(&header(), &changed)).await, refused);
    }
    let stranger = json!({"alg": "ES256", "kid": "k2"});
    assert_eq!(code(&tokens, &key.sign(&stranger, &claims())).await, "unknown_signing_key");
    let for_others = json!({"alg": "RS256", "kid": "k1"});
    assert_eq!(code(&tokens, &key.sign(&for_others, &claims())).await, "algorithm_refused");
    for garbage in ["..", "a.b.c", "e30.e30.", "bnVsbA.bnVsbA.bnVsbA"] {
        assert_eq!(code(&tokens, garbage).await, "malformed_credentials", "{garbage}");
    }
}

#[tokio::test]
async fn a_token_is_over_when_it_expires_or_its_key_is_taken_back() {
    let key = key("k1");
    let tokens = tokens(&[&key.jwk]);
    let token = key.token();
    assert_eq!(code(&tokens, &token).await, "known");
    let over = tokens.principal(&token, NOW_MS + 360_000).await.unwrap_err();
    assert_eq!(over.code(), "expired_token");
    tokens.provider.give(json!({"keys": [self::key("k1").jwk]}).to_string().as_bytes(), NOW_MS);
    assert_eq!(code(&tokens, &token).await, "bad_signature");
}

#[tokio::test]
async fn a_key_is_used_for_what_it_is_for() {
    let mut key = key("k1");
    for (field, value, refused) in [
        ("alg", "ES384", "algorithm_refused"),
        ("alg", "HS256", "algorithm_refused"),
        ("crv", "P-384", "algorithm_refused"),
        ("use", "enc", "unknown_signing_key"),
    ] {
        let before = std::mem::replace(&mut key.jwk[field], json!(value));
        assert_eq!(code(&tokens(&[&key.jwk]), &key.token()).await, refused, "{field}: {value}");
        match before {
            Value::Null => drop(key.jwk.as_object_mut().unwrap().remove(field)),
            before => key.jwk[field] = before,
        }
    }
    assert_eq!(code(&tokens(&[&key.jwk]), &key.token()).await, "known");
}

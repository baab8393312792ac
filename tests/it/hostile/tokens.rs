//! Tokens that somebody made up, changed, kept for too long or brought from
//! elsewhere.

use std::time::{SystemTime, UNIX_EPOCH};

use axum::{Json, Router, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::daemon::{Daemon, HTTP, Site};

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn token(header: &Value, claims: &Value, sign: impl Fn(&[u8]) -> Vec<u8>) -> String {
    let signed = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// A key pair, and the public half as a provider publishes it.
fn pair(kid: &str) -> (Ed25519KeyPair, Value) {
    let pair = Ed25519KeyPair::from_seed_unchecked(&rand::random::<[u8; 32]>()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key());
    (pair, json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "use": "sig", "alg": "EdDSA", "x": x}))
}

/// Status and code of a search and of an ingest with `token`.
async fn tried(daemon: &Daemon, token: &str) -> [(u16, String); 2] {
    let client = thalweg::http_client::local().unwrap();
    let mut answers = Vec::new();
    for (path, body) in [("search", json!({"query": "x"})), ("ingest", json!({"text": "let me in"}))] {
        let request = client.post(format!("{}/api/v1/{path}", daemon.http)).bearer_auth(token);
        let answer = request.json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        let told: Value = answer.json().await.unwrap();
        answers.push((status, told["code"].as_str().unwrap_or_default().to_owned()));
    }
    answers.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_gets_in_that_the_provider_did_not_sign_for_us_and_for_now() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let ((good, published), (forger, forged)) = (pair("a"), pair("a"));
    let keys = json!({"keys": [published]});
    let provider = Router::new().route("/jwks", get(async move || Json(keys)));
    tokio::spawn(async { axum::serve(listener, provider).await });
    let auth = format!(
        "[auth.jwt]\nissuer = \"{issuer}\"\naudience = \"thalweg\"\njwks_url = \"{issuer}/jwks\"\n\
         algorithms = [\"EdDSA\"]\n"
    );
    let site = Site::new(&format!("{HTTP}{auth}"));
    let daemon = site.start();

    let header = json!({"alg": "EdDSA", "kid": "a"});
    let claims = json!({
        "iss": issuer, "aud": "thalweg", "sub": "svc", "tenant": "acme", "roles": ["admin"], "tier": "unlimited",
        "exp": now_s() + 300,
    });
    let with = |more: Value| {
        let mut claims = claims.clone();
        more.as_object().unwrap().iter().for_each(|(name, value)| claims[name] = value.clone());
        claims
    };
    let headed = |more: Value| {
        let mut header = header.clone();
        more.as_object().unwrap().iter().for_each(|(name, value)| header[name] = value.clone());
        header
    };
    let sign = |bytes: &[u8]| good.sign(bytes).as_ref().to_vec();
    let forge = |bytes: &[u8]| forger.sign(bytes).as_ref().to_vec();
    let signed = |claims: Value| token(&header, &claims, sign);
    let fine = signed(claims.clone());
    let [head, body, signature] = fine.split('.').collect::<Vec<_>>().try_into().unwrap();
    let other_tenant = part(&with(json!({"tenant": "other"})));
    // The public key is known to all: as a secret it proves nothing.
    let public = hmac::Key::new(hmac::HMAC_SHA256, good.public_key().as_ref());
    let by_public = |bytes: &[u8]| hmac::sign(&public, bytes).as_ref().to_vec();
    let cases = [
        ("unsigned", token(&headed(json!({"alg": "none"})), &claims, |_| Vec::new()), "algorithm_refused"),
        (
            "unsigned, shouted",
            token(&headed(json!({"alg": "NONE"})), &claims, |_| Vec::new()),
            "algorithm_refused",
        ),
        ("none, signed", token(&headed(json!({"alg": "none"})), &claims, sign), "algorithm_refused"),
        ("no signature", format!("{head}.{body}."), "bad_signature"),
        ("another's signature", token(&header, &claims, forge), "bad_signature"),
        ("with its own key", token(&headed(json!({"jwk": forged})), &claims, forge), "bad_signature"),
        (
            "with its own address",
            token(&headed(json!({"jku": "http://127.0.0.1:1/"})), &claims, forge),
            "bad_signature",
        ),
        ("of no key", token(&json!({"alg": "EdDSA"}), &claims, forge), "bad_signature"),
        ("of an unknown key", token(&headed(json!({"kid": "b"})), &claims, forge), "unknown_signing_key"),
        (
            "of a file",
            token(&headed(json!({"kid": "../../etc/passwd"})), &claims, forge),
            "unknown_signing_key",
        ),
        ("of SQL", token(&headed(json!({"kid": "a' OR '1'='1"})), &claims, forge), "unknown_signing_key"),
        (
            "by the public key",
            token(&headed(json!({"alg": "HS256"})), &claims, by_public),
            "algorithm_refused",
        ),
        ("another algorithm", token(&headed(json!({"alg": "ES256"})), &claims, sign), "algorithm_refused"),
        ("another tenant put in", format!("{head}.{other_tenant}.{signature}"), "bad_signature"),
        (
            "a critical extension",
            token(&headed(json!({"crit": ["exp"]})), &claims, sign),
            "malformed_credentials",
        ),
        ("expired", signed(with(json!({"exp": now_s() - 120}))), "expired_token"),
        ("of tomorrow", signed(with(json!({"nbf": now_s() + 600}))), "immature_token"),
        ("without an end", signed(with(json!({"exp": null}))), "bad_claim"),
        ("with a word for an end", signed(with(json!({"exp": "never"}))), "bad_claim"),
        ("another issuer's", signed(with(json!({"iss": "https://id.example"}))), "wrong_issuer"),
        ("for others", signed(with(json!({"aud": ["billing"]}))), "wrong_audience"),
        ("for nobody", signed(with(json!({"aud": null}))), "wrong_audience"),
        ("of no tenant", signed(with(json!({"tenant": null}))), "bad_claim"),
        ("of several tenants", signed(with(json!({"tenant": ["acme", "other"]}))), "bad_claim"),
        ("of an empty tenant", signed(with(json!({"tenant": ""}))), "bad_claim"),
        ("very long", signed(with(json!({"padding": "x".repeat(9_000)}))), "malformed_credentials"),
        ("encrypted", format!("{head}.{body}.{signature}.a.b"), "malformed_credentials"),
    ];
    for (what, token, code) in &cases {
        for (status, told) in tried(&daemon, token).await {
            assert_eq!((status, told.as_str()), (401, *code), "{what}");
        }
    }
    let any = signed(with(json!({"tenant": "*"})));
    let client = thalweg::http_client::local().unwrap();
    let status = client.get(format!("{}/api/v1/status", daemon.http)).bearer_auth(any).send().await.unwrap();
    let status: Value = status.json().await.unwrap();
    assert_eq!(status["end_offset"], 0, "none of them brought anything: {status}");
    for (status, told) in tried(&daemon, &fine).await {
        assert_eq!(status, 200, "{told}");
    }
}

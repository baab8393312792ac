//! What is no text to be believed: SQL, operators, paths and bytes in every
//! place that takes a string; bodies that are not what they say.

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, HTTP, Site},
    postgres::{Database, server},
};

/// Each means something to somebody.
const STRINGS: [&str; 18] = [
    "'; DROP TABLE records; --",
    "' OR '1'='1",
    "\" OR \"\"=\"",
    "x' UNION SELECT digest FROM api_keys --",
    "\\'; SELECT pg_sleep(30); --",
    "$1",
    "?1; DELETE FROM thalweg.records",
    "%",
    "_",
    "*",
    "NULL",
    "nul\u{0}byte",
    "\"a\" NEAR(\"b\") AND",
    "text:* OR -(",
    "../../etc/passwd",
    "$(reboot) `reboot` {{7*7}} ${jndi:ldap://x}",
    "\r\nset-cookie: a=b",
    "\u{202e}\u{feff}𝕏 ́",
];

async fn post(daemon: &Daemon, path: &str, body: &Value) -> (u16, Value) {
    daemon.post(path, "application/json", body.to_string()).await
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Brings each string in each field, and asks for it everywhere.
async fn brought_and_asked_for(daemon: &Daemon) {
    for (n, odd) in STRINGS.iter().enumerate() {
        let text = format!("number {n} says {odd} and no more");
        let record = json!({
            "text": text, "tenant": odd, "session": odd, "id": odd, "source": odd,
            "attr": odd, *odd: odd, "deep": {*odd: [odd]},
        });
        let (status, answer) = post(daemon, "/api/v1/ingest", &record).await;
        assert_eq!(status, 200, "{odd:?}: {answer}");
        let (status, _) = post(daemon, "/api/v1/ingest", &json!({"text": "x", "tier": odd})).await;
        assert_eq!(status, 422, "{odd:?}");
    }
    daemon.derived(STRINGS.len() as u64).await;
    for (n, odd) in STRINGS.iter().enumerate() {
        for mode in ["union", "vector", "keyword"] {
            let request = json!({"query": odd, "tenant": odd, "session": odd, "mode": mode});
            let (status, answer) = post(daemon, "/api/v1/search", &request).await;
            assert_eq!(status, 200, "{odd:?} {mode}: {answer}");
        }
        let request = json!({"query": format!("number {n}"), "tenant": odd, "session": odd});
        let (status, answer) = post(daemon, "/api/v1/search", &request).await;
        let hits = answer["hits"].as_array().unwrap();
        assert_eq!((status, hits.len()), (200, 1), "{odd:?} is found in its own tenant only: {answer}");
        let says = hits[0]["text"].as_str().unwrap();
        assert!(says.starts_with(&format!("number {n} says ")), "{odd:?}: {says}");
        let none = json!({"query": "number", "tenant": "nobody", "session": odd});
        assert_eq!(post(daemon, "/api/v1/search", &none).await.1["hits"], json!([]), "{odd:?}");
    }
}

/// Asks for each string where a name or a number is meant; no answer is ours to
/// be ashamed of.
async fn refused_everywhere_else(daemon: &Daemon) {
    let client = thalweg::http_client::local().unwrap();
    for odd in STRINGS {
        let odd = encoded(odd);
        for path in [
            format!("/api/v1/artifacts/{odd}"),
            format!("/api/v1/dead-letters/{odd}"),
            format!("/api/v1/segments/{odd}"),
            format!("/api/v1/jobs/{odd}"),
            format!("/api/v1/jobs?cursor={odd}"),
            format!("/api/v1/jobs?kind={odd}"),
            format!("/api/v1/artifacts?cursor={odd}"),
            format!("/api/v1/dead-letters?limit={odd}"),
            format!("/api/v1/trail?{odd}={odd}"),
            format!("/api/v1/{odd}"),
        ] {
            let answer = client.get(format!("{}{path}", daemon.http)).send().await.unwrap();
            let status = answer.status().as_u16();
            assert!(
                (400..500).contains(&status) || path.starts_with("/api/v1/trail") && status == 200,
                "{path}: {status}"
            );
            assert!(!answer.headers().contains_key("set-cookie"), "{path}");
        }
    }
    for odd in STRINGS {
        for (path, body) in [
            ("/api/v1/jobs", json!({"kind": odd})),
            ("/api/v1/jobs", json!({"kind": "backup", "to": format!("/{odd}")})),
            ("/api/v1/replays", json!({"mode": odd})),
            ("/api/v1/query", json!({"about": odd})),
            ("/api/v1/simulate", json!({"work": odd})),
            ("/api/v1/search", json!({"query": "x", "tenant": "t", "mode": odd})),
            ("/api/v1/search", json!({"query": "x", "tenant": "t", "tiers": [odd]})),
            ("/api/v1/dead-letters/redrive", json!({"ids": [odd]})),
        ] {
            let (status, answer) = post(daemon, path, &body).await;
            assert_eq!(status, 400, "{path} {body}: {answer}");
        }
        let set = json!({"ids": [1], "set": {odd: odd, "tenant": odd, "tier": odd}});
        let (status, answer) = post(daemon, "/api/v1/dead-letters/redrive", &set).await;
        assert_eq!((status, &answer["outcomes"][0]["outcome"]), (200, &json!("kept")), "{odd:?}: {answer}");
    }
}

async fn withstands(store: &str) {
    let site = Site::new(&format!("{HTTP}{store}"));
    let daemon = site.start();
    brought_and_asked_for(&daemon).await;
    refused_everywhere_else(&daemon).await;
    let status = daemon.derived(STRINGS.len() as u64).await;
    assert_eq!(status["end_offset"], STRINGS.len(), "nothing came that was not brought: {status}");
    assert_eq!(status["derived"]["indexed"], STRINGS.len(), "nothing was taken away: {status}");
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_string_is_only_a_string_wherever_it_is_put() {
    withstands("").await;
    let Some(server) = server() else { return };
    let database = Database::new(&server).await;
    withstands(&database.settings()).await;
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_not_what_it_says_is_refused() {
    let site = Site::new(HTTP);
    let daemon = site.start();
    let record = json!({"text": "x"}).to_string();
    for kind in [
        "",
        "text/html",
        "text/plain",
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "application/jsonp",
        "application/xml",
        "*/*",
    ] {
        for path in ["/api/v1/ingest", "/api/v1/search", "/api/v1/jobs", "/api/v1/dead-letters/redrive"] {
            let (status, answer) = daemon.post(path, kind, record.clone()).await;
            assert_eq!(
                (status, &answer["code"]),
                (415, &json!("unsupported_content_type")),
                "{path} {kind:?}"
            );
        }
    }
    let bomb = zstd::bulk::compress(&vec![b' '; 512 << 20], 1).unwrap();
    let client = thalweg::http_client::local().unwrap();
    for path in ["search", "jobs", "query", "simulate", "replays", "dead-letters/redrive"] {
        for (encoding, body, status) in [
            ("zstd", bomb.clone(), 413),
            ("gzip", bomb.clone(), 400),
            ("zstd", record.clone().into_bytes(), 400),
        ] {
            let request =
                client.post(format!("{}/api/v1/{path}", daemon.http)).header("content-encoding", encoding);
            let answer = request.header("content-type", "application/json").body(body).send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "{path} {encoding}");
        }
    }
    for (kind, body) in [
        ("application/msgpack", record.clone()),
        ("application/json", "\u{0}\u{0}\u{0}\u{1}\u{1}".to_owned()),
        ("application/x-ndjson", "<html></html>".to_owned()),
    ] {
        let (status, answer) = daemon.post("/api/v1/ingest", kind, body).await;
        assert!(status == 400 || status == 422, "{kind}: {answer}");
    }
    assert_eq!(daemon.status().await["end_offset"], 0);
}

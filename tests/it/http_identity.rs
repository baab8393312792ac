//! Over HTTP nobody does what they have no right to, sees another tenant's
//! records, or asks more often than they may.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, HTTP, Site},
    identity::{KEYS, key},
    tools,
};

/// A request's answer, and its headers.
struct Answer {
    status: u16,
    code: String,
    body: Value,
    headers: reqwest::header::HeaderMap,
}

impl Answer {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn refusal(&self) -> (u16, &str) {
        (self.status, &self.code)
    }
}

async fn ask(daemon: &Daemon, key: &str, path: &str, body: Option<Value>) -> Answer {
    let client = thalweg::http_client::local().unwrap();
    let url = format!("{}{path}", daemon.http);
    let request = match body {
        Some(body) => client.post(url).json(&body),
        None => client.get(url),
    };
    let request = if key.is_empty() { request } else { request.bearer_auth(key) };
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap_or_default();
    let code = body["code"].as_str().unwrap_or_default().to_owned();
    Answer { status, code, body, headers }
}

fn site() -> Site {
    Site::new(&format!("{HTTP}{KEYS}"))
}

#[tokio::test]
async fn each_route_asks_for_its_right_and_says_which_is_missing() {
    let site = site();
    let (_, viewer) = key(&site, &["--role", "viewer"]);
    let (_, ingester) = key(&site, &["--role", "ingester"]);
    let (_, operator) = key(&site, &["--role", "operator"]);
    let (_, acme) = key(&site, &["--role", "admin", "--tenant", "acme"]);
    let daemon = site.start();
    let (search, record) = (json!({"query": "x", "tenant": "acme"}), json!({"text": "x", "tenant": "acme"}));
    for path in ["/api/v1/status", "/metrics", "/health/providers", "/api/v1/capabilities"] {
        let answer = ask(&daemon, "", path, None).await;
        assert_eq!(answer.refusal(), (401, "missing_credentials"), "{path}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    for open in ["/health", "/health/live", "/health/ready", "/api/v1/openapi.json"] {
        assert_eq!(ask(&daemon, "", open, None).await.status, 200, "{open}");
    }
    let cases = [
        (&viewer, "/api/v1/search", Some(&search), 200, ""),
        (&viewer, "/api/v1/status", None, 200, ""),
        (&viewer, "/api/v1/ingest", Some(&record), 403, "right_missing"),
        (&viewer, "/api/v1/dead-letters", None, 403, "right_missing"),
        (&ingester, "/api/v1/ingest", Some(&record), 200, ""),
        (&ingester, "/api/v1/search", Some(&search), 403, "right_missing"),
        (&operator, "/api/v1/jobs", None, 200, ""),
        (&operator, "/api/v1/trail", None, 403, "right_missing"),
        (&acme, "/api/v1/ingest", Some(&record), 200, ""),
        (&acme, "/api/v1/trail", None, 403, "all_tenants"),
        (&acme, "/api/v1/status", None, 403, "all_tenants"),
    ];
    for (key, path, body, status, code) in cases {
        let answer = ask(&daemon, key, path, body.cloned()).await;
        assert_eq!(answer.refusal(), (status, code), "{path}: {}", answer.body);
    }
    let detail = ask(&daemon, &viewer, "/api/v1/ingest", Some(record)).await.body["detail"].to_string();
    assert!(detail.contains("right to ingest") && detail.contains("ingester or admin"), "{detail}");
}

#[tokio::test]
async fn another_tenants_name_opens_nothing_in_any_field() {
    let site = site();
    let (_, admin) = key(&site, &["--role", "admin"]);
    let (_, acme) = key(&site, &["--role", "admin", "--tenant", "acme"]);
    let daemon = site.start();
    let secret = json!({"text": "the other's secret plan", "tenant": "other", "session": "s1", "id": "r1"});
    assert_eq!(ask(&daemon, &admin, "/api/v1/ingest", Some(secret)).await.status, 200);
    daemon_derived(&daemon, &admin, 1).await;
    let asked =
        ask(&daemon, &acme, "/api/v1/search", Some(json!({"query": "plan", "tenant": "other"}))).await;
    assert_eq!(asked.refusal(), (403, "tenant_forbidden"));
    for field in ["query", "session"] {
        let mut request = json!({"query": "secret plan", "session": null});
        for value in ["other", "s1", "' OR '1'='1", "other'; DROP TABLE records; --", "%", "*"] {
            request[field] = json!(value);
            let found = ask(&daemon, &acme, "/api/v1/search", Some(request.clone())).await;
            assert_eq!((found.status, &found.body["hits"]), (200, &json!([])), "{field} {value}");
        }
    }
    let theirs =
        ask(&daemon, &acme, "/api/v1/ingest", Some(json!({"text": "planted", "tenant": "other"}))).await;
    assert_eq!((theirs.status, &theirs.body["errors"][0]["code"]), (422, &json!("tenant_forbidden")));
    let own = ask(&daemon, &acme, "/api/v1/ingest", Some(json!({"text": "a plan of our own"}))).await;
    assert_eq!(own.status, 200, "{}", own.body);
    daemon_derived(&daemon, &admin, 2).await;
    let found = ask(&daemon, &acme, "/api/v1/search", Some(json!({"query": "plan"}))).await;
    let tenants: Vec<_> =
        found.body["hits"].as_array().unwrap().iter().map(|hit| hit["tenant"].clone()).collect();
    assert_eq!(tenants, ["acme"]);
    // With an Idempotency-Key of the other's, a request has no answer of theirs.
    let client = thalweg::http_client::local().unwrap();
    let send = async |key: &str, text: &str| {
        let request = client.post(format!("{}/api/v1/ingest", daemon.http)).bearer_auth(key);
        let request =
            request.header("idempotency-key", "same").json(&json!({"text": text, "tenant": "acme"}));
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((send(&admin, "one").await, send(&acme, "two").await), (200, 200));
}

async fn daemon_derived(daemon: &Daemon, key: &str, end: u64) {
    crate::daemon::eventually("it is derived", async || {
        let status = ask(daemon, key, "/api/v1/status", None).await.body;
        status["derived"]["next_offset"].as_u64() >= Some(end)
    })
    .await;
}

#[tokio::test]
async fn acts_and_refusals_are_in_the_trail() {
    let site = site();
    let (id, operator) = key(&site, &["--role", "operator"]);
    let (_, acme) = key(&site, &["--role", "viewer", "--tenant", "acme"]);
    let (_, admin) = key(&site, &["--role", "admin"]);
    let daemon = site.start();
    assert_eq!(ask(&daemon, &operator, "/api/v1/jobs", Some(json!({"kind": "audit"}))).await.status, 202);
    let others = json!({"query": "x", "tenant": "other"});
    assert_eq!(
        ask(&daemon, &acme, "/api/v1/search", Some(others)).await.refusal(),
        (403, "tenant_forbidden")
    );
    for _ in 0..50 {
        assert_eq!(ask(&daemon, &operator, "/api/v1/trail", None).await.status, 403);
        assert_eq!(
            ask(&daemon, "tw_x", "/api/v1/trail", None).await.refusal(),
            (401, "malformed_credentials")
        );
    }
    let mut rows = Vec::new();
    crate::daemon::eventually("the refusals are written down", async || {
        let page = ask(&daemon, &admin, "/api/v1/trail?limit=1000", None).await.body;
        rows = page["items"].as_array().unwrap().clone();
        rows.iter().any(|row| row["detail"] == "right_missing")
            && rows.iter().any(|row| row["detail"] == "malformed_credentials")
            && rows.iter().any(|row| row["detail"] == "tenant_forbidden" && row["act"] == "search")
    })
    .await;
    let asked = rows.iter().find(|row| row["act"] == "jobs.ask").unwrap();
    assert_eq!((&asked["principal"], &asked["subject"]), (&json!(id), &json!("audit")));
    assert_eq!(asked["peer"], "127.0.0.1");
    assert!(asked["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{asked}");
    assert!(rows.len() < 30, "a flood of refusals has {} rows", rows.len());
    assert!(!serde_json::to_string(&rows).unwrap().contains(&operator));
}

#[tokio::test]
async fn who_may_not_bring_records_may_send_dead_letters_again_but_not_say_what_is_in_them() {
    let site = site();
    let (_, operator) = key(&site, &["--role", "operator"]);
    let (_, admin) = key(&site, &["--role", "admin"]);
    let daemon = site.start();
    let bad = json!({"text": "x", "tenant": "acme", "tier": "docs"});
    assert_eq!(ask(&daemon, &admin, "/api/v1/ingest", Some(bad)).await.status, 422);
    let letters = ask(&daemon, &operator, "/api/v1/dead-letters", None).await.body;
    let id = &letters["items"][0]["id"];
    let redrive = async |key: &str, set: Value| {
        ask(&daemon, key, "/api/v1/dead-letters/redrive", Some(json!({"ids": [id], "set": set}))).await
    };
    for set in [json!({"tier": "doc"}), json!({"text": "planted"}), json!({"tenant": "other", "tier": "doc"})]
    {
        let refused = redrive(&operator, set).await;
        assert_eq!(refused.refusal(), (403, "right_missing"), "{}", refused.body);
        assert!(refused.body["detail"].as_str().unwrap().contains("right to ingest"), "{}", refused.body);
    }
    let plain = redrive(&operator, json!({})).await;
    assert_eq!((plain.status, &plain.body["outcomes"][0]["outcome"]), (200, &json!("kept")));
    let mended = redrive(&admin, json!({"tier": "doc"})).await;
    assert_eq!((mended.status, &mended.body["outcomes"][0]["outcome"]), (200, &json!("redriven")));
}

#[tokio::test]
async fn what_fails_within_the_daemon_is_told_to_those_only_who_may_see_where_it_stands() {
    let site = Site::new(&format!("{HTTP}{KEYS}[redis]\nurl = \"redis://127.0.0.1:1/\"\n"));
    let (_, viewer) = key(&site, &["--role", "viewer"]);
    let (_, acme) = key(&site, &["--role", "admin", "--tenant", "acme"]);
    let daemon = site.start();
    let reasons = async |key: &str| ask(&daemon, key, "/health/ready", None).await.body["reasons"].clone();
    crate::daemon::eventually("Redis is found to be away", async || reasons("").await == json!(["redis"]))
        .await;
    assert_eq!(reasons(&acme).await, json!(["redis"]), "who speaks for one tenant is a stranger here");
    assert_eq!(reasons("tw_x").await, json!(["redis"]));
    let told = reasons(&viewer).await;
    assert!(
        told[0].as_str().unwrap().starts_with("redis: ") && told[0].as_str().unwrap().len() > 20,
        "{told}"
    );

    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(site.database());
    let mut database = sqlx::ConnectOptions::connect(&options).await.unwrap();
    sqlx::query("ALTER TABLE tenants RENAME TO elsewhere").execute(&mut database).await.unwrap();
    let search = async |key: &str| {
        ask(&daemon, key, "/api/v1/search", Some(json!({"query": "x", "tenant": "acme"}))).await
    };
    let (full, short) = (search(&viewer).await, search(&acme).await);
    assert_eq!((full.refusal(), short.refusal()), ((500, "store_failed"), (500, "store_failed")));
    let detail = |answer: &Answer| answer.body["detail"].as_str().unwrap().to_owned();
    assert!(detail(&full).contains("no such table"), "{}", full.body);
    assert!(!detail(&short).contains("table"), "{}", short.body);
    let log = daemon.log();
    let mut of_request = log.lines().filter(|line| line.contains(short.header("x-request-id")));
    assert!(of_request.any(|line| line.contains("no such table")), "{log}");
}

#[tokio::test]
async fn a_tenant_has_its_requests_a_minute_and_learns_what_is_left() {
    let site = Site::new(&format!(
        "{HTTP}{KEYS}[limits]\nfree = 3\nendpoints.\"/api/v1/search\" = {{ free = 1 }}\n"
    ));
    let (_, one) = key(&site, &["--role", "admin", "--tenant", "acme", "--tier", "free"]);
    let (_, two) = key(&site, &["--role", "admin", "--tenant", "acme", "--tier", "free"]);
    let (_, other) = key(&site, &["--role", "admin", "--tenant", "other", "--tier", "free"]);
    let (_, unlimited) = key(&site, &["--role", "admin", "--tier", "unlimited"]);
    let daemon = site.start();
    let mut left = Vec::new();
    for key in [&one, &two, &one] {
        let answer = ask(&daemon, key, "/api/v1/capabilities", None).await;
        assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, "3"));
        left.push(answer.header("x-ratelimit-remaining").to_owned());
    }
    assert_eq!(left, ["2", "1", "0"]);
    let refused = ask(&daemon, &two, "/api/v1/capabilities", None).await;
    assert_eq!(refused.refusal(), (429, "rate_limited"));
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait}");
    assert!((1..=60).contains(&refused.header("x-ratelimit-reset").parse::<u64>().unwrap()));
    assert_eq!(ask(&daemon, &other, "/api/v1/capabilities", None).await.status, 200);
    // Counted by itself, whatever else was asked for.
    let search = || Some(json!({"query": "x"}));
    assert_eq!(ask(&daemon, &one, "/api/v1/search", search()).await.status, 200);
    assert_eq!(ask(&daemon, &two, "/api/v1/search", search()).await.status, 429);
    for _ in 0..20 {
        let answer = ask(&daemon, &unlimited, "/api/v1/status", None).await;
        assert_eq!((answer.status, answer.header("x-ratelimit-limit")), (200, ""));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_replaced_is_shown_to_the_next_connection() {
    let site = Site::new("");
    let folder = |name: &str| {
        let folder = site.path(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    };
    let (Some(first), Some(second)) = (tools::certificate(&folder("a")), tools::certificate(&folder("b")))
    else {
        return;
    };
    let (cert, key) = (site.path("cert.pem"), site.path("key.pem"));
    let install = |(from_cert, from_key): &(std::path::PathBuf, std::path::PathBuf)| {
        fs::copy(from_cert, &cert).unwrap();
        fs::copy(from_key, &key).unwrap();
    };
    install(&first);
    let text = fs::read_to_string(site.pipeline()).unwrap();
    let tls = format!("[http]\ntls = {{ cert = {cert:?}, key = {key:?} }}\n");
    fs::write(site.pipeline(), text.replace("[http]\n", &tls) + HTTP).unwrap();
    let daemon = site.start();
    let address = daemon.http.trim_start_matches("http://").to_owned();
    let trusts = |ca: &std::path::Path| {
        let client = ["s_client", "-connect", &address, "-verify_return_error", "-brief", "-CAfile"];
        let done = Command::new("openssl").args(client).arg(ca).stdin(Stdio::null()).output().unwrap();
        done.status.success()
    };
    assert!(trusts(&first.0) && !trusts(&second.0));
    // Half of a pair is on its way: the one before it stays.
    fs::copy(&second.0, &cert).unwrap();
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(trusts(&first.0));
    install(&second);
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(trusts(&second.0) && !trusts(&first.0));
    let mut plain = TcpStream::connect(&address).unwrap();
    plain.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "{answer:?}");
}

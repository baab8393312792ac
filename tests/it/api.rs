//! The HTTP interface as a stranger meets it: its errors, its lists, its
//! bounds, and its own account of itself.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use thalweg::store::NewDeadLetter;

use crate::{
    daemon::{Daemon, HTTP, SOON, Site},
    tools,
};

/// A running daemon with an `http` source, and the folder that it is in.
struct Running {
    daemon: Daemon,
    _site: Site,
}

impl std::ops::Deref for Running {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

fn daemon() -> Running {
    let site = Site::new(HTTP);
    Running { daemon: site.start(), _site: site }
}

/// With `more` in the section `[http]`.
fn daemon_with_http(more: &str) -> Running {
    let site = Site::new(HTTP);
    let text = fs::read_to_string(site.pipeline()).unwrap();
    fs::write(site.pipeline(), text.replace("[http]\n", &format!("[http]\n{more}\n"))).unwrap();
    Running { daemon: site.start(), _site: site }
}

fn client() -> reqwest::Client {
    thalweg::http_client::local().unwrap()
}

impl Running {
    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.http)
    }

    fn address(&self) -> &str {
        self.http.trim_start_matches("http://")
    }
}

fn lines(count: usize) -> String {
    (0..count).map(|n| format!("{{\"text\":\"record number {n} of many\",\"tenant\":\"acme\"}}\n")).collect()
}

async fn ingest(daemon: &Running, body: String) {
    let sent =
        client().post(daemon.url("/api/v1/ingest")).header("content-type", "application/x-ndjson").body(body);
    let answer = sent.send().await.unwrap();
    assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
}

async fn get(daemon: &Running, path: &str) -> Value {
    let answer = client().get(daemon.url(path)).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{path}");
    answer.json().await.unwrap()
}

async fn post(daemon: &Running, path: &str, body: Value) -> (u16, Value) {
    let answer = client().post(daemon.url(path)).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// What a socket answers to `bytes`, up to its end or `patience`.
fn raw(daemon: &Running, bytes: &[u8], patience: Duration) -> String {
    let mut socket = TcpStream::connect(daemon.address()).unwrap();
    socket.set_read_timeout(Some(patience)).unwrap();
    let _ = socket.write_all(bytes);
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn every_error_is_a_problem_with_a_code_and_the_requests_id() {
    let daemon = daemon();
    let client = client();
    let search = || client.post(daemon.url("/api/v1/search")).header("x-request-id", "it-1");
    let cases = [
        (search().body("{}"), 415, "unsupported_content_type"),
        (search().header("content-type", "application/json").body("{"), 400, "bad_request"),
        (search().json(&json!({"query": "x"})), 400, "tenant_missing"),
        (search().json(&json!({"query": "x", "tenant": "a", "limit": 5_000})), 400, "bad_query"),
        (search().header("content-encoding", "br").json(&json!({})), 415, "unsupported_encoding"),
        (client.get(daemon.url("/api/v1/nothing")).header("x-request-id", "it-1"), 404, "not_found"),
        (client.put(daemon.url("/api/v1/search")).header("x-request-id", "it-1"), 405, "method_not_allowed"),
        (client.get(daemon.url("/api/v1/jobs/7")).header("x-request-id", "it-1"), 404, "not_found"),
        (client.get(daemon.url("/api/v1/jobs/x")).header("x-request-id", "it-1"), 400, "bad_parameter"),
        (client.get(daemon.url("/api/v1/jobs?limit=0")).header("x-request-id", "it-1"), 400, "bad_parameter"),
        (client.get(daemon.url("/api/v1/jobs?cursor=!")).header("x-request-id", "it-1"), 400, "bad_cursor"),
    ];
    for (request, status, code) in cases {
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{code}");
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{code}");
        assert_eq!(answer.headers()["x-request-id"], "it-1", "{code}");
        let problem: Value = answer.json().await.unwrap();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["type"], format!("urn:thalweg:problem:{code}"));
        assert_eq!((&problem["status"], &problem["request_id"]), (&json!(status), &json!("it-1")));
    }
}

#[tokio::test]
async fn a_problem_that_was_kept_is_whole_and_has_the_id_of_the_request_it_answers() {
    let daemon = daemon();
    for (id, replayed) in [("it-1", false), ("it-2", true)] {
        let request = client().post(daemon.url("/api/v1/ingest")).header("x-request-id", id);
        let request = request.header("content-type", "application/json").header("idempotency-key", "one");
        let answer = request.body("{").send().await.unwrap();
        assert_eq!(answer.status(), 400);
        assert_eq!(answer.headers().contains_key("idempotent-replayed"), replayed);
        let problem: Value = answer.json().await.unwrap();
        assert_eq!((&problem["code"], &problem["request_id"]), (&json!("not_json"), &json!(id)));
        assert_eq!(problem["type"], "urn:thalweg:problem:not_json");
    }
}

#[tokio::test]
async fn a_list_comes_in_pages_and_a_dead_letter_can_be_mended_and_sent_again() {
    let daemon = daemon();
    for n in 0..5 {
        let (status, _) =
            post(&daemon, "/api/v1/ingest", json!({"text": format!("number {n}"), "tier": "docs"})).await;
        assert_eq!(status, 422);
    }
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(&daemon, &format!("/api/v1/dead-letters?limit=2{cursor}")).await;
        ids.extend(page["items"].as_array().unwrap().iter().map(|letter| letter["id"].as_i64().unwrap()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(ids.len(), 5);
    let whole = get(&daemon, &format!("/api/v1/dead-letters/{}", ids[0])).await;
    assert_eq!((&whole["code"], whole["payload"].is_string()), (&json!("unknown_tier"), true));
    let body = json!({"ids": [ids[0], ids[1], 999], "set": {"tier": "doc"}});
    let (status, redriven) = post(&daemon, "/api/v1/dead-letters/redrive", body.clone()).await;
    let outcomes = |redriven: &Value| -> Vec<String> {
        let outcomes = redriven["outcomes"].as_array().unwrap();
        outcomes.iter().map(|one| one["outcome"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        (status, outcomes(&redriven)),
        (200, ["redriven", "redriven", "kept"].map(String::from).to_vec())
    );
    let (_, again) = post(&daemon, "/api/v1/dead-letters/redrive", body).await;
    assert_eq!(outcomes(&again), ["kept"; 3]);
    assert_eq!(get(&daemon, "/api/v1/status").await["end_offset"], 2);
}

#[tokio::test]
async fn what_a_redrive_does_not_get_done_in_time_is_left_and_nothing_is_sent_twice() {
    const COUNT: usize = 1_000;
    let site = Site::new(HTTP);
    let text = fs::read_to_string(site.pipeline()).unwrap();
    fs::write(site.pipeline(), text.replace("[http]\n", "[http]\nrequest_timeout = \"1s\"\n")).unwrap();
    let daemon = Running { daemon: site.start(), _site: site };
    let store = daemon._site.store().await;
    let payload = rmp_serde::to_vec_named(&json!({"text": "x".repeat(20_000), "tier": "docs"})).unwrap();
    let mut left = Vec::new();
    for _ in 0..COUNT {
        let letter = NewDeadLetter {
            pipeline: "it".into(),
            code: "unknown_tier".into(),
            payload: Some(payload.clone()),
            ..NewDeadLetter::default()
        };
        left.push(store.add_dead_letter(&letter).await.unwrap());
    }
    let (mut rounds, mut redriven) = (0, 0);
    while !left.is_empty() {
        let body = json!({"ids": left, "set": {"tier": "doc"}});
        let (status, answer) = post(&daemon, "/api/v1/dead-letters/redrive", body).await;
        assert_eq!(status, 200, "{answer}");
        let outcomes = answer["outcomes"].as_array().unwrap();
        assert_eq!(outcomes.len(), left.len());
        redriven += outcomes.iter().filter(|one| one["outcome"] == "redriven").count();
        outcomes
            .iter()
            .for_each(|one| assert!(one["outcome"] == "redriven" || one["outcome"] == "left", "{one}"));
        let rest = outcomes.iter().filter(|one| one["outcome"] == "left");
        left = rest.map(|one| one["id"].as_i64().unwrap()).collect();
        rounds += 1;
    }
    println!("{rounds} rounds");
    assert_eq!(redriven, COUNT);
    assert_eq!(get(&daemon, "/api/v1/status").await["end_offset"], COUNT);
}

#[tokio::test]
async fn an_agent_learns_what_can_be_done_where_a_record_is_and_what_work_would_cost() {
    let daemon = daemon();
    let (_, nothing) = post(&daemon, "/api/v1/simulate", json!({"work": "ingest", "records": 1_000})).await;
    assert!(nothing["tokens"].is_null(), "{nothing}");
    ingest(&daemon, lines(100)).await;
    daemon.derived(100).await;
    let can = get(&daemon, "/api/v1/capabilities").await;
    let paths: Vec<_> = can["operations"].as_array().unwrap().iter().map(|one| one["path"].clone()).collect();
    assert!(paths.contains(&json!("/api/v1/search")) && paths.contains(&json!("/api/v1/replays")));
    let (_, found) = post(&daemon, "/api/v1/query", json!({"about": "record", "offset": 7})).await;
    let record = &found["record"];
    assert_eq!(
        (&record["fate"], &record["chunks"], &record["vectors"]),
        (&json!("indexed"), &json!(1), &json!(1))
    );
    let (_, beyond) = post(&daemon, "/api/v1/query", json!({"about": "record", "offset": u64::MAX})).await;
    assert_eq!(beyond["record"]["fate"], "unknown");
    let (_, estimate) = post(&daemon, "/api/v1/simulate", json!({"work": "ingest", "records": 1_000})).await;
    assert_eq!((&estimate["chunks"], &estimate["cost"]), (&json!(1_000), &json!(0.0)), "{estimate}");
    assert!(estimate["tokens"].as_u64().unwrap() > 1_000 && estimate["seconds"].as_f64().unwrap() > 0.0);
    let (_, replay) = post(&daemon, "/api/v1/simulate", json!({"work": "replay", "from": 10})).await;
    assert_eq!((&replay["records"], &replay["tokens"]), (&json!(90), &json!(0)), "{replay}");
}

#[tokio::test]
async fn a_job_that_is_asked_for_is_done_and_told_of() {
    let daemon = daemon();
    ingest(&daemon, lines(50)).await;
    daemon.derived(50).await;
    let (status, job) = post(&daemon, "/api/v1/replays", json!({"mode": "verify"})).await;
    assert_eq!((status, &job["kind"]), (202, &json!("replay")));
    let path = format!("/api/v1/jobs/{}", job["id"]);
    let deadline = Instant::now() + SOON;
    let done = loop {
        let job = get(&daemon, &path).await;
        if job["state"] != "queued" && job["state"] != "running" {
            break job;
        }
        assert!(Instant::now() < deadline, "{job}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(done["state"], "done", "{done}");
    let cancelled = client().delete(daemon.url(&path)).send().await.unwrap();
    assert_eq!(cancelled.status(), 409);
    let (status, refused) = post(&daemon, "/api/v1/jobs", json!({"kind": "backup", "to": "/etc"})).await;
    assert_eq!((status, &refused["code"]), (400, &json!("path_forbidden")));
    assert!(get(&daemon, "/api/v1/schedules").await["schedules"].is_array());
}

#[tokio::test]
async fn bodies_may_be_compressed_and_bombs_are_refused_at_their_limit() {
    let daemon = daemon();
    let client = client();
    let send = |encoding: &'static str, body: Vec<u8>| {
        client
            .post(daemon.url("/api/v1/ingest"))
            .header("content-type", "application/x-ndjson")
            .header("content-encoding", encoding)
            .body(body)
            .send()
    };
    let zstd = |bytes: &[u8]| zstd::bulk::compress(bytes, 3).unwrap();
    assert_eq!(send("zstd", zstd(lines(10).as_bytes())).await.unwrap().status(), 200);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    };
    assert_eq!(send("gzip", gzip(lines(10).as_bytes())).await.unwrap().status(), 200);
    let bomb = vec![b' '; 200 << 20];
    for (encoding, body) in [("zstd", zstd(&bomb)), ("gzip", gzip(&bomb))] {
        assert!(body.len() < 2 << 20);
        let started = Instant::now();
        assert_eq!(send(encoding, body).await.unwrap().status(), 413, "{encoding}");
        assert!(started.elapsed() < Duration::from_secs(10), "{encoding}");
    }
    assert_eq!(send("gzip", b"no gzip".to_vec()).await.unwrap().status(), 400);
    let compressed = client.get(daemon.url("/api/v1/openapi.json")).header("accept-encoding", "zstd");
    assert_eq!(compressed.send().await.unwrap().headers()["content-encoding"], "zstd");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_huge_and_json_that_is_deep_are_refused() {
    let daemon = daemon();
    let huge = format!("GET /health HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(200 << 10));
    let answer = raw(&daemon, huge.as_bytes(), SOON);
    assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
    let deep = "[".repeat(200_000);
    let answer = client()
        .post(daemon.url("/api/v1/search"))
        .header("content-type", "application/json")
        .body(deep)
        .send();
    assert_eq!(answer.await.unwrap().status(), 400);
    for path in ["/api/v1/../../etc/passwd", "/api/v1/artifacts/..%2f..%2fetc%2fpasswd", "/%2e%2e/%2e%2e/etc"]
    {
        let answer = raw(
            &daemon,
            format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
            SOON,
        );
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    assert_eq!(get(&daemon, "/health/live").await["status"], "live");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_too_many_is_told_so_at_once_and_those_that_are_open_go_on() {
    let daemon = daemon_with_http("max_connections = 3");
    let held: Vec<_> = (0..3).map(|_| TcpStream::connect(daemon.address()).unwrap()).collect();
    std::thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    let answer = raw(&daemon, b"", Duration::from_secs(5));
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("too_many_connections"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(2));
    drop(held);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(get(&daemon, "/health/live").await["status"], "live");
}

#[test]
fn a_head_that_trickles_is_cut_off_in_its_time_and_others_are_answered_meanwhile() {
    let daemon = daemon_with_http("max_connections = 20");
    let is_open = |socket: &mut TcpStream| {
        let read = socket.read(&mut [0; 512]);
        read.is_err_and(|error| matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    };
    let trickle = || {
        let mut socket = TcpStream::connect(daemon.address()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        socket.write_all(b"GET /health/live HTTP/1.1\r\n").unwrap();
        socket
    };
    let mut trickling: Vec<_> = (0..10).map(|_| trickle()).collect();
    let started = Instant::now();
    while !trickling.is_empty() {
        trickling.retain_mut(|socket| socket.write_all(b"x: y\r\n").is_ok() && is_open(socket));
        let answer = raw(&daemon, b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", SOON);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(started.elapsed() < Duration::from_secs(50), "{} heads trickle on", trickling.len());
        std::thread::sleep(Duration::from_secs(2));
    }
}

/// Anything but an answer of the document is a fault of ours: schemathesis
/// asks what nobody would.
#[test]
fn schemathesis_finds_no_server_error_and_no_undocumented_answer() {
    let daemon = daemon();
    let checks =
        "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";
    let found = Command::new(tools::schemathesis())
        .args(["run", &daemon.url("/api/v1/openapi.json"), "--checks", checks])
        .args(["--max-examples", "20", "--seed", "1", "--workers", "2", "--no-color"])
        .output()
        .unwrap();
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stdout));
}

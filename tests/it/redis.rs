//! Daemons that share a Redis, and what becomes of them when it is killed,
//! hangs, or is something else: a real `redis-server` per test.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures::future::join_all;
use serde_json::{Value, json};

use crate::{
    backfill::{Service, counts, ingest},
    daemon::{Daemon, HTTP, Site, eventually},
    identity::{KEYS, key},
    tools,
};

/// A Redis of one test. Killed when dropped.
pub struct Server {
    port: u16,
    more: Vec<String>,
    child: Option<Child>,
    folder: tempfile::TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Server {
    /// `None`, said loudly, where there is no `redis-server`.
    pub async fn start(more: &[&str]) -> Option<Self> {
        let mut server = Self::absent(more)?;
        server.begin().await;
        Some(server)
    }

    /// One that is not there yet, at a port that nobody has.
    fn absent(more: &[&str]) -> Option<Self> {
        let version = Command::new("redis-server").arg("--version").output();
        if !version.is_ok_and(|done| done.status.success()) {
            eprintln!(
                "SKIPPED: redis-server is missing, so nothing was tested (Debian: apt-get install redis-server)"
            );
            return None;
        }
        let (more, folder) = (more.iter().map(ToString::to_string).collect(), tempfile::tempdir().unwrap());
        Some(Self { port: free_port(), more, child: None, folder })
    }

    async fn begin(&mut self) {
        let child = Command::new("redis-server")
            .args([
                "--port",
                &self.port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "yes",
            ])
            .args(&self.more)
            .arg("--dir")
            .arg(self.folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        let port = self.port;
        eventually("redis-server answers", async || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        })
        .await;
    }

    /// Where it listens on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Every key with its value, as Redis itself would write them down.
    pub fn everything(&self, password: &str) -> Vec<u8> {
        let client = redis::Client::open(format!("redis://:{password}@127.0.0.1:{}", self.port)).unwrap();
        let mut connection = client.get_connection().unwrap();
        let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut connection).unwrap();
        let dump = |key: Vec<u8>| {
            let value: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query(&mut connection).unwrap();
            [key, value.unwrap_or_default()].concat()
        };
        keys.into_iter().flat_map(dump).collect()
    }

    fn section(&self) -> String {
        // Tests share two cores with each other: slow is not dead there.
        format!("[redis]\nurl = \"redis://127.0.0.1:{}\"\ntimeout = \"2s\"\ntrigger = \"wake\"\n", self.port)
    }

    fn ask<T: redis::FromRedisValue>(&self, words: &[&[u8]]) -> T {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port)).unwrap();
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        command.query(&mut client.get_connection().unwrap()).unwrap()
    }

    fn keys(&self, kind: &str) -> Vec<String> {
        self.ask(&[b"KEYS", format!("thalweg:{kind}:*").as_bytes()])
    }

    fn signal(&self, signal: i32) {
        let pid = self.child.as_ref().unwrap().id().cast_signed();
        // SAFETY: `kill` touches no memory; the child is not waited for yet.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The value of a metric; 0 if nothing was counted.
async fn metric(daemon: &Daemon, name: &str) -> f64 {
    let (_, text) = daemon.get("/metrics").await;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    line.map_or(0.0, |line| line.split_whitespace().last().unwrap().parse().unwrap())
}

async fn health(daemon: &Daemon) -> Value {
    let (status, body) = daemon.get("/health/ready").await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

async fn is_degraded(daemon: &Daemon) -> bool {
    let health = health(daemon).await;
    let of_redis = |reason: &Value| reason.as_str().unwrap().starts_with("redis: ");
    let told = health["reasons"].as_array().unwrap().iter().any(of_redis);
    assert_eq!(told, health["status"] == "degraded", "{health}");
    told
}

fn said(daemon: &Daemon, what: &str) -> usize {
    daemon.log().matches(what).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_daemon_with_an_empty_store_pays_nothing_for_texts_that_the_first_embedded() {
    let Some(server) = Server::start(&[]).await else { return };
    let service = Service::start().await;
    let site = || service.site("", &server.section());
    let first_site = site();
    let first = first_site.start();
    ingest(&first, 0..60).await;
    first.derived(60).await;
    assert_eq!(service.paid().len(), 60);
    first.stop_drained();
    let keys = server.keys("vector");
    assert_eq!(keys.len(), 60, "drained at the stop");
    for key in &keys {
        let ttl: i64 = server.ask(&[b"TTL", key.as_bytes()]);
        assert!((7 * 86_400 - 60..=7 * 86_400).contains(&ttl), "{ttl}");
    }
    let second_site = site();
    let second = second_site.start();
    ingest(&second, 0..60).await;
    second.derived(60).await;
    assert_eq!(counts(&second).await, (60, 0));
    assert_eq!(service.paid().len(), 60, "nothing was paid for again");
    assert_eq!(metric(&second, "embed_cache_hits_total{tier=\"redis\"}").await, 60.0);
    assert_eq!(server.keys("vector").len(), 60);
    second.stop_drained();
    // What the rows have is given to Redis as well.
    server.ask::<String>(&[b"FLUSHALL"]);
    let again = second_site.start();
    let others = |n| json!({"id": format!("other {n}"), "tenant": "default", "text": format!("record {n} is about water")});
    let body: String = (0..60).map(|n| format!("{}\n", others(n))).collect();
    assert_eq!(again.post("/api/v1/ingest", "application/x-ndjson", body).await.0, 200);
    again.derived(120).await;
    assert_eq!(metric(&again, "embed_cache_hits_total{tier=\"store\"}").await, 60.0);
    again.stop_drained();
    assert_eq!((service.paid().len(), server.keys("vector").len()), (60, 60));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_and_foreign_values_are_misses_and_mended() {
    let Some(server) = Server::start(&[]).await else { return };
    let service = Service::start().await;
    let site = || service.site("", &server.section());
    let first_site = site();
    let first = first_site.start();
    ingest(&first, 0..20).await;
    first.derived(20).await;
    first.stop_drained();
    let keys = server.keys("vector");
    let value: Vec<u8> = server.ask(&[b"GET", keys[0].as_bytes()]);
    let mut flipped = value.clone();
    flipped[9] ^= 1;
    for (key, value) in keys.iter().zip([&flipped[..], &value[..12], b"", b"what else is here"]) {
        server.ask::<String>(&[b"SET", key.as_bytes(), value]);
    }
    // Of another text, and of another type.
    server.ask::<String>(&[b"SET", keys[4].as_bytes(), &value]);
    server.ask::<i64>(&[b"DEL", keys[5].as_bytes()]);
    server.ask::<i64>(&[b"RPUSH", keys[5].as_bytes(), b"a list"]);
    let second_site = site();
    let second = second_site.start();
    ingest(&second, 0..20).await;
    second.derived(20).await;
    assert_eq!(service.paid().len(), 26);
    assert_eq!(metric(&second, "embed_cache_damaged_total").await, 5.0);
    assert!(!is_degraded(&second).await);
    second.stop_drained();
    let mended: Vec<u8> = server.ask(&[b"GET", keys[0].as_bytes()]);
    assert_eq!(mended, value);
}

/// Sends batches of new records, one after the other.
async fn load(daemon: &Daemon, from: usize, batches: usize) -> Duration {
    let started = Instant::now();
    for batch in 0..batches {
        let from = from + 10 * batch;
        ingest(daemon, from..from + 10).await;
        daemon.derived(from as u64 + 10).await;
    }
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_killed_or_hangs_costs_little_time_and_nothing_else() {
    let Some(mut server) = Server::start(&[]).await else { return };
    let service = Service::start().await;
    let site = service.site("", &server.section());
    let daemon = site.start();
    load(&daemon, 0, 5).await;
    assert!(!is_degraded(&daemon).await);
    for round in 1..=2 {
        let from = 50 + 400 * (round - 1);
        let killing = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            server.kill();
        };
        tokio::join!(load(&daemon, from, 20), killing);
        assert!(is_degraded(&daemon).await);
        assert_eq!(metric(&daemon, "redis_up").await, 0.0);
        server.begin().await;
        eventually("Redis is back", async || !is_degraded(&daemon).await).await;
        // It hangs: the connection stands, and nobody answers.
        server.signal(libc::SIGSTOP);
        let failures = metric(&daemon, "redis_failures_total").await;
        let took = load(&daemon, from + 200, 20).await;
        let failures = metric(&daemon, "redis_failures_total").await - failures;
        eprintln!("20 batches in {took:?} while Redis hung: {failures} time-outs of 2 s");
        assert!(is_degraded(&daemon).await);
        // One for the loss, and tries that no batch waits for; else each batch
        // would wait 2 s.
        assert!(took < Duration::from_secs(20) && failures < 12.0, "{failures} time-outs, {took:?}");
        server.signal(libc::SIGCONT);
        eventually("Redis is back", async || !is_degraded(&daemon).await).await;
        assert_eq!(said(&daemon, "Redis is lost"), 2 * round, "said once for each loss");
        assert_eq!(said(&daemon, "Redis is back"), 2 * round, "and once for each return");
    }
    load(&daemon, 850, 1).await;
    assert_eq!(counts(&daemon).await, (860, 0));
    let paid = service.paid();
    assert_eq!(paid.len(), 860, "each was paid for once");
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_starts_without_redis_and_uses_it_when_it_comes() {
    let Some(mut server) = Server::absent(&[]) else { return };
    let service = Service::start().await;
    let site = service.site("", &server.section());
    // What listens there first is something else.
    let other = tokio::net::TcpListener::bind(("127.0.0.1", server.port)).await.unwrap();
    let nonsense = tokio::spawn(async move {
        while let Ok((mut socket, _)) = other.accept().await {
            use tokio::io::AsyncWriteExt;
            let _ = socket.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").await;
        }
    });
    let started = Instant::now();
    let daemon = site.start();
    assert!(started.elapsed() < Duration::from_secs(10));
    assert!(is_degraded(&daemon).await);
    load(&daemon, 0, 3).await;
    nonsense.abort();
    let _ = nonsense.await;
    server.begin().await;
    eventually("Redis is found", async || !is_degraded(&daemon).await).await;
    load(&daemon, 30, 2).await;
    daemon.stop_drained();
    assert_eq!(server.keys("vector").len(), 20, "what was embedded since");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_with_a_password_that_nobody_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let Some((authority, cert, key)) = tools::issued_certificate(folder.path()) else { return };
    let port = free_port();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (tls, cert, key) = (port.to_string(), text(&cert), text(&key));
    let Some(_server) = Server::start(
        &[
            ["--tls-port", &tls, "--tls-cert-file", &cert, "--tls-key-file", &key],
            ["--tls-auth-clients", "no", "--requirepass", "open sesame", "--loglevel", "warning"],
        ]
        .concat(),
    )
    .await
    else {
        return;
    };
    let file: PathBuf = folder.path().join("password");
    std::fs::write(&file, "open sesame\n").unwrap();
    let section =
        |password: &str| format!("{HTTP}[redis]\nurl = \"rediss://127.0.0.1:{port}\"\n{password}\n");
    for (password, works) in [
        ("password = \"${IT_REDIS}\"".to_owned(), true),
        (format!("password_file = {file:?}"), true),
        ("password = \"close sesame\"".to_owned(), false),
    ] {
        let mut site = Site::new(&section(&password));
        site.set("IT_REDIS", "open sesame");
        site.set("SSL_CERT_FILE", text(&authority));
        let daemon = site.start();
        assert_eq!(is_degraded(&daemon).await, !works, "{}", daemon.log());
        let told = format!("{}{}", health(&daemon).await, daemon.log());
        assert!(!told.contains("sesame"), "{told}");
        daemon.stop_drained();
    }
    // Whom this machine does not trust is not spoken to.
    let strangers = tempfile::tempdir().unwrap();
    let (stranger, _) = tools::certificate(strangers.path()).unwrap();
    let mut site = Site::new(&section("password = \"open sesame\""));
    site.set("SSL_CERT_FILE", text(&stranger));
    let daemon = site.start();
    assert!(is_degraded(&daemon).await);
    assert!(daemon.log().contains("certificate"), "{}", daemon.log());
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_starts_the_back_fill_of_what_another_process_stored() {
    let Some(server) = Server::start(&[]).await else { return };
    let service = Service::start().await;
    let site = service.site("", &server.section());
    let daemon = site.start();
    ingest(&daemon, 0..5).await;
    daemon.derived(5).await;
    eventually("it listens", async || server.ask::<(String, i64)>(&[b"PUBSUB", b"NUMSUB", b"wake"]).1 == 1)
        .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    // As a worker at the edge leaves them, that stores and does not embed.
    let pool = sqlx::SqlitePool::connect(&format!("sqlite://{}", site.database().display())).await.unwrap();
    sqlx::raw_sql(
        "BEGIN IMMEDIATE;
         DELETE FROM vectors WHERE chunk_key IN (SELECT chunk_key FROM chunks);
         INSERT INTO outcomes SELECT 'it', 'main', \"offset\", 'deferred', 'later', '' FROM records;
         UPDATE checkpoints SET deferred = indexed, indexed = 0;
         COMMIT;",
    )
    .execute(&pool)
    .await
    .unwrap();
    let without = async || {
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM outcomes WHERE kind = 'deferred'")
            .fetch_one(&pool)
            .await
            .unwrap()
    };
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(without().await, 5, "by itself it asks once a minute");
    let published = Instant::now();
    assert_eq!(server.ask::<i64>(&[b"PUBLISH", b"wake", b""]), 1);
    eventually("they have vectors", async || without().await == 0).await;
    assert!(published.elapsed() < Duration::from_secs(10), "{:?}", published.elapsed());
    assert_eq!(counts(&daemon).await, (5, 0));
    assert_eq!(metric(&daemon, "redis_triggers_total").await, 1.0);
    pool.close().await;
    daemon.stop_drained();
}

/// Sends a body under a key: status, body, and whether it was done before.
async fn send(daemon: &Daemon, key: &str, body: &str) -> (u16, String, bool) {
    let request = thalweg::http_client::local().unwrap().post(format!("{}/api/v1/ingest", daemon.http));
    let request = request.header("content-type", "application/x-ndjson").header("idempotency-key", key);
    let response = request.body(body.to_owned()).send().await.unwrap();
    let replayed = response.headers().contains_key("idempotent-replayed");
    (response.status().as_u16(), response.text().await.unwrap(), replayed)
}

async fn end_offset(daemon: &Daemon) -> u64 {
    daemon.status().await["end_offset"].as_u64().unwrap()
}

const BODY: &str = "{\"text\":\"one\"}\n{\"text\":\"two\"}\n{\"tenant\":7,\"text\":\"bad\"}\n";

/// 40 requests at once over `daemons`: one is stored, and all have its answer.
async fn forty_at_once(daemons: &[&Daemon], key: &str) -> String {
    let answers = join_all((0..40).map(|n| send(daemons[n % daemons.len()], key, BODY))).await;
    let (status, body, _) = &answers[0];
    assert_eq!(*status, 200, "{body}");
    assert!(answers.iter().all(|(s, b, _)| (s, b) == (status, body)), "{answers:?}");
    assert_eq!(answers.iter().filter(|(_, _, replayed)| !replayed).count(), 1);
    body.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_forty_requests_with_one_key_one_is_stored_and_all_have_its_answer() {
    let site = Site::new(HTTP);
    let daemon = site.start();
    let answer = forty_at_once(&[&daemon], "k-1").await;
    assert_eq!(end_offset(&daemon).await, 2);
    assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["errors"][0]["code"], "wrong_type");
    assert_eq!(send(&daemon, "k-1", BODY).await, (200, answer, true));
    let (status, body, _) = send(&daemon, "k-1", "{\"text\":\"other\"}\n").await;
    assert_eq!(status, 422, "{body}");
    assert!(body.contains("idempotency_key_reused"), "{body}");
    assert_eq!(send(&daemon, "", BODY).await.0, 400);
    assert_eq!(send(&daemon, &"x".repeat(256), BODY).await.0, 400);
    assert_eq!(send(&daemon, "k-2", BODY).await.0, 200);
    assert_eq!(end_offset(&daemon).await, 4);
    // What cannot be stored ever is an answer, too.
    let refused = send(&daemon, "k-3", "{\"tenant\":7,\"text\":\"bad\"}\n").await;
    let again = send(&daemon, "k-3", "{\"tenant\":7,\"text\":\"bad\"}\n").await;
    assert_eq!((refused.0, again.0, again.2), (422, 422, true));
    assert_eq!(refused.1, again.1);
    assert_eq!(site.store().await.dead_letters(None, 0, 10).await.unwrap().len(), 3);
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_with_one_redis_share_keys_also_over_restarts_and_without_it_each_has_its_own() {
    let Some(mut server) = Server::start(&[]).await else { return };
    let sites = [0, 1].map(|_| Site::new(&format!("{HTTP}{}", server.section())));
    let [one, other] = [&sites[0], &sites[1]].map(Site::start);
    for round in 0..5 {
        forty_at_once(&[&one, &other], &format!("k-{round}")).await;
    }
    assert_eq!(end_offset(&one).await + end_offset(&other).await, 5 * 2);
    let (_, answer, _) = send(&one, "k-0", BODY).await;
    let keys = server.keys("idempotency");
    assert_eq!(keys.len(), 5);
    for key in &keys {
        let ttl: i64 = server.ask(&[b"TTL", key.as_bytes()]);
        assert!((86_400 - 60..=86_400).contains(&ttl), "{ttl}");
    }
    one.stop_drained();
    other.kill();
    let [one, other] = [&sites[0], &sites[1]].map(Site::start);
    for daemon in [&one, &other] {
        assert_eq!(send(daemon, "k-0", BODY).await, (200, answer.clone(), true));
        assert_eq!(send(daemon, "k-0", "{\"text\":\"other\"}\n").await.0, 422);
    }
    let ends = (end_offset(&one).await, end_offset(&other).await);
    // The claim of a daemon that died ends, and another takes over.
    let key = server.keys("idempotency").remove(0);
    let done: Vec<u8> = server.ask(&[b"GET", key.as_bytes()]);
    let claim = [b"\x01c", &done[2..34], &[7; 16]].concat();
    server.ask::<String>(&[b"SET", key.as_bytes(), &claim, b"PX", b"1500"]);
    let started = Instant::now();
    let answers = join_all((0..5).map(|round| {
        let (one, key) = (&one, format!("k-{round}"));
        async move { send(one, &key, BODY).await }
    }))
    .await;
    assert_eq!(answers.iter().filter(|(status, _, replayed)| *status == 200 && !replayed).count(), 1);
    assert!(started.elapsed() > Duration::from_millis(900), "it waited: {:?}", started.elapsed());
    assert_eq!(end_offset(&one).await, ends.0 + 2);
    server.kill();
    eventually("it is missed", async || is_degraded(&one).await && is_degraded(&other).await).await;
    forty_at_once(&[&one], "alone").await;
    forty_at_once(&[&other], "alone").await;
    assert_eq!(end_offset(&other).await, ends.1 + 2);
    one.stop_drained();
    other.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_with_one_redis_have_one_limit_and_without_it_open_or_closed_as_is_said() {
    let Some(mut redis) = Server::start(&[]).await else { return };
    let limits =
        |fail: &str| format!("{HTTP}{KEYS}[limits]\nfree = 6\nfail = \"{fail}\"\n{}", redis.section());
    let (open, closed) = (Site::new(&limits("open")), Site::new(&limits("closed")));
    let tenant = ["--role", "viewer", "--tenant", "acme", "--tier", "free"];
    let keys = [key(&open, &tenant).1, key(&closed, &tenant).1];
    let daemons = [open.start(), closed.start()];
    let ask = async |which: usize| {
        let url = format!("{}/api/v1/capabilities", daemons[which].http);
        let request = thalweg::http_client::local().unwrap().get(url).bearer_auth(&keys[which]);
        request.send().await.unwrap().status().as_u16()
    };
    let mut answers = Vec::new();
    for turn in 0..8 {
        answers.push(ask(turn % 2).await);
    }
    assert_eq!(answers, [200, 200, 200, 200, 200, 200, 429, 429]);
    redis.kill();
    // Each counts by itself, and has its whole limit there.
    assert_eq!(ask(0).await, 200);
    assert_eq!(ask(1).await, 503);
}

//! Clients that mean no good: none gets in, and none costs more than its
//! limit. What they send of it is in `api`, `identity` and `sessions` too.

mod strings;
mod tokens;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use serde_json::{Value, json};
use thalweg::http_server::{Routes, Server};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    daemon::{Daemon, HTTP, SOON, Site, TCP},
    identity::{KEYS, key},
    postgres::{Database, server},
    producer::{Producer, frame},
};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// A server alone, without a daemon around it.
struct Served {
    address: String,
    stop: CancellationToken,
    done: JoinHandle<std::io::Result<()>>,
}

/// Serves `router` to `connections` at once, each of which may leave an answer
/// unread for `unread`.
async fn serve(router: Router, connections: usize, unread: Duration) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let server = Server::new(Arc::new(listener), None, connections).unread_for(unread);
    let done = tokio::spawn(server.serve(Routes::new(router), stop.clone()));
    Served { address, stop, done }
}

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }
}

/// Reads up to the end, however it comes.
async fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(SOON, socket.read_to_end(&mut bytes)).await.expect("it is not closed");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_client_that_never_reads_its_answer_gives_its_place_back() {
    let long = || async { vec![b'x'; 32 << 20] };
    let router = Router::new().route("/", get(|| async { "short" })).route("/long", get(long));
    let served = serve(router, 1, Duration::from_secs(1)).await;
    let mut deaf = served.connect().await;
    deaf.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let began = Instant::now();
    loop {
        let mut next = served.connect().await;
        let _ = next.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let answer = rest(next).await;
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it holds its place: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(500), "it was given a while");
    drop(deaf);
}

/// Whether the server ends soon once it is told to.
async fn ends(served: Served) -> Duration {
    let began = Instant::now();
    served.stop.cancel();
    tokio::time::timeout(SOON, served.done).await.expect("it does not end").unwrap().unwrap();
    began.elapsed()
}

#[tokio::test]
async fn who_has_not_asked_for_anything_keeps_no_server_from_stopping() {
    let served = serve(Router::new().route("/", get(|| async { "short" })), 10, SOON).await;
    let silent = served.connect().await;
    let mut head = served.connect().await;
    head.write_all(b"GET / HTTP/1.1\r\nhost:").await.unwrap();
    let mut second = served.connect().await;
    second.write_all(GET).await.unwrap();
    assert!(second.read(&mut [0; 4 << 10]).await.unwrap() > 0);
    second.write_all(&GET[..10]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let took = ends(served).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    for socket in [silent, head, second] {
        assert_eq!(rest(socket).await, "");
    }
}

#[tokio::test]
async fn a_request_under_way_is_answered_before_the_server_ends_and_broken_off_if_it_is_dropped() {
    let slow = || async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        "done"
    };
    let router = Router::new().route("/", get(slow));
    let served = serve(router.clone(), 10, SOON).await;
    let mut patient = served.connect().await;
    patient.write_all(GET).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    ends(served).await;
    assert!(rest(patient).await.ends_with("done"));

    let served = serve(router, 10, SOON).await;
    let mut cut = served.connect().await;
    cut.write_all(GET).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    served.done.abort();
    assert_eq!(rest(cut).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_trickles_in_takes_no_more_of_the_shutdown_than_its_share() {
    let site = Site::new(HTTP);
    let daemon = site.start();
    let mut slow = TcpStream::connect(daemon.http.trim_start_matches("http://")).await.unwrap();
    let head = "POST /api/v1/ingest HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{";
    slow.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let exit = tokio::task::spawn_blocking(move || daemon.stop()).await.unwrap();
    assert_eq!(exit.code, Some(0), "the log:\n{}", exit.log);
    assert!(exit.took < Duration::from_secs(15), "{:?}", exit.took);
    let answer = rest(slow).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("closing"), "{answer}");
}

/// A way to a server that can be made to hang: what is sent arrives nowhere,
/// and nobody says so.
struct Way {
    address: String,
    hangs: Arc<AtomicBool>,
}

impl Way {
    async fn to(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, hangs) = (listener.local_addr().unwrap().to_string(), Arc::new(AtomicBool::new(false)));
        let hanging = hangs.clone();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&server).await.unwrap();
                let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                tokio::spawn(carry(near_in, far_out, hanging.clone()));
                tokio::spawn(carry(far_in, near_out, hanging.clone()));
            }
        });
        Self { address, hangs }
    }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, hangs: Arc<AtomicBool>) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        while hangs.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if to.write_all(&bytes[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_store_hangs_known_keys_are_let_in_and_a_flood_of_made_up_ones_holds_up_nobody() {
    let Some(server) = server() else { return };
    let database = Database::new(&server).await;
    let place = server.split('@').nth(1).unwrap().split('/').next().unwrap().to_owned();
    let way = Way::to(place.clone()).await;
    let settings = database.settings();
    let site = Site::new(&format!("{HTTP}{KEYS}{settings}"));
    let (_, good) = key(&site, &["--role", "ingester"]);
    site.configure(&format!("{HTTP}{KEYS}{}", settings.replace(&place, &way.address)));
    let daemon = site.start();
    let client = thalweg::http_client::local().unwrap();
    let url = format!("{}/api/v1/ingest", daemon.http);
    let send = async |key: String| {
        let began = Instant::now();
        let request = client.post(&url).bearer_auth(key).json(&json!({"text": "x"}));
        (request.send().await.unwrap().status().as_u16(), began.elapsed())
    };
    assert_eq!(send(good.clone()).await.0, 200);
    way.hangs.store(true, Ordering::SeqCst);
    // Until what is known of the key is no longer fresh.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let flood = (0..100_u32).map(|n| {
        let id: String = (0..12).map(|at| char::from(b'a' + ((n >> at) & 1) as u8)).collect();
        send(format!("tw_{id}_{}", "a".repeat(52)))
    });
    let (flood, known) = tokio::join!(futures::future::join_all(flood), send(good.clone()));
    assert!(known.0 == 200 && known.1 < Duration::from_secs(6), "{known:?}");
    for (status, took) in flood {
        assert!(status == 503 && took < Duration::from_secs(6), "{status} after {took:?}");
    }
    way.hangs.store(false, Ordering::SeqCst);
    crate::daemon::eventually("keys are looked up again", async || {
        send(format!("tw_{}_{}", "b".repeat(12), "a".repeat(52))).await.0 == 401
    })
    .await;
    drop(daemon);
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_tenants_bodies_leave_room_for_those_of_others() {
    let site = Site::new(&format!("{HTTP}{KEYS}"));
    let text = std::fs::read_to_string(site.pipeline()).unwrap();
    std::fs::write(site.pipeline(), text.replace("[http]\n", "[http]\nbody_bytes = \"128KiB\"\n")).unwrap();
    let (_, acme) = key(&site, &["--role", "ingester", "--tenant", "acme"]);
    let (_, other) = key(&site, &["--role", "ingester", "--tenant", "other"]);
    let daemon = site.start();
    let text = json!({"text": "x".repeat(50 << 10)}).to_string();
    let head = |key: &str| {
        format!(
            "POST /api/v1/ingest HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n",
            text.len()
        )
    };
    let begin = async |key: &str| {
        let mut socket = TcpStream::connect(daemon.http.trim_start_matches("http://")).await.unwrap();
        let most = &text.as_bytes()[..text.len() - 1];
        socket.write_all(&[head(key).as_bytes(), most].concat()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        socket
    };
    let end = async |mut socket: TcpStream| {
        socket.write_all(b"}").await.unwrap();
        rest(socket).await
    };
    let held = begin(&acme).await;
    let second = end(begin(&acme).await).await;
    assert!(second.starts_with("HTTP/1.1 503") && second.contains("room of one tenant"), "{second}");
    let others = end(begin(&other).await).await;
    assert!(others.starts_with("HTTP/1.1 200"), "{others}");
    let first = end(held).await;
    assert!(first.starts_with("HTTP/1.1 200"), "{first}");
    let again = end(begin(&acme).await).await;
    assert!(again.starts_with("HTTP/1.1 200"), "what was held is free again: {again}");
}

/// Files in `folder` and below that hold `bytes`.
fn files_with(folder: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files_with(&path, bytes)),
            // A file may go away in between.
            false => {
                let held = std::fs::read(&path).unwrap_or_default();
                found.extend(held.windows(bytes.len()).any(|window| window == bytes).then_some(path));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_comes_where_none_belongs_is_kept_nowhere() {
    for keys in [KEYS, ""] {
        let site = Site::new(&format!("{TCP}{HTTP}{keys}[sessions]\nframe_timeout = \"1s\"\n"));
        let (_, key) = key(&site, &["--role", "ingester", "--tenant", "acme"]);
        let daemon = site.start();
        let hello = frame(&json!({"thalweg": 1, "key": key}));
        let text = frame(&json!({"text": "a record"}));
        let mut late = Producer::tcp(daemon.tcp()).await;
        late.send(&[&hello[..], &text, &hello, &text].concat()).await;
        let replies = late.finish().await;
        let told: Vec<_> = replies.iter().map(|r| (r.kind.as_str(), r.code.as_str(), r.fatal)).collect();
        let expected =
            [("welcome", "", false), ("ack", "", false), ("error", "bad_hello", false), ("ack", "", false)];
        assert_eq!(told, expected);
        // Cut off: by the end, and by the time.
        let most = &hello[..hello.len() - 4];
        for end in [true, false] {
            let mut cut = Producer::tcp(daemon.tcp()).await;
            if keys.is_empty() {
                cut.send(&text).await;
            }
            cut.send(most).await;
            let replies = if end { cut.finish().await } else { cut.replies.rest().await };
            let code = &replies.last().unwrap().code;
            assert_eq!(code, if keys.is_empty() { "truncated" } else { "missing_credentials" });
        }
        let client = thalweg::http_client::local().unwrap();
        let json = json!({"thalweg": 1, "key": key}).to_string();
        let bodies = [
            ("application/json", json.clone().into_bytes()),
            ("application/x-ndjson", format!("{json}\n{}\n", &json[..json.len() - 1]).into_bytes()),
            ("application/msgpack", hello.clone()),
            ("application/msgpack", most.to_vec()),
        ];
        for (kind, body) in bodies {
            let request = client.post(format!("{}/api/v1/ingest", daemon.http)).bearer_auth(&key);
            let answer = request.header("content-type", kind).body(body).send().await.unwrap();
            assert_eq!(answer.status(), 422, "{kind}");
        }
        let secret = &key.rsplit('_').next().unwrap().as_bytes()[..40];
        assert_eq!(files_with(&site.path(""), secret), Vec::<PathBuf>::new());
        let letters = site.store().await.dead_letters(None, 0, 100).await.unwrap();
        assert!(letters.len() >= 5, "what was refused is told of all the same: {letters:?}");
        drop(daemon);
    }
}

/// The most memory that the daemon ever had, in MiB.
fn most_mib(daemon: &Daemon) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() >> 10
}

/// Sends `body`, compressed: status, code of the problem or of the last error.
async fn ingest(daemon: &Daemon, kind: &str, body: &[u8]) -> (u16, String) {
    let body = zstd::bulk::compress(body, 1).unwrap();
    let request = thalweg::http_client::local().unwrap().post(format!("{}/api/v1/ingest", daemon.http));
    let request = request.header("content-type", kind).header("content-encoding", "zstd").body(body);
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    let told: Value = answer.json().await.unwrap();
    let last = told["errors"].as_array().and_then(|errors| Some(errors.last()?["code"].clone()));
    (status, last.unwrap_or_else(|| told["code"].clone()).as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_very_many_little_things_costs_little_more_than_its_bytes() {
    const BYTES: usize = 60 << 20;
    let daemon_of = Site::new(HTTP);
    let daemon = daemon_of.start();
    let before = most_mib(&daemon);
    let repeat = |text: &str| text.repeat(BYTES / text.len());
    let cases = [
        ("application/x-ndjson", repeat("{}\n"), 422, "too_many_errors"),
        ("application/x-ndjson", repeat("0\n"), 422, "too_many_errors"),
        ("application/x-ndjson", repeat("x\n"), 422, "too_many_errors"),
        ("application/json", format!("[{}0]", repeat("0,")), 422, "too_many_errors"),
        ("application/json", format!("[{}{{}}]", repeat("{},")), 422, "too_many_errors"),
        ("application/json", format!("{{\"text\":\"x\",\"a\":[{}0]}}", repeat("0,")), 400, "not_json"),
        ("application/json", format!("[[{}0]]", repeat("[],")), 400, "not_json"),
        ("application/json", repeat("["), 400, "not_json"),
        ("application/json", repeat("{\"a\":"), 400, "not_json"),
        ("application/msgpack", "\0".repeat(BYTES), 422, "too_many_errors"),
        ("application/msgpack", "\0\0\0\u{1}\u{1}".repeat(BYTES / 5), 422, "too_many_errors"),
    ];
    for (kind, body, status, code) in cases {
        let began = Instant::now();
        let (answered, told) = ingest(&daemon, kind, body.as_bytes()).await;
        let (took, grown) = (began.elapsed(), most_mib(&daemon) - before);
        println!("{kind} {:?}: {answered} {told} {took:?}, {grown} MiB more", &body[..10]);
        assert_eq!((answered, told.as_str()), (status, code), "{kind} {:?}", &body[..10]);
        assert!(took < Duration::from_secs(60), "{kind} {:?} took {took:?}", &body[..10]);
        assert!(grown < 450, "{kind} {:?}: {grown} MiB more", &body[..10]);
    }
    let mut record = b"\x82\xa4text\xa1x\xa1a\xdd\x00\x80\x00\x00".to_vec();
    record.resize(record.len() + (8 << 20), 0);
    let framed = [&u32::try_from(record.len()).unwrap().to_be_bytes()[..], &record].concat();
    let told = ingest(&daemon, "application/msgpack", &framed).await;
    assert_eq!(told, (422, "too_many_values".to_owned()));
    let fine = json!({"text": "still here"}).to_string();
    assert_eq!(daemon.post("/api/v1/ingest", "application/json", fine).await.0, 200);
}

//! Many sessions, slow ones and hostile ones: each costs a bounded share and
//! holds up nobody else.

use std::{
    fs,
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use thalweg::{
    access, clock,
    config::Sessions as Settings,
    log::{self, Log},
    pipeline::{Ingest, progress::Progress},
    source::{door::Door, entrance::Entrance, sessions::Sessions, socket},
    store::{Checkpoint, Store},
    units::ByteSize,
};
use tokio::{
    io::{AsyncWriteExt, DuplexStream},
    net::UnixStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    daemon::{Daemon, HTTP, SOON, Site, TCP},
    producer::{Producer, Reply, text_frame},
};

const MOMENT: Duration = Duration::from_millis(300);

/// Whether no answer comes for a while.
async fn is_kept_waiting(producer: &mut Producer) -> bool {
    timeout(MOMENT, producer.replies.next()).await.is_err()
}

fn is_refusal(reply: &Reply) -> bool {
    reply.kind == "closing" && reply.reason.contains("sessions are taken") && reply.retry_after_ms >= 1_000
}

#[tokio::test]
async fn one_session_too_many_waits_for_its_turn_and_the_next_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let unix = format!("[[source]]\ntype = \"unix\"\npath = {:?}\n", folder.path().join("in.sock"));
    let site =
        Site::new(&format!("{TCP}{unix}[sessions]\nmax_active = 1\nmax_waiting = 1\nmax_wait = \"60s\"\n"));
    let daemon = site.start();
    let mut first = Producer::tcp(daemon.tcp()).await;
    first.send(&text_frame("first")).await;
    assert_eq!(first.replies.expect().await.offset, 0);

    let mut second = Producer::unix(&daemon.sources["unix"]).await;
    second.send(&text_frame("second")).await;
    assert!(is_kept_waiting(&mut second).await);
    let third = Producer::tcp(daemon.tcp()).await;
    let told = third.finish().await;
    assert!(told.len() == 1 && is_refusal(&told[0]), "{told:?}");

    first.send(&text_frame("still there")).await;
    assert_eq!(first.replies.expect().await.offset, 1);
    first.finish().await;
    assert_eq!(second.replies.expect().await.offset, 2);
    let (_, metrics) = daemon.get("/metrics").await;
    assert!(metrics.contains("ingest_connections_refused_total{reason=\"full\"} 1"), "{metrics}");
    assert!(metrics.contains("ingest_connections_open 1") && metrics.contains("ingest_sessions_waiting 0"));
    daemon.stop_drained();
}

#[tokio::test]
async fn a_session_that_waited_in_vain_is_told_when_to_come_again() {
    let site = Site::new(&format!("{TCP}[sessions]\nmax_active = 1\nmax_wait = \"300ms\"\n"));
    let daemon = site.start();
    let mut first = Producer::tcp(daemon.tcp()).await;
    first.send(&text_frame("first")).await;
    first.replies.expect().await;
    let mut second = Producer::tcp(daemon.tcp()).await;
    second.send(&text_frame("second")).await;
    let told = second.replies.rest().await;
    assert!(told.len() == 1 && is_refusal(&told[0]), "{told:?}");

    // Those who wait are told when the daemon stops.
    let mut third = Producer::tcp(daemon.tcp()).await;
    third.send(&text_frame("third")).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(first);
    assert_eq!(third.replies.expect().await.offset, 1);
    daemon.stop_drained();
}

fn resident_kib(daemon: &Daemon) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// How long each of `count` records takes to its ack, sorted.
async fn ack_times(producer: &mut Producer, count: usize) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in 0..count {
        let began = Instant::now();
        producer.send(&text_frame(&format!("a well-behaved line {n}"))).await;
        assert_eq!(producer.replies.expect().await.kind, "ack");
        times.push(began.elapsed());
    }
    times.sort();
    times
}

/// Sends megabytes of frames and reads none of the answers.
async fn never_reads(address: &str) -> Producer {
    let mut producer = Producer::tcp(address).await;
    let frames = text_frame("x").repeat(10_000);
    for _ in 0..20 {
        let _ = timeout(MOMENT, producer.sender.write_all(&frames)).await;
    }
    producer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_sessions_cost_little_and_hold_up_nobody() {
    const EACH: usize = 15;
    let sessions =
        "[sessions]\nframe_timeout = \"4s\"\nlarge_frame_bytes = \"16MiB\"\nin_flight_bytes = \"256KiB\"\n";
    let site = Site::new(&format!("{TCP}{sessions}"));
    let daemon = site.start();
    let mut good = Producer::tcp(daemon.tcp()).await;
    let alone = ack_times(&mut good, 100).await;
    let mut idle = Producer::tcp(daemon.tcp()).await;
    let before_kib = resident_kib(&daemon);

    let began = Instant::now();
    let (mut halves, mut trickles, mut huge, mut capped, mut deaf) = (vec![], vec![], vec![], vec![], vec![]);
    for _ in 0..EACH {
        let mut half = Producer::tcp(daemon.tcp()).await;
        half.send(&text_frame("half a frame and silence")[..12]).await;
        halves.push(half);
        let Producer { mut sender, replies } = Producer::tcp(daemon.tcp()).await;
        trickles.push(replies);
        tokio::spawn(async move {
            for byte in text_frame(&"a byte now and then".repeat(10)) {
                if sender.write_all(&[byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        let mut claims = Producer::tcp(daemon.tcp()).await;
        claims.send(&[&1_000_000_000_u32.to_be_bytes()[..], &[0; 1_000]].concat()).await;
        assert_eq!(claims.replies.expect().await.code, "oversized");
        huge.push(claims);
    }
    for _ in 0..4 {
        let mut slow = Producer::tcp(daemon.tcp()).await;
        slow.send(&(16_u32 << 20).to_be_bytes()).await;
        let most = vec![0; 12 << 20];
        let _ = timeout(MOMENT, slow.sender.write_all(&most)).await;
        capped.push(slow);
    }
    for _ in 0..4 {
        deaf.push(never_reads(daemon.tcp()).await);
    }
    let beside = ack_times(&mut good, 100).await;
    let grown_kib = resident_kib(&daemon).saturating_sub(before_kib);
    println!(
        "ack p50 alone {:?}, beside {:?}; p90 {:?}, {:?}; grown by {grown_kib} KiB; after {:?}",
        alone[50],
        beside[50],
        alone[90],
        beside[90],
        began.elapsed()
    );
    assert!(beside[50] < 5 * alone[50] + Duration::from_millis(20), "{:?} from {:?}", beside[50], alone[50]);
    assert!(grown_kib < 96 << 10, "{grown_kib} KiB more");

    for replies in halves.iter_mut().map(|half| &mut half.replies).chain(&mut trickles) {
        let told = replies.expect().await;
        assert_eq!((told.code.as_str(), told.fatal), ("truncated", true), "{told:?}");
        assert!(told.message.contains("in time"), "{told:?}");
    }
    for mut claims in huge {
        assert_eq!(claims.replies.next().await.unwrap_or(None), None, "its one frame had its answer");
    }
    assert!(began.elapsed() >= Duration::from_secs(4), "nobody was late before the time");
    idle.send(&text_frame("silent until now, which is fine")).await;
    assert_eq!(idle.replies.expect().await.kind, "ack");
    // What was held is free again: a large frame of an honest client passes.
    let mut large = Producer::tcp(daemon.tcp()).await;
    large.send(&text_frame(&"large ".repeat(2 << 20))).await;
    assert_eq!(large.replies.expect().await.kind, "ack");
    drop((deaf, capped));
    daemon.stop();
}

/// A clock that stands still, and with it the log's writer, while it is held.
#[derive(Default)]
struct Stall(Mutex<bool>, Condvar);

impl Stall {
    fn set(&self, held: bool) {
        *self.0.lock().unwrap() = held;
        self.1.notify_all();
    }

    fn wait(&self) -> i64 {
        drop(self.1.wait_while(self.0.lock().unwrap(), |held| *held).unwrap());
        clock::system_ms()
    }
}

/// Writes frames until nothing more is taken. Gives how many bytes were.
async fn flood(socket: &mut UnixStream, frame: &[u8]) -> usize {
    let (piece, mut taken) = (frame.repeat(64), 0);
    loop {
        let mut left = &piece[..];
        while !left.is_empty() {
            match timeout(MOMENT, socket.write(left)).await {
                Ok(written) => left = &left[written.unwrap()..],
                Err(_) => return taken + piece.len() - left.len(),
            }
        }
        taken += piece.len();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_stalls_stops_the_reading_of_sockets_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (stall, closing) = (Arc::new(Stall::default()), CancellationToken::new());
    let held = stall.clone();
    let settings = log::Settings {
        max_frame_bytes: ByteSize::kib(64),
        queue_bytes: ByteSize::mib(2),
        segment_bytes: ByteSize::mib(16),
        ..log::Settings::default()
    };
    let ids = Box::new(rand::random);
    let (log, _) = Log::open(folder.path(), "s", &settings, Arc::new(move || held.wait()), ids).unwrap();
    let store = Store::open(&folder.path().join("store.sqlite")).await.unwrap();
    let (access, _) = access::open(None, &store, clock::system()).unwrap();
    let progress = Arc::new(Progress::new(Checkpoint::default()));
    let max_frame = settings.max_frame_bytes;
    let ingest = Ingest::new("p", log.writer(), store, progress, clock::system(), max_frame, closing.clone());
    let socket = folder.path().join("in.sock");
    let door = Door::unix(&socket).await.unwrap();
    let sessions = Settings { in_flight_bytes: ByteSize::mib(1), ..Settings::default() };
    let entrance = Entrance { ingest, sessions: Sessions::new(sessions), access };
    let serving = tokio::spawn(socket::run(door, "unix".into(), entrance));

    stall.set(true);
    let frame = text_frame(&"z".repeat(1_000));
    let mut connections = Vec::new();
    let mut taken = Vec::new();
    for _ in 0..6 {
        let mut connection = UnixStream::connect(&socket).await.unwrap();
        taken.push(flood(&mut connection, &frame).await);
        connections.push(connection);
    }
    println!("taken by each: {taken:?}");
    // Of one: its share, what is being read, and what the system buffers.
    assert!(taken.iter().all(|bytes| *bytes < 3 << 20), "{taken:?}");
    // Of all: the queue of the log, and of each what is read and buffered.
    assert!(taken.iter().sum::<usize>() < (2 << 20) + 6 * (1 << 20), "{taken:?}");

    stall.set(false);
    for (mut connection, bytes) in connections.into_iter().zip(taken) {
        // The rest of the frame that was cut off in the middle.
        connection.write_all(&frame[bytes % frame.len()..]).await.unwrap();
        connection.shutdown().await.unwrap();
        let (read, write) = connection.into_split();
        let replies = Producer::over(read, write).finish().await;
        assert!(replies.iter().all(|reply| reply.kind == "ack"), "{replies:?}");
        assert_eq!(replies.iter().map(|reply| reply.count).sum::<u64>(), (bytes / frame.len()) as u64 + 1);
    }
    closing.cancel();
    timeout(SOON, serving).await.unwrap().unwrap().unwrap();
    log.shut_down();
}

#[tokio::test]
async fn a_request_that_finds_no_room_for_its_body_is_told_when_to_come_again() {
    let site = Site::new(HTTP);
    let text = fs::read_to_string(site.pipeline()).unwrap();
    fs::write(site.pipeline(), text.replace("[http]\n", "[http]\nbody_bytes = \"128KiB\"\n")).unwrap();
    let daemon = site.start();
    let held = text_frame(&"held ".repeat(12_000));
    let url = format!("{}/api/v1/ingest", daemon.http);
    let request =
        || thalweg::http_client::local().unwrap().post(&url).header("content-type", "application/msgpack");
    let slowly = async || {
        let (mut slow, body): (DuplexStream, DuplexStream) = tokio::io::duplex(1 << 20);
        slow.write_all(&held[..held.len() - 1]).await.unwrap();
        let body = reqwest::Body::wrap_stream(tokio_util::io::ReaderStream::new(body));
        (slow, tokio::spawn(request().body(body).send()))
    };
    let mut slow = [slowly().await, slowly().await];
    let small = text_frame("small");
    loop {
        let response = request().body(held.clone()).send().await.unwrap();
        if response.status() == 503 {
            assert_eq!(response.headers()["retry-after"], "1");
            break;
        }
        // The probe was there first, and a slow one was refused.
        for one in &mut slow {
            if one.1.is_finished() {
                *one = slowly().await;
            }
        }
    }
    assert_eq!(
        daemon.post("/api/v1/ingest", "application/msgpack", small).await.0,
        200,
        "a small one finds room"
    );
    let long = daemon.post("/api/v1/ingest", "application/msgpack", vec![0; (64 << 10) + 1]).await;
    assert_eq!((long.0, &long.1["code"]), (413, &"body_too_large".into()));
    for (mut rest, sent) in slow {
        rest.write_all(&held[held.len() - 1..]).await.unwrap();
        drop(rest);
        assert_eq!(sent.await.unwrap().unwrap().status(), 200);
    }
    daemon.stop_drained();
}

//! A producer that numbers its frames has each of them in the log exactly
//! once, whatever breaks on the way.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use thalweg::source::client::{self, Client, Frames, Tally, Target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    daemon::{Daemon, Site, TCP},
    ledger::ids_in_log,
    producer::{Producer, Reply, frame, framed, hello},
};

/// Small segments, so that a few thousand records fill several.
const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n";

fn seed() -> u64 {
    let seed = std::env::var("THALWEG_TEST_SEED").map_or_else(|_| rand::random(), |s| s.parse().unwrap());
    println!("THALWEG_TEST_SEED={seed}");
    seed
}

fn record(n: u64) -> Value {
    json!({"id": format!("r{n}"), "session": "s", "text": format!("line{n} {}", "and so on ".repeat(n as usize % 40))})
}

fn records(numbers: Range<u64>) -> Vec<u8> {
    numbers.flat_map(|n| frame(&record(n))).collect()
}

/// Reads the log when the daemon has ended: `r0` to `r{count - 1}`, once each
/// and in order.
fn assert_exactly_once(site: &Site, count: u64) {
    let ids: Vec<String> = ids_in_log(site).into_values().collect();
    let mut times = BTreeMap::new();
    ids.iter().for_each(|id| *times.entry(id.as_str()).or_insert(0) += 1);
    let twice: Vec<_> = times.iter().filter(|(_, n)| **n > 1).take(5).collect();
    assert!(twice.is_empty(), "stored more than once: {twice:?}");
    assert_eq!(ids, (0..count).map(|n| format!("r{n}")).collect::<Vec<_>>());
}

fn kinds(replies: &[Reply]) -> Vec<(&str, u64, bool)> {
    replies.iter().map(|r| (r.kind.as_str(), r.count, r.duplicate)).collect()
}

#[tokio::test]
async fn frames_that_come_again_are_acknowledged_and_not_stored_again() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let (mut first, expected) = Producer::named(daemon.tcp(), "p", None, None).await;
    assert_eq!(expected, 0);
    first.send(&records(0..10)).await;
    assert_eq!(kinds(&first.finish().await), [("ack", 10, false)]);

    let (mut second, expected) = Producer::named(daemon.tcp(), "p", Some(0), Some(4)).await;
    assert_eq!(expected, 10);
    second.send(&records(4..14)).await;
    let replies = second.finish().await;
    assert_eq!(kinds(&replies), [("ack", 6, true), ("ack", 4, false)]);
    assert_eq!((replies[0].level.as_str(), replies[1].offset), ("disk", 10));

    let (mut third, expected) = Producer::named(daemon.tcp(), "p", Some(0), None).await;
    assert_eq!(expected, 14);
    third.send(&records(14..15)).await;
    assert_eq!(kinds(&third.finish().await), [("ack", 1, false)], "numbered from what the welcome said");
    let (_, metrics) = daemon.get("/metrics").await;
    assert!(metrics.contains("ingest_duplicates_total 6"), "{metrics}");
    daemon.stop_drained();
    assert_exactly_once(&site, 15);
}

#[tokio::test]
async fn a_later_epoch_ends_the_earlier_ones() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let (mut zombie, _) = Producer::named(daemon.tcp(), "p", None, None).await;
    zombie.send(&records(0..2)).await;
    assert_eq!(zombie.replies.expect().await.count, 2);

    let mut heir = Producer::tcp(daemon.tcp()).await;
    heir.send(&hello("p", None, None)).await;
    let welcome = heir.replies.expect().await;
    assert_eq!((welcome.epoch, welcome.sequence), (1, 0));

    zombie.send(&records(2..4)).await;
    let fenced = zombie.replies.expect().await;
    assert_eq!((fenced.code.as_str(), fenced.frame, fenced.fatal), ("fenced", 2, true), "{fenced:?}");
    assert_eq!(zombie.replies.next().await.unwrap(), None, "closed");
    let mut again = Producer::tcp(daemon.tcp()).await;
    again.send(&[hello("p", Some(0), Some(2)), records(2..4)].concat()).await;
    let replies = again.finish().await;
    assert_eq!((replies.len(), replies[0].code.as_str()), (1, "fenced"), "{replies:?}");

    heir.send(&records(2..3)).await;
    assert_eq!(heir.replies.expect().await.offset, 2);
    daemon.stop_drained();
    assert_exactly_once(&site, 3);
}

#[tokio::test]
async fn a_hole_or_a_hello_that_cannot_be_meant_ends_the_connection() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let refused = async |first: Vec<u8>| {
        let mut producer = Producer::tcp(daemon.tcp()).await;
        producer.send(&[first, records(0..3)].concat()).await;
        let replies = producer.finish().await;
        assert_eq!((replies.len(), replies[0].fatal, replies[0].frame), (1, true, 0), "{replies:?}");
        replies[0].code.clone()
    };
    assert_eq!(refused(hello("p", Some(0), Some(3))).await, "out_of_sequence");
    assert_eq!(refused(hello("p", None, Some(1))).await, "out_of_sequence");
    assert_eq!(refused(hello("", None, None)).await, "bad_hello");
    assert_eq!(refused(frame(&json!({"thalweg": 2, "producer": "p"}))).await, "bad_hello");

    // Only the first frame is a hello, and a record never is.
    let mut plain = Producer::tcp(daemon.tcp()).await;
    let looks_alike = frame(&json!({"thalweg": 1, "producer": "p", "id": "r0", "text": "a record"}));
    plain.send(&[looks_alike, hello("p", None, None)].concat()).await;
    let replies = plain.finish().await;
    assert_eq!((replies[0].kind.as_str(), replies[1].code.as_str()), ("ack", "bad_hello"), "{replies:?}");
    daemon.stop_drained();
    assert_exactly_once(&site, 1);
}

#[tokio::test]
async fn a_refused_frame_has_a_number_too_and_one_dead_letter() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let sent = [records(0..2), framed(&[0xc1]), records(2..3), framed(&[0xc1])].concat();
    for again in [false, true] {
        let (mut producer, expected) = Producer::named(daemon.tcp(), "p", Some(0), Some(0)).await;
        assert_eq!(expected, if again { 5 } else { 0 });
        producer.send(&sent).await;
        let replies = producer.finish().await;
        let wanted = [("ack", 2, again), ("error", 0, false), ("ack", 1, again), ("error", 0, false)];
        assert_eq!(kinds(&replies), wanted, "{replies:?}");
        assert_eq!([replies[1].frame, replies[3].frame], [2, 4]);
    }
    // From behind the last, which is a refused one.
    let (mut producer, _) = Producer::named(daemon.tcp(), "p", Some(0), Some(5)).await;
    producer.send(&records(3..4)).await;
    assert_eq!(kinds(&producer.finish().await), [("ack", 1, false)]);
    daemon.stop_drained();
    assert_exactly_once(&site, 4);
    assert_eq!(site.store().await.dead_letters(None, 0, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_frame_that_was_cut_off_keeps_its_number() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let (mut producer, _) = Producer::named(daemon.tcp(), "p", Some(0), Some(0)).await;
    let sent = records(0..3);
    producer.send(&sent[..sent.len() - 1]).await;
    let replies = producer.finish().await;
    assert_eq!((replies[0].count, replies[1].code.as_str()), (2, "truncated"), "{replies:?}");
    let (mut producer, expected) = Producer::named(daemon.tcp(), "p", Some(0), Some(2)).await;
    assert_eq!(expected, 2);
    producer.send(&records(2..3)).await;
    assert_eq!(kinds(&producer.finish().await), [("ack", 1, false)]);
    daemon.stop_drained();
    assert_exactly_once(&site, 3);
    assert!(site.store().await.dead_letters(None, 0, 10).await.unwrap().is_empty(), "it came again whole");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_connections_of_one_producer_store_each_frame_once() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let address = daemon.tcp().to_owned();
    let send = |piece: u64| {
        let address = address.clone();
        tokio::spawn(async move {
            let (mut producer, _) = Producer::named(&address, "p", Some(0), Some(0)).await;
            let mut counted = (0, 0);
            for from in (0..2_000).step_by(piece as usize) {
                producer.send(&records(from..(from + piece).min(2_000))).await;
            }
            for reply in producer.finish().await {
                assert_eq!(reply.kind, "ack", "{reply:?}");
                *(if reply.duplicate { &mut counted.1 } else { &mut counted.0 }) += reply.count;
            }
            assert_eq!(counted.0 + counted.1, 2_000);
            counted.0
        })
    };
    let (one, other) = tokio::join!(send(7), send(31));
    assert_eq!(one.unwrap() + other.unwrap(), 2_000, "each was new on one of the two");
    daemon.stop_drained();
    assert_exactly_once(&site, 2_000);
}

#[tokio::test]
async fn where_a_producer_is_outlives_rotation_sealing_and_crashes() {
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let daemon = site.start();
    let (mut early, _) = Producer::named(daemon.tcp(), "early", Some(7), None).await;
    early.send(&records(0..1)).await;
    early.finish().await;
    let mut end = 1;
    while site.log_files(".seg.zst").len() < 2 {
        let (mut producer, expected) = Producer::named(daemon.tcp(), "p", Some(0), None).await;
        assert_eq!(expected, end - 1);
        producer.send(&records(end..end + 2_000)).await;
        producer.finish().await;
        end += 2_000;
    }
    daemon.kill();
    for _ in 0..2 {
        let daemon = site.start();
        let (mut again, expected) = Producer::named(daemon.tcp(), "early", Some(7), Some(0)).await;
        assert_eq!(expected, 1);
        again.send(&records(0..1)).await;
        assert_eq!(kinds(&again.finish().await), [("ack", 1, true)]);
        let (_, expected) = Producer::named(daemon.tcp(), "p", Some(0), None).await;
        assert_eq!(expected, end - 1);
        daemon.stop_drained();
    }
    // The first segments are gone as raw files: what they told is not needed.
    assert_exactly_once(&site, end);
}

#[tokio::test]
async fn the_producer_whose_last_frame_is_longest_ago_is_forgotten() {
    let site = Site::new(&format!("{TCP}[log]\nmax_producers = 3\n"));
    let mut daemon = site.start();
    for (n, name) in (0..).zip(["a", "b", "c", "a", "d"]) {
        let (mut producer, _) = Producer::named(daemon.tcp(), name, Some(0), None).await;
        producer.send(&records(n..n + 1)).await;
        producer.finish().await;
    }
    for _ in 0..2 {
        for (name, known) in [("a", 2), ("c", 1), ("d", 1)] {
            assert_eq!(Producer::named(daemon.tcp(), name, Some(0), None).await.1, known, "{name}");
        }
        // Not what it was, and not by mistake what it may be.
        let mut forgotten = Producer::tcp(daemon.tcp()).await;
        forgotten.send(&hello("b", Some(0), Some(1))).await;
        assert_eq!(forgotten.finish().await[0].code, "out_of_sequence");
        daemon.stop_drained();
        daemon = site.start();
    }
    assert_eq!(Producer::named(daemon.tcp(), "b", Some(0), Some(0)).await.1, 0, "it may start over");
}

/// Hands `count` records to a client, in pieces.
fn input(count: u64) -> mpsc::Receiver<Frames> {
    let (sender, receiver) = mpsc::channel(4);
    tokio::spawn(async move {
        for from in (0..count).step_by(500) {
            let to = (from + 500).min(count);
            let frames = Frames { bytes: Bytes::from(records(from..to)), count: to - from };
            if sender.send(frames).await.is_err() {
                return;
            }
        }
    });
    receiver
}

fn settings() -> client::Settings {
    let producer = client::Producer { name: "import".into(), epoch: 0 };
    client::Settings {
        producer: Some(producer),
        window_frames: 600,
        retries: 1_000,
        ..client::Settings::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_daemon_is_killed_again_and_again_stores_every_frame_once() {
    const RECORDS: u64 = 12_000;
    const KILLS: u64 = 6;
    let mut random = StdRng::seed_from_u64(seed());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("in.sock");
    let site = Site::new(&format!("[[source]]\ntype = \"unix\"\npath = {socket:?}\n{SMALL}"));
    let tally = Tally::default();
    let client = Client::new(Target::Unix(socket), settings());
    let killing = async {
        for kill in 0..KILLS {
            let daemon = site.start();
            // By what was acknowledged and not by the clock, so that each
            // kill hits the sender at work.
            let fatal = random.random_range(kill * RECORDS / 8..(kill + 1) * RECORDS / 8);
            while tally.look().acknowledged <= fatal {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            daemon.kill();
        }
        site.start()
    };
    let (sent, daemon) = tokio::join!(client.send(input(RECORDS), &tally), killing);
    sent.unwrap();
    {
        let report = tally.look();
        assert_eq!((report.acknowledged, report.unanswered()), (RECORDS, 0));
        assert!(report.reconnects >= KILLS, "{} of {KILLS} kills hit the sender", report.reconnects);
    }
    daemon.derived(RECORDS).await;
    daemon.stop_drained();
    assert_exactly_once(&site, RECORDS);
}

/// Passes connections on to `to` and breaks each after some bytes; whoever
/// connects after `cuts` is left alone.
struct Proxy {
    address: String,
    broken: Arc<AtomicUsize>,
}

impl Proxy {
    async fn start(to: String, cuts: usize, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let broken = Arc::new(AtomicUsize::new(0));
        let count = broken.clone();
        tokio::spawn(async move {
            let mut random = StdRng::seed_from_u64(seed);
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(&to).await.unwrap();
                let fate = if count.load(Ordering::Relaxed) < cuts {
                    count.fetch_add(1, Ordering::Relaxed);
                    (random.random_range(1..200_000), random.random_range(1..400))
                } else {
                    (u64::MAX, u64::MAX)
                };
                tokio::spawn(pass_on(client, server, fate));
            }
        });
        Self { address, broken }
    }
}

/// Until either direction has ended, or has carried as much as it may.
async fn pass_on(client: TcpStream, server: TcpStream, (up, down): (u64, u64)) {
    let (from_client, mut to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    let (mut up, mut down) = (from_client.take(up), from_server.take(down));
    let up = async {
        let whole = tokio::io::copy(&mut up, &mut to_server).await.is_ok() && up.limit() > 0;
        if whole {
            // An orderly end: the answers are still to come.
            let _ = to_server.shutdown().await;
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = up => {}
        _ = tokio::io::copy(&mut down, &mut to_client) => {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_break_at_any_byte_store_every_frame_once() {
    const RECORDS: u64 = 6_000;
    const CUTS: usize = 25;
    let site = Site::new(TCP);
    let daemon = site.start();
    let proxy = Proxy::start(daemon.tcp().to_owned(), CUTS, seed()).await;
    let tally = Tally::default();
    let client = Client::new(Target::Tcp(proxy.address.clone()), settings());
    client.send(input(RECORDS), &tally).await.unwrap();
    assert_eq!(proxy.broken.load(Ordering::Relaxed), CUTS, "every cut was made");
    {
        let report = tally.look();
        assert_eq!((report.acknowledged, report.refused_total()), (RECORDS, 0));
        assert!(report.duplicates > 0, "no cut came between the disk and the ack; the test proves little");
    }
    daemon.stop_drained();
    assert_exactly_once(&site, RECORDS);
}

fn send(daemon: &Daemon, more: &[&str], file: &PathBuf) -> Value {
    let done = std::process::Command::new(env!("CARGO_BIN_EXE_thalweg"))
        .args(["send", "--json", "--to", daemon.tcp()])
        .args(more)
        .arg(file)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    serde_json::from_slice(&done.stdout).unwrap()
}

#[tokio::test]
async fn a_named_input_sent_again_stores_only_what_is_new() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let file = site.path("in.frames");
    std::fs::write(&file, records(0..100)).unwrap();
    let named = ["--producer", "import"];
    let told = |summary: Value| [summary["acknowledged"].clone(), summary["duplicates"].clone()];
    assert_eq!(told(send(&daemon, &[&named[..], &["--limit", "60"]].concat(), &file)), [60, 0]);
    assert_eq!(told(send(&daemon, &named, &file)), [100, 60]);
    assert_eq!(told(send(&daemon, &named, &file)), [100, 100]);
    assert_eq!(told(send(&daemon, &[], &file)), [100, 0], "a run of its own");
    assert_eq!(told(send(&daemon, &[&named[..], &["--epoch", "1"]].concat(), &file)), [100, 0]);
    assert_eq!(daemon.status().await["end_offset"], 300);
    daemon.stop_drained();
}

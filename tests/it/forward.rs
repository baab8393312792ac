//! Fluentd's Forward protocol, from outside: with bytes as the specification
//! has them, and with clients that other people wrote.

use std::{collections::BTreeMap, io::Write, process::Command, time::Duration};

use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    daemon::{Daemon, SOON, Site, TCP},
    disk_full::{Disk, SMALL},
    producer::Producer,
    tools,
};

const FORWARD: &str = "[[source]]\ntype = \"forward\"\nlisten = \"127.0.0.1:0\"\n";

/// 2024-05-06T07:08:09Z.
const NOW: u32 = 1_714_979_289;

/// A client that knows no more than the specification.
struct Client(TcpStream);

impl Client {
    async fn connect(daemon: &Daemon) -> Self {
        let socket = TcpStream::connect(&daemon.sources["forward"]).await.unwrap();
        socket.set_nodelay(true).unwrap();
        Self(socket)
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Exactly `bytes` answers.
    async fn receive(&mut self, bytes: usize) -> Vec<u8> {
        let mut answer = vec![0; bytes];
        timeout(SOON, self.0.read_exact(&mut answer))
            .await
            .expect("no answer came")
            .expect("the server closed");
        answer
    }

    /// Everything until the server closes, which must be soon.
    async fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        timeout(SOON, self.0.read_to_end(&mut rest)).await.expect("the server did not close").unwrap();
        rest
    }

    /// Sends a chunk and reads its ack.
    async fn put(&mut self, chunk: &str, entries: &[u8]) {
        self.send(&packed(entries, &json!({"chunk": chunk}))).await;
        let expected = ack(chunk);
        assert_eq!(self.receive(expected.len()).await, expected);
    }
}

fn pack(value: &impl serde::Serialize) -> Vec<u8> {
    rmp_serde::to_vec_named(value).unwrap()
}

/// `["app", bin, options]`, PackedForward or CompressedPackedForward.
fn packed(entries: &[u8], options: &Value) -> Vec<u8> {
    let length = u32::try_from(entries.len()).unwrap().to_be_bytes();
    [b"\x93\xa3app\xc6", &length[..], entries, &pack(options)].concat()
}

/// An entry whose time is an `EventTime` of `NOW` and `nanos`.
fn entry(nanos: u32, record: &Value) -> Vec<u8> {
    [b"\x92\xd7\x00", &NOW.to_be_bytes()[..], &nanos.to_be_bytes(), &pack(record)].concat()
}

fn line(text: &str) -> Vec<u8> {
    entry(500_000_000, &json!({"log": format!("{text}\n"), "container_name": "/web"}))
}

/// `{"ack": chunk}` as the specification has it: a map of one, and strings.
fn ack(chunk: &str) -> Vec<u8> {
    [b"\x81\xa3\x61\x63\x6b", &[0xa0 | u8::try_from(chunk.len()).unwrap()][..], chunk.as_bytes()].concat()
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// So that a search finds every record that there is.
const DEEP: &str = "[search]\ndepth = 10000\n";

/// What is found for `query`, by text.
async fn found(daemon: &Daemon, query: &str) -> BTreeMap<String, Value> {
    let hits = daemon.search(json!({"tenant": "default", "query": query, "limit": 1000})).await;
    hits.into_iter().map(|hit| (hit["text"].as_str().unwrap().to_owned(), hit)).collect()
}

#[tokio::test]
async fn a_chunk_of_any_mode_that_was_acknowledged_is_there_after_a_crash() {
    let site = Site::new(FORWARD);
    let daemon = site.start();
    let mut client = Client::connect(&daemon).await;
    // The chunk id of the specification's own example.
    let id = "p8n9gmxTQVC8/nh2wlKKeQ==";
    let zipped = gzip(&line("line gzip"));
    let zstd = zstd::encode_all(&line("line zstd")[..], 1).unwrap();
    let option = |more: Value| {
        let mut option = json!({"size": 1, "chunk": id});
        option.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        option
    };
    let plain = pack(&option(json!({})));
    let messages = [
        [b"\x94\xa3app", &line("line message")[1..], &plain].concat(),
        [b"\x93\xa3app\x91", &line("line forward")[..], &plain].concat(),
        packed(&line("line packed"), &option(json!({}))),
        packed(&zipped, &option(json!({"compressed": "gzip"}))),
        packed(&zstd, &option(json!({"compressed": "zstd"}))),
    ];
    for message in &messages {
        client.send(message).await;
        assert_eq!(client.receive(ack(id).len()).await, ack(id));
    }
    // nil is a heartbeat, and nothing without a chunk id is answered.
    client.send(&[b"\xc0", &packed(&line("line quiet"), &Value::Null)[..]].concat()).await;
    client.0.shutdown().await.unwrap();
    assert_eq!(client.rest().await, b"");
    daemon.kill();

    let daemon = site.start();
    daemon.derived(6).await;
    let found = found(&daemon, "line").await;
    let modes = ["forward", "gzip", "message", "packed", "quiet", "zstd"];
    assert_eq!(
        found.keys().map(String::as_str).collect::<Vec<_>>(),
        modes.map(|mode| format!("line {mode}"))
    );
    for hit in found.values() {
        assert_eq!((&hit["source"], &hit["ts"]), (&json!("app"), &json!(u64::from(NOW) * 1_000 + 500)));
        assert_eq!(hit["attrs"], json!({"container_name": "/web"}));
    }
    daemon.stop_drained();
}

#[tokio::test]
async fn a_bad_event_is_kept_as_a_dead_letter_and_its_chunk_is_acknowledged() {
    let site = Site::new(FORWARD);
    let daemon = site.start();
    let mut client = Client::connect(&daemon).await;
    let no_text = entry(0, &json!({"level": 3}));
    let no_event = pack(&json!([NOW, "a string"]));
    let entries =
        [line("good one"), no_text, line("good two"), no_event.clone(), line("good three")].concat();
    client.put("first", &entries).await;
    client.send(&packed(b"\x1f\x8b no gzip", &json!({"compressed": "gzip", "chunk": "second"}))).await;
    assert_eq!(client.receive(12).await, ack("second"));
    client.put("third", &line("good four")).await;

    let status = daemon.derived(4).await;
    assert_eq!(
        status["derived"]["refused"],
        json!({"missing_text": 1, "bad_event": 1, "bad_compression": 1})
    );
    let first_message = packed(&entries, &json!({"chunk": "first"})).len() as u64;
    let letters = site.store().await.dead_letters(None, 0, 10).await.unwrap();
    let letters: Vec<_> = letters.into_iter().map(|kept| kept.letter).collect();
    let told: Vec<_> = letters.iter().map(|l| (l.code.as_str(), l.frame_index, l.byte_offset)).collect();
    assert_eq!(
        told,
        [
            ("missing_text", Some(1), Some(0)),
            ("bad_event", Some(3), Some(0)),
            ("bad_compression", Some(5), Some(first_message))
        ]
    );
    assert_eq!(letters[1].payload.as_deref(), Some(&no_event[..]));
    assert_eq!((letters[1].source.as_str(), letters[1].peer.is_some()), ("forward", true));
    assert_eq!(found(&daemon, "good").await.len(), 4);
    daemon.stop_drained();
}

#[tokio::test]
async fn a_broken_stream_ends_its_connection_and_no_other() {
    let site = Site::new(FORWARD);
    let daemon = site.start();
    let mut other = Client::connect(&daemon).await;
    let mut silent = Client::connect(&daemon).await;
    silent.send(&packed(&line("never whole"), &Value::Null)[..20]).await;
    let good = packed(&line("good"), &json!({"chunk": "before"}));
    for (n, broken) in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x93\x07\x01\x80"]
        .into_iter()
        .enumerate()
    {
        let mut client = Client::connect(&daemon).await;
        client.send(&[&good, broken, &good].concat()).await;
        assert_eq!(client.rest().await, ack("before"), "{broken:?}");
        other.put("other", &line(&format!("other {n}"))).await;
    }
    let letters = site.store().await.dead_letters(None, 0, 10).await.unwrap();
    let codes: Vec<_> = letters.iter().map(|kept| kept.letter.code.as_str()).collect();
    assert_eq!(codes, ["bad_message", "not_messagepack", "oversized", "bad_message"]);
    assert!(letters[0].letter.message.contains("HTTP"), "{}", letters[0].letter.message);
    // A client that says nothing more does not hold up the stop.
    let exit = daemon.stop();
    assert!(exit.took < Duration::from_secs(15), "the stop took {:?}", exit.took);
}

/// 8,000 characters that compress to half of it.
fn noise(seed: usize) -> String {
    let digest = |n: usize| hex_digest([&seed.to_be_bytes(), &n.to_be_bytes(), b"", b""]);
    (0..63).map(digest).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_the_log_has_no_room_for_is_not_acknowledged_until_it_has() {
    let Some(disk) = Disk::mount("12m") else { return };
    let site = Site::with_data(&format!("{FORWARD}{SMALL}[derive]\nenabled = false\n"), disk.at.join("data"));
    let daemon = site.start();
    let chunk = |n: usize| {
        let entries: Vec<u8> = (0..64).flat_map(|i| line(&noise(64 * n + i))).collect();
        packed(&entries, &json!({"chunk": "c"}))
    };
    let mut client = Client::connect(&daemon).await;
    let mut refused = None;
    for n in 0..100 {
        client.send(&chunk(n)).await;
        let mut answer = vec![0; ack("c").len()];
        match timeout(SOON, client.0.read_exact(&mut answer)).await.unwrap() {
            Ok(_) => assert_eq!(answer, ack("c")),
            Err(_) => {
                refused = Some(n);
                break;
            }
        }
    }
    let refused = refused.expect("the disk did not become full");
    disk.resize("64m");
    // As a forwarder does: the same chunk again, on a new connection.
    crate::daemon::eventually("the chunk is taken", async || {
        let mut client = Client::connect(&daemon).await;
        client.send(&chunk(refused)).await;
        client.rest_or_ack().await == ack("c")
    })
    .await;
    daemon.stop_drained();
}

impl Client {
    /// An ack, or nothing if the server closes instead.
    async fn rest_or_ack(&mut self) -> Vec<u8> {
        let mut answer = vec![0; ack("c").len()];
        let read = timeout(SOON, self.0.read_exact(&mut answer)).await.unwrap();
        read.map(|_| answer).unwrap_or_default()
    }
}

fn hex_digest(parts: [&[u8]; 4]) -> String {
    Sha512::digest(parts.concat()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn only_clients_with_the_shared_key_are_let_in() {
    let site = Site::new(&format!("{FORWARD}shared_key = \"open sesame\"\n"));
    let daemon = site.start();
    for (key, name, let_in, reason) in [
        ("open sesame", "client", true, ""),
        ("open barley", "client", false, "shared_key mismatch"),
        ("open sesame", "thalweg", false, "same hostname"),
    ] {
        let mut client = Client::connect(&daemon).await;
        let helo = client.receive(48).await;
        let nonce: [u8; 16] = helo[15..31].try_into().unwrap();
        assert_eq!(
            helo,
            [b"\x92\xa4HELO\x83\xa5nonce\xc4\x10", &nonce[..], b"\xa4auth\xa0\xa9keepalive\xc3"].concat()
        );
        let digest = hex_digest([b"salt", name.as_bytes(), &nonce, key.as_bytes()]);
        client.send(&pack(&json!(["PING", name, "salt", digest, "", ""]))).await;
        if let_in {
            let proof = hex_digest([b"salt", b"thalweg", &nonce, key.as_bytes()]);
            let pong = pack(&json!(["PONG", true, "", "thalweg", proof]));
            assert_eq!(client.receive(pong.len()).await, pong);
            client.put("c", &line("let in")).await;
        } else {
            let pong: Value = rmp_serde::from_slice(&client.rest().await).unwrap();
            assert_eq!((&pong[0], &pong[1]), (&json!("PONG"), &json!(false)));
            assert!(pong[2].as_str().unwrap().contains(reason), "{pong}");
        }
    }
    // A client that does not know of handshakes.
    let mut client = Client::connect(&daemon).await;
    client.send(&packed(&line("not let in"), &Value::Null)).await;
    assert!(String::from_utf8_lossy(&client.rest().await).contains("expected PING"));
    let (_, metrics) = daemon.get("/metrics").await;
    for reason in ["shared_key", "same_hostname", "no_ping"] {
        let counted = format!("ingest_connections_refused_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.contains(&counted), "{counted} is not in:\n{metrics}");
    }
    assert_eq!(daemon.derived(1).await["end_offset"], 1);
    assert!(!daemon.log().contains("open sesame"));
    daemon.stop_drained();
}

/// Port of a source.
fn port(daemon: &Daemon, source: &str) -> u16 {
    daemon.sources[source].rsplit_once(':').unwrap().1.parse().unwrap()
}

/// What a client printed; whether it ended well.
fn run(mut client: Command) -> (bool, String) {
    let done = client.output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8_lossy(&said).trim().to_owned())
}

#[tokio::test]
async fn the_python_logger_is_understood() {
    let site = Site::new(&format!("{FORWARD}{DEEP}"));
    let daemon = site.start();
    let mut client = Command::new(tools::python());
    client.arg(tools::client("fluent_logger.py")).arg(port(&daemon, "forward").to_string()).arg("300");
    assert_eq!(run(client), (true, "sent 300".to_owned()));
    assert_eq!(daemon.derived(300).await["end_offset"], 300);
    let found = found(&daemon, "python event").await;
    assert_eq!(found.len(), 300);
    for n in 0..300u64 {
        let hit = &found[&format!("python event {n}")];
        let (label, fraction) = [("sync", 0), ("nano", 250), ("async", 0)][usize::try_from(n % 3).unwrap()];
        assert_eq!(hit["source"], format!("py.{label}"));
        assert_eq!(hit["ts"], (u64::from(NOW) + n) * 1_000 + fraction, "{hit}");
        assert_eq!(hit["attrs"], json!({"n": n, "where": {"host": "b", "tags": ["x", null]}}));
    }
    daemon.stop_drained();
}

const MODES: [&str; 4] = ["Message", "Forward", "PackedForward", "CompressedPackedForward"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_logger_gets_its_acks_in_every_mode() {
    let Some(node) = tools::node() else { return };
    drop(node);
    let site = Site::new(&format!("{FORWARD}{DEEP}"));
    let daemon = site.start();
    for mode in MODES {
        let mut node = tools::node().unwrap();
        let request = json!({"port": port(&daemon, "forward"), "mode": mode, "events": 200});
        node.arg(tools::client("fluent_logger.js")).arg(request.to_string());
        assert_eq!(run(node), (true, "acked 200".to_owned()), "{mode}");
    }
    assert_eq!(daemon.derived(800).await["end_offset"], 800);
    for mode in MODES {
        let found = found(&daemon, mode).await;
        let ours: Vec<_> = found.iter().filter(|(text, _)| text.ends_with(&format!(" {mode}"))).collect();
        assert_eq!(ours.len(), 200, "{mode}");
        for (text, hit) in ours {
            let n = hit["attrs"]["n"].as_u64().unwrap();
            assert_eq!(*text, format!("node event {n} {mode}"));
            assert_eq!(hit["source"], format!("node.{}", mode.to_lowercase()));
            assert_eq!(hit["ts"], u64::from(NOW) * 1_000 + n);
            assert_eq!(hit["attrs"], json!({"n": n, "record_source": "stdout", "labels": {"app": "a"}}));
        }
    }
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_node_logger_is_let_in_by_its_key_and_over_tls() {
    let Some(node) = tools::node() else { return };
    drop(node);
    let folder = tempfile::tempdir().unwrap();
    let Some((cert, key)) = tools::certificate(folder.path()) else { return };
    let site = Site::new(&format!(
        "{FORWARD}shared_key = \"open sesame\"\n{FORWARD}name = \"secure\"\nshared_key = \"open sesame\"\n\
         tls = {{ cert = {cert:?}, key = {key:?} }}\n"
    ));
    let daemon = site.start();
    let client = |source: &str, shared_key: Option<&str>, ca: Option<&std::path::Path>| {
        let mut node = tools::node().unwrap();
        let request = json!({
            "port": port(&daemon, source), "mode": "PackedForward", "events": 20, "shared_key": shared_key, "ca": ca,
        });
        node.arg(tools::client("fluent_logger.js")).arg(request.to_string());
        run(node)
    };
    let (right, wrong) = (Some("open sesame"), Some("open barley"));
    assert_eq!(client("forward", right, None), (true, "acked 20".to_owned()));
    assert_eq!(client("secure", right, Some(&cert)), (true, "acked 20".to_owned()));
    for (source, ca) in [("forward", None), ("secure", Some(cert.as_path()))] {
        let (well, said) = client(source, wrong, ca);
        assert!(!well && said.contains("shared_key mismatch"), "{source}: {said}");
    }
    // Without TLS there is not even a HELO.
    let mut plain = Client(TcpStream::connect(&daemon.sources["secure"]).await.unwrap());
    plain.send(&packed(&line("not let in"), &Value::Null)).await;
    assert!(!plain.rest().await.starts_with(b"\x92\xa4HELO"));
    assert_eq!(daemon.derived(20).await["end_offset"], 40);
    daemon.stop_drained();
}

#[test]
fn a_certificate_that_cannot_be_used_stops_the_start_with_its_reason() {
    let site = Site::new("");
    std::fs::write(site.path("cert.pem"), "no certificate").unwrap();
    let cert = site.path("cert.pem");
    site.configure(&format!("{FORWARD}tls = {{ cert = {cert:?}, key = \"none.pem\" }}\n"));
    let exit = site.run(&[], b"");
    assert_ne!(exit.code, Some(0));
    assert!(
        exit.log.contains("tls.cert") && exit.log.contains("certificate that can be read"),
        "{}",
        exit.log
    );
}

#[tokio::test]
async fn events_and_frames_share_one_stream() {
    let site = Site::new(&format!("{TCP}{FORWARD}"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    assert_eq!(producer.put(&json!({"text": "a frame"})).await, 0);
    Client::connect(&daemon).await.put("c", &line("an event")).await;
    assert_eq!(producer.put(&json!({"text": "another frame"})).await, 2);
    daemon.stop_drained();
}

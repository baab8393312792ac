//! The client against servers that do what a test tells them.

use bytes::BytesMut;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::*;
use crate::{frame::put_frame, source::wire::Level};

/// Long enough for anything that should happen.
const SOON: Duration = Duration::from_secs(30);

struct Server {
    listener: UnixListener,
    target: Target,
    _folder: tempfile::TempDir,
}

impl Server {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Self { listener, target: Target::Unix(path), _folder: folder }
    }

    async fn accept(&self) -> Peer {
        Peer(timeout(SOON, self.listener.accept()).await.unwrap().unwrap().0)
    }

    fn client(&self, settings: Settings) -> Client {
        Client::new(self.target.clone(), settings)
    }
}

struct Peer(UnixStream);

impl Peer {
    /// The payload of the next frame; `None` at the end.
    async fn frame(&mut self) -> Option<u8> {
        let length = timeout(SOON, self.0.read_u32()).await.unwrap().ok()?;
        assert_eq!(length, 1);
        self.0.read_u8().await.ok()
    }

    async fn frames(&mut self, count: usize) -> Vec<u8> {
        let mut frames = Vec::new();
        while frames.len() < count {
            frames.push(self.frame().await.expect("another frame"));
        }
        frames
    }

    async fn answer(&mut self, reply: Reply) {
        let mut out = BytesMut::new();
        reply.put(&mut out);
        self.0.write_all(&out).await.unwrap();
    }

    async fn ack(&mut self, offset: u64, count: u64) {
        let (level, stream, offset) = (Level::Disk, "s".into(), Some(offset));
        self.answer(Reply::Ack { level, stream, offset, count, duplicate: false }).await;
    }

    async fn known(&mut self, count: u64) {
        let (level, stream) = (Level::Disk, "s".into());
        self.answer(Reply::Ack { level, stream, offset: None, count, duplicate: true }).await;
    }

    async fn hello(&mut self) -> Value {
        let length = timeout(SOON, self.0.read_u32()).await.unwrap().unwrap();
        let mut payload = vec![0; length as usize];
        self.0.read_exact(&mut payload).await.unwrap();
        rmp_serde::from_slice(&payload).unwrap()
    }

    async fn refuse(&mut self, frame: u64, code: &str, fatal: bool) {
        let (code, message) = (code.to_owned(), "no".to_owned());
        self.answer(Reply::Error { frame, byte: 0, code, message, fatal }).await;
    }
}

/// Frames of one byte each, counted from 0.
fn input(count: u8) -> mpsc::Receiver<Frames> {
    let (sender, receiver) = mpsc::channel(1);
    let mut bytes = BytesMut::new();
    (0..count).for_each(|n| put_frame(&mut bytes, &[n]));
    sender.try_send(Frames { bytes: bytes.freeze(), count: count.into() }).unwrap();
    receiver
}

fn acked(frame: u64, offset: u64, count: u64) -> Acked {
    Acked { frame, offset, count }
}

#[tokio::test]
async fn what_has_no_answer_when_the_server_closes_is_sent_again_from_there() {
    let (server, tally) = (Server::new(), Tally::default());
    let client = server.client(Settings::default());
    let served = async {
        let mut first = server.accept().await;
        assert_eq!(first.frames(4).await, [0, 1, 2, 3]);
        first.ack(100, 1).await;
        first.answer(Reply::Closing { reason: "bye".into(), retry_after_ms: 1 }).await;
        drop(first);
        let mut second = server.accept().await;
        assert_eq!(second.frames(3).await, [1, 2, 3]);
        assert_eq!(second.frame().await, None, "the writing half is ended after the last frame");
        second.ack(104, 3).await;
    };
    let (sent, ()) = tokio::join!(client.send(input(4), &tally), served);
    sent.unwrap();
    let report = tally.look();
    assert_eq!((report.acknowledged, report.resent, report.reconnects), (4, 3, 1));
    assert_eq!(report.ranges, [acked(0, 100, 1), acked(1, 104, 3)]);
    assert_eq!((report.unanswered(), report.latency_us.len()), (0, 4));
}

fn named() -> Settings {
    let producer = Producer { name: "me".into(), epoch: 4 };
    Settings { producer: Some(producer), ..Settings::default() }
}

#[tokio::test]
async fn a_named_client_says_on_each_connection_from_which_frame_on_it_sends() {
    let (server, tally) = (Server::new(), Tally::default());
    let client = server.client(named());
    let hello = |sequence| json!({"thalweg": 1, "producer": "me", "epoch": 4, "sequence": sequence});
    let served = async {
        let mut first = server.accept().await;
        assert_eq!(first.hello().await, hello(0));
        first.answer(Reply::Welcome { producer: Some("me".into()), epoch: Some(4), sequence: Some(0) }).await;
        assert_eq!(first.frames(5).await, [0, 1, 2, 3, 4]);
        first.ack(100, 1).await;
        first.refuse(1, "missing_text", false).await;
        // Late, it came in pieces.
        first.refuse(2, "truncated", true).await;
        drop(first);
        let mut second = server.accept().await;
        assert_eq!(second.hello().await, hello(2));
        assert_eq!(second.frames(3).await, [2, 3, 4]);
        second.known(2).await;
        second.ack(104, 1).await;
    };
    let (sent, ()) = tokio::join!(client.send(input(5), &tally), served);
    sent.unwrap();
    let report = tally.look();
    assert_eq!((report.acknowledged, report.duplicates, report.refused_total()), (4, 2, 1));
    assert_eq!(report.ranges, [acked(0, 100, 1), acked(4, 104, 1)]);
}

#[tokio::test]
async fn a_client_that_may_not_send_gives_up_at_once() {
    for code in ["fenced", "out_of_sequence", "bad_hello"] {
        let (server, tally) = (Server::new(), Tally::default());
        let client = server.client(named());
        let served = async {
            let mut peer = server.accept().await;
            peer.hello().await;
            peer.refuse(0, code, true).await;
            peer
        };
        let (sent, _peer) = tokio::join!(client.send(input(3), &tally), served);
        assert!(matches!(&sent, Err(ClientError::Refused { code: told, .. }) if told == code), "{sent:?}");
    }
}

#[tokio::test]
async fn a_refused_frame_is_counted_and_never_sent_again() {
    let (server, tally) = (Server::new(), Tally::default());
    let client = server.client(Settings::default());
    let served = async {
        let mut peer = server.accept().await;
        peer.frames(3).await;
        peer.ack(0, 1).await;
        peer.refuse(1, "missing_text", false).await;
        peer.answer(Reply::Closing { reason: "bye".into(), retry_after_ms: 1 }).await;
        drop(peer);
        let mut again = server.accept().await;
        assert_eq!(again.frames(1).await, [2]);
        again.ack(1, 1).await;
    };
    let (sent, ()) = tokio::join!(client.send(input(3), &tally), served);
    sent.unwrap();
    let report = tally.look();
    assert_eq!((report.acknowledged, report.refused["missing_text"]), (2, 1));
    assert_eq!(report.first_refused[0].frame, 1);
}

#[tokio::test]
async fn a_frame_that_the_server_has_no_room_for_begins_the_next_connection() {
    let (server, tally) = (Server::new(), Tally::default());
    let client = server.client(Settings::default());
    let served = async {
        let mut peer = server.accept().await;
        peer.frames(2).await;
        peer.refuse(0, "log_full", true).await;
        drop(peer);
        let mut again = server.accept().await;
        assert_eq!(again.frames(2).await, [0, 1]);
        again.ack(7, 2).await;
    };
    let (sent, ()) = tokio::join!(client.send(input(2), &tally), served);
    sent.unwrap();
    let report = tally.look();
    assert_eq!((report.acknowledged, report.refused_total()), (2, 0));
}

#[tokio::test]
async fn answers_that_do_not_fit_the_frames_end_the_sending() {
    for wrong in ["another frame", "too many", "backwards"] {
        let (server, tally) = (Server::new(), Tally::default());
        let client = server.client(Settings::default());
        let served = async {
            let mut peer = server.accept().await;
            peer.frames(3).await;
            match wrong {
                "another frame" => peer.refuse(1, "missing_text", false).await,
                "too many" => peer.ack(0, 4).await,
                _ => {
                    peer.ack(5, 1).await;
                    peer.ack(5, 1).await;
                }
            }
            peer
        };
        let (sent, _peer) = tokio::join!(client.send(input(3), &tally), served);
        assert!(matches!(sent, Err(ClientError::Protocol { .. })), "{wrong}: {sent:?}");
    }
}

#[tokio::test]
async fn no_more_is_in_flight_than_the_window_holds() {
    let (server, tally) = (Server::new(), Tally::default());
    let client = server.client(Settings { window_frames: 4, ..Settings::default() });
    let served = async {
        let mut peer = server.accept().await;
        assert_eq!(peer.frames(4).await, [0, 1, 2, 3]);
        let early = timeout(Duration::from_millis(200), peer.0.read_u8()).await;
        assert!(early.is_err(), "a fifth frame came before an answer");
        peer.ack(0, 1).await;
        assert_eq!(peer.frames(1).await, [4]);
        peer.ack(1, 4).await;
        peer.frames(1).await;
        peer.ack(5, 1).await;
    };
    let (sent, ()) = tokio::join!(client.send(input(6), &tally), served);
    sent.unwrap();
    assert_eq!(tally.look().acknowledged, 6);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_given_up_after_the_retries() {
    let server = Server::new();
    let client = server.client(Settings { retries: 1, ..Settings::default() });
    drop(server);
    let tally = Tally::default();
    let failed = client.send(input(1), &tally).await;
    assert!(matches!(failed, Err(ClientError::Connection { attempts: 2, .. })), "{failed:?}");
}

#[tokio::test]
async fn a_rate_holds_frames_back_until_they_are_due() {
    let (server, tally) = (Server::new(), Tally::default());
    let client = server.client(Settings { rate: Some(100.0), ..Settings::default() });
    let started = Instant::now();
    let served = async {
        let mut peer = server.accept().await;
        peer.frames(20).await;
        let took = started.elapsed();
        peer.ack(0, 20).await;
        took
    };
    let (sent, took) = tokio::join!(client.send(input(20), &tally), served);
    sent.unwrap();
    assert!(took >= Duration::from_millis(190), "20 frames at 100/s came in {took:?}");
}

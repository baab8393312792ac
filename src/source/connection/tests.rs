//! A connection over a pipe whose other end does what a test tells it.

use tokio::io::{DuplexStream, duplex};

use super::*;
use crate::{
    access, clock, config,
    frame::put_frame,
    source::{sessions::Sessions, testing::Way},
};

const MOMENT: Duration = Duration::from_millis(300);
const SOON: Duration = Duration::from_secs(30);
/// Bytes that the pipe holds in each direction.
const PIPE_BYTES: usize = 256;

impl Way {
    fn entrance(&self) -> Entrance {
        let (access, _) = access::open(None, &self.store, clock::system()).unwrap();
        let sessions = Sessions::new(config::Sessions::default());
        Entrance { ingest: self.ingest.clone(), sessions, access }
    }
}

async fn way() -> Way {
    Way::open(ByteSize::kib(64)).await
}

fn frame(text: &str) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_frame(&mut out, &rmp_serde::to_vec_named(&serde_json::json!({ "text": text })).unwrap());
    out.to_vec()
}

/// Frames that `replies` answer, and how many answers those are.
fn answered(mut replies: &[u8]) -> (u64, usize) {
    let (mut frames, mut answers) = (0, 0);
    while replies.has_remaining() {
        let length = replies.get_u32() as usize;
        match rmp_serde::from_slice(&replies[..length]).unwrap() {
            Reply::Ack { count, .. } => frames += count,
            Reply::Error { .. } => frames += 1,
            other => panic!("{other:?}"),
        }
        replies.advance(length);
        answers += 1;
    }
    (frames, answers)
}

#[tokio::test]
async fn a_client_that_reads_no_answers_is_not_read_from_and_loses_nothing() {
    let way = way().await;
    let (there, here): (DuplexStream, DuplexStream) = duplex(PIPE_BYTES);
    let (read, write) = tokio::io::split(here);
    let entrance = way.entrance();
    let origin = Origin { source: "s".into(), peer: None, tenant: None };
    let serving = tokio::spawn(async move { serve(read, write, origin, &entrance).await });
    let (mut replies, mut sender) = tokio::io::split(there);
    // One by one, so that each has an answer of its own: good and bad in turn.
    let pair = [frame("x"), vec![0, 0, 0, 1, 0xc1]].concat();
    let mut sent = 0;
    while timeout(MOMENT, sender.write_all(&pair)).await.is_ok() {
        sent += 1;
        assert!(sent < 2_000, "the server reads on although nobody reads its answers");
    }
    assert!(sent > 10, "it does take some ahead");
    // The last pair is cut off somewhere: the rest is not known.
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        replies.read_to_end(&mut all).await.map(|_| all)
    });
    sender.shutdown().await.unwrap();
    let all = timeout(SOON, reading).await.unwrap().unwrap().unwrap();
    let (frames, answers) = answered(&all);
    assert!((2 * sent..=2 * sent + 2).contains(&frames), "{frames} of {sent} pairs");
    assert!(answers as u64 >= sent, "{answers}");
    timeout(SOON, serving).await.unwrap().unwrap().unwrap();
    drop(way.ingest);
    tokio::task::spawn_blocking(|| way.log.shut_down()).await.unwrap();
}

#[tokio::test]
async fn frames_that_become_durable_together_have_one_ack() {
    let way = way().await;
    let (mut there, here) = duplex(1 << 20);
    let (read, write) = tokio::io::split(here);
    let entrance = way.entrance();
    let origin = Origin { source: "s".into(), peer: None, tenant: None };
    there.write_all(&frame("x").repeat(10_000)).await.unwrap();
    there.shutdown().await.unwrap();
    let mut all = Vec::new();
    let serving = serve(read, write, origin, &entrance);
    let (served, read) = tokio::join!(serving, there.read_to_end(&mut all));
    served.unwrap();
    read.unwrap();
    let (frames, answers) = answered(&all);
    assert_eq!(frames, 10_000);
    assert!(answers <= 10, "{answers} answers");
    drop((way.ingest, entrance));
    tokio::task::spawn_blocking(|| way.log.shut_down()).await.unwrap();
}

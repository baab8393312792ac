//! Single functions on the way of a record: `cargo bench --bench single`.
//!
//! For changes to one of them; what the whole does is measured by
//! `thalweg bench`.

#![allow(clippy::unwrap_used, reason = "a benchmark may stop")]

use bytes::{Bytes, BytesMut};
use divan::{Bencher, black_box, counter::BytesCount, counter::ItemsCount};
use serde_json::json;
use thalweg::{
    frame::{DEFAULT_MAX_FRAME, FrameCodec, Payloads, put_frame},
    record::{RecordRef, Tier},
    source::forward,
    store::fusion::{Candidate, Fusion, Weights, fuse},
    transform::{Settings, Words, chunk::chunk, pii::Scanner},
};
use tokio_util::codec::Decoder;

fn main() {
    divan::main();
}

/// A chat message as producers send it: 254 bytes.
fn payload() -> Vec<u8> {
    rmp_serde::to_vec_named(&json!({
        "id": "m-000123",
        "ts": 1_714_979_289_000_i64,
        "tenant": "team-3",
        "session": "ubuntu-2008-07-11",
        "text": "try `sudo apt-get install linux-headers-generic`, then write to sam@example.com or call \
                 +1 555 010 9999 if the module still does not load",
        "user": "sam",
        "re": ["m-000121", "m-000122"],
    }))
    .unwrap()
}

fn run(frames: usize) -> Bytes {
    let (payload, mut out) = (payload(), BytesMut::new());
    (0..frames).for_each(|_| put_frame(&mut out, &payload));
    out.freeze()
}

/// Prose with paragraphs, `paragraphs` of them.
fn prose(paragraphs: usize) -> String {
    let sentence = "The river carries what the hills let go, and the line where it runs deepest moves a \
                    little every year. Boats follow it without knowing; a pilot knows. ";
    vec![sentence.repeat(3); paragraphs].join("\n\n")
}

#[divan::bench]
fn frame_walk(bencher: Bencher) {
    let run = run(256);
    bencher
        .counter(BytesCount::new(run.len()))
        .counter(ItemsCount::new(256usize))
        .bench(|| Payloads(black_box(run.clone())).count());
}

#[divan::bench]
fn frame_codec(bencher: Bencher) {
    let run = run(256);
    bencher
        .counter(BytesCount::new(run.len()))
        .counter(ItemsCount::new(256usize))
        .with_inputs(|| BytesMut::from(&run[..]))
        .bench_values(|mut buffer| FrameCodec::new(DEFAULT_MAX_FRAME).decode(&mut buffer).unwrap());
}

#[divan::bench]
fn parse_in_place(bencher: Bencher) {
    let payload = payload();
    bencher
        .counter(BytesCount::new(payload.len()))
        .bench(|| RecordRef::parse(black_box(&payload)).unwrap().text.len());
}

/// A PackedForward chunk of 2,400 events of 427 bytes: about a megabyte.
fn forwarded(compressed: &str) -> Vec<u8> {
    let record = json!({
        "log": "203.0.113.7 - - [06/May/2024:07:08:09 +0000] \"GET /assets/app.js HTTP/1.1\" 200 18213 \"-\" \
                \"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0 Safari\"\n",
        "container_id": "9f2c5b7f0d6e4a1c8b3f7d2e6a9c0b4d8e1f5a7c3b6d9e2f4a8c1b5d7e0f3a6c",
        "container_name": "/web-7d9c6b5f4-x2k8q",
        "stream": "stdout",
        "level": "info",
        "n": 123_456,
        "host": "node-17.example.com",
        "pod": "web-7d9c6b5f4-x2k8q-0",
    });
    let time =
        [&b"\x92\xd7\x00"[..], &1_714_979_289_u32.to_be_bytes(), &123_456_789_u32.to_be_bytes()].concat();
    let entry = [time, rmp_serde::to_vec_named(&record).unwrap()].concat();
    assert_eq!(entry.len(), 427);
    let entries = entry.repeat(2_400);
    let packed = if compressed == "zstd" { zstd::encode_all(&entries[..], 3).unwrap() } else { entries };
    let length = u32::try_from(packed.len()).unwrap().to_be_bytes();
    let options = rmp_serde::to_vec_named(&json!({"compressed": compressed})).unwrap();
    [b"\x93\xa3app\xc6", &length[..], &packed, &options].concat()
}

/// From a client's bytes to frames for the log, without admission's proof.
#[divan::bench(args = ["none", "zstd"])]
fn forward_chunk(bencher: Bencher, compressed: &str) {
    let chunk = forwarded(compressed);
    bencher.counter(BytesCount::new(2_400usize * 427)).counter(ItemsCount::new(2_400usize)).bench(|| {
        let (runs, count) = forward::decode(black_box(&chunk), &["text", "log"], 64 << 20, 16 << 20);
        assert_eq!(count, 2_400);
        runs
    });
}

#[divan::bench]
fn batch_checksum(bencher: Bencher) {
    let run = run(256);
    bencher.counter(BytesCount::new(run.len())).bench(|| crc32c::crc32c(black_box(&run)));
}

#[divan::bench]
fn pii_scan(bencher: Bencher) {
    let scanner = Scanner::new(&Settings::default().pii);
    let payload = payload();
    let text = RecordRef::parse(&payload).unwrap().text;
    bencher.counter(BytesCount::new(text.len())).bench(|| scanner.scan(black_box(text)).findings.len());
}

#[divan::bench(args = [1, 10, 100])]
fn chunk_paragraphs(bencher: Bencher, paragraphs: usize) {
    let (text, settings) = (prose(paragraphs), Settings::default().chunk);
    bencher.counter(BytesCount::new(text.len())).bench(|| chunk(black_box(&text), &settings, &Words).len());
}

#[divan::bench(args = [Fusion::MinMax, Fusion::Rank])]
fn fuse_200(bencher: Bencher, fusion: Fusion) {
    let candidates: Vec<Candidate> = (0..200i16)
        .map(|n| Candidate {
            chunk_key: i64::from(n),
            tier: Tier::Event,
            vector: (n % 3 != 0).then(|| f32::from(n * 37 % 101) / 101.0),
            keyword: (n % 3 != 1).then(|| f32::from(n * 53 % 97)),
        })
        .collect();
    let weights = Weights::default();
    bencher.counter(ItemsCount::new(200usize)).bench(|| fuse(black_box(&candidates), fusion, &weights).len());
}

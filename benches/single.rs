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

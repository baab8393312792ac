//! What the log itself keeps of the producers that number their frames.

use std::{fs, ops::Range, path::Path, sync::Arc};

use bytes::{Bytes, BytesMut};
use thalweg::{
    clock,
    frame::put_frame,
    log::{AppendError, Claim, Cursor, Log, LogReader, LogWriter, Position, ProducerError, Settings},
    units::ByteSize,
};

fn settings(max_producers: usize) -> Settings {
    let (segment_bytes, max_frame_bytes) = (ByteSize::kib(1_100), ByteSize::kib(16));
    Settings { segment_bytes, max_frame_bytes, max_producers, ..Settings::default() }
}

fn open(root: &Path, settings: &Settings) -> Log {
    let (log, recovery) = Log::open(root, "s", settings, clock::system(), Box::new(rand::random)).unwrap();
    assert_eq!((recovery.damage.len(), recovery.quarantined.len()), (0, 0), "{recovery:?}");
    log
}

fn raw_files(root: &Path) -> usize {
    let names = fs::read_dir(root.join("s")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_str().unwrap().ends_with(".log")).count()
}

async fn resume(log: &LogWriter, name: &str) -> Result<Position, AppendError> {
    log.open_producer(name.into(), Some(0), Some(1)).await
}

async fn append(log: &LogWriter, name: &str, first: u64, payload: &[u8]) -> u64 {
    let mut frame = BytesMut::new();
    put_frame(&mut frame, payload);
    let claim = Claim { producer: name.into(), epoch: 0, first, count: 1 };
    let room = log.reserve(frame.len()).await.unwrap();
    room.append_claimed(frame.freeze(), 1, Some(claim)).answer().await.unwrap().offset
}

fn payloads(reader: &LogReader) -> Vec<(u64, Bytes)> {
    let (mut cursor, mut all) = (Cursor::at(0), Vec::new());
    loop {
        let batches = reader.read(&mut cursor, 1 << 20).unwrap();
        if batches.is_empty() {
            return all;
        }
        assert!(batches.iter().all(|batch| batch.count > 0));
        all.extend(batches.iter().flat_map(|batch| batch.payloads()));
    }
}

/// Opens epochs of `rounds` times a thousand producers: tables, and nothing
/// but tables.
async fn fill_with_tables(log: &LogWriter, rounds: Range<usize>) {
    for round in rounds {
        let names = (0..1_000).map(|n| Arc::from(format!("a producer of round {round}, number {n}")));
        let opened = names.map(|name| log.open_producer(name, None, None));
        for one in futures::future::join_all(opened).await {
            assert_eq!(one.unwrap(), Position { epoch: 0, next: 0 });
        }
    }
}

#[tokio::test]
async fn a_segment_full_of_tables_is_begun_anew_in_its_place() {
    let root = tempfile::tempdir().unwrap();
    for start in 0..2 {
        let log = open(root.path(), &settings(400));
        append(&log.writer(), &format!("first {start}"), 0, b"x").await;
        // Three times what a segment holds; after the first, of no frames.
        fill_with_tables(&log.writer(), 60 * start..60 * (start + 1)).await;
        append(&log.writer(), &format!("last {start}"), 0, b"x").await;
        assert_eq!(raw_files(root.path()), 2 + start);
        log.shut_down();
    }
    let log = open(root.path(), &settings(400));
    assert_eq!(payloads(&log.reader()).len(), 4);
    assert_eq!(resume(&log.writer(), "last 1").await.unwrap().next, 1);
    log.shut_down();
}

#[tokio::test]
async fn as_many_producers_as_fit_beside_the_longest_append_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let log = open(root.path(), &settings(1_000_000));
    fill_with_tables(&log.writer(), 0..2).await;
    append(&log.writer(), "last", 0, b"x").await;
    // A segment of 1,100 KiB beside an append of a megabyte.
    let long = Bytes::from(vec![0; (1 << 20) - 4]);
    log.writer().close_segment().await.unwrap();
    append(&log.writer(), "last", 1, &long).await;
    for file in fs::read_dir(root.path().join("s")).unwrap() {
        assert!(file.unwrap().metadata().unwrap().len() <= 1_100 << 10, "written past its end");
    }
    assert_eq!(resume(&log.writer(), "last").await.unwrap().next, 2);
    let forgotten = resume(&log.writer(), "a producer of round 0, number 0").await.unwrap_err();
    assert!(matches!(forgotten, AppendError::Producer(ProducerError::OutOfSequence { expected: 0, .. })));
    log.shut_down();
}

/// A log whose only segment is `golden`, a file of an earlier daemon.
fn earlier(golden: &str) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("s")).unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/log").join(golden);
    fs::copy(from, root.path().join("s/00000000000000000007.log")).unwrap();
    root
}

fn golden_payloads() -> Vec<(u64, Bytes)> {
    [(7, &b"\x81\xa4text\xa1a"[..]), (8, b"\x81\xa4text\xa2bc"), (9, b"\x81\xa4text\xa1d")]
        .map(|(offset, payload)| (offset, Bytes::from_static(payload)))
        .to_vec()
}

#[tokio::test]
async fn version_1_is_read_and_not_written_to() {
    let root = earlier("v1.log");
    // Of its very size, so that nothing but the version keeps it from use.
    let file = root.path().join("s/00000000000000000007.log");
    fs::File::options().write(true).open(&file).unwrap().set_len(1_100 << 10).unwrap();
    let before = fs::read(&file).unwrap();
    let log = open(root.path(), &settings(10));
    assert_eq!(payloads(&log.reader()), golden_payloads());
    assert_eq!(append(&log.writer(), "p", 0, b"new").await, 10);
    assert_eq!(fs::read(&file).unwrap(), before);
    log.shut_down();
}

#[tokio::test]
async fn version_2_is_read_with_its_producers() {
    let root = earlier("v2.log");
    let log = open(root.path(), &settings(10));
    assert_eq!(payloads(&log.reader()), golden_payloads());
    let at =
        async |name: &str, epoch| log.writer().open_producer(name.into(), Some(epoch), None).await.unwrap();
    assert_eq!(at("old", 3).await, Position { epoch: 3, next: 5 });
    assert_eq!(at("a", 0).await, Position { epoch: 0, next: 3 });
    log.shut_down();
}

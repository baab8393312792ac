//! The log: durable, in order, and whole after any crash.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use thalweg::{
    clock,
    frame::put_frame,
    log::{Cursor, Damage, Log, LogReader, OpenError, Recovery, Settings},
    units::{ByteSize, Period},
};

const HEADER: u64 = 512;

fn settings(segment_kib: u64) -> Settings {
    Settings {
        segment_bytes: ByteSize::kib(segment_kib),
        segment_age: Period::secs(600),
        max_frame_bytes: ByteSize::kib(64),
        ..Settings::default()
    }
}

fn open(root: &Path, settings: &Settings) -> (Log, Recovery) {
    Log::open(root, "s", settings, clock::system(), Box::new(rand::random)).unwrap()
}

fn frames(payloads: &[Vec<u8>]) -> (Bytes, u32) {
    let mut out = BytesMut::new();
    payloads.iter().for_each(|p| put_frame(&mut out, p));
    (out.freeze(), payloads.len() as u32)
}

/// Payload number `n`: recognisable, of varying length.
fn payload(n: u64) -> Vec<u8> {
    format!("{n}:").bytes().cycle().take(20 + (n as usize * 37) % 500).collect()
}

async fn append(log: &Log, from: u64, to: u64) {
    for n in from..to {
        let (bytes, count) = frames(&[payload(n)]);
        let appended = log.writer().append(bytes, count).await.unwrap();
        assert_eq!((appended.offset, appended.count), (n, 1));
    }
}

fn read_all(reader: &LogReader, from: u64, max_bytes: usize) -> Vec<(u64, Vec<u8>)> {
    let mut cursor = Cursor::at(from);
    let mut seen = Vec::new();
    loop {
        let batches = reader.read(&mut cursor, max_bytes).unwrap();
        if batches.is_empty() {
            return seen;
        }
        seen.extend(batches.iter().flat_map(|b| b.payloads()).map(|(o, p)| (o, p.to_vec())));
    }
}

fn expected(from: u64, to: u64) -> Vec<(u64, Vec<u8>)> {
    (from..to).map(|n| (n, payload(n))).collect()
}

fn raw_files(root: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(root.join("s"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "log"))
        .collect();
    files.sort();
    files
}

/// File positions of the batches of a raw file, from their magic.
fn batch_positions(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let at = |p: usize| bytes[p..].starts_with(b"TwB1").then_some(p as u64);
    (0..bytes.len() - 4).filter_map(at).collect()
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[tokio::test]
async fn frames_are_read_back_from_any_offset_across_segments_and_restarts() {
    let root = tempfile::tempdir().unwrap();
    let (log, recovery) = open(root.path(), &settings(1_200));
    assert_eq!(recovery, Recovery::default());
    append(&log, 0, 3_000).await;
    assert_eq!(read_all(&log.reader(), 0, 10_000), expected(0, 3_000));
    log.shut_down();

    let (log, recovery) = open(root.path(), &settings(1_200));
    assert_eq!(recovery.end_offset, 3_000);
    append(&log, 3_000, 6_000).await;
    assert!(raw_files(root.path()).len() >= 2, "the segments rotate by size");
    for from in [0, 1, 2_999, 3_000, 5_999, 6_000] {
        assert_eq!(read_all(&log.reader(), from, 1), expected(from, 6_000), "from {from}");
    }
    let (offline, _) = LogReader::open(root.path(), "s").unwrap();
    assert_eq!(read_all(&offline, 0, 1 << 20), expected(0, 6_000));
}

#[tokio::test]
async fn concurrent_producers_each_keep_their_order() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), &settings(1_200));
    let producers = (0..8u64).map(|producer| {
        let writer = log.writer();
        tokio::spawn(async move {
            for n in 0..200u64 {
                let (bytes, count) = frames(&vec![format!("{producer} {n}").into_bytes(); 3]);
                writer.append(bytes, count).await.unwrap();
            }
        })
    });
    futures::future::join_all(producers).await;
    let mut next = [0u64; 8];
    let all = read_all(&log.reader(), 0, 1 << 20);
    assert_eq!(all.len(), 8 * 200 * 3);
    for (at, (offset, payload)) in all.iter().enumerate() {
        assert_eq!(*offset, at as u64);
        let text = String::from_utf8(payload.clone()).unwrap();
        let (producer, n) = text.split_once(' ').unwrap();
        let seen = &mut next[producer.parse::<usize>().unwrap()];
        assert_eq!(n.parse::<u64>().unwrap(), *seen / 3);
        *seen += 1;
    }
}

#[tokio::test]
async fn a_segment_is_closed_when_its_first_frame_is_old_enough() {
    let root = tempfile::tempdir().unwrap();
    let young = Settings { segment_age: Period("200ms".parse::<Period>().unwrap().0), ..settings(1_200) };
    let (log, _) = open(root.path(), &young);
    append(&log, 0, 2).await;
    assert_eq!(log.closed().len(), 0);
    tokio::time::timeout(std::time::Duration::from_secs(5), async {
        while log.closed().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("closed by age");
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(log.closed().len(), 1, "an empty segment is never closed");
    append(&log, 2, 4).await;
    assert_eq!(read_all(&log.reader(), 0, 1), expected(0, 4));
}

#[tokio::test]
async fn a_torn_tail_is_cut_at_the_last_proven_frame() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), &settings(1_200));
    append(&log, 0, 20).await;
    log.shut_down();
    let file = raw_files(root.path()).remove(0);
    let last = *batch_positions(&file).last().unwrap();
    overwrite(&file, last + 50, &[0xff; 10]);

    let (log, recovery) = open(root.path(), &settings(1_200));
    assert_eq!(recovery, Recovery { end_offset: 19, ..Recovery::default() });
    append(&log, 19, 30).await;
    assert_eq!(read_all(&log.reader(), 0, 1), expected(0, 30));
}

#[tokio::test]
async fn damage_before_proven_data_is_reported_and_the_rest_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), &settings(1_200));
    append(&log, 0, 20).await;
    log.shut_down();
    let file = raw_files(root.path()).remove(0);
    let positions = batch_positions(&file);
    overwrite(&file, positions[5] + 50, &[0xff; 3]);
    overwrite(&file, positions[6] + 4, &[0xff; 4]);

    let (log, recovery) = open(root.path(), &settings(1_200));
    assert_eq!(recovery.end_offset, 20);
    let damage = &recovery.damage[0];
    assert_eq!((damage.first_offset, damage.next_offset), (5, 7));
    assert_eq!((damage.from, damage.to), (positions[5], positions[7]));
    append(&log, 20, 22).await;
    let kept = [expected(0, 5), expected(7, 22)].concat();
    assert_eq!(read_all(&log.reader(), 0, 1), kept);
    assert_eq!(read_all(&log.reader(), 0, 1 << 20), kept);
}

#[tokio::test]
async fn a_closed_segment_that_lost_its_end_says_which_offsets_are_gone() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), &settings(1_200));
    append(&log, 0, 10).await;
    log.writer().close_segment().await.unwrap();
    append(&log, 10, 12).await;
    log.shut_down();
    let file = raw_files(root.path()).remove(0);
    let positions = batch_positions(&file);
    overwrite(&file, positions[8], &[0; 8]);
    overwrite(&file, positions[9], &[0; 8]);

    let (log, recovery) = open(root.path(), &settings(1_200));
    assert_eq!(recovery, Recovery { end_offset: 12, ..Recovery::default() });
    assert_eq!(read_all(&log.reader(), 0, 1), [expected(0, 8), expected(10, 12)].concat());
    let damage = log.reader().damage();
    let lost: Vec<_> = damage.iter().map(|d| (d.first_offset, d.next_offset, d.from)).collect();
    assert_eq!(lost, [(8, 10, positions[8])], "found by reading");
}

#[tokio::test]
async fn only_the_last_segment_is_scanned_when_a_log_is_opened() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), &settings(1_200));
    for n in 0..3 {
        append(&log, n * 10, n * 10 + 10).await;
        log.writer().close_segment().await.unwrap();
    }
    append(&log, 30, 32).await;
    log.shut_down();
    let files = raw_files(root.path());
    overwrite(&files[1], batch_positions(&files[1])[4] + 44, &[0xee; 2]);
    overwrite(&files[3], batch_positions(&files[3])[0] + 44, &[0xee; 2]);

    let (log, recovery) = open(root.path(), &settings(1_200));
    let lost = |damage: &[Damage]| damage.iter().map(|d| (d.first_offset, d.next_offset)).collect::<Vec<_>>();
    assert_eq!(lost(&recovery.damage), [(30, 31)]);
    assert_eq!(lost(&log.reader().damage()), [(30, 31)]);
    let kept = [expected(0, 14), expected(15, 30), expected(31, 32)].concat();
    assert_eq!(read_all(&log.reader(), 0, 1 << 20), kept);
    assert_eq!(lost(&log.reader().damage()), [(14, 15), (30, 31)]);
}

#[tokio::test]
async fn a_file_that_is_no_segment_is_put_aside_and_work_goes_on() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), &settings(1_200));
    append(&log, 0, 5).await;
    log.writer().close_segment().await.unwrap();
    append(&log, 5, 6).await;
    log.shut_down();
    overwrite(&raw_files(root.path())[0], 0, b"garbage!");
    let (log, recovery) = open(root.path(), &settings(1_200));
    assert_eq!(recovery.quarantined.len(), 1);
    assert!(recovery.quarantined[0].exists());
    append(&log, 6, 8).await;
    assert_eq!(read_all(&log.reader(), 0, 1), expected(5, 8));
    log.shut_down();
    let (_, again) = open(root.path(), &settings(1_200));
    assert_eq!(again, Recovery { end_offset: 8, ..recovery }, "it is said until someone deals with it");
}

#[tokio::test]
async fn a_stream_has_one_writer() {
    let root = tempfile::tempdir().unwrap();
    let (_log, _) = open(root.path(), &settings(1_200));
    let second = Log::open(root.path(), "s", &settings(1_200), clock::system(), Box::new(rand::random));
    assert!(matches!(second, Err(OpenError::Locked { .. })));
}

#[tokio::test]
async fn a_smaller_leftover_segment_is_not_written_past_its_end() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), &settings(1_200));
    append(&log, 0, 3).await;
    log.shut_down();
    let (log, _) = open(root.path(), &settings(3_000));
    append(&log, 3, 6).await;
    assert_eq!(fs::metadata(&raw_files(root.path())[0]).unwrap().len(), 1_200 << 10);
    assert_eq!(read_all(&log.reader(), 0, 1), expected(0, 6));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever bytes are ruined, recovery never fails, never invents a frame
    /// and never loses one that lies outside the batches that were hit.
    #[test]
    fn any_ruined_bytes_cost_only_the_batches_they_hit(
        hits in prop::collection::vec((any::<prop::sample::Index>(), 1usize..2_000), 1..4),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let root = tempfile::tempdir().unwrap();
        let (log, _) = open(root.path(), &settings(1_200));
        runtime.block_on(append(&log, 0, 100));
        log.shut_down();
        let file = raw_files(root.path()).remove(0);
        let mut edges = batch_positions(&file);
        let end = edges[99] + 40 + 4 + payload(99).len() as u64;
        edges.push(end);
        let mut hit = [false; 100];
        for (at, n) in &hits {
            let at = HEADER + at.index((end - HEADER) as usize) as u64;
            let n = (*n as u64).min(end - at);
            overwrite(&file, at, &vec![0xee; n as usize]);
            (0..100).filter(|b| edges[*b] < at + n && at < edges[*b + 1]).for_each(|b| hit[b] = true);
        }
        let (log, recovery) = open(root.path(), &settings(1_200));
        let kept: Vec<_> = expected(0, 100).into_iter().filter(|(n, _)| !hit[*n as usize]).collect();
        prop_assert_eq!(recovery.end_offset, kept.last().map_or(0, |(n, _)| n + 1));
        prop_assert_eq!(read_all(&log.reader(), 0, 5_000), kept);
    }
}

/// Overwrites the header of the only segment, which held offsets 0 to 50.
async fn without_its_header(root: &Path) {
    let (log, _) = open(root, &settings(1_200));
    append(&log, 0, 50).await;
    log.shut_down();
    overwrite(&raw_files(root)[0], 0, &[0; 64]);
}

#[tokio::test]
async fn offsets_of_a_file_that_cannot_be_read_are_not_given_again() {
    let root = tempfile::tempdir().unwrap();
    without_its_header(root.path()).await;
    let (log, recovery) = open(root.path(), &settings(1_200));
    assert_eq!((recovery.end_offset, recovery.quarantined.len()), (50, 1));
    assert_eq!((recovery.damage[0].first_offset, recovery.damage[0].next_offset), (0, 50));
    append(&log, 50, 60).await;
    assert_eq!(read_all(&log.reader(), 0, 10_000), expected(50, 60));
    log.shut_down();
}

#[tokio::test]
async fn a_reader_passes_over_offsets_that_are_gone_before_anything_follows_them() {
    let root = tempfile::tempdir().unwrap();
    without_its_header(root.path()).await;
    let (log, _) = open(root.path(), &settings(1_200));
    let mut cursor = Cursor::at(7);
    assert!(log.reader().read(&mut cursor, 10_000).unwrap().is_empty());
    assert_eq!(cursor.offset(), 50);
    log.shut_down();
}

#[tokio::test]
async fn offsets_known_to_have_been_durable_are_not_given_again() {
    let root = tempfile::tempdir().unwrap();
    let (log, _) = open(root.path(), &settings(1_200));
    append(&log, 0, 50).await;
    log.shut_down();
    let file = &raw_files(root.path())[0];
    overwrite(file, *batch_positions(file).last().unwrap() + 20, &[0xee; 8]);
    let draw = || Box::new(rand::random);
    let again = |known| Log::open_after(root.path(), "s", &settings(1_200), clock::system(), draw(), known);
    let (log, recovery) = again(50).unwrap();
    assert_eq!(recovery.end_offset, 50);
    assert_eq!((recovery.damage[0].first_offset, recovery.damage[0].next_offset), (49, 50));
    append(&log, 50, 51).await;
    let kept = [expected(0, 49), expected(50, 51)].concat();
    assert_eq!(read_all(&log.reader(), 0, 10_000), kept);
    log.shut_down();
}

//! What was sealed comes back, to us and to others.

use std::{convert::Infallible, fs, io::ErrorKind, process::Command, time::Instant};

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};
use sha2::{Digest, Sha256};

use crate::{
    frame::FrameBatch,
    segment::{
        ReadError, Reader, SealError, Settings, seal,
        testing::{
            Noise, assert_pieces_of, batch, fixture, header, plain, settings, small_batches, time_of,
            try_seal,
        },
        verify,
    },
};

#[test]
fn a_thread_of_the_pool_can_seal_alone() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let batches = small_batches();
    let fixture = pool.install(|| fixture(&batches, 100));
    let all = Reader::open(&fixture.path).unwrap().batches_from(0).collect::<Result<_, _>>().unwrap();
    assert_pieces_of(&batches, all);
}

/// Batches with gaps, empty payloads, and now and then a huge frame.
fn any_batches() -> impl Strategy<Value = Vec<FrameBatch>> {
    let payload = prop_oneof![
        8 => vec(any::<u8>(), 0..200),
        1 => Just(Vec::new()),
        1 => vec(any::<u8>(), 3_000..5_000),
    ];
    let gap = prop_oneof![4 => Just(0u64), 1 => 1u64..1_000];
    vec((gap, any::<i64>(), vec(payload, 1..12)), 1..12).prop_map(|parts| {
        let mut end = 0;
        let mut batches = Vec::new();
        for (gap, append_time_ms, payloads) in parts {
            let next = batch(end + gap, append_time_ms, &payloads);
            end = next.end_offset();
            batches.push(next);
        }
        batches
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_come_back_with_offsets_times_and_bytes(
        batches in any_batches(),
        block_bytes in 1u64..3_000,
        from in 0u64..200,
    ) {
        let fixture = fixture(&batches, block_bytes);
        let reader = Reader::open(&fixture.path).unwrap();
        let all: Vec<_> = reader.batches_from(0).collect::<Result<_, _>>().unwrap();
        assert_pieces_of(&batches, all);

        let wanted: Vec<_> =
            batches.iter().cloned().filter_map(|b| b.starting_at(from)).collect();
        let tail: Vec<_> = reader.batches_from(from).collect::<Result<_, _>>().unwrap();
        assert_pieces_of(&wanted, tail);

        prop_assert!(verify(&fixture.path, None).unwrap().is_intact());
    }

    #[test]
    fn every_frame_is_found_by_its_offset_and_no_other(
        batches in any_batches(),
        block_bytes in 1u64..3_000,
    ) {
        let fixture = fixture(&batches, block_bytes);
        let reader = Reader::open(&fixture.path).unwrap();
        let mut expected = batches.iter().flat_map(FrameBatch::payloads).peekable();
        let end = reader.info().end_offset;
        for offset in 0..end + 2 {
            let due = expected.next_if(|(at, _)| *at == offset).map(|(_, payload)| payload);
            prop_assert_eq!(reader.frame(offset).unwrap(), due, "offset {}", offset);
        }
    }
}

#[test]
fn batches_within_one_block_come_back_whole() {
    let batches = small_batches();
    let fixture = fixture(&batches, 1 << 20);
    let reader = Reader::open(&fixture.path).unwrap();
    let read: Vec<_> = reader.batches_from(0).collect::<Result<_, _>>().unwrap();
    assert_eq!(read, batches);
}

#[test]
fn sealed_and_info_say_what_the_file_holds() {
    let batches = small_batches();
    let fixture = fixture(&batches, 64);
    let sealed = &fixture.sealed;
    let file = fs::read(&fixture.path).unwrap();
    assert_eq!((sealed.base_offset, sealed.end_offset, sealed.records), (5, 25, 10));
    assert_eq!(sealed.plain_bytes, plain(&batches).len() as u64);
    assert_eq!(sealed.object_bytes, file.len() as u64);
    assert_eq!(sealed.content_digest[..], Sha256::digest(plain(&batches))[..]);
    assert_eq!(sealed.object_digest[..], Sha256::digest(&file)[..]);
    // The payload with a time of its own is the earliest; 2,000 is an append time.
    assert_eq!((sealed.first_time_ms, sealed.last_time_ms), (7, 2_000));

    let reader = Reader::open(&fixture.path).unwrap();
    let info = reader.info();
    assert_eq!(info.stream, sealed.stream);
    assert_eq!(info.segment_id, sealed.segment_id);
    assert_eq!((info.base_offset, info.end_offset, info.records), (5, 25, 10));
    assert_eq!(info.plain_bytes, sealed.plain_bytes);
    assert_eq!(info.object_bytes, sealed.object_bytes);
    assert_eq!(info.content_digest, sealed.content_digest);
    assert_eq!((info.first_time_ms, info.last_time_ms), (7, 2_000));
    assert_eq!((info.sealed_at_ms, info.level, info.dictionary), (9_000, 3, None));
    assert_eq!(reader.blocks().len(), sealed.blocks);
}

#[test]
fn blocks_say_their_offsets_and_times() {
    let fixture = fixture(&small_batches(), 64);
    let reader = Reader::open(&fixture.path).unwrap();
    let shapes: Vec<_> = reader
        .blocks()
        .iter()
        .map(|b| (b.first_offset, b.end_offset, b.count, b.first_time_ms, b.last_time_ms))
        .collect();
    assert_eq!(
        shapes,
        [
            (5, 8, 3, 1_000, 1_000),
            (8, 9, 1, 7, 7),
            (9, 10, 1, 1_001, 1_001),
            (20, 21, 1, 990, 990),
            (21, 22, 1, 990, 990),
            (22, 25, 3, 990, 2_000),
        ]
    );
    assert!(matches!(reader.read_block(6), Err(ReadError::NoSuchBlock { block: 6, blocks: 6, .. })));
}

#[test]
fn the_zstd_command_gives_exactly_the_frames() {
    let batches = small_batches();
    let fixture = fixture(&batches, 64);
    let output = match Command::new("zstd").arg("-dc").arg(&fixture.path).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("SKIPPED: there is no `zstd` command here, so nothing was compared with it");
            return;
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, plain(&batches));
}

/// Written after the format's specification and nothing of this crate.
#[test]
fn a_reader_that_knows_only_the_seekable_format_finds_every_block() {
    let batches = small_batches();
    let fixture = fixture(&batches, 64);
    let file = fs::read(&fixture.path).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap());
    let len = file.len();
    assert_eq!(u32_at(len - 4), 0x8F92_EAB1);
    assert_eq!(file[len - 5], 0x80, "checksums, no reserved bit");
    let entries = u32_at(len - 9) as usize;
    let table = len - 9 - entries * 12 - 8;
    assert_eq!((u32_at(table), u32_at(table + 4) as usize), (0x184D_2A5E, len - table - 8));

    let (mut at, mut out) = (0, Vec::new());
    for entry in (0..entries).map(|i| table + 8 + i * 12) {
        let (compressed, plain) = (u32_at(entry) as usize, u32_at(entry + 4) as usize);
        let frame = &file[at..at + compressed];
        if plain > 0 {
            out.extend(zstd::bulk::decompress(frame, plain).unwrap());
            assert_eq!(frame[compressed - 4..], file[entry + 8..entry + 12], "XXH64");
        } else {
            assert_eq!(u32_at(at), 0x184D_2A5D);
            assert_eq!(u32_at(entry + 8), 0x51D8_E999, "XXH64 of nothing");
        }
        at += compressed;
    }
    assert_eq!(at, table, "the entries lead to the table");
    assert_eq!(out, plain(&batches));
}

#[test]
fn the_same_frames_give_the_same_bytes_on_any_number_of_threads() {
    let fixture = fixture(&small_batches(), 64);
    let path = fixture.dir.path().join("one-thread");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let sealed = pool.install(|| try_seal(&small_batches(), 64, &path)).unwrap();
    assert_eq!(sealed.object_digest, fixture.sealed.object_digest);
    assert_eq!(fs::read(&path).unwrap(), fs::read(&fixture.path).unwrap());
}

#[test]
fn a_failed_source_publishes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let batches = small_batches().into_iter().map(Ok).chain([Err("the log is gone")]);
    let path = dir.path().join("x.seg.zst");
    let error = seal(batches, header(), &settings(64), time_of, &path).unwrap_err();
    assert!(matches!(error, SealError::Batches { .. }), "{error}");
    assert!(error.to_string().contains("the log is gone"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn nothing_to_seal_and_a_name_too_long_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.seg.zst");
    assert!(matches!(try_seal(&[], 64, &path), Err(SealError::Empty)));
    let empty = FrameBatch { base_offset: 0, append_time_ms: 0, count: 0, bytes: Bytes::new() };
    assert!(matches!(try_seal(&[empty], 64, &path), Err(SealError::Empty)));
    let mut named = header();
    named.stream = "s".repeat(256);
    let batches = small_batches().into_iter().map(Ok::<_, Infallible>);
    let error = seal(batches, named, &settings(64), time_of, &path).unwrap_err();
    assert!(matches!(error, SealError::StreamNameTooLong { bytes: 256 }), "{error}");
    assert!(!path.exists());
}

/// Peak resident memory of this process, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Chat-like lines, some 150 bytes each, 100 to a batch.
fn chatter(total_bytes: usize) -> impl Iterator<Item = FrameBatch> {
    const WORDS: [&str; 16] = [
        "the", "install", "error", "kernel", "package", "try", "sudo", "with", "update", "driver", "and",
        "your", "screen", "after", "reboot", "thanks",
    ];
    let mut noise = Noise(7);
    let (mut made, mut offset) = (0, 0);
    std::iter::from_fn(move || {
        let payloads: Vec<_> = (0..100)
            .map(|_| {
                let mut line = format!("{:016x} ", noise.next());
                (0..20).for_each(|_| {
                    line += WORDS[(noise.next() % 16) as usize];
                    line += " ";
                });
                line.into_bytes()
            })
            .collect();
        let next = batch(offset, offset as i64, &payloads);
        offset = next.end_offset();
        made += next.bytes.len();
        (made <= total_bytes).then_some(next)
    })
}

#[test]
#[ignore = "takes seconds, and measures memory of the whole process: run it alone"]
fn sealing_64_mb_takes_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let seal_of = |bytes: usize, name: &str| {
        let batches = chatter(bytes).map(Ok::<_, Infallible>);
        let path = dir.path().join(name);
        seal(batches, header(), &Settings::default(), time_of, &path).unwrap()
    };
    seal_of(8 << 20, "warm");
    let before = peak_kib();
    let sealed = seal_of(64 << 20, "x.seg.zst");
    let grown_kib = peak_kib() - before;
    assert!(grown_kib < 8 << 10, "memory grew by {grown_kib} KiB over sealing 8 MiB");

    let in_memory: Vec<_> = chatter(64 << 20).collect();
    for level in [1, 3, 9] {
        let settings = Settings { level, ..Settings::default() };
        let batches = in_memory.iter().cloned().map(Ok::<_, Infallible>);
        let start = Instant::now();
        let path = dir.path().join("level");
        let sealed = seal(batches, header(), &settings, time_of, &path).unwrap();
        let mb_per_s = sealed.plain_bytes as f64 / 1e6 / start.elapsed().as_secs_f64();
        let ratio = sealed.plain_bytes as f64 / sealed.object_bytes as f64;
        println!("sealing at level {level}: {mb_per_s:.0} MB/s, ratio {ratio:.2}");
    }
    let start = Instant::now();
    let report = verify(&dir.path().join("x.seg.zst"), Some(&sealed.object_digest)).unwrap();
    assert!(report.is_intact());
    let mb_per_s = sealed.plain_bytes as f64 / 1e6 / start.elapsed().as_secs_f64();
    println!("verifying: {mb_per_s:.0} MB/s; memory grew by {grown_kib} KiB");
}

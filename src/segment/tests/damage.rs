//! Every damage is found, named, and loses no more than it must.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

use crate::{
    frame::FrameBatch,
    segment::{
        Damage, IndexError, ReadError, Reader, VerifyReport, index,
        info::Index,
        locate::locate,
        testing::{Fixture, Noise, assert_pieces_of, batch, fixture, plain, small_batches},
        verify,
    },
};

fn flip(path: &Path, bit: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

fn report(path: &Path) -> VerifyReport {
    verify(path, None).unwrap()
}

/// Whatever happened to the file, what a reader gives out is what was sealed.
fn assert_reads_nothing_wrong(path: &Path, sealed: &[FrameBatch], what: &str) {
    let Ok(reader) = Reader::open(path) else {
        return;
    };
    let truth: Vec<_> = sealed.iter().flat_map(FrameBatch::payloads).collect();
    for piece in reader.batches_from(0).flatten() {
        assert!(sealed.iter().any(|b| b.append_time_ms == piece.append_time_ms), "{what}");
        for frame in piece.payloads() {
            assert!(truth.contains(&frame), "{what}");
        }
    }
}

/// Where the index begins and ends.
fn index_range(path: &Path) -> (u64, u64) {
    let file = File::open(path).unwrap();
    let located = locate(&file, file.metadata().unwrap().len()).unwrap().unwrap();
    (located.index.position(), located.end)
}

#[test]
fn every_flipped_bit_of_a_small_segment_is_found() {
    let batches = small_batches();
    let fixture = fixture(&batches, 64);
    for bit in 0..fixture.sealed.object_bytes * 8 {
        flip(&fixture.path, bit);
        let report = report(&fixture.path);
        assert!(!report.is_intact(), "bit {bit}");
        assert_reads_nothing_wrong(&fixture.path, &batches, &format!("bit {bit}"));
        flip(&fixture.path, bit);
    }
    assert!(report(&fixture.path).is_intact());
}

#[test]
fn random_flipped_bits_of_a_larger_segment_are_found() {
    let mut noise = Noise(42);
    let payloads: Vec<Vec<u8>> = (0..400)
        .map(|n| (0..n).map(|_| noise.next() as u8 & if n % 2 == 0 { 0xFF } else { 0x03 }).collect())
        .collect();
    let batches: Vec<_> = payloads.chunks(7).zip(0..).map(|(p, n)| batch(n * 7, n as i64, p)).collect();
    let fixture = fixture(&batches, 8 << 10);
    for _ in 0..300 {
        let bit = noise.next() % (fixture.sealed.object_bytes * 8);
        flip(&fixture.path, bit);
        assert!(!report(&fixture.path).is_intact(), "bit {bit}");
        flip(&fixture.path, bit);
    }
}

#[test]
fn a_segment_cut_at_any_byte_is_reported() {
    let batches = small_batches();
    let fixture = fixture(&batches, 64);
    let whole = fs::read(&fixture.path).unwrap();
    let (_, index_end) = index_range(&fixture.path);
    for len in 0..whole.len() {
        fs::write(&fixture.path, &whole[..len]).unwrap();
        let report = report(&fixture.path);
        assert!(!report.is_intact(), "cut to {len} bytes");
        assert_eq!(report.info.is_some(), len as u64 >= index_end, "cut to {len} bytes");
        assert_eq!(Reader::open(&fixture.path).is_ok(), len as u64 >= index_end);
        assert_reads_nothing_wrong(&fixture.path, &batches, &format!("cut to {len} bytes"));
    }
}

#[test]
fn bytes_after_the_end_are_reported() {
    let Fixture { path, sealed, dir: _dir } = fixture(&small_batches(), 64);
    let mut file = fs::read(&path).unwrap();
    file.push(0);
    fs::write(&path, file).unwrap();
    assert_eq!(report(&path).damage, [Damage::SeekTable { position: sealed.object_bytes }]);
}

#[test]
fn files_that_are_no_segments_are_refused_without_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let mut noise = Noise(3);
    let random: Vec<u8> = (0..5_000).map(|_| noise.next() as u8).collect();
    let bare_zstd = zstd::bulk::compress(&plain(&small_batches()), 3).unwrap();
    for bytes in [vec![], vec![0; 100], b"thwg-idx".repeat(9), random, bare_zstd] {
        fs::write(&path, &bytes).unwrap();
        let error = Reader::open(&path).unwrap_err();
        assert!(error.is_damage(), "{error}");
        let damage = report(&path).damage;
        assert!(matches!(damage[0], Damage::Index { .. }), "{damage:?}");
    }
    let error = Reader::open(&dir.path().join("missing")).unwrap_err();
    assert!(matches!(error, ReadError::Io { .. }) && !error.is_damage(), "{error}");
}

#[test]
fn a_damaged_block_is_named_and_the_others_are_read() {
    let batches = small_batches();
    let fixture = fixture(&batches, 64);
    let hit = Reader::open(&fixture.path).unwrap().blocks()[3];
    flip(&fixture.path, (hit.position + u64::from(hit.compressed_len) - 1) * 8);

    let report = report(&fixture.path);
    assert_eq!(report.content_digest, None);
    let [Damage::Block { block, bytes, offsets, records_lost, .. }] = &report.damage[..] else {
        panic!("{:?}", report.damage);
    };
    let end = hit.position + u64::from(hit.compressed_len);
    assert_eq!((*block, bytes.clone()), (3, hit.position..end));
    assert_eq!((offsets.clone(), *records_lost), (Some(20..21), Some(1)));

    let reader = Reader::open(&fixture.path).unwrap();
    let (read, errors): (Vec<_>, Vec<_>) = reader.batches_from(0).partition(Result::is_ok);
    let offsets: Vec<_> = read.into_iter().flat_map(|b| b.unwrap().payloads().collect::<Vec<_>>()).collect();
    let survivors = batches.iter().flat_map(FrameBatch::payloads).filter(|(at, _)| *at != 20);
    assert_eq!(offsets, survivors.collect::<Vec<_>>());
    assert_eq!(errors.len(), 1);
    let error = errors.into_iter().next().unwrap().unwrap_err();
    assert!(matches!(error, ReadError::Block { block: 3, first_offset: 20, end_offset: 21, .. }));
    assert!(reader.frame(20).is_err());
    assert!(reader.frame(21).unwrap().is_some());
}

#[test]
fn a_bit_that_zstd_ignores_is_damage_all_the_same() {
    let fixture = fixture(&small_batches(), 64);
    // Bit 4 of the frame header descriptor is unused (RFC 8878, 3.1.1.1.1.3).
    flip(&fixture.path, 4 * 8 + 4);
    let report = report(&fixture.path);
    assert_eq!(report.content_digest, None);
    assert!(
        matches!(report.damage[..], [Damage::Block { block: 0, records_lost: Some(3), .. }]),
        "{:?}",
        report.damage
    );
}

#[test]
fn a_whole_block_in_the_place_of_another_is_damage() {
    let fixture = fixture(&small_batches(), 64);
    let reader = Reader::open(&fixture.path).unwrap();
    let (one, other) = (reader.blocks()[3], reader.blocks()[4]);
    assert_eq!(
        (one.compressed_len, one.plain_len, one.count),
        (other.compressed_len, other.plain_len, other.count)
    );
    let mut bytes = fs::read(&fixture.path).unwrap();
    let (from, length) = (one.position as usize, one.compressed_len as usize);
    bytes.copy_within(from..from + length, other.position as usize);
    fs::write(&fixture.path, bytes).unwrap();
    let reader = Reader::open(&fixture.path).unwrap();
    assert!(reader.frame(20).unwrap().is_some());
    let error = reader.frame(21).unwrap_err();
    assert!(error.is_damage() && error.to_string().contains("CRC-32C"), "{error}");
}

#[test]
fn a_damaged_index_leaves_the_frames_readable_from_the_front() {
    let fixture = fixture(&small_batches(), 64);
    let (start, _) = index_range(&fixture.path);
    flip(&fixture.path, (start + 30) * 8);

    let error = Reader::open(&fixture.path).unwrap_err();
    assert!(matches!(error, ReadError::Index { source: IndexError::Checksum { .. }, .. }));
    let found = report(&fixture.path);
    assert_eq!(found.content_digest, Some(fixture.sealed.content_digest));
    let [Damage::Index { position, readable_blocks, readable_frames, .. }] = found.damage[..] else {
        panic!("{:?}", found.damage);
    };
    assert_eq!((position, readable_blocks, readable_frames), (Some(start), 6, 10));

    // With a block gone too, the seek table still leads past it.
    flip(&fixture.path, 13 * 8);
    let found = report(&fixture.path);
    assert_eq!(found.content_digest, None);
    assert!(
        matches!(
            found.damage[..],
            [
                Damage::Index { readable_blocks: 5, readable_frames: 7, .. },
                Damage::Block { block: 0, offsets: None, records_lost: None, .. }
            ]
        ),
        "{:?}",
        found.damage
    );
}

#[test]
fn without_index_and_seek_table_the_blocks_are_found_by_their_headers() {
    let Fixture { path, sealed, dir: _dir } = fixture(&small_batches(), 64);
    let (start, _) = index_range(&path);
    flip(&path, (start + 30) * 8);
    flip(&path, (sealed.object_bytes - 1) * 8);
    let report = report(&path);
    assert_eq!(report.content_digest, Some(sealed.content_digest));
    assert!(
        matches!(
            report.damage[..],
            [Damage::Index { position: None, readable_blocks: 6, readable_frames: 10, .. }]
        ),
        "{:?}",
        report.damage
    );
}

#[test]
fn a_damaged_seek_table_loses_nothing() {
    let batches = small_batches();
    let Fixture { path, sealed, dir: _dir } = fixture(&batches, 64);
    let (_, table) = index_range(&path);
    for byte in [table, table + 9, sealed.object_bytes - 9, sealed.object_bytes - 1] {
        flip(&path, byte * 8);
        let report = report(&path);
        assert_eq!(report.damage, [Damage::SeekTable { position: byte }]);
        assert_eq!(report.content_digest, Some(sealed.content_digest));
        let reader = Reader::open(&path).unwrap();
        assert_pieces_of(&batches, reader.batches_from(0).map(Result::unwrap).collect());
        flip(&path, byte * 8);
    }
}

/// Puts an edited index in the place of the sealed one.
fn with_index(path: &Path, edit: impl FnOnce(&mut Index)) {
    let bytes = fs::read(path).unwrap();
    let file = File::open(path).unwrap();
    let mut located = locate(&file, bytes.len() as u64).unwrap().unwrap();
    let (start, end) = (located.index.position() as usize, located.end as usize);
    edit(&mut located.index);
    let frame = index::encode(&located.index).unwrap().unwrap();
    fs::write(path, [&bytes[..start], &frame, &bytes[end..]].concat()).unwrap();
}

#[test]
fn frames_that_are_not_the_sealed_ones_are_told_by_their_digest() {
    let Fixture { path, sealed, dir: _dir } = fixture(&small_batches(), 64);
    with_index(&path, |index| index.info.content_digest = [1; 32]);
    let damage = report(&path).damage;
    let expected = Damage::Content { expected: [1; 32], found: sealed.content_digest };
    assert!(damage.contains(&expected), "{damage:?}");
}

#[test]
fn blocks_that_do_not_hold_what_the_index_says_are_damaged() {
    let edits: [fn(&mut Index); 2] = [
        |index| {
            index.blocks[0].count -= 1;
            index.blocks[1].count += 1;
        },
        |index| {
            index.blocks[0].plain_len += 1;
            index.blocks[1].plain_len -= 1;
        },
    ];
    for edit in edits {
        let Fixture { path, dir: _dir, .. } = fixture(&small_batches(), 64);
        with_index(&path, edit);
        let damage = report(&path).damage;
        for (found, at) in damage.iter().zip([0, 1]) {
            assert!(matches!(found, Damage::Block { block, .. } if *block == at), "{found}");
        }
        let reader = Reader::open(&path).unwrap();
        for block in [0, 1] {
            let error = reader.read_block(block).unwrap_err();
            assert!(error.is_damage(), "{error}");
        }
    }
}

#[test]
fn another_file_than_expected_is_told_by_its_digest() {
    let Fixture { path, sealed, dir: _dir } = fixture(&small_batches(), 64);
    assert!(verify(&path, Some(&sealed.object_digest)).unwrap().is_intact());
    let damage = verify(&path, Some(&[1; 32])).unwrap().damage;
    assert_eq!(damage, [Damage::Object { expected: [1; 32], found: sealed.object_digest }]);
}

#[test]
fn a_later_version_is_no_damage() {
    let Fixture { path, dir: _dir, .. } = fixture(&small_batches(), 64);
    let (start, end) = index_range(&path);
    let mut bytes = fs::read(&path).unwrap();
    let (start, version) = (start as usize, end as usize - 16);
    bytes[version] = 3;
    let crc = crc32c::crc32c(&bytes[start..version + 4]).to_le_bytes();
    bytes[version + 4..version + 8].copy_from_slice(&crc);
    fs::write(&path, bytes).unwrap();
    for error in [Reader::open(&path).unwrap_err(), verify(&path, None).unwrap_err()] {
        let later = IndexError::Version { found: 3 };
        assert!(matches!(&error, ReadError::Index { source, .. } if *source == later));
        assert!(!error.is_damage());
    }
}

#[test]
fn an_index_that_does_not_begin_where_its_blocks_end_is_not_taken() {
    let Fixture { path, dir: _dir, .. } = fixture(&small_batches(), 64);
    // As when a producer sends a segment as a frame, and the file that holds
    // the frame is cut short behind it.
    let segment = fs::read(&path).unwrap();
    fs::write(&path, [&b"something before"[..], &segment].concat()).unwrap();
    let error = Reader::open(&path).unwrap_err();
    assert!(matches!(error, ReadError::Index { source: IndexError::Malformed { .. }, .. }), "{error}");
}

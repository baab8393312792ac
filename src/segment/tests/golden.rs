//! Files of every version of the format stay readable.

use std::{convert::Infallible, fs, path::PathBuf};

use crate::{
    dictionary::{Library, testing::trained},
    segment::{
        Reader, Settings, seal_with,
        testing::{assert_pieces_of, header, small_batches, time_of, try_seal},
        verify,
    },
    units::ByteSize,
};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/segment").join(name)
}

#[test]
fn version_1_is_read() {
    let path = golden("v1.seg.zst");
    let report = verify(&path, None).unwrap();
    assert_eq!(report.damage, []);
    let info = report.info.unwrap();
    let header = header();
    assert_eq!((info.stream, info.segment_id), (header.stream, header.segment_id));
    assert_eq!((info.base_offset, info.end_offset, info.records), (5, 25, 10));
    assert_eq!((info.first_time_ms, info.last_time_ms), (7, 2_000));
    assert_eq!(info.sealed_at_ms, header.sealed_at_ms);
    let reader = Reader::open(&path).unwrap();
    let batches = reader.batches_from(0).collect::<Result<_, _>>().unwrap();
    assert_pieces_of(&small_batches(), batches);
}

#[test]
fn version_2_is_read_with_its_dictionary() {
    let path = golden("v2.seg.zst");
    let report = verify(&path, None).unwrap();
    assert_eq!(report.damage, []);
    let info = report.info.unwrap();
    let dictionary = info.dictionary.unwrap();
    assert_eq!(Library::beside(&path).list().unwrap(), [dictionary.digest]);
    assert_eq!((info.base_offset, info.end_offset, info.records), (5, 25, 10));
    let reader = Reader::open(&path).unwrap();
    let batches = reader.batches_from(0).collect::<Result<_, _>>().unwrap();
    assert_pieces_of(&small_batches(), batches);
}

#[test]
fn a_segment_without_a_dictionary_is_still_written_as_version_1() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.seg.zst");
    try_seal(&small_batches(), 64, &path).unwrap();
    assert_eq!(fs::read(path).unwrap(), fs::read(golden("v1.seg.zst")).unwrap());
}

/// Only for a new version of the format, under a new name: files that were
/// written with an old version exist.
#[test]
#[ignore = "writes the golden file"]
fn regenerate_version_1() {
    try_seal(&small_batches(), 64, &golden("v1.seg.zst")).unwrap();
}

/// As [`regenerate_version_1`].
#[test]
#[ignore = "writes the golden file"]
fn regenerate_version_2() {
    let path = golden("v2.seg.zst");
    let dictionary = trained(0, 4 << 10);
    Library::beside(&path).keep(&dictionary).unwrap();
    let settings = Settings { dictionary_block_bytes: ByteSize(64), ..Settings::default() };
    let batches = small_batches().into_iter().map(Ok::<_, Infallible>);
    seal_with(batches, header(), &settings, Some(&dictionary), time_of, &path).unwrap();
}

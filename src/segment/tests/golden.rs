//! Files of every version of the format stay readable.

use std::path::PathBuf;

use crate::segment::{
    Reader,
    testing::{assert_pieces_of, header, small_batches, try_seal},
    verify,
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

/// Only for a new version of the format, under a new name: files that were
/// written with an old version exist.
#[test]
#[ignore = "writes the golden file"]
fn regenerate_version_1() {
    try_seal(&small_batches(), 64, &golden("v1.seg.zst")).unwrap();
}

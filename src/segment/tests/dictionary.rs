//! Segments whose blocks need a dictionary.

use std::{convert::Infallible, fs, io::ErrorKind, path::Path, process::Command};

use proptest::prelude::*;

use crate::{
    dictionary::{
        Dictionary, Library, LoadError,
        testing::{message, trained},
    },
    frame::FrameBatch,
    segment::{
        Damage, DictionaryUse, ReadError, Reader, Sealed, Settings, seal_with,
        testing::{assert_pieces_of, batch, header, plain, time_of},
        verify, weigh,
    },
    units::ByteSize,
};

const DICTIONARY_BYTES: usize = 8 << 10;

fn settings(block_bytes: u64) -> Settings {
    Settings { dictionary_block_bytes: ByteSize(block_bytes), ..Settings::default() }
}

fn seal(batches: &[FrameBatch], block_bytes: u64, dictionary: &Dictionary, path: &Path) -> Sealed {
    let batches = batches.iter().cloned().map(Ok::<_, Infallible>);
    seal_with(batches, header(), &settings(block_bytes), Some(dictionary), time_of, path).unwrap()
}

fn messages(n: usize) -> Vec<FrameBatch> {
    let payloads: Vec<_> = (0..n).map(message).collect();
    payloads.chunks(10).zip(0..).map(|(some, at)| batch(at * 10, at as i64, some)).collect()
}

/// A sealed segment and, beside it, its dictionary.
fn site(batches: &[FrameBatch], block_bytes: u64) -> (tempfile::TempDir, std::path::PathBuf, Dictionary) {
    let dir = tempfile::tempdir().unwrap();
    let dictionary = trained(0, DICTIONARY_BYTES);
    Library::of_segments(dir.path()).keep(&dictionary).unwrap();
    let path = dir.path().join("x.seg.zst");
    seal(batches, block_bytes, &dictionary, &path);
    (dir, path, dictionary)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn batches_come_back_through_a_dictionary(
        counts in proptest::collection::vec(1usize..30, 1..8),
        block_bytes in 100u64..6_000,
        from in 0u64..100,
    ) {
        let (mut batches, mut end) = (Vec::new(), 0);
        for count in counts {
            let payloads: Vec<_> = (end as usize..end as usize + count).map(message).collect();
            let next = batch(end, -5, &payloads);
            end = next.end_offset();
            batches.push(next);
        }
        let (_dir, path, _) = site(&batches, block_bytes);
        let reader = Reader::open(&path).unwrap();
        assert_pieces_of(&batches, reader.batches_from(0).collect::<Result<_, _>>().unwrap());
        let wanted: Vec<_> = batches.iter().cloned().filter_map(|b| b.starting_at(from)).collect();
        assert_pieces_of(&wanted, reader.batches_from(from).collect::<Result<_, _>>().unwrap());
        prop_assert!(verify(&path, None).unwrap().is_intact());
    }
}

#[test]
fn the_index_names_the_dictionary_and_the_file_is_smaller() {
    let batches = messages(500);
    let (dir, path, dictionary) = site(&batches, 1_000);
    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.info().dictionary, Some(dictionary.identity()));
    assert_eq!(reader.frame(77).unwrap().unwrap(), message(77));
    assert!(reader.blocks().iter().all(|block| block.plain_len <= 1_000));

    let without = dir.path().join("without.seg.zst");
    let settings = Settings { block_bytes: ByteSize(1_000), ..Settings::default() };
    let all = || batches.iter().cloned().map(Ok::<_, Infallible>);
    let plain = seal_with(all(), header(), &settings, None, time_of, &without).unwrap();
    assert!(reader.info().object_bytes * 5 < plain.object_bytes * 4);
    assert_eq!(Reader::open(&without).unwrap().info().dictionary, None);
}

#[test]
fn what_a_segment_would_weigh_is_what_it_weighs() {
    let batches = messages(300);
    let (dir, path, dictionary) = site(&batches, 1_000);
    let all = || batches.iter().cloned().map(Ok::<_, Infallible>);
    let with = weigh(all(), header(), &settings(1_000), Some(&dictionary)).unwrap();
    // Without times of its own, so that the index differs by some bytes.
    let made = fs::metadata(&path).unwrap().len();
    assert!(with.abs_diff(made) < 40, "{with} and {made}");
    let path = dir.path().join("without");
    let sealed = seal_with(all(), header(), &settings(1), None, |_| None, &path).unwrap();
    assert_eq!(weigh(all(), header(), &settings(1), None).unwrap(), sealed.object_bytes);
}

#[test]
fn the_zstd_command_gives_the_frames_if_it_is_given_the_dictionary() {
    let batches = messages(200);
    let (dir, path, dictionary) = site(&batches, 1_000);
    let beside = Library::of_segments(dir.path()).path(&dictionary.identity().digest);
    let zstd = |args: &[&Path]| Command::new("zstd").arg("-dc").args(args).output();
    let output = match zstd(&[Path::new("-D"), &beside, &path]) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            eprintln!("SKIPPED: there is no `zstd` command here, so nothing was compared with it");
            return;
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, plain(&batches));
    assert!(!zstd(&[&path]).unwrap().status.success(), "and not without it");
}

#[test]
fn a_missing_dictionary_is_named_is_no_damage_and_may_come_back() {
    let batches = messages(100);
    let (dir, path, dictionary) = site(&batches, 1_000);
    let library = Library::of_segments(dir.path());
    let (digest, hidden) = (dictionary.identity().digest, dir.path().join("hidden"));
    fs::rename(library.path(&digest), &hidden).unwrap();

    let reader = Reader::open(&path).unwrap();
    assert_eq!(reader.info().records, 100, "the index needs no dictionary");
    for error in [reader.frame(5).unwrap_err(), verify(&path, None).unwrap_err()] {
        assert!(!error.is_damage());
        let text = error.to_string();
        assert!(text.contains(&dictionary.identity().hex()), "{text}");
        assert!(text.contains(&library.folder().display().to_string()), "{text}");
        let ReadError::Dictionary { source, .. } = error else { panic!("{error}") };
        assert!(matches!(*source, LoadError::Missing { .. }));
    }
    fs::rename(&hidden, library.path(&digest)).unwrap();
    assert_eq!(reader.frame(5).unwrap().unwrap(), message(5));
    assert!(verify(&path, None).unwrap().is_intact());
}

#[test]
fn a_wrong_dictionary_is_refused() {
    let (dir, path, dictionary) = site(&messages(100), 1_000);
    let other = trained(5_000, DICTIONARY_BYTES);
    let library = Library::of_segments(dir.path());
    fs::write(library.path(&dictionary.identity().digest), other.bytes()).unwrap();
    let error = Reader::open(&path).unwrap().read_block(0).unwrap_err();
    let ReadError::Dictionary { source, .. } = &error else { panic!("{error}") };
    assert!(matches!(**source, LoadError::Altered { .. }), "{source}");
    assert!(error.to_string().contains(&other.identity().hex()), "{error}");
}

#[test]
fn a_damaged_block_with_a_dictionary_is_named_and_the_others_are_read() {
    let (_dir, path, _) = site(&messages(100), 1_000);
    let hit = Reader::open(&path).unwrap().blocks()[1];
    let mut bytes = fs::read(&path).unwrap();
    bytes[hit.position as usize + 40] ^= 4;
    fs::write(&path, bytes).unwrap();
    let report = verify(&path, None).unwrap();
    assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
    let reader = Reader::open(&path).unwrap();
    assert!(reader.read_block(0).is_ok() && reader.read_block(2).is_ok());
    assert!(matches!(reader.read_block(1), Err(ReadError::Block { block: 1, .. })));
}

#[test]
fn without_index_the_blocks_are_read_with_a_dictionary_that_fits() {
    let batches = messages(100);
    let (dir, path, dictionary) = site(&batches, 1_000);
    let reader = Reader::open(&path).unwrap();
    let (blocks, last) = (reader.blocks().len(), *reader.blocks().last().unwrap());
    let mut bytes = fs::read(&path).unwrap();
    bytes[last.position as usize + last.compressed_len as usize + 30] ^= 4;
    fs::write(&path, bytes).unwrap();
    let library = Library::of_segments(dir.path());
    library.keep(&trained(5_000, DICTIONARY_BYTES)).unwrap();
    let report = verify(&path, None).unwrap();
    assert!(
        matches!(report.damage[..], [Damage::Index { readable_blocks, readable_frames: 100, .. }] if readable_blocks == blocks),
        "{:?}",
        report.damage
    );
    fs::remove_file(library.path(&dictionary.identity().digest)).unwrap();
    let report = verify(&path, None).unwrap();
    let [_, Damage::Block { reason, .. }, ..] = &report.damage[..] else { panic!("{:?}", report.damage) };
    assert!(reason.contains(&dictionary.identity().zstd_id.to_string()), "{reason}");
}

#[test]
fn the_use_of_a_dictionary_is_a_setting() {
    let read: Settings = toml::from_str("dictionary = \"off\"").unwrap();
    assert_eq!(read.dictionary, DictionaryUse::Off);
    assert!(toml::from_str::<Settings>("dictionary = \"on\"").is_err());
}

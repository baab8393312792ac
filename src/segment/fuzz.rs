//! The sealed format: a segment damaged as a script says, or no segment at all.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use super::{
    Expected, ReadError, Reader, Sealed, rescue,
    testing::{fixture, small_batches},
    verify,
};
use crate::{frame::FrameBatch, fuzz::edit};

struct Template {
    bytes: Vec<u8>,
    sealed: Sealed,
    payloads: BTreeMap<u64, Vec<u8>>,
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let batches = small_batches();
        let fixture = fixture(&batches, 64);
        let payloads = batches.iter().flat_map(FrameBatch::payloads);
        Template {
            bytes: fs::read(&fixture.path).unwrap(),
            payloads: payloads.map(|(offset, payload)| (offset, payload.to_vec())).collect(),
            sealed: fixture.sealed,
        }
    })
}

/// A place in memory where there is one: millions of files go through it.
fn scratch() -> &'static Path {
    static SCRATCH: OnceLock<PathBuf> = OnceLock::new();
    SCRATCH.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = folder.join(format!("thalweg-fuzz-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder.join("x.seg.zst")
    })
}

/// If the first byte is even, the rest is the file. Otherwise it is a script
/// that damages a segment: then no frame is read that was not sealed, under
/// no other offset, and verifying notices every change.
pub fn target(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else { return };
    let template = template();
    let (bytes, known) = if first % 2 == 0 {
        (rest.to_vec(), false)
    } else {
        let mut bytes = template.bytes.clone();
        edit(&mut bytes, rest);
        (bytes, true)
    };
    let path = scratch();
    fs::write(path, &bytes).unwrap();
    if let Ok(reader) = Reader::open(path) {
        for batch in reader.batches_from(0).take(10_000) {
            check(batch, known);
        }
        for offset in 0..30 {
            let frame = reader.frame(offset).ok().flatten();
            assert!(
                !known || frame.is_none_or(|frame| template.payloads.get(&offset) == Some(&frame.to_vec()))
            );
        }
    }
    let report = verify(path, Some(&template.sealed.object_digest));
    assert_eq!(report.is_ok_and(|report| report.is_intact()), bytes == template.bytes);
    let Sealed { base_offset, end_offset, records, content_digest, .. } = template.sealed;
    let expected = Expected {
        stream: template.sealed.stream.clone(),
        base_offset,
        end_offset: Some(end_offset),
        records: Some(records),
        content_digest: Some(content_digest),
        append_time_ms: 0,
    };
    if let Ok(rescued) = rescue(path, &expected) {
        rescued.batches().take(10_000).for_each(|batch| check(batch, known));
    }
}

fn check(batch: Result<FrameBatch, ReadError>, known: bool) {
    let Ok(batch) = batch else { return };
    for (offset, payload) in batch.payloads() {
        let was = template().payloads.get(&offset);
        assert!(
            !known || was.is_some_and(|was| *was == payload),
            "offset {offset} holds what was never sealed"
        );
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn fuzz_the_sealed_format() {
        crate::fuzz::bounded("sealed_segment", super::target);
        std::fs::remove_dir_all(super::scratch().parent().unwrap()).unwrap();
    }
}

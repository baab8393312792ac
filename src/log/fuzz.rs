//! The batch format: a raw file of proven batches, damaged as a script says.

use std::{
    io::{self, IoSlice},
    ops::Range,
};

use bytes::{Bytes, BytesMut};

use super::{
    format::{BatchHead, FILE_HEADER_BYTES, FileHeader, Parsed, SegmentId, batch_header, parse_batch},
    io::IoFile,
    producers::Producers,
    walk::{Place, Walk},
};
use crate::{
    frame::put_frame,
    fuzz::{Edits, edit},
};

const ID: SegmentId = *b"the fuzzed file.";

/// The first byte says how many batches there are, one more byte each of what
/// they hold; the rest is the damage. Every batch that is found is proven, in
/// the order of the offsets, and none is missed that was spared: unless one was
/// forged, which is no feat for a fuzzer that sees what a CRC is compared with.
pub fn target(input: &[u8]) {
    parsers(input);
    let Some((count, rest)) = input.split_first() else { return };
    let (shapes, script) = rest.split_at(rest.len().min(usize::from(*count % 8)));
    let (mut file, batches) = written(shapes);
    let original = file.clone();
    let edits = edit(&mut file, script);
    let found = walked(file.clone());
    let bytes = Bytes::from(file);
    let mut forged = false;
    for at in &found {
        let parsed = parse_batch(&ID, &bytes.slice(at.start..), (bytes.len() - at.start) as u64);
        assert!(matches!(parsed, Parsed::Batch(batch) if batch.size == at.len()), "{at:?} is not proven");
        forged |= !batches.iter().any(|batch| original[batch.clone()] == bytes[at.clone()]);
    }
    if !forged {
        missed(&batches, &found, &edits);
    }
}

/// Whatever stands in a file, nothing panics.
fn parsers(input: &[u8]) {
    FileHeader::decode(input);
    BatchHead::read(input);
    parse_batch(&ID, &Bytes::copy_from_slice(input), input.len() as u64);
    Producers::default().replay(input);
}

/// A file and where its batches stand.
fn written(shapes: &[u8]) -> (Vec<u8>, Vec<Range<usize>>) {
    let mut file = FileHeader::new(ID, 7, 1_000).encode().to_vec();
    let (mut offset, mut batches) = (7, Vec::new());
    for shape in shapes {
        let (frames, table) = (shape % 5, [0x5a; 30]);
        let table = &table[..usize::from(shape / 5 % 3) * 15];
        if frames == 0 && table.is_empty() {
            continue;
        }
        let mut bytes = BytesMut::new();
        for frame in 0..frames {
            put_frame(&mut bytes, &vec![*shape ^ frame; usize::from(shape / 8)]);
        }
        let (from, bytes) = (file.len(), bytes.freeze());
        let head = batch_header(&ID, offset, 1_000, frames.into(), table, std::slice::from_ref(&bytes));
        file.extend([&head[..], table, &bytes].concat());
        batches.push(from..file.len());
        offset += u64::from(frames);
    }
    file.extend([0; 64]);
    (file, batches)
}

fn walked(file: Vec<u8>) -> Vec<Range<usize>> {
    let limit = file.len() as u64;
    let memory = Memory(file);
    let start = Place { position: (FILE_HEADER_BYTES as u64).min(limit), offset: 7 };
    let mut walk = Walk::new(&memory, &ID, start, limit, u64::MAX);
    let (mut found, mut before) = (Vec::new(), start);
    while let Some((at, head)) = walk.next().unwrap() {
        let place = walk.place();
        assert!(at >= before.position && place.position == at + head.size() && place.position <= limit);
        assert!(
            head.base_offset >= before.offset && place.offset == head.base_offset + u64::from(head.count)
        );
        found.push(at as usize..place.position as usize);
        before = place;
    }
    walk.claimed_end().unwrap();
    found
}

fn missed(batches: &[Range<usize>], found: &[Range<usize>], edits: &Edits) {
    for batch in batches {
        assert!(!edits.spare(batch) || found.contains(batch), "{batch:?} was spared and is not found");
    }
}

/// A file in memory.
#[derive(Debug)]
struct Memory(Vec<u8>);

impl IoFile for Memory {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let there = self.0.get(at as usize..).unwrap_or_default();
        let n = there.len().min(buffer.len());
        buffer[..n].copy_from_slice(&there[..n]);
        Ok(n)
    }

    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
        unreachable!("a walk only reads")
    }

    fn sync_data(&self) -> io::Result<()> {
        unreachable!("a walk only reads")
    }

    fn sync_all(&self) -> io::Result<()> {
        unreachable!("a walk only reads")
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn fuzz_the_batch_format() {
        crate::fuzz::bounded("log_batch", super::target);
    }
}

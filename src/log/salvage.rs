//! A raw segment file whose header is destroyed.
//!
//! The header holds the id that each batch's CRC-32C is bound to. It need not
//! be known: a CRC is an affine map of the state it starts from, so a batch
//! that is whole gives back the state that the id left. One that is damaged
//! gives some other state, one in 2^32. So **batches that give the same state
//! prove each other**, and the state proves the rest as the id would have.
//!
//! Batches hit in the same place by the same bits agree as well. So at least
//! three must agree, and more than twice as many as agree on anything else.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use bytes::{Buf as _, Bytes};
use memchr::memmem;

use super::{
    format::{
        BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHead, FILE_HEADER_BYTES, FileHeader, Parsed, SegmentId,
        parse_batch,
    },
    io::{Access, Io, read_full_at, system},
    raw::{Damage, RawFile},
    recovery::claimed_end,
};

/// How the batches of a [`Salvage`] are proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// By the id in the header.
    Header,
    /// By each other; so many of them.
    Batches(usize),
}

/// What can be read of a raw segment file.
#[derive(Debug)]
pub struct Salvage {
    /// The file, scanned: [`RawFile::batches`] gives what is proven.
    pub raw: RawFile,
    /// How it is proven.
    pub proof: Proof,
    /// The offset after the last proven batch; the base offset if none is.
    pub end_offset: u64,
    /// What is damaged before that.
    pub damage: Vec<Damage>,
}

/// What [`salvage`] made of a file.
#[derive(Debug)]
pub enum Salvaged {
    /// Its batches can be proven.
    Proven(Salvage),
    /// They cannot. The offsets up to this one are claimed in it, by batches
    /// that may be anything.
    Unproven {
        /// The offset after the last one claimed.
        claimed_end: Option<u64>,
    },
}

/// Reads what can be proven of the raw segment file at `path`, whose first
/// offset by its name is `base`.
///
/// Reads the whole file into memory. Blocks.
///
/// # Errors
/// If the system refuses.
pub fn salvage(path: &Path, base: u64) -> io::Result<Salvaged> {
    let io = &*system();
    let with_header = RawFile::open(io, path, Access::Read)?.filter(|raw| raw.base_offset() == base);
    let (raw, proof) = match with_header {
        Some(raw) => (raw, Proof::Header),
        None => match headless(io, path, base)? {
            Some(found) => found,
            None => {
                let end = claimed_end(io, base, path)?;
                return Ok(Salvaged::Unproven { claimed_end: (end > base).then_some(end) });
            }
        },
    };
    let scan = raw.scan()?;
    raw.accept(&scan);
    Ok(Salvaged::Proven(Salvage { raw, proof, end_offset: scan.end_offset, damage: scan.damage }))
}

/// The file with an id that proves what the lost one proved.
fn headless(io: &dyn Io, path: &Path, base: u64) -> io::Result<Option<(RawFile, Proof)>> {
    let file = io.open(path, Access::Read)?;
    let capacity = file.len()?;
    let mut bytes = vec![0; usize::try_from(capacity).unwrap_or(usize::MAX)];
    let there = read_full_at(&*file, &mut bytes, 0)?;
    bytes.truncate(there);
    let bytes = Bytes::from(bytes);
    let found = surviving_id(&bytes).or_else(|| shared_state(&bytes, base));
    Ok(found.map(|(id, proof)| {
        (RawFile::new(file, PathBuf::from(path), FileHeader::new(id, base, 0), capacity), proof)
    }))
}

/// The id where the header has it, if a batch proves that it survived.
fn surviving_id(bytes: &Bytes) -> Option<(SegmentId, Proof)> {
    let id: SegmentId = bytes.get(10..26)?.try_into().ok()?;
    let proven = memmem::find_iter(bytes, &BATCH_MAGIC).any(|at| {
        let rest = bytes.slice(at..);
        matches!(parse_batch(&id, &rest, rest.len() as u64), Parsed::Batch(..))
    });
    proven.then_some((id, Proof::Header))
}

/// Fewest batches that prove each other.
const LEAST_AGREEING: usize = 3;

/// An id that leaves the state on which most batches agree. Batches of an
/// earlier life of the file begin before `base`. What stands inside of one that
/// could be a batch has no say: frames may hold anything.
fn shared_state(bytes: &Bytes, base: u64) -> Option<(SegmentId, Proof)> {
    let mut states: HashMap<u32, usize> = HashMap::new();
    let mut rest = bytes.get(FILE_HEADER_BYTES..).unwrap_or_default();
    while let Some(at) = memmem::find(rest, &BATCH_MAGIC) {
        rest = rest.get(at..).unwrap_or_default();
        let skip = match state_before(rest, base) {
            Some((state, size)) => {
                *states.entry(state).or_default() += 1;
                size
            }
            None => 1,
        };
        rest = rest.get(skip..).unwrap_or_default();
    }
    let mut states: Vec<(usize, u32)> = states.into_iter().map(|(state, batches)| (batches, state)).collect();
    states.sort_unstable_by(|a, b| b.cmp(a));
    let (batches, state) = *states.first()?;
    let others = states.get(1).map_or(0, |(batches, _)| *batches);
    (batches >= LEAST_AGREEING && batches > 2 * others).then(|| (id_leaving(state), Proof::Batches(batches)))
}

/// The CRC-32C that the id must have if `bytes` begin with a whole batch of
/// offsets from `base` on, and the bytes of that batch.
fn state_before(bytes: &[u8], base: u64) -> Option<(u32, usize)> {
    let head = BatchHead::read(bytes).filter(|head| head.base_offset >= base)?;
    let crc = bytes.get(BATCH_MAGIC.len()..)?.try_get_u32().ok()?;
    let covered = bytes.get(8..BATCH_HEADER_BYTES + head.length as usize)?;
    // The register before is what the register after, less what the bytes
    // alone put into it, was before as many zero bytes.
    let after = crc ^ crc32c::crc32c_append(u32::MAX, covered);
    Some((!before_zeros(after, covered.len() as u64), 8 + covered.len()))
}

/// An id with this CRC-32C: twelve zeros and the four bytes that make it so.
fn id_leaving(crc: u32) -> SegmentId {
    let mut id = SegmentId::default();
    let (zeros, rest) = id.split_at_mut(12);
    let last = !crc32c::crc32c(zeros) ^ before_zeros(!crc, 4);
    rest.copy_from_slice(&last.to_le_bytes());
    id
}

/// The Castagnoli polynomial, bit-reversed, without its highest term.
const POLYNOMIAL: u32 = 0x82F6_3B78;

/// x to this power is 1: the polynomial is x + 1 times a primitive one of
/// degree 31.
const ORDER: u64 = (1 << 31) - 1;

/// The register that `bytes` zero bytes turn into `register`.
fn before_zeros(register: u32, bytes: u64) -> u32 {
    let bits = bytes % ORDER * 8 % ORDER;
    multiply(register, power_of_x((ORDER - bits) % ORDER))
}

/// x to the `n` modulo the polynomial; bit 31 is the term without x.
fn power_of_x(mut n: u64) -> u32 {
    let (mut product, mut square) = (1 << 31, 1 << 30);
    while n > 0 {
        if n & 1 == 1 {
            product = multiply(product, square);
        }
        square = multiply(square, square);
        n >>= 1;
    }
    product
}

fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    for term in (0..32).rev() {
        if a >> term & 1 == 1 {
            product ^= b;
        }
        b = b >> 1 ^ if b & 1 == 1 { POLYNOMIAL } else { 0 };
    }
    product
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::log::format::batch_header;

    const BASE: u64 = 40;

    /// A file of four batches with the first offsets 40, 42, 44, 46, and where
    /// they begin.
    fn file(id: SegmentId) -> (Vec<u8>, Vec<usize>) {
        let header = FileHeader::new(id, BASE, 5);
        let (mut bytes, mut places) = (header.encode().to_vec(), Vec::new());
        for first in [40, 42, 44, 46] {
            let frames = Bytes::from(vec![first as u8; 30 + first as usize]);
            places.push(bytes.len());
            bytes.extend(batch_header(&id, first, 7, 2, b"", std::slice::from_ref(&frames)));
            bytes.extend(frames);
        }
        bytes.extend([0; 100]);
        (bytes, places)
    }

    fn salvaged(bytes: &[u8]) -> Option<(Vec<u64>, Proof)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(format!("{BASE:020}.log"));
        fs::write(&path, bytes).unwrap();
        match salvage(&path, BASE).unwrap() {
            Salvaged::Proven(found) => {
                let firsts = found.raw.batches().map(|batch| batch.unwrap().base_offset).collect();
                Some((firsts, found.proof))
            }
            Salvaged::Unproven { .. } => None,
        }
    }

    proptest! {
        #[test]
        fn the_register_before_zeros_is_found(register: u32, bytes in 0u64..3_000) {
            let after = !crc32c::crc32c_append(!register, &vec![0; bytes as usize]);
            prop_assert_eq!(before_zeros(after, bytes), register);
        }

        #[test]
        fn an_id_is_made_for_any_crc(crc: u32) {
            prop_assert_eq!(crc32c::crc32c(&id_leaving(crc)), crc);
        }
    }

    #[test]
    fn batches_without_their_header_prove_each_other() {
        let (mut bytes, _) = file(*b"an id like this.");
        assert_eq!(salvaged(&bytes), Some((vec![40, 42, 44, 46], Proof::Header)));
        bytes[..FILE_HEADER_BYTES].fill(0);
        assert_eq!(salvaged(&bytes), Some((vec![40, 42, 44, 46], Proof::Batches(4))));
    }

    #[test]
    fn a_damaged_batch_is_not_proven_by_its_neighbours() {
        let (mut bytes, places) = file(*b"an id like this.");
        bytes[..FILE_HEADER_BYTES].fill(0xEE);
        bytes[places[1] + 60] ^= 1;
        assert_eq!(salvaged(&bytes), Some((vec![40, 44, 46], Proof::Batches(3))));
        bytes[places[0] + 60] ^= 2;
        assert_eq!(salvaged(&bytes), None, "two may agree because the same bits were hit");
    }

    #[test]
    fn batches_hit_in_the_same_place_do_not_prove_each_other() {
        let (mut bytes, places) = file(*b"an id like this.");
        bytes[..FILE_HEADER_BYTES].fill(0xEE);
        places[1..].iter().for_each(|place| bytes[place + 60] ^= 1);
        bytes.extend_from_within(places[0]..places[1]);
        bytes.extend_from_within(places[0]..places[1]);
        assert_eq!(salvaged(&bytes), None, "three agree, and three others");
    }

    #[test]
    fn an_id_that_survived_in_a_damaged_header_proves_even_one_batch() {
        let (mut bytes, places) = file(*b"an id like this.");
        bytes[..8].fill(0);
        places[..3].iter().for_each(|place| bytes[place + 60] ^= 1);
        assert_eq!(salvaged(&bytes), Some((vec![46], Proof::Header)));
    }

    #[test]
    fn batches_of_an_earlier_life_of_the_file_are_not_taken() {
        let (mut bytes, places) = file(*b"an id like this.");
        bytes[..FILE_HEADER_BYTES].fill(0);
        // Many batches of offsets that come before the file's.
        let frames = Bytes::from_static(b"old");
        for first in 0..10 {
            bytes.extend(batch_header(b"another id, old.", first, 7, 1, b"", std::slice::from_ref(&frames)));
            bytes.extend(&frames);
        }
        assert_eq!(salvaged(&bytes).unwrap().0, [40, 42, 44, 46]);
        bytes.truncate(places[1]);
        assert_eq!(salvaged(&bytes), None);
    }
}

//! One block: whole producer frames, compressed as one zstd frame.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use zstd::{bulk::Compressor, dict::EncoderDictionary, zstd_safe::CParameter};

use super::info::BlockInfo;
use crate::{
    dictionary::{self, Dictionary},
    frame::PREFIX_BYTES,
};

/// Bytes of XXH64 at the end of a zstd frame.
const CHECKSUM_BYTES: usize = 4;

/// Why a block does not hold what the index says of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum BlockFault {
    #[error("it has CRC-32C {found:08x} where the index says {expected:08x}")]
    Checksum { expected: u32, found: u32 },
    #[error("it does not decompress: {0}")]
    Decompress(io::Error),
    #[error("it has {found} plain bytes where the index says {expected}")]
    Length { expected: u32, found: usize },
    #[error("its plain bytes are not {expected} whole frames as the index says")]
    Count { expected: u32 },
}

/// Compresses blocks on any number of threads. Compressors are used again:
/// making one costs a fifth of what compressing 256 KiB with it does.
pub(super) struct Packer<'d> {
    pub level: i32,
    /// Prepared for the same level.
    dictionary: Option<&'d EncoderDictionary<'static>>,
    idle: Mutex<Vec<Compressor<'d>>>,
}

impl<'d> Packer<'d> {
    pub(super) fn new(level: i32, dictionary: Option<&'d EncoderDictionary<'static>>) -> Self {
        Self { level, dictionary, idle: Mutex::default() }
    }

    /// Compresses `plain` into one zstd frame that ends with its content
    /// checksum.
    pub(super) fn pack(&self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut compressor = match self.idle().pop() {
            Some(idle) => idle,
            None => self.new_compressor()?,
        };
        let packed = compressor.compress(plain)?;
        self.idle().push(compressor);
        Ok(packed)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Compressor<'d>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn new_compressor(&self) -> io::Result<Compressor<'d>> {
        let mut compressor = match self.dictionary {
            Some(dictionary) => Compressor::with_prepared_dictionary(dictionary)?,
            None => Compressor::new(self.level)?,
        };
        compressor.set_parameter(CParameter::ChecksumFlag(true))?;
        Ok(compressor)
    }
}

/// The low 32 bits of the plain bytes' XXH64: how a packed block ends.
pub(super) fn content_checksum(packed: &[u8]) -> u32 {
    packed.last_chunk::<CHECKSUM_BYTES>().map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

/// Decompresses a block and holds it against its index entry. The CRC-32C says
/// that it is this block, and not a whole one of another place; zstd checks the
/// XXH64 of what it holds.
pub(super) fn unpack(
    packed: &[u8],
    info: &BlockInfo,
    dictionary: Option<&Dictionary>,
) -> Result<Bytes, BlockFault> {
    let found = crc32c::crc32c(packed);
    if found != info.crc32c {
        return Err(BlockFault::Checksum { expected: info.crc32c, found });
    }
    // The index refuses a plain length over the cap, so this one may be
    // allocated.
    let plain = dictionary::decompress(packed, info.plain_len as usize, dictionary)
        .map_err(BlockFault::Decompress)?;
    if plain.len() != info.plain_len as usize {
        return Err(BlockFault::Length { expected: info.plain_len, found: plain.len() });
    }
    if count_frames(&plain) != Some(u64::from(info.count)) {
        return Err(BlockFault::Count { expected: info.count });
    }
    Ok(plain.into())
}

/// Number of frames in `plain`, if it holds whole frames only.
pub(super) fn count_frames(plain: &[u8]) -> Option<u64> {
    let mut frames = Frames(plain);
    let count = frames.by_ref().count();
    frames.0.is_empty().then_some(count as u64)
}

/// Walks whole frames, prefix included; what is left in it afterwards is not
/// one.
pub(super) struct Frames<'a>(pub &'a [u8]);

impl<'a> Iterator for Frames<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_be_bytes(*self.0.first_chunk::<PREFIX_BYTES>()?);
        let whole = PREFIX_BYTES.checked_add(length as usize)?;
        let (frame, rest) = self.0.split_at_checked(whole)?;
        self.0 = rest;
        Some(frame)
    }
}

/// The payload of a whole frame.
pub(super) fn payload(frame: &[u8]) -> &[u8] {
    frame.get(PREFIX_BYTES..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_frames_are_counted() {
        assert_eq!(count_frames(&[]), Some(0));
        assert_eq!(count_frames(&[0, 0, 0, 0, 0, 0, 0, 1, 9]), Some(2));
        assert_eq!(count_frames(&[0, 0, 0, 1, 9, 0]), None);
        assert_eq!(count_frames(&[0xFF, 0xFF, 0xFF, 0xFF, 9]), None);
    }

    #[test]
    fn the_content_checksum_is_xxh64_as_the_seekable_format_wants_it() {
        // XXH64 of "" and of "a" with seed 0, published test vectors.
        let empty = Packer::new(3, None).pack(b"").unwrap();
        assert_eq!(content_checksum(&empty), 0xEF46_DB37_51D8_E999_u64 as u32);
        let a = Packer::new(3, None).pack(b"a").unwrap();
        assert_eq!(content_checksum(&a), 0xD24E_C4F1_A98C_6E5B_u64 as u32);
    }
}

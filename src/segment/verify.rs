//! Verification: every byte of a segment held against what was sealed.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use rayon::prelude::*;
use sha2::{Digest as _, Sha256};

use super::{
    block::{self, BlockFault},
    damage::{Damage, VerifyReport},
    format::{Digest, SKIPPABLE_HEADER_BYTES},
    index::IndexError,
    info::{BlockInfo, Index},
    locate::{self, Located, read_at},
    read::{ReadError, dictionary_of},
    salvage::{Salvage, salvage},
    seek_table::{self, ENTRY_BYTES, Entry},
};
use crate::dictionary::{Dictionary, Library};

const HASH_BUFFER_BYTES: usize = 256 << 10;

/// Reads all of the file at `path` and reports everything that is not as it
/// was sealed; with `expected_object_digest` also whether it is that file.
///
/// Any flipped bit, truncation or addition is found. Where the index is
/// damaged, the blocks are still read and judged one by one.
///
/// Computes and blocks: not for a tokio thread.
///
/// # Errors
/// Only what is no damage: [`ReadError::Io`], an index of a later version, a
/// dictionary that is needed.
pub fn verify(path: &Path, expected_object_digest: Option<&[u8; 32]>) -> Result<VerifyReport, ReadError> {
    let io_error = |source| ReadError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    let file_len = file.metadata().map_err(io_error)?.len();
    let object_digest = digest_of(&file).map_err(io_error)?;
    let mut report = match locate::locate(&file, file_len).map_err(io_error)? {
        Ok(located) => {
            let dictionary = dictionary_of(path, &located.index.info)?;
            with_index(&file, file_len, located, dictionary.as_deref(), object_digest).map_err(io_error)?
        }
        Err(source @ IndexError::Version { .. }) => {
            return Err(ReadError::Index { path: path.to_owned(), source });
        }
        Err(reason) => {
            let dictionaries = Library::beside(path).all().map_err(io_error)?;
            without_index(&file, file_len, reason, &dictionaries, object_digest).map_err(io_error)?
        }
    };
    if let Some(expected) = expected_object_digest.filter(|digest| **digest != object_digest) {
        report.damage.push(Damage::Object { expected: *expected, found: object_digest });
    }
    Ok(report)
}

fn digest_of(mut file: &File) -> io::Result<Digest> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; HASH_BUFFER_BYTES];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(digest.finalize().into());
        }
        digest.update(buffer.get(..n).unwrap_or_default());
    }
}

fn without_index(
    file: &File,
    file_len: u64,
    reason: IndexError,
    dictionaries: &[Arc<Dictionary>],
    object_digest: Digest,
) -> io::Result<VerifyReport> {
    let Salvage { blocks, frames, content_digest, index_position, mut damage, .. } =
        salvage(file, file_len, dictionaries)?;
    let index =
        Damage::Index { position: index_position, reason, readable_blocks: blocks, readable_frames: frames };
    damage.insert(0, index);
    Ok(VerifyReport { info: None, object_digest, content_digest, damage })
}

fn with_index(
    file: &File,
    file_len: u64,
    Located { index, end }: Located,
    dictionary: Option<&Dictionary>,
    object_digest: Digest,
) -> io::Result<VerifyReport> {
    let mut content = Content { digest: Some(Sha256::new()), checksums: Vec::new(), damage: Vec::new() };
    // While one wave of blocks is decompressed, the wave before it is hashed.
    let mut decompressed = Vec::new();
    let mut block = 0;
    for wave in waves(&index.blocks) {
        let packed = read_blocks(file, wave)?;
        let judge =
            || wave.par_iter().zip(packed).map(|(info, packed)| Judged::new(info, &packed, dictionary));
        let (judged, ()) = rayon::join(|| judge().collect(), || content.take(&mut block, decompressed));
        decompressed = judged;
    }
    content.take(&mut block, decompressed);
    let Content { digest, checksums, mut damage } = content;
    let found = digest.map(|digest| Digest::from(digest.finalize()));
    let expected = index.info.content_digest;
    if let Some(found) = found.filter(|found| *found != expected) {
        damage.push(Damage::Content { expected, found });
    }
    damage.extend(judge_seek_table(file, file_len, &index, end, &checksums)?);
    Ok(VerifyReport { info: Some(index.info), object_digest, content_digest: found, damage })
}

/// Plain bytes that are decompressed at once.
const WAVE_BYTES: u64 = 8 << 20;

/// `blocks` in runs of about [`WAVE_BYTES`], each at least one block.
fn waves(blocks: &[BlockInfo]) -> impl Iterator<Item = &[BlockInfo]> {
    let mut rest = blocks;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |info: &&BlockInfo| {
            bytes += u64::from(info.plain_len);
            bytes <= WAVE_BYTES
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (wave, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(wave)
    })
}

fn read_blocks(file: &File, blocks: &[BlockInfo]) -> io::Result<Vec<Vec<u8>>> {
    blocks.iter().map(|info| read_at(file, info.position, info.compressed_len as usize)).collect()
}

/// A block, held against its index entry by itself.
struct Judged<'a> {
    info: &'a BlockInfo,
    /// CRC-32C of its bytes.
    computed: u32,
    /// The checksum it ends with.
    content_checksum: u32,
    plain: Result<Bytes, BlockFault>,
}

impl<'a> Judged<'a> {
    fn new(info: &'a BlockInfo, packed: &[u8], dictionary: Option<&Dictionary>) -> Self {
        Self {
            info,
            computed: crc32c::crc32c(packed),
            content_checksum: block::content_checksum(packed),
            plain: block::unpack(packed, info, dictionary),
        }
    }
}

/// What the blocks give, one after the other.
struct Content {
    /// `None` after a block that could not be read.
    digest: Option<Sha256>,
    /// The checksum each block ends with; `None` if those bytes are in doubt.
    checksums: Vec<Option<u32>>,
    damage: Vec<Damage>,
}

impl Content {
    /// Takes up a wave of blocks, of which the first is number `block`.
    fn take(&mut self, block: &mut usize, wave: Vec<Judged<'_>>) {
        for judged in wave {
            self.judge(*block, judged);
            *block += 1;
        }
    }

    fn judge(&mut self, block: usize, judged: Judged<'_>) {
        let Judged { info, computed, content_checksum, plain } = judged;
        let untouched = computed == info.crc32c;
        self.checksums.push(untouched.then_some(content_checksum));
        let reason = match plain {
            Ok(plain) => {
                if let Some(digest) = &mut self.digest {
                    digest.update(&plain);
                }
                return;
            }
            Err(fault) => {
                self.digest = None;
                fault.to_string()
            }
        };
        self.damage.push(Damage::Block {
            block,
            bytes: info.position..info.position + u64::from(info.compressed_len),
            offsets: Some(info.first_offset..info.end_offset),
            records_lost: Some(info.count),
            reason,
        });
    }
}

/// The seek table follows from blocks and index, so it is made again and
/// compared. The checksum of a damaged block cannot be judged and is taken as
/// found.
fn judge_seek_table(
    file: &File,
    file_len: u64,
    index: &Index,
    index_end: u64,
    checksums: &[Option<u32>],
) -> io::Result<Option<Damage>> {
    let expected_len = seek_table::frame_len(index.blocks.len() as u64 + 1);
    // No more than it should be: a file may have grown by any amount.
    let found_len = (file_len - index_end).min(expected_len);
    let found = read_at(file, index_end, found_len as usize)?;
    let found_checksum = |entry: usize| {
        let checksum = found.get(SKIPPABLE_HEADER_BYTES + entry * ENTRY_BYTES + 8..)?;
        checksum.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    };
    let mut entries: Vec<Entry> = index
        .blocks
        .iter()
        .zip(checksums)
        .enumerate()
        .map(|(at, (block, checksum))| Entry {
            compressed: block.compressed_len,
            plain: block.plain_len,
            checksum: checksum.or_else(|| found_checksum(at)).unwrap_or_default(),
        })
        .collect();
    entries.push(Entry::of_skippable((index_end - index.position()) as u32));
    let expected = seek_table::encode(&entries);
    let same = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let intact = same == expected.len() && file_len == index_end + expected_len;
    Ok((!intact).then_some(Damage::SeekTable { position: index_end + same as u64 }))
}

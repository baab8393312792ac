//! Verification: every byte of a segment held against what was sealed.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::{
    block,
    damage::{Damage, VerifyReport},
    format::{Digest, SKIPPABLE_HEADER_BYTES},
    index::IndexError,
    info::{BlockInfo, Index},
    locate::{self, Located, read_at},
    read::{ReadError, dictionary_of},
    salvage::{Salvage, salvage},
    seek_table::{self, ENTRY_BYTES, Entry},
};
use crate::dictionary::Dictionary;

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
        Err(reason) => without_index(&file, file_len, reason, object_digest).map_err(io_error)?,
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
    object_digest: Digest,
) -> io::Result<VerifyReport> {
    let Salvage { blocks, frames, content_digest, index_position, mut damage } = salvage(file, file_len)?;
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
    let mut content =
        Content { dictionary, digest: Some(Sha256::new()), checksums: Vec::new(), damage: Vec::new() };
    for (block, info) in index.blocks.iter().enumerate() {
        let packed = read_at(file, info.position, info.compressed_len as usize)?;
        content.judge(block, info, &packed);
    }
    let Content { digest, checksums, mut damage, .. } = content;
    let found = digest.map(|digest| Digest::from(digest.finalize()));
    let expected = index.info.content_digest;
    if let Some(found) = found.filter(|found| *found != expected) {
        damage.push(Damage::Content { expected, found });
    }
    damage.extend(judge_seek_table(file, file_len, &index, end, &checksums)?);
    Ok(VerifyReport { info: Some(index.info), object_digest, content_digest: found, damage })
}

/// What the blocks give, one after the other.
struct Content<'a> {
    dictionary: Option<&'a Dictionary>,
    /// `None` after a block that could not be read.
    digest: Option<Sha256>,
    /// The checksum each block ends with; `None` if those bytes are in doubt.
    checksums: Vec<Option<u32>>,
    damage: Vec<Damage>,
}

impl Content<'_> {
    fn judge(&mut self, block: usize, info: &BlockInfo, packed: &[u8]) {
        let computed = crc32c::crc32c(packed);
        let untouched = computed == info.crc32c;
        self.checksums.push(untouched.then(|| block::content_checksum(packed)));
        let (records_lost, reason) = match block::unpack(packed, info, self.dictionary) {
            Ok(plain) => {
                if let Some(digest) = &mut self.digest {
                    digest.update(&plain);
                }
                if untouched {
                    return;
                }
                // A bit that zstd does not look at.
                let reason = format!(
                    "it has CRC-32C {computed:08x} where {:08x} was written, \
                     though its plain bytes pass their XXH64",
                    info.crc32c
                );
                (0, reason)
            }
            Err(fault) => {
                self.digest = None;
                (info.count, fault.to_string())
            }
        };
        self.damage.push(Damage::Block {
            block,
            bytes: info.position..info.position + u64::from(info.compressed_len),
            offsets: Some(info.first_offset..info.end_offset),
            records_lost: Some(records_lost),
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

//! What can be read of a segment whose index is damaged.
//!
//! Blocks are zstd frames, so the seek table, or failing that the frames'
//! own headers, say where each ends.

use std::{fs::File, io, sync::Arc};

use sha2::{Digest as _, Sha256};
use zstd::zstd_safe;

use super::{
    block,
    damage::Damage,
    format::{Digest, MAX_BLOCK_BYTES},
    locate::{read_at, seek_table_position},
    seek_table::{self, Entry},
};
use crate::dictionary::{self, Dictionary};

/// First guess at a block's compressed size when nothing says where it ends.
const FIRST_WINDOW_BYTES: u64 = 512 << 10;

/// Longest seek table that is read: of some 5,000,000 blocks.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// A stretch of a file, block by block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A block that can be read.
    Block { position: u64, len: u64, frames: u64 },
    /// Bytes that cannot.
    Hole,
}

/// What could be read.
pub(super) struct Salvage {
    /// The file from its front; ends with a hole unless the last block was
    /// surely met.
    pub units: Vec<Unit>,
    pub blocks: usize,
    pub frames: u64,
    /// SHA-256 of all frames, if all could be read.
    pub content_digest: Option<Digest>,
    /// Where the index begins or should begin, if the seek table says so.
    pub index_position: Option<u64>,
    pub damage: Vec<Damage>,
}

/// Reads every block that can be found without the index, those that need one
/// of `dictionaries` too.
pub(super) fn salvage(file: &File, file_len: u64, dictionaries: &[Arc<Dictionary>]) -> io::Result<Salvage> {
    let mut walk = Walk {
        file,
        file_len,
        dictionaries,
        position: 0,
        block: 0,
        frames: 0,
        content: Sha256::new(),
        units: Vec::new(),
        damage: Vec::new(),
    };
    let table = intact_seek_table(file, file_len)?;
    match &table {
        Some(entries) => {
            for entry in entries.iter().take_while(|entry| entry.plain > 0) {
                walk.take(entry.compressed.into())?;
            }
        }
        None => walk.walk_blocks()?,
    }
    let whole = walk.damage.is_empty() && walk.block > 0;
    // The blocks end where a skippable frame begins.
    if table.is_none() && !walk.at_skippable_frame()? {
        walk.units.push(Unit::Hole);
    }
    Ok(Salvage {
        units: walk.units,
        blocks: walk.block - walk.damage.len(),
        frames: walk.frames,
        content_digest: whole.then(|| walk.content.finalize().into()),
        index_position: table.map(|_| walk.position),
        damage: walk.damage,
    })
}

/// The seek table, if it is whole and its sizes add up to where it begins.
fn intact_seek_table(file: &File, file_len: u64) -> io::Result<Option<Vec<Entry>>> {
    let Some(position) = seek_table_position(file, file_len)? else {
        return Ok(None);
    };
    let len = file_len - position;
    if len > MAX_TABLE_BYTES {
        return Ok(None);
    }
    let entries = seek_table::decode(&read_at(file, position, len as usize)?);
    Ok(entries.filter(|e| e.iter().map(|e| u64::from(e.compressed)).sum::<u64>() == position))
}

/// Goes through the blocks from the front.
struct Walk<'a> {
    file: &'a File,
    file_len: u64,
    dictionaries: &'a [Arc<Dictionary>],
    position: u64,
    /// Blocks met, damaged ones included: each of those left one `damage`.
    block: usize,
    frames: u64,
    content: Sha256,
    units: Vec<Unit>,
    damage: Vec<Damage>,
}

impl Walk<'_> {
    /// Reads the block of `len` bytes at the position and goes on behind it.
    fn take(&mut self, len: u64) -> io::Result<()> {
        // The seek table's sizes add up to less than the file, a measured
        // block was read before: `len` is within the file.
        let packed = read_at(self.file, self.position, len as usize)?;
        match unpack_unlisted(&packed, self.dictionaries) {
            Ok((plain, frames)) => {
                self.frames += frames;
                self.content.update(&plain);
                self.units.push(Unit::Block { position: self.position, len, frames });
            }
            Err(reason) => self.damaged(len, reason),
        }
        self.block += 1;
        self.position += len;
        Ok(())
    }

    fn damaged(&mut self, len: u64, reason: String) {
        self.units.push(Unit::Hole);
        self.damage.push(Damage::Block {
            block: self.block,
            bytes: self.position..self.position + len,
            offsets: None,
            records_lost: None,
            reason,
        });
    }

    /// Takes blocks until a skippable frame, the end, or one whose end cannot
    /// be found.
    fn walk_blocks(&mut self) -> io::Result<()> {
        while self.position < self.file_len && !self.at_skippable_frame()? {
            let Some(len) = self.measure()? else {
                let reason = "its end cannot be found, so nothing from here on was read";
                self.damaged(self.file_len - self.position, reason.into());
                self.block += 1;
                return Ok(());
            };
            self.take(len)?;
        }
        Ok(())
    }

    fn at_skippable_frame(&self) -> io::Result<bool> {
        if self.file_len.saturating_sub(self.position) < 4 {
            return Ok(false);
        }
        let magic = read_at(self.file, self.position, 4)?;
        // The 16 magic numbers that the Zstandard format sets aside.
        Ok(matches!(magic.as_slice(), [0x50..=0x5F, 0x2A, 0x4D, 0x18]))
    }

    /// Compressed length of the zstd frame at the position.
    fn measure(&self) -> io::Result<Option<u64>> {
        let left =
            (self.file_len - self.position).min(zstd_safe::compress_bound(MAX_BLOCK_BYTES as usize) as u64);
        let mut window = FIRST_WINDOW_BYTES.min(left);
        loop {
            let bytes = read_at(self.file, self.position, window as usize)?;
            match zstd_safe::find_frame_compressed_size(&bytes) {
                Ok(len) => return Ok(Some(len as u64)),
                Err(_) if window == left => return Ok(None),
                Err(_) => window = (window * 4).min(left),
            }
        }
    }
}

/// Plain bytes of a block of which the index says nothing, and the number of
/// frames in it.
pub(super) fn unpack_unlisted(
    packed: &[u8],
    dictionaries: &[Arc<Dictionary>],
) -> Result<(Vec<u8>, u64), String> {
    let plain_len = zstd_safe::get_frame_content_size(packed)
        .ok()
        .flatten()
        .filter(|len| *len <= u64::from(MAX_BLOCK_BYTES))
        .ok_or("its header does not say how many plain bytes it has")?;
    let decompress = |dictionary| {
        dictionary::decompress(packed, plain_len as usize, dictionary)
            .map_err(|error| format!("it does not decompress: {error}"))
    };
    let plain = match zstd_safe::get_dict_id_from_frame(packed) {
        None => decompress(None)?,
        // Ids are not unique; which one is meant, the block's XXH64 tells.
        Some(zstd_id) => dictionaries
            .iter()
            .filter(|known| known.identity().zstd_id == zstd_id.get())
            .map(|known| decompress(Some(known)))
            .reduce(Result::or)
            .unwrap_or_else(|| Err(format!("the dictionary with zstd id {zstd_id} is missing")))?,
    };
    let frames = block::count_frames(&plain).ok_or("its plain bytes are not whole frames")?;
    Ok((plain, frames))
}

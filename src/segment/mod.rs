//! Sealed segments: a run of a stream in one immutable, compressed file.
//!
//! # Layout
//!
//! The file is a valid Zstandard *seekable format* file, version 0.1.0, so
//! `zstd -dc x.seg.zst` gives back exactly the producers' frames. Integers are
//! little-endian unless said otherwise (producers' frames keep their
//! big-endian length).
//!
//! ```text
//! file        = block+ index seek-table
//! block       = one zstd frame, with content size and content checksum, of
//!               whole producer frames: as many as fit `block_bytes`, or one
//!               larger than that
//! index       = 0x184D2A5D u32 | size u32 | body | trailer      (skippable)
//! seek-table  = 0x184D2A5E u32 | size u32 | entry* | footer     (skippable)
//! entry       = compressed size u32 | plain size u32 | XXH64 of plain, low 32 bits
//! footer      = number of entries u32 | 0x80 u8 | 0x8F92EAB1 u32
//!
//! trailer     = body plain size u32 | body size u32 | version u32
//!             | CRC-32C u32 | "thwg-idx"                      (24 bytes)
//! body        = one zstd frame of the fields below
//!
//! fields      = stream (varint length, UTF-8) | segment id, 16 bytes
//!             | content digest, 32 bytes: SHA-256 of all plain bytes
//!             | sealed at, ms (zigzag) | level (zigzag) | zstd dictionary id (varint)
//!             | version 2: dictionary digest, 32 bytes: SHA-256 of the dictionary
//!             | base offset (varint)
//!             | number of batches (varint) | batch*
//!             | number of blocks (varint) | block-entry*
//! batch       = gap | count | append time, ms, less the previous one (zigzag)
//! block-entry = compressed size | plain size | count
//!             | earliest time, ms, less the previous one (zigzag)
//!             | latest less earliest time | CRC-32C of the compressed bytes, u32
//! ```
//!
//! Unless said otherwise a field of a batch or a block entry is a varint
//! (unsigned LEB128); zigzag maps signed to unsigned before that. The previous
//! time of the first batch or block is 0. Positions and offsets are not
//! stored: block *i* begins where block *i* - 1 ends; a batch begins `gap`
//! offsets after the previous one's end (the first: after the base offset, gap
//! 0). A gap is where damage was quarantined before sealing.
//!
//! The CRC-32C of the trailer covers the index frame from its first byte up to
//! the checksum. The trailer's layout and magic are the same in every version.
//!
//! **The index is listed in the seek table**, as its last entry, with plain
//! size 0 and the checksum of nothing: the format wants an entry for each frame
//! but the table itself, and 0 as the plain size of a skippable one. So the
//! table begins where its entries' sizes end, and entry *i* is block *i*.
//! **Entries carry checksums**: the low 32 bits of XXH64 of the plain bytes are
//! also the zstd frame's own content checksum, its last four bytes, so they
//! cost nothing.
//!
//! **A dictionary is named, not held.** Blocks that need one are zstd frames
//! with its id, so `zstd -D DICTIONARY -dc x.seg.zst` gives the frames; the
//! index adds its digest, and by that a [`Reader`] finds it beside the file
//! ([`crate::dictionary::Library`]). Version 1 has no dictionary and id 0,
//! version 2 has one; each segment is written in the lower version that fits.
//!
//! # Limits
//!
//! | what | at most |
//! |---|---|
//! | a block's plain bytes (so: a frame, prefix included) | [`MAX_BLOCK_BYTES`] |
//! | the index body, plain | [`MAX_INDEX_BYTES`] |
//! | the stream's name | [`MAX_STREAM_BYTES`] |
//!
//! # What finds damage
//!
//! Every bit of the file is covered: blocks by CRC-32C over their compressed
//! bytes (and XXH64, and the content digest, over the plain ones), the index
//! by its CRC-32C, the seek table because it follows from the other two.
//! [`Reader`] needs the blocks and the index only; a damaged seek table does
//! not keep it from reading.
//!
//! The segment knows nothing of records: a frame's time comes from the caller.

mod block;
mod cut;
mod damage;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod index;
mod info;
mod locate;
mod read;
mod rescue;
mod salvage;
mod seal;
mod seek_table;
mod settings;
#[cfg(any(test, fuzzing))]
#[cfg_attr(fuzzing, allow(dead_code))]
mod testing;
#[cfg(test)]
mod tests;
mod verify;

pub use damage::{Damage, VerifyReport};
pub use format::{MAX_BLOCK_BYTES, MAX_INDEX_BYTES, MAX_STREAM_BYTES, VERSION};
pub use index::IndexError;
pub use info::{BlockInfo, SegmentInfo};
pub use read::{Batches, ReadError, Reader};
pub use rescue::{Expected, Rescue, rescue};
pub use seal::{SealError, Sealed, SegmentHeader, seal, seal_with, weigh};
pub use settings::{DictionaryUse, Settings};
pub use verify::verify;

//! The index on disk: the skippable frame, its body and its trailer.

use std::io;

use zstd::bulk;

use super::{
    format::{
        DICTIONARY_VERSION, Digest, Fields, INDEX_FRAME_MAGIC, MAX_BLOCK_BYTES, MAX_INDEX_BYTES,
        MAX_STREAM_BYTES, PLAIN_VERSION, SKIPPABLE_HEADER_BYTES, TRAILER_MAGIC, VERSION, put_varint,
        put_zigzag,
    },
    info::{BatchInfo, BlockInfo, Index, SegmentInfo},
    seek_table,
};
use crate::{dictionary::Identity, frame::PREFIX_BYTES};

/// Bytes of the trailer.
pub(super) const TRAILER_BYTES: usize = 24;

/// Level of the index body. Not a setting: it is small next to the blocks.
const BODY_LEVEL: i32 = 3;

/// The least a batch and a block entry take in the body.
const LEAST_BATCH_BYTES: usize = 3;
const LEAST_BLOCK_BYTES: usize = 9;

/// Why bytes are not an index.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// No trailer where one must be, nor anywhere near the end.
    #[error("no index trailer near the end of the file: it is cut short, or no sealed segment")]
    Missing,
    /// The bytes changed since they were written.
    #[error("the index has CRC-32C {computed:08x} where {stored:08x} was written")]
    Checksum {
        /// What the trailer says.
        stored: u32,
        /// What the bytes give.
        computed: u32,
    },
    /// Written by a later build.
    #[error("the index has version {found}, this build reads versions up to {VERSION}; use a newer build")]
    Version {
        /// The index's version.
        found: u32,
    },
    /// Intact, and yet it contradicts the layout or itself.
    #[error("the index is not as its version lays it out: {what}")]
    Malformed {
        /// The field in question.
        what: &'static str,
    },
}

fn malformed(what: &'static str) -> IndexError {
    IndexError::Malformed { what }
}

/// The whole skippable frame; `None` if the body would be over
/// [`MAX_INDEX_BYTES`]. Fails only if zstd cannot allocate.
pub(super) fn encode(index: &Index) -> io::Result<Option<Vec<u8>>> {
    let plain = put_body(index);
    let plain_len = u32::try_from(plain.len()).unwrap_or(u32::MAX);
    if plain_len > MAX_INDEX_BYTES {
        return Ok(None);
    }
    let body = bulk::compress(&plain, BODY_LEVEL)?;
    let mut out = Vec::with_capacity(SKIPPABLE_HEADER_BYTES + body.len() + TRAILER_BYTES);
    out.extend(INDEX_FRAME_MAGIC.to_le_bytes());
    out.extend(((body.len() + TRAILER_BYTES) as u32).to_le_bytes());
    out.extend(&body);
    out.extend(plain_len.to_le_bytes());
    out.extend((body.len() as u32).to_le_bytes());
    let version = if index.info.dictionary.is_some() { DICTIONARY_VERSION } else { PLAIN_VERSION };
    out.extend(version.to_le_bytes());
    out.extend(crc32c::crc32c(&out).to_le_bytes());
    out.extend(TRAILER_MAGIC);
    Ok(Some(out))
}

fn put_body(index: &Index) -> Vec<u8> {
    let Index { info, batches, blocks } = index;
    let mut out = Vec::with_capacity(256 + batches.len() * 4 + blocks.len() * 16);
    put_varint(&mut out, info.stream.len() as u64);
    out.extend(info.stream.as_bytes());
    out.extend(info.segment_id);
    out.extend(info.content_digest);
    put_zigzag(&mut out, info.sealed_at_ms);
    put_zigzag(&mut out, info.level.into());
    put_varint(&mut out, info.dictionary.map_or(0, |dictionary| dictionary.zstd_id).into());
    if let Some(dictionary) = info.dictionary {
        out.extend(dictionary.digest);
    }
    put_varint(&mut out, info.base_offset);
    put_varint(&mut out, batches.len() as u64);
    let (mut end, mut time) = (info.base_offset, 0i64);
    for batch in batches {
        put_varint(&mut out, batch.base_offset - end);
        put_varint(&mut out, batch.count.into());
        put_zigzag(&mut out, batch.append_time_ms.wrapping_sub(time));
        (end, time) = (batch.end_offset(), batch.append_time_ms);
    }
    put_varint(&mut out, blocks.len() as u64);
    let mut time = 0i64;
    for block in blocks {
        put_varint(&mut out, block.compressed_len.into());
        put_varint(&mut out, block.plain_len.into());
        put_varint(&mut out, block.count.into());
        put_zigzag(&mut out, block.first_time_ms.wrapping_sub(time));
        put_varint(&mut out, block.last_time_ms.wrapping_sub(block.first_time_ms).cast_unsigned());
        out.extend(block.crc32c.to_le_bytes());
        time = block.first_time_ms;
    }
    out
}

/// How long the index frame is that ends with `trailer`, if that is a trailer.
pub(super) fn frame_len_from_trailer(trailer: &[u8; TRAILER_BYTES]) -> Option<u64> {
    let mut fields = Fields(trailer);
    let _plain_len = fields.u32()?;
    let body_len = fields.u32()?;
    trailer
        .ends_with(&TRAILER_MAGIC)
        .then(|| (SKIPPABLE_HEADER_BYTES + TRAILER_BYTES) as u64 + u64::from(body_len))
}

/// Reads the whole skippable frame back.
pub(super) fn decode(frame: &[u8]) -> Result<Index, IndexError> {
    let (sealed, trailer) = frame.split_last_chunk::<TRAILER_BYTES>().ok_or(IndexError::Missing)?;
    let mut trailer = Fields(trailer);
    let fields = (trailer.u32(), trailer.u32(), trailer.u32(), trailer.u32());
    let (Some(plain_len), Some(body_len), Some(version), Some(stored)) = fields else {
        return Err(IndexError::Missing);
    };
    if trailer.0 != TRAILER_MAGIC {
        return Err(IndexError::Missing);
    }
    // Everything up to the checksum itself.
    let covered = frame.get(..frame.len() - 4 - TRAILER_MAGIC.len()).unwrap_or_default();
    let computed = crc32c::crc32c(covered);
    if stored != computed {
        return Err(IndexError::Checksum { stored, computed });
    }
    if !(PLAIN_VERSION..=DICTIONARY_VERSION).contains(&version) {
        return Err(IndexError::Version { found: version });
    }
    let mut header = Fields(sealed);
    let magic_and_size = (header.u32(), header.u32());
    let size = body_len.saturating_add(TRAILER_BYTES as u32);
    if magic_and_size != (Some(INDEX_FRAME_MAGIC), Some(size)) {
        return Err(malformed("skippable frame header"));
    }
    if plain_len > MAX_INDEX_BYTES {
        return Err(malformed("body size over the cap"));
    }
    let body = bulk::decompress(header.0, plain_len as usize)
        .ok()
        .filter(|body| body.len() == plain_len as usize)
        .ok_or(malformed("body compression"))?;
    take_body(version, &body, frame.len() as u64)
}

fn take_body(version: u32, body: &[u8], frame_len: u64) -> Result<Index, IndexError> {
    let mut fields = Fields(body);
    let mut info = take_head(version, &mut fields).ok_or(malformed("head"))?;
    let batches = take_batches(&mut fields, info.base_offset).ok_or(malformed("batches"))?;
    let blocks = take_blocks(&mut fields, &batches).ok_or(malformed("blocks"))?;
    if !fields.0.is_empty() {
        return Err(malformed("bytes after the last field"));
    }
    let (Some(batch), Some(block)) = (batches.last(), blocks.last()) else {
        return Err(malformed("no frames"));
    };
    info.end_offset = batch.end_offset();
    info.records = batches.iter().map(|b| u64::from(b.count)).sum();
    info.plain_bytes = blocks.iter().map(|b| u64::from(b.plain_len)).sum();
    info.object_bytes = block.position
        + u64::from(block.compressed_len)
        + frame_len
        + seek_table::frame_len(blocks.len() as u64 + 1);
    info.first_time_ms = blocks.iter().map(|b| b.first_time_ms).min().unwrap_or_default();
    info.last_time_ms = blocks.iter().map(|b| b.last_time_ms).max().unwrap_or_default();
    Ok(Index { info, batches, blocks })
}

/// The fields before the batches; what follows from the others is still 0.
fn take_head(version: u32, fields: &mut Fields) -> Option<SegmentInfo> {
    let name_len = usize::try_from(fields.varint()?).ok().filter(|n| *n <= MAX_STREAM_BYTES)?;
    Some(SegmentInfo {
        stream: str::from_utf8(fields.bytes(name_len)?).ok()?.to_owned(),
        segment_id: fields.array()?,
        content_digest: fields.array::<{ size_of::<Digest>() }>()?,
        sealed_at_ms: fields.zigzag()?,
        level: fields.zigzag()?.try_into().ok()?,
        dictionary: take_dictionary(version, fields)?,
        base_offset: fields.varint()?,
        end_offset: 0,
        records: 0,
        plain_bytes: 0,
        object_bytes: 0,
        first_time_ms: 0,
        last_time_ms: 0,
    })
}

/// The dictionary, which a segment of [`PLAIN_VERSION`] has not and one of
/// [`DICTIONARY_VERSION`] has.
fn take_dictionary(version: u32, fields: &mut Fields) -> Option<Option<Identity>> {
    match (version, fields.varint32()?) {
        (PLAIN_VERSION, 0) => Some(None),
        (DICTIONARY_VERSION, zstd_id @ 1..) => Some(Some(Identity { zstd_id, digest: fields.array()? })),
        _ => None,
    }
}

fn take_batches(fields: &mut Fields, base_offset: u64) -> Option<Vec<BatchInfo>> {
    let count = fields.count(LEAST_BATCH_BYTES)?;
    let mut batches = Vec::with_capacity(count);
    let (mut end, mut time) = (base_offset, 0i64);
    for _ in 0..count {
        let gap = fields.varint().filter(|gap| *gap == 0 || !batches.is_empty())?;
        let batch = BatchInfo {
            base_offset: end.checked_add(gap)?,
            count: fields.varint32().filter(|n| *n > 0)?,
            append_time_ms: time.wrapping_add(fields.zigzag()?),
        };
        end = batch.base_offset.checked_add(batch.count.into())?;
        time = batch.append_time_ms;
        batches.push(batch);
    }
    Some(batches)
}

fn take_blocks(fields: &mut Fields, batches: &[BatchInfo]) -> Option<Vec<BlockInfo>> {
    let count = fields.count(LEAST_BLOCK_BYTES)?;
    let mut blocks = Vec::with_capacity(count);
    let mut offsets = OffsetCursor::new(batches);
    let (mut position, mut time) = (0u64, 0i64);
    for _ in 0..count {
        let compressed_len = fields.varint32().filter(|n| *n > 0)?;
        let plain_len = fields.varint32().filter(|n| *n <= MAX_BLOCK_BYTES)?;
        let count = fields.varint32().filter(|n| *n > 0)?;
        if u64::from(count) * PREFIX_BYTES as u64 > u64::from(plain_len) {
            return None;
        }
        let first_time_ms = time.wrapping_add(fields.zigzag()?);
        let last_time_ms = first_time_ms.wrapping_add(fields.varint()?.cast_signed());
        let crc32c = fields.u32()?;
        let (first_offset, end_offset) = offsets.advance(count)?;
        blocks.push(BlockInfo {
            position,
            compressed_len,
            plain_len,
            crc32c,
            first_offset,
            end_offset,
            count,
            first_time_ms,
            last_time_ms,
        });
        position = position.checked_add(compressed_len.into())?;
        time = first_time_ms;
    }
    offsets.at_end().then_some(blocks)
}

/// Hands out the offsets of batches by number of frames.
struct OffsetCursor<'a> {
    batches: &'a [BatchInfo],
    /// Frames of the first batch that are handed out.
    used: u32,
}

impl<'a> OffsetCursor<'a> {
    fn new(batches: &'a [BatchInfo]) -> Self {
        Self { batches, used: 0 }
    }

    /// First offset, and the offset after the last, of the next `count`
    /// frames; `None` if there are not so many.
    fn advance(&mut self, mut count: u32) -> Option<(u64, u64)> {
        let first = self.batches.first()?.base_offset + u64::from(self.used);
        loop {
            let (batch, rest) = self.batches.split_first()?;
            let left = batch.count - self.used;
            if count < left {
                self.used += count;
                return Some((first, batch.base_offset + u64::from(self.used)));
            }
            count -= left;
            (self.batches, self.used) = (rest, 0);
            if count == 0 {
                return Some((first, batch.end_offset()));
            }
        }
    }

    fn at_end(&self) -> bool {
        self.batches.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(index: &Index) -> Vec<u8> {
        encode(index).unwrap().unwrap()
    }

    fn block(position: u64, count: u32, offsets: (u64, u64), times: (i64, i64)) -> BlockInfo {
        BlockInfo {
            position,
            compressed_len: 10,
            plain_len: 100,
            crc32c: 0xDEAD_BEEF,
            first_offset: offsets.0,
            end_offset: offsets.1,
            count,
            first_time_ms: times.0,
            last_time_ms: times.1,
        }
    }

    /// Three batches, a gap before the second, the third over two blocks.
    fn sample() -> Index {
        let batch = |base_offset, count, append_time_ms| BatchInfo { base_offset, append_time_ms, count };
        let mut index = Index {
            info: SegmentInfo {
                stream: "irc".into(),
                segment_id: [7; 16],
                base_offset: 5,
                end_offset: 24,
                records: 9,
                plain_bytes: 200,
                object_bytes: 0,
                content_digest: [9; 32],
                first_time_ms: i64::MIN,
                last_time_ms: i64::MAX,
                sealed_at_ms: -1,
                level: 3,
                dictionary: None,
            },
            batches: vec![batch(5, 2, i64::MAX), batch(17, 1, i64::MIN), batch(18, 6, 0)],
            blocks: vec![block(0, 5, (5, 20), (i64::MIN, i64::MAX)), block(10, 4, (20, 24), (1, 1))],
        };
        index.info.object_bytes = object_bytes(&index);
        index
    }

    fn object_bytes(index: &Index) -> u64 {
        20 + encoded(index).len() as u64 + seek_table::frame_len(3)
    }

    fn sample_with_dictionary() -> Index {
        let mut index = sample();
        index.info.dictionary = Some(Identity { digest: [3; 32], zstd_id: 0x8000_0001 });
        index.info.object_bytes = object_bytes(&index);
        index
    }

    /// Where the version stands in an index frame.
    fn version_at(frame: &[u8]) -> usize {
        frame.len() - 16
    }

    /// Writes another version into the trailer.
    fn with_version(mut frame: Vec<u8>, version: u8) -> Vec<u8> {
        let at = version_at(&frame);
        frame[at] = version;
        let crc = crc32c::crc32c(&frame[..at + 4]).to_le_bytes();
        frame[at + 4..at + 8].copy_from_slice(&crc);
        frame
    }

    #[test]
    fn an_index_comes_back() {
        for index in [sample(), sample_with_dictionary()] {
            let frame = encoded(&index);
            assert_eq!(decode(&frame), Ok(index));
            let len = frame_len_from_trailer(frame.last_chunk().unwrap());
            assert_eq!(len, Some(frame.len() as u64));
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let frame = encoded(&sample());
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = decode(&flipped).unwrap_err();
            assert!(matches!(error, IndexError::Checksum { .. } | IndexError::Missing), "{error}");
        }
        for len in 0..frame.len() {
            assert!(decode(&frame[..len]).is_err(), "cut to {len} bytes");
        }
    }

    #[test]
    fn an_intact_index_that_contradicts_itself_is_refused() {
        type Edit = fn(&mut Index);
        let edits: [(&str, Edit); 6] = [
            ("batches", |i| i.batches[1].count = 0),
            ("blocks", |i| i.blocks[1].count += 1),
            ("blocks", |i| i.blocks[1].count -= 1),
            ("blocks", |i| i.blocks[0].plain_len = MAX_BLOCK_BYTES + 1),
            ("blocks", |i| i.blocks[0].plain_len = 19),
            ("head", |i| i.info.stream = "s".repeat(MAX_STREAM_BYTES + 1)),
        ];
        for (what, edit) in edits {
            let mut index = sample();
            edit(&mut index);
            let error = decode(&encoded(&index)).unwrap_err();
            assert_eq!(error, malformed(what));
        }
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let frame = with_version(encoded(&sample()), 3);
        assert_eq!(decode(&frame), Err(IndexError::Version { found: 3 }));
    }

    #[test]
    fn only_a_segment_with_a_dictionary_has_the_later_version() {
        let (without, with) = (encoded(&sample()), encoded(&sample_with_dictionary()));
        assert_eq!((without[version_at(&without)], with[version_at(&with)]), (1, 2));
        assert_eq!(decode(&with_version(without, 2)), Err(malformed("head")));
        assert_eq!(decode(&with_version(with, 1)), Err(malformed("head")));
    }

    proptest::proptest! {
        #[test]
        fn no_body_panics(version in 1u32..=2, body: Vec<u8>) {
            let _ = take_body(version, &body, 0);
        }
    }
}

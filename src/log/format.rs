//! Layout of a raw segment file; see the [module documentation](super).

use std::ops::RangeInclusive;

use bytes::{Buf, BufMut, Bytes};

use crate::frame::FrameBatch;

/// Identity of one life of a segment file. Drawn at random when the file is
/// taken into use, so that what a recycled file still holds never parses.
pub type SegmentId = [u8; 16];

/// Bytes before the first batch: one sector, so that no batch shares one with
/// the header.
pub const FILE_HEADER_BYTES: usize = 512;

/// Bytes of a batch header.
pub const BATCH_HEADER_BYTES: usize = 40;

const FILE_MAGIC: [u8; 8] = *b"THALWEGL";
/// First bytes of every batch.
pub(super) const BATCH_MAGIC: [u8; 4] = *b"TwB1";
/// What is written. Version 1 had no producer tables: in its batches the field
/// of their length is always 0, so that both read alike.
const VERSION: u16 = 2;
const READABLE: RangeInclusive<u16> = 1..=VERSION;

/// The header of a raw segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// Version of the format; only files of the latest are written to.
    pub version: u16,
    /// This life of the file.
    pub id: SegmentId,
    /// Offset of the first frame.
    pub base_offset: u64,
    /// When the file was taken into use, in milliseconds since the Unix epoch.
    pub created_ms: i64,
}

impl FileHeader {
    /// Of a file of the latest version.
    pub fn new(id: SegmentId, base_offset: u64, created_ms: i64) -> Self {
        Self { version: VERSION, id, base_offset, created_ms }
    }

    /// Whether more may be appended to the file.
    pub fn is_latest(&self) -> bool {
        self.version == VERSION
    }

    /// One sector: magic, version, id, base offset, creation time, CRC-32C of
    /// all before it, zeros.
    pub fn encode(&self) -> [u8; FILE_HEADER_BYTES] {
        let mut out = Vec::with_capacity(FILE_HEADER_BYTES);
        out.put_slice(&FILE_MAGIC);
        out.put_u16(self.version);
        out.put_slice(&self.id);
        out.put_u64(self.base_offset);
        out.put_i64(self.created_ms);
        out.put_u32(crc32c::crc32c(&out));
        out.resize(FILE_HEADER_BYTES, 0);
        out.try_into().unwrap_or([0; FILE_HEADER_BYTES])
    }

    /// Reads a header; `None` if the bytes are not one of a known version.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (covered, mut rest) = bytes.split_at_checked(42)?;
        let crc = rest.try_get_u32().ok()?;
        let mut fields = covered;
        let mut magic = [0; 8];
        fields.try_copy_to_slice(&mut magic).ok()?;
        let version = fields.try_get_u16().ok()?;
        let mut id = [0; 16];
        fields.try_copy_to_slice(&mut id).ok()?;
        let (base_offset, created_ms) = (fields.try_get_u64().ok()?, fields.try_get_i64().ok()?);
        let valid = magic == FILE_MAGIC && READABLE.contains(&version) && crc == crc32c::crc32c(covered);
        valid.then_some(Self { version, id, base_offset, created_ms })
    }
}

/// The header of one batch around a producer table and frames that arrive in
/// pieces.
pub fn batch_header(
    id: &SegmentId,
    base_offset: u64,
    append_time_ms: i64,
    count: u32,
    table: &[u8],
    pieces: &[Bytes],
) -> [u8; BATCH_HEADER_BYTES] {
    let length: usize = table.len() + pieces.iter().map(Bytes::len).sum::<usize>();
    let mut covered = [0; BATCH_HEADER_BYTES - 8];
    let mut fields = covered.as_mut_slice();
    fields.put_u64(base_offset);
    fields.put_i64(append_time_ms);
    fields.put_u32(count);
    fields.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    fields.put_u32(u32::try_from(table.len()).unwrap_or(u32::MAX));
    let crc = crc32c::crc32c_append(crc_of(id, &covered), table);
    let crc = pieces.iter().fold(crc, |crc, piece| crc32c::crc32c_append(crc, piece));
    let mut out = [0; BATCH_HEADER_BYTES];
    let mut fields = out.as_mut_slice();
    fields.put_slice(&BATCH_MAGIC);
    fields.put_u32(crc);
    fields.put_slice(&covered);
    out
}

fn crc_of(id: &SegmentId, covered: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(id), covered)
}

/// A proven batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its frames; none where only producers changed.
    pub frames: FrameBatch,
    /// The state of the producers that it changed.
    pub table: Bytes,
    /// Its bytes, header included.
    pub size: usize,
}

impl Batch {
    /// Its frames, if there are any.
    pub fn with_frames(self) -> Option<FrameBatch> {
        (self.frames.count > 0).then_some(self.frames)
    }
}

/// What stands at a place in a raw segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A proven batch.
    Batch(Batch),
    /// A batch may stand here, but this many bytes are needed to tell.
    NeedsBytes(usize),
    /// No batch of this segment stands here.
    Unproven,
}

/// A batch header, read and not proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHead {
    /// Offset of the first frame.
    pub base_offset: u64,
    /// When the log took the batch, in milliseconds since the Unix epoch.
    pub append_time_ms: i64,
    /// Number of frames; 0 where only producers changed.
    pub count: u32,
    /// Bytes of the producer table and the frames.
    pub length: u32,
    /// Bytes of the producer table.
    pub table: u32,
    crc: u32,
    covered: [u8; BATCH_HEADER_BYTES - 8],
}

impl BatchHead {
    /// Reads the header at the front of `bytes`; `None` if none stands there.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (mut header, _) = bytes.split_at_checked(BATCH_HEADER_BYTES)?;
        let mut magic = [0; 4];
        header.try_copy_to_slice(&mut magic).ok()?;
        let crc = header.get_u32();
        let covered = header.try_into().ok()?;
        let head = Self {
            base_offset: header.get_u64(),
            append_time_ms: header.get_i64(),
            count: header.get_u32(),
            length: header.get_u32(),
            table: header.get_u32(),
            crc,
            covered,
        };
        let empty = head.count == 0 && head.table == 0;
        (magic == BATCH_MAGIC && !empty && head.table <= head.length).then_some(head)
    }

    /// Bytes of the batch, header included.
    pub fn size(&self) -> u64 {
        BATCH_HEADER_BYTES as u64 + u64::from(self.length)
    }

    /// The offset after the last frame; `None` for one that no log can have.
    pub fn end_offset(&self) -> Option<u64> {
        self.base_offset.checked_add(self.count.into())
    }

    /// The CRC-32C of what precedes the table, in segment `id`: that of table
    /// and frames is to be appended to it.
    pub fn crc_before_table(&self, id: &SegmentId) -> u32 {
        crc_of(id, &self.covered)
    }

    /// Whether `crc`, appended with table and frames, proves the batch.
    pub fn is_proven_by(&self, crc: u32) -> bool {
        self.crc == crc
    }
}

/// Parses the batch at the front of `bytes`; `limit` is how many bytes there
/// are to the end of the file, so that a length beyond it is refused.
pub fn parse_batch(id: &SegmentId, bytes: &Bytes, limit: u64) -> Parsed {
    if bytes.len() < BATCH_HEADER_BYTES {
        return if limit < BATCH_HEADER_BYTES as u64 {
            Parsed::Unproven
        } else {
            Parsed::NeedsBytes(BATCH_HEADER_BYTES)
        };
    }
    let Some(head) = BatchHead::read(bytes).filter(|head| head.size() <= limit) else {
        return Parsed::Unproven;
    };
    let whole = BATCH_HEADER_BYTES + head.length as usize;
    if bytes.len() < whole {
        return Parsed::NeedsBytes(whole);
    }
    let mut bytes = bytes.slice(BATCH_HEADER_BYTES..whole);
    if !head.is_proven_by(crc32c::crc32c_append(head.crc_before_table(id), &bytes)) {
        return Parsed::Unproven;
    }
    let BatchHead { base_offset, append_time_ms, count, .. } = head;
    let table = bytes.split_to(head.table as usize);
    Parsed::Batch(Batch {
        frames: FrameBatch { base_offset, append_time_ms, count, bytes },
        table,
        size: whole,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;

    fn concat(pieces: &[Bytes]) -> Bytes {
        let mut out = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
        pieces.iter().for_each(|piece| out.put_slice(piece));
        out.freeze()
    }

    fn encoded(id: &SegmentId, table: &'static [u8], pieces: &[Bytes]) -> Bytes {
        let header = batch_header(id, 7, 1_000, 3, table, pieces);
        concat(&[Bytes::copy_from_slice(&header), Bytes::from_static(table), concat(pieces)])
    }

    #[test]
    fn a_file_header_reads_back_and_a_flipped_bit_is_noticed() {
        let header = FileHeader::new([9; 16], 77, -5);
        let mut bytes = header.encode();
        assert_eq!(FileHeader::decode(&bytes), Some(header));
        for bit in 0..46 * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHeader::decode(&bytes), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_batch_of_another_life_of_the_file_is_unproven() {
        let batch = encoded(&[1; 16], b"", &[Bytes::from_static(b"abc")]);
        assert!(matches!(parse_batch(&[1; 16], &batch, 1 << 20), Parsed::Batch(..)));
        assert_eq!(parse_batch(&[2; 16], &batch, 1 << 20), Parsed::Unproven);
    }

    proptest! {
        #[test]
        fn a_batch_reads_back_and_any_flipped_bit_is_noticed(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..4),
            table in prop::sample::select(vec![&b""[..], b"t", b"a longer table"]),
            flip in any::<prop::sample::Index>(),
        ) {
            let pieces: Vec<Bytes> = pieces.into_iter().map(Bytes::from).collect();
            let bytes = encoded(&[3; 16], table, &pieces);
            let frames = FrameBatch { base_offset: 7, append_time_ms: 1_000, count: 3, bytes: concat(&pieces) };
            let want = Batch { frames, table: Bytes::from_static(table), size: bytes.len() };
            prop_assert_eq!(parse_batch(&[3; 16], &bytes, bytes.len() as u64), Parsed::Batch(want.clone()));
            let mut bent = bytes.to_vec();
            let bit = flip.index(bent.len() * 8);
            bent[bit / 8] ^= 1 << (bit % 8);
            let parsed = parse_batch(&[3; 16], &Bytes::from(bent), bytes.len() as u64);
            prop_assert!(!matches!(parsed, Parsed::Batch(..)), "bit {} of {:?}", bit, want);
        }

        #[test]
        fn any_bytes_parse_without_panic(bytes: Vec<u8>) {
            let _ = FileHeader::decode(&bytes);
            let with_magic = [&BATCH_MAGIC[..], &bytes].concat();
            parse_batch(&[0; 16], &Bytes::from(with_magic), bytes.len() as u64);
        }
    }
}

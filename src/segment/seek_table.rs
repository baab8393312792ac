//! The standard seek table of the Zstandard seekable format, version 0.1.0.

use super::format::{Fields, SEEK_TABLE_FRAME_MAGIC, SEEKABLE_MAGIC, SKIPPABLE_HEADER_BYTES};

/// Compressed size, plain size, checksum.
pub(super) const ENTRY_BYTES: usize = 12;

/// Number of entries, descriptor, magic.
pub(super) const FOOTER_BYTES: usize = 9;

/// The descriptor of a table whose entries carry checksums.
const CHECKSUM_FLAG: u8 = 0x80;

/// Low 32 bits of XXH64 of no bytes: the checksum of a skippable frame.
const CHECKSUM_OF_NOTHING: u32 = 0x51D8_E999;

/// What the table says of one frame of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub compressed: u32,
    /// 0 for a skippable frame.
    pub plain: u32,
    /// Low 32 bits of XXH64 of the plain bytes.
    pub checksum: u32,
}

impl Entry {
    /// The entry of a skippable frame other than the table itself.
    pub(super) fn of_skippable(compressed: u32) -> Self {
        Self { compressed, plain: 0, checksum: CHECKSUM_OF_NOTHING }
    }
}

/// Bytes of the whole skippable frame around `entries` entries.
pub(super) fn frame_len(entries: u64) -> u64 {
    (SKIPPABLE_HEADER_BYTES + FOOTER_BYTES) as u64 + entries * ENTRY_BYTES as u64
}

/// The whole skippable frame.
pub(super) fn encode(entries: &[Entry]) -> Vec<u8> {
    // A block has at least 4 plain bytes and a segment's frames are indexed
    // within `MAX_INDEX_BYTES`, so the numbers of entries and bytes fit.
    let count = entries.len() as u32;
    let size = (entries.len() * ENTRY_BYTES + FOOTER_BYTES) as u32;
    let mut out = Vec::with_capacity(SKIPPABLE_HEADER_BYTES + size as usize);
    out.extend(SEEK_TABLE_FRAME_MAGIC.to_le_bytes());
    out.extend(size.to_le_bytes());
    for entry in entries {
        for field in [entry.compressed, entry.plain, entry.checksum] {
            out.extend(field.to_le_bytes());
        }
    }
    out.extend(count.to_le_bytes());
    out.push(CHECKSUM_FLAG);
    out.extend(SEEKABLE_MAGIC.to_le_bytes());
    out
}

/// How long the table is that ends with `footer`, if that is a footer.
pub(super) fn frame_len_from_footer(footer: &[u8; FOOTER_BYTES]) -> Option<u64> {
    let mut fields = Fields(footer);
    let entries = fields.u32()?;
    let [descriptor] = fields.array()?;
    (descriptor == CHECKSUM_FLAG && fields.u32()? == SEEKABLE_MAGIC).then(|| frame_len(u64::from(entries)))
}

/// Reads the whole skippable frame back; `None` if a byte of its frame is not
/// as [`encode`] writes it.
pub(super) fn decode(frame: &[u8]) -> Option<Vec<Entry>> {
    let mut fields = Fields(frame.get(SKIPPABLE_HEADER_BYTES..)?);
    let entries = fields.0.len().checked_sub(FOOTER_BYTES)? / ENTRY_BYTES;
    let decoded: Vec<Entry> = (0..entries)
        .map(|_| Some(Entry { compressed: fields.u32()?, plain: fields.u32()?, checksum: fields.u32()? }))
        .collect::<Option<_>>()?;
    (encode(&decoded) == frame).then_some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_laid_out_as_the_format_says() {
        let table = encode(&[Entry { compressed: 1, plain: 2, checksum: 3 }]);
        assert_eq!(
            table,
            [
                0x5E, 0x2A, 0x4D, 0x18, 21, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0x80,
                0xB1, 0xEA, 0x92, 0x8F
            ]
        );
        assert_eq!(frame_len(1), table.len() as u64);
        assert_eq!(frame_len_from_footer(table.last_chunk().unwrap()), Some(29));
        assert_eq!(decode(&table).unwrap().len(), 1);
    }

    #[test]
    fn every_flipped_bit_outside_the_entries_is_refused() {
        let table = encode(&[Entry { compressed: 1, plain: 2, checksum: 3 }]);
        for bit in (0..8 * 8).chain(20 * 8..table.len() * 8) {
            let mut flipped = table.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&flipped), None, "bit {bit}");
        }
        assert_eq!(decode(&table[..10]), None);
        assert_eq!(decode(&[]), None);
    }
}

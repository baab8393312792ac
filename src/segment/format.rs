//! Constants of the layout (see [`super`]) and its varints.

/// Newest version of the index that this build reads. A segment is written in
/// the oldest version that can say everything, so that builds of that time
/// still read it.
pub const VERSION: u32 = DICTIONARY_VERSION;

/// Version of a segment without a dictionary.
pub(super) const PLAIN_VERSION: u32 = 1;

/// Version of a segment whose blocks need a dictionary.
pub(super) const DICTIONARY_VERSION: u32 = 2;

/// Cap on a block's plain bytes, and so on a frame with its prefix.
pub const MAX_BLOCK_BYTES: u32 = 1 << 30;

/// Cap on the plain size of the index body.
pub const MAX_INDEX_BYTES: u32 = 256 << 20;

/// Cap on a stream's name.
pub const MAX_STREAM_BYTES: usize = 255;

/// Skippable frame that holds the index.
pub(super) const INDEX_FRAME_MAGIC: u32 = 0x184D_2A5D;

/// Skippable frame that holds the seek table.
pub(super) const SEEK_TABLE_FRAME_MAGIC: u32 = 0x184D_2A5E;

/// Last bytes of every seekable file.
pub(super) const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;

/// Last bytes of the index frame.
pub(super) const TRAILER_MAGIC: [u8; 8] = *b"thwg-idx";

/// Magic and size in front of a skippable frame.
pub(super) const SKIPPABLE_HEADER_BYTES: usize = 8;

/// SHA-256.
pub(super) type Digest = [u8; 32];

/// Appends `n` as unsigned LEB128.
pub(super) fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push((n & 0x7F) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Appends `n`, zigzag-mapped, as unsigned LEB128.
pub(super) fn put_zigzag(out: &mut Vec<u8>, n: i64) {
    put_varint(out, ((n << 1) ^ (n >> 63)).cast_unsigned());
}

/// Takes fields off the front of a buffer; `None` where it ends too early.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.first_chunk().copied()
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut n = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7F);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                return None;
            }
            n |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(n);
            }
        }
        None
    }

    /// A varint that fits 32 bits.
    pub(super) fn varint32(&mut self) -> Option<u32> {
        self.varint()?.try_into().ok()
    }

    pub(super) fn zigzag(&mut self) -> Option<i64> {
        let n = self.varint()?;
        Some((n >> 1).cast_signed() ^ -(n & 1).cast_signed())
    }

    /// A number of items that take at least `least_bytes` each: more than the
    /// rest can hold is refused, so that nothing is allocated for a false
    /// count.
    pub(super) fn count(&mut self, least_bytes: usize) -> Option<usize> {
        let n = usize::try_from(self.varint()?).ok()?;
        (n <= self.0.len() / least_bytes).then_some(n)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_come_back(n: u64, z: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, n);
            put_zigzag(&mut out, z);
            let mut fields = Fields(&out);
            prop_assert_eq!((fields.varint(), fields.zigzag()), (Some(n), Some(z)));
            prop_assert!(fields.0.is_empty());
        }
    }

    #[test]
    fn the_edges_of_the_number_line_come_back() {
        for z in [0, -1, 1, i64::MIN, i64::MAX] {
            let mut out = Vec::new();
            put_zigzag(&mut out, z);
            assert_eq!(Fields(&out).zigzag(), Some(z));
        }
    }

    #[test]
    fn varints_too_long_for_64_bits_are_refused() {
        assert_eq!(Fields(&[0xFF; 9]).varint(), None);
        assert_eq!(Fields(&[0xFF; 10]).varint(), None);
        let mut over = [0xFF; 10];
        over[9] = 0x02;
        assert_eq!(Fields(&over).varint(), None);
        over[9] = 0x01;
        assert_eq!(Fields(&over).varint(), Some(u64::MAX));
    }

    #[test]
    fn a_count_that_the_rest_cannot_hold_is_refused() {
        assert_eq!(Fields(&[2, 0, 0, 0, 0, 0, 0]).count(3), Some(2));
        assert_eq!(Fields(&[3, 0, 0, 0, 0, 0, 0]).count(3), None);
    }
}

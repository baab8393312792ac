//! MessagePack values by their heads alone: enough to find where a value ends
//! while its bytes still arrive.
//!
//! [`crate::msgpack`] proves payloads that are complete. Here strings are not
//! proved: Fluent senders put log lines into them in whatever encoding the
//! line has, and binary chunks as well.

use bytes::{BufMut, BytesMut};
use rmp::Marker;

/// The head of a value, without the bytes or values that follow it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Head {
    Nil,
    Bool,
    Uint(u64),
    Int(i64),
    Float(f64),
    /// A string of that many bytes.
    Str(usize),
    /// Binary of that many bytes.
    Bin(usize),
    /// An extension: its type, and its bytes without the type.
    Ext(i8, usize),
    /// An array of that many values.
    Array(u32),
    /// A map of that many pairs.
    Map(u32),
}

impl Head {
    /// Bytes that follow the head and belong to this value alone.
    fn content_bytes(self) -> usize {
        match self {
            Self::Str(n) | Self::Bin(n) | Self::Ext(_, n) => n,
            _ => 0,
        }
    }

    /// Values that follow the head.
    fn children(self) -> u64 {
        match self {
            Self::Array(n) => n.into(),
            Self::Map(n) => 2 * u64::from(n),
            _ => 0,
        }
    }

    pub(super) fn type_name(self) -> &'static str {
        match self {
            Self::Nil => "nil",
            Self::Bool => "boolean",
            Self::Uint(_) | Self::Int(_) => "integer",
            Self::Float(_) => "float",
            Self::Str(_) => "string",
            Self::Bin(_) => "binary",
            Self::Ext(..) => "extension",
            Self::Array(_) => "array",
            Self::Map(_) => "map",
        }
    }
}

/// Why there is no head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHead {
    /// The bytes end inside it.
    Short,
    /// 0xc1, which the format never uses.
    Reserved,
}

fn be<const N: usize>(bytes: &[u8]) -> Result<[u8; N], NoHead> {
    bytes.first_chunk::<N>().copied().ok_or(NoHead::Short)
}

fn length<const N: usize>(bytes: &[u8]) -> Result<usize, NoHead> {
    Ok(be::<N>(bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
}

/// An extension head: a length of `N` bytes, then the type.
fn ext<const N: usize>(bytes: &[u8]) -> Result<(Head, usize), NoHead> {
    let n = length::<N>(bytes)?;
    let (_, kind) = bytes.split_at(N);
    Ok((Head::Ext(kind_of(kind)?, n), 1 + N + 1))
}

fn kind_of(bytes: &[u8]) -> Result<i8, NoHead> {
    Ok(i8::from_be_bytes(be(bytes)?))
}

fn int(n: i64) -> Head {
    u64::try_from(n).map_or(Head::Int(n), Head::Uint)
}

/// The head at the front of `bytes`, and its own length.
pub(super) fn head(bytes: &[u8]) -> Result<(Head, usize), NoHead> {
    let (marker, rest) = bytes.split_first().ok_or(NoHead::Short)?;
    let fixed = |head, n| Ok((head, n));
    match Marker::from_u8(*marker) {
        Marker::FixPos(n) => fixed(Head::Uint(n.into()), 1),
        Marker::FixNeg(n) => fixed(Head::Int(n.into()), 1),
        Marker::Null => fixed(Head::Nil, 1),
        Marker::True | Marker::False => fixed(Head::Bool, 1),
        Marker::U8 => fixed(Head::Uint(u8::from_be_bytes(be(rest)?).into()), 2),
        Marker::U16 => fixed(Head::Uint(u16::from_be_bytes(be(rest)?).into()), 3),
        Marker::U32 => fixed(Head::Uint(u32::from_be_bytes(be(rest)?).into()), 5),
        Marker::U64 => fixed(Head::Uint(u64::from_be_bytes(be(rest)?)), 9),
        Marker::I8 => fixed(int(i8::from_be_bytes(be(rest)?).into()), 2),
        Marker::I16 => fixed(int(i16::from_be_bytes(be(rest)?).into()), 3),
        Marker::I32 => fixed(int(i32::from_be_bytes(be(rest)?).into()), 5),
        Marker::I64 => fixed(int(i64::from_be_bytes(be(rest)?)), 9),
        Marker::F32 => fixed(Head::Float(f32::from_be_bytes(be(rest)?).into()), 5),
        Marker::F64 => fixed(Head::Float(f64::from_be_bytes(be(rest)?)), 9),
        Marker::FixStr(n) => fixed(Head::Str(n.into()), 1),
        Marker::Str8 => fixed(Head::Str(length::<1>(rest)?), 2),
        Marker::Str16 => fixed(Head::Str(length::<2>(rest)?), 3),
        Marker::Str32 => fixed(Head::Str(length::<4>(rest)?), 5),
        Marker::Bin8 => fixed(Head::Bin(length::<1>(rest)?), 2),
        Marker::Bin16 => fixed(Head::Bin(length::<2>(rest)?), 3),
        Marker::Bin32 => fixed(Head::Bin(length::<4>(rest)?), 5),
        Marker::FixExt1 => fixed(Head::Ext(kind_of(rest)?, 1), 2),
        Marker::FixExt2 => fixed(Head::Ext(kind_of(rest)?, 2), 2),
        Marker::FixExt4 => fixed(Head::Ext(kind_of(rest)?, 4), 2),
        Marker::FixExt8 => fixed(Head::Ext(kind_of(rest)?, 8), 2),
        Marker::FixExt16 => fixed(Head::Ext(kind_of(rest)?, 16), 2),
        Marker::Ext8 => ext::<1>(rest),
        Marker::Ext16 => ext::<2>(rest),
        Marker::Ext32 => ext::<4>(rest),
        Marker::FixArray(n) => fixed(Head::Array(n.into()), 1),
        Marker::Array16 => fixed(Head::Array(u16::from_be_bytes(be(rest)?).into()), 3),
        Marker::Array32 => fixed(Head::Array(u32::from_be_bytes(be(rest)?)), 5),
        Marker::FixMap(n) => fixed(Head::Map(n.into()), 1),
        Marker::Map16 => fixed(Head::Map(u16::from_be_bytes(be(rest)?).into()), 3),
        Marker::Map32 => fixed(Head::Map(u32::from_be_bytes(be(rest)?)), 5),
        Marker::Reserved => Err(NoHead::Reserved),
    }
}

/// Why a value has no end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoEnd {
    /// It is, or must become, longer than allowed.
    #[error("the value is longer than {most} bytes")]
    TooLong { most: usize },
    /// 0xc1 stands in it.
    #[error("byte 0xc1 at byte {at} is not MessagePack")]
    Reserved { at: usize },
}

/// Finds the end of the value at the front of a buffer that grows. Each byte
/// is looked at once, however the bytes arrive; nesting costs no memory,
/// because all that matters is how many values are still to come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    at: usize,
    values: u64,
}

impl Default for Extent {
    fn default() -> Self {
        Self { at: 0, values: 1 }
    }
}

impl Extent {
    /// The value's length, once all of it is in `buffer`, which must begin as
    /// it did at the call before. A value of more than `most` bytes is refused
    /// as soon as its heads say so: each value still to come has a byte at
    /// the least.
    pub(super) fn find(&mut self, buffer: &[u8], most: usize) -> Result<Option<usize>, NoEnd> {
        while self.values > 0 {
            let rest = buffer.get(self.at..).unwrap_or_default();
            let (head, length) = match head(rest) {
                Ok(found) => found,
                Err(NoHead::Short) => return Ok(None),
                Err(NoHead::Reserved) => return Err(NoEnd::Reserved { at: self.at }),
            };
            self.at += length + head.content_bytes();
            self.values += head.children();
            self.values -= 1;
            if self.at as u64 + self.values > most as u64 {
                return Err(NoEnd::TooLong { most });
            }
        }
        Ok((self.at <= buffer.len()).then_some(self.at))
    }

    /// Bytes known to be missing from `buffer`.
    pub(super) fn missing(&self, buffer: &[u8]) -> usize {
        self.at.saturating_sub(buffer.len()).max(1)
    }
}

/// A position in whole values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// At byte `at` of `bytes`.
    pub(super) fn at(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The bytes walked over since byte `from`.
    pub(super) fn since(&self, from: usize) -> &'a [u8] {
        self.between(from, self.at)
    }

    /// The bytes from byte `from` to byte `to`.
    pub(super) fn between(&self, from: usize, to: usize) -> &'a [u8] {
        self.bytes.get(from..to).unwrap_or_default()
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The next head; `None` where there is none. Its content or its values
    /// follow.
    pub(super) fn head(&mut self) -> Option<Head> {
        let (head, length) = head(self.rest()).ok()?;
        self.at += length;
        Some(head)
    }

    /// The bytes that belong to `head`, just read.
    pub(super) fn content(&mut self, head: Head) -> Option<&'a [u8]> {
        let content = self.rest().get(..head.content_bytes())?;
        self.at += content.len();
        Some(content)
    }

    /// The next value whole.
    pub(super) fn value(&mut self) -> Option<&'a [u8]> {
        let end = Extent::default().find(self.rest(), usize::MAX).ok()??;
        let value = self.rest().get(..end)?;
        self.at += end;
        Some(value)
    }

    /// Moves past that many values, or to the end of the bytes.
    pub(super) fn pass(&mut self, values: u64) {
        let mut left = Extent { at: 0, values };
        let rest = self.rest();
        let passed = left.find(rest, usize::MAX).ok().flatten().unwrap_or(rest.len());
        self.at += passed;
    }

    /// The next value whole, and whether its strings, at any depth, are UTF-8.
    pub(super) fn proved(&mut self) -> Option<(&'a [u8], bool)> {
        let start = self.at;
        let (mut values, mut utf8) = (1u64, true);
        while values > 0 {
            let head = self.head()?;
            let content = self.content(head)?;
            if matches!(head, Head::Str(_)) {
                utf8 &= std::str::from_utf8(content).is_ok();
            }
            values += head.children();
            values -= 1;
        }
        Some((self.bytes.get(start..self.at)?, utf8))
    }
}

/// Writing to memory cannot fail.
macro_rules! infallible {
    ($write:expr) => {{
        let _ = $write;
    }};
}

/// Appends a string's head.
pub(super) fn put_str_head(out: &mut BytesMut, bytes: usize) {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    infallible!(rmp::encode::write_str_len(&mut out.writer(), bytes));
}

/// Appends a string of `text`'s bytes, whatever they are.
pub(super) fn put_str(out: &mut BytesMut, text: &[u8]) {
    put_str_head(out, text.len());
    out.put_slice(text);
}

/// Appends binary.
pub(super) fn put_bin(out: &mut BytesMut, content: &[u8]) {
    let bytes = u32::try_from(content.len()).unwrap_or(u32::MAX);
    infallible!(rmp::encode::write_bin_len(&mut out.writer(), bytes));
    out.put_slice(content);
}

/// Appends an integer in its shortest form.
pub(super) fn put_int(out: &mut BytesMut, n: i64) {
    infallible!(rmp::encode::write_sint(&mut out.writer(), n));
}

/// Appends the value at the front of `walk` with each string that is not
/// UTF-8 turned into binary of the same bytes.
pub(super) fn put_repaired(out: &mut BytesMut, walk: &mut Walk<'_>) -> Option<()> {
    let mut values = 1u64;
    while values > 0 {
        let from = walk.position();
        let head = walk.head()?;
        let content = walk.content(head)?;
        match head {
            Head::Str(_) if std::str::from_utf8(content).is_err() => put_bin(out, content),
            _ => out.put_slice(walk.bytes.get(from..walk.at)?),
        }
        values += head.children();
        values -= 1;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msgpack::{Cursor, MAX_DEPTH};
    use proptest::prelude::*;

    /// Where the value ends if the buffer grows by `piece` bytes at a time.
    fn end(bytes: &[u8], piece: usize, most: usize) -> Result<Option<usize>, NoEnd> {
        let mut extent = Extent::default();
        for to in (0..bytes.len()).step_by(piece).chain([bytes.len()]) {
            if let Some(end) = extent.find(&bytes[..to], most)? {
                return Ok(Some(end));
            }
        }
        Ok(None)
    }

    #[test]
    fn claims_beyond_the_cap_are_refused_before_their_bytes_arrive() {
        for claim in [
            &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
            &[0xdf, 0, 1, 0, 0],
            &[0xc6, 0x40, 0, 0, 0],
            &[0x93, 0xdc, 0x03, 0xe6],
        ] {
            assert_eq!(end(claim, 1, 1_000), Err(NoEnd::TooLong { most: 1_000 }), "{claim:x?}");
        }
        assert_eq!(end(&[0xdc, 0x03, 0xe5], 1, 1_000), Ok(None), "997 values fit");
    }

    #[test]
    fn nesting_as_deep_as_the_cap_costs_no_memory_and_no_stack() {
        let deep = [vec![0x91; 1_000_000], vec![0xc0]].concat();
        assert_eq!(end(&deep, deep.len(), 2_000_000), Ok(Some(deep.len())));
    }

    proptest! {
        #[test]
        fn a_value_ends_where_the_proving_reader_says_so(bytes: Vec<u8>, piece in 1usize..9) {
            let mut cursor = Cursor::new(&bytes);
            let proved = cursor.skip(0).map(|()| cursor.position());
            if let Ok(length) = proved {
                prop_assert_eq!(end(&bytes, piece, 1_000), Ok(Some(length)));
            }
            if let Ok(Some(length)) = end(&bytes, piece, 1_000) {
                let mut walk = Walk::new(&bytes);
                prop_assert_eq!(walk.value().map(<[u8]>::len), Some(length));
                let (value, utf8) = Walk::new(&bytes).proved().unwrap();
                prop_assert_eq!(value.len(), length);
                let mut repaired = BytesMut::new();
                put_repaired(&mut repaired, &mut Walk::new(&bytes)).unwrap();
                prop_assert!(!utf8 || repaired == bytes[..length]);
                // Only depth may be left to refuse in what is repaired.
                let depth = bytes.len() <= MAX_DEPTH;
                prop_assert!(!depth || Cursor::new(&repaired).skip(0).is_ok());
            }
        }
    }
}

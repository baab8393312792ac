//! Entries set in a map, whatever it says itself.

use std::ops::Range;

use bytes::{BufMut, BytesMut};
use memchr::memmem;

use super::{Cursor, Token};

/// What an entry is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar<'a> {
    /// A string.
    Str(&'a str),
    /// An integer.
    Int(i64),
}

/// Appends the map `payload` with `entries` set in it, which come first; all
/// else stays as it is, byte for byte. `None`, and nothing appended, if
/// `payload` is no map with strings for keys and nothing after it.
pub fn put_amended(out: &mut BytesMut, payload: &[u8], entries: &[(&str, Scalar<'_>)]) -> Option<()> {
    let mut cursor = Cursor::new(payload);
    let Token::Map(pairs) = cursor.token().ok()? else { return None };
    let first = cursor.position();
    let mut replaced: Vec<Range<usize>> = Vec::new();
    for _ in 0..pairs {
        let from = cursor.position();
        let Token::Str(key) = cursor.token().ok()? else { return None };
        cursor.skip(2).ok()?;
        if entries.iter().any(|(set, _)| *set == key) {
            replaced.push(from..cursor.position());
        }
    }
    // Bytes after the map are a fault that must not be mended on the way.
    if cursor.remaining() > 0 {
        return None;
    }
    put_entries(out, pairs - u32::try_from(replaced.len()).ok()?, entries)?;
    let mut from = first;
    for gone in replaced {
        out.put_slice(payload.get(from..gone.start)?);
        from = gone.end;
    }
    out.put_slice(payload.get(from..)?);
    Some(())
}

/// As [`put_amended`] with one entry, of a `payload` that is known to be a map
/// with strings for keys and nothing after it. Where the key is nowhere in it,
/// it is not read.
pub fn put_amended_map(out: &mut BytesMut, payload: &[u8], (key, value): (&str, Scalar<'_>)) -> Option<()> {
    if memmem::find(payload, key.as_bytes()).is_some() {
        return put_amended(out, payload, &[(key, value)]);
    }
    let mut cursor = Cursor::new(payload);
    let Token::Map(pairs) = cursor.token().ok()? else { return None };
    put_entries(out, pairs, &[(key, value)])?;
    out.put_slice(payload.get(cursor.position()..)?);
    Some(())
}

/// Begins a map of `entries` and `more` that are to follow.
fn put_entries(out: &mut BytesMut, more: u32, entries: &[(&str, Scalar<'_>)]) -> Option<()> {
    let mut writer = out.writer();
    rmp::encode::write_map_len(&mut writer, more.checked_add(u32::try_from(entries.len()).ok()?)?).ok()?;
    for (key, value) in entries {
        rmp::encode::write_str(&mut writer, key).ok()?;
        match value {
            Scalar::Str(text) => rmp::encode::write_str(&mut writer, text).ok()?,
            Scalar::Int(n) => drop(rmp::encode::write_sint(&mut writer, *n).ok()?),
        }
    }
    Some(())
}

//! Entries set in a map, whatever it says itself.

use bytes::{BufMut, BytesMut};

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
/// else stays as it is, byte for byte. `None` if `payload` is no map with
/// strings for keys and nothing after it: then what was appended is nothing
/// to be used.
pub fn put_amended(out: &mut BytesMut, payload: &[u8], entries: &[(&str, Scalar<'_>)]) -> Option<()> {
    let mut cursor = Cursor::new(payload);
    let Token::Map(pairs) = cursor.token().ok()? else { return None };
    let mut kept = BytesMut::with_capacity(payload.len());
    let mut count = u32::try_from(entries.len()).ok()?;
    for _ in 0..pairs {
        let from = cursor.position();
        let Token::Str(key) = cursor.token().ok()? else { return None };
        cursor.skip(2).ok()?;
        if !entries.iter().any(|(set, _)| *set == key) {
            kept.put_slice(payload.get(from..cursor.position())?);
            count += 1;
        }
    }
    // Bytes after the map are a fault that must not be mended on the way.
    if cursor.remaining() > 0 {
        return None;
    }
    let mut writer = out.writer();
    rmp::encode::write_map_len(&mut writer, count).ok()?;
    for (key, value) in entries {
        rmp::encode::write_str(&mut writer, key).ok()?;
        match value {
            Scalar::Str(text) => rmp::encode::write_str(&mut writer, text).ok()?,
            Scalar::Int(n) => drop(rmp::encode::write_sint(&mut writer, *n).ok()?),
        }
    }
    out.put(kept);
    Some(())
}

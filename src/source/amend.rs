//! Fields set on every record, whatever it says itself.

use std::str::FromStr;

use bytes::{BufMut, BytesMut};

use crate::{
    frame::Payloads,
    msgpack::{Scalar, put_amended},
    source::client::Frames,
};

/// One field and its value; `ts` may be an integer, everything else is a
/// string.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    key: String,
    value: String,
}

impl Field {
    /// Sets `key` to `value`.
    pub fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }

    /// Its key and the value.
    pub fn parts(&self) -> (String, String) {
        (self.key.clone(), self.value.clone())
    }

    fn entry(&self) -> (&str, Scalar<'_>) {
        let value = match self.value.parse() {
            Ok(ms) if self.key == "ts" => Scalar::Int(ms),
            _ => Scalar::Str(&self.value),
        };
        (&self.key, value)
    }
}

impl FromStr for Field {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                Ok(Self { key: key.to_owned(), value: value.to_owned() })
            }
            _ => Err(format!("`{s}` sets nothing; write FIELD=VALUE, such as tenant=team-0")),
        }
    }
}

/// `frames` with `fields` set in each. A frame that is not a map stays as it
/// is, for the server to refuse.
pub fn amend(frames: &Frames, fields: &[Field]) -> Frames {
    if fields.is_empty() {
        return frames.clone();
    }
    let entries: Vec<_> = fields.iter().map(Field::entry).collect();
    let mut out = BytesMut::with_capacity(frames.bytes.len() + 64);
    for payload in Payloads(frames.bytes.clone()) {
        let start = out.len();
        out.put_u32(0);
        if put_amended(&mut out, &payload, &entries).is_none() {
            out.truncate(start + 4);
            out.put_slice(&payload);
        }
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        if let Some(mut prefix) = out.get_mut(start..start + 4) {
            prefix.put_u32(length);
        }
    }
    Frames { bytes: out.freeze(), count: frames.count }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{frame::put_frame, record::RecordRef, source::json::put_json};

    fn fields(set: &[&str]) -> Vec<Field> {
        set.iter().map(|s| s.parse().unwrap()).collect()
    }

    #[test]
    fn set_fields_replace_the_records_own_and_leave_the_others() {
        let mut bytes = BytesMut::new();
        put_json(&mut bytes, br#"{"tenant":"a","text":"x","deep":{"tenant":["kept"]},"ts":5}"#).unwrap();
        put_json(&mut bytes, br#"{"text":"y"}"#).unwrap();
        let frames = Frames { bytes: bytes.freeze(), count: 2 };
        let amended = amend(&frames, &fields(&["tenant=b=c", "ts=7", "lang=en"]));
        assert_eq!(amended.count, 2);
        let payloads: Vec<_> = Payloads(amended.bytes).collect();
        let first = RecordRef::parse(&payloads[0]).unwrap();
        assert_eq!((first.tenant, first.text, first.ts_ms), (Some("b=c"), "x", Some(7)));
        let attrs = serde_json::Value::Object(first.attrs());
        assert_eq!(attrs, serde_json::json!({"deep": {"tenant": ["kept"]}, "lang": "en"}));
        assert_eq!(RecordRef::parse(&payloads[1]).unwrap().tenant, Some("b=c"));
    }

    #[test]
    fn what_the_server_would_refuse_is_passed_on_unmended() {
        let mut bytes = BytesMut::new();
        put_frame(&mut bytes, &[0x93, 1, 2]);
        put_frame(&mut bytes, &[0x80, 0xc0]);
        let frames = Frames { bytes: bytes.freeze(), count: 2 };
        assert_eq!(amend(&frames, &fields(&["tenant=b"])), frames);
    }

    #[test]
    fn a_setting_without_a_field_is_refused() {
        assert!("tenant".parse::<Field>().is_err());
        assert!("=x".parse::<Field>().is_err());
    }
}

//! Keys that came where no key belongs.
//!
//! A hello shows a key or a token. One that comes too late, or in the body of a
//! request, is no record, and neither is one that was cut off; but what is no
//! record is kept as a dead letter, for others to see.

use memchr::memmem::find_iter;

use crate::msgpack::{Cursor, Token};

/// Whether `payload` is, or may be a part of, a hello that shows a credential.
/// `is_cut`: only its beginning is there.
pub(super) fn may_show_credential(payload: &[u8], is_cut: bool) -> bool {
    let (hello, key) = (names(payload, b"thalweg"), names(payload, b"key"));
    if is_cut { hello || key } else { hello && key }
}

/// Whether `payload`, a map without a text, has the field that makes it a hello.
pub(super) fn is_hello(payload: &[u8]) -> bool {
    let mut cursor = Cursor::new(payload);
    let Ok(Token::Map(pairs)) = cursor.token() else { return false };
    for _ in 0..pairs {
        match cursor.token() {
            Ok(Token::Str("thalweg")) => return true,
            Ok(Token::Str(_)) if cursor.skip(1).is_ok() => {}
            _ => return false,
        }
    }
    false
}

/// Whether `payload` has the string `field`, in MessagePack or in JSON: after
/// its length (in the short form, or at the end of a longer one) or a quote.
fn names(payload: &[u8], field: &[u8]) -> bool {
    let length = u8::try_from(field.len()).unwrap_or(u8::MAX);
    let before = |at: usize| at.checked_sub(1).and_then(|at| payload.get(at)).copied();
    find_iter(payload, field).any(|at| {
        before(at).is_some_and(|byte| {
            byte == length
                || byte == 0xa0 | length
                || byte == b'"' && payload.get(at + field.len()) == Some(&b'"')
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn packed(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec_named(value).unwrap()
    }

    #[test]
    fn a_hello_with_a_key_is_known_whole_and_in_part() {
        let hello = packed(&json!({"thalweg": 1, "key": "tw_x"}));
        assert!(may_show_credential(&hello, false) && is_hello(&hello));
        for cut in 9..hello.len() {
            assert!(may_show_credential(&hello[..cut], true), "{cut}");
        }
        let turned = packed(&json!({"key": "tw_x", "thalweg": 1}));
        assert!(may_show_credential(&turned[..7], true));
        assert!(may_show_credential(br#"{"thalweg": 1, "key": "tw_x""#, false));
        let long = b"\x82\xd9\x07thalweg\x01\xda\x00\x03key\xa1x";
        assert!(may_show_credential(long, false));
    }

    #[test]
    fn records_that_speak_of_such_things_show_none() {
        let record = packed(&json!({"text": "thalweg keys create makes a key", "key": 1}));
        assert!(!may_show_credential(&record, false) && !is_hello(&record));
        let line = br#"{"text": "a hello is {\"thalweg\": 1, \"key\": ...}", "tier": }"#;
        assert!(!may_show_credential(line, false));
        assert!(!is_hello(&packed(&json!({"app": "thalweg", "inner": {"thalweg": 1}}))));
    }
}

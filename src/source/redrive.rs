//! What can be sent again of a dead letter.

use bytes::{Bytes, BytesMut};

use super::{
    amend::{Field, amend},
    client::Frames,
    json::put_json,
};
use crate::{
    frame::{Payloads, put_frame},
    pipeline::TENANT_FORBIDDEN,
    record::RecordRef,
    store::{DeadLetter, DeadLetterState},
};

/// The frame to send, with the fields of `set` set in it.
///
/// # Errors
/// Says why there is none that could be taken: what would be refused again
/// for the same fault would be kept as one more dead letter.
pub fn mended(letter: &DeadLetter, set: &[Field]) -> Result<Bytes, String> {
    if letter.state == DeadLetterState::Redriven {
        return Err("it was sent again before".into());
    }
    let inner = &letter.letter;
    if let (Some(stream), Some(offset)) = (&inner.stream, inner.offset) {
        return Err(format!(
            "it is in the log, as {stream}@{offset}; `thalweg replay --from {offset} --to {}` shows what is \
             derived of it now",
            offset + 1
        ));
    }
    if matches!(inner.code.as_str(), "oversized" | "truncated") {
        return Err(format!(
            "only its beginning is kept ({}); its producer has to send it again",
            inner.code
        ));
    }
    if inner.code == TENANT_FORBIDDEN {
        return Err("it names a tenant that its sender does not speak for".into());
    }
    let payload = inner.payload.as_deref().ok_or("its bytes are not kept")?;
    let mut bytes = BytesMut::new();
    match inner.code.as_str() {
        "not_json" => put_json(&mut bytes, payload)?,
        _ => put_frame(&mut bytes, payload),
    }
    let frames = amend(&Frames { bytes: bytes.freeze(), count: 1 }, set);
    let payload = Payloads(frames.bytes.clone()).next().unwrap_or_default();
    match RecordRef::parse(&payload) {
        Ok(_) => Ok(frames.bytes),
        Err(fault) => {
            Err(format!("it is still at fault ({}: {fault}); --set may mend a field", fault.code()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::NewDeadLetter;

    fn letter(code: &str, payload: &[u8]) -> DeadLetter {
        let letter =
            NewDeadLetter { code: code.into(), payload: Some(payload.to_vec()), ..NewDeadLetter::default() };
        DeadLetter { id: 1, letter, state: DeadLetterState::Open, redriven_ms: None }
    }

    fn payload(json: &str) -> Vec<u8> {
        let mut frame = BytesMut::new();
        put_json(&mut frame, json.as_bytes()).unwrap();
        frame[4..].to_vec()
    }

    #[test]
    fn a_fault_in_a_field_is_mended_by_setting_it() {
        let bad = letter("unknown_tier", &payload(r#"{"text":"x","tier":"docs"}"#));
        assert!(mended(&bad, &[]).unwrap_err().contains("unknown_tier"));
        let frame = mended(&bad, &["tier=doc".parse().unwrap()]).unwrap();
        let payload = Payloads(frame).next().unwrap();
        assert_eq!(RecordRef::parse(&payload).unwrap().tier.map(|t| t.name()), Some("doc"));
    }

    #[test]
    fn what_is_incomplete_in_the_log_or_done_is_not_sent() {
        let good = payload(r#"{"text":"x"}"#);
        assert!(mended(&letter("log", &good), &[]).is_ok());
        assert!(mended(&letter("oversized", &good), &[]).unwrap_err().contains("beginning"));
        let mut in_log = letter("embed", &good);
        (in_log.letter.stream, in_log.letter.offset) = (Some("main".into()), Some(7));
        assert!(mended(&in_log, &[]).unwrap_err().contains("--from 7 --to 8"));
        let done = DeadLetter { state: DeadLetterState::Redriven, ..letter("log", &good) };
        assert!(mended(&done, &[]).unwrap_err().contains("before"));
    }
}

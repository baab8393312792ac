//! The signature of a delivery: HMAC-SHA256 (RFC 2104) over the time, a full
//! stop and the body, so that neither can be changed nor be sent again later.

use std::fmt::Write as _;

use ring::hmac::{Context, HMAC_SHA256, Key};

use crate::secret::Secret;

/// The value of `Thalweg-Signature`: `t=SECONDS`, and one `v1=HEX` for each
/// secret, so that a receiver which knows any of them can verify it. `at_s` is
/// in seconds since the Unix epoch.
pub fn signature(secrets: &[&Secret], at_s: i64, body: &str) -> String {
    let mut signature = format!("t={at_s}");
    for secret in secrets {
        let mut context = Context::with_key(&Key::new(HMAC_SHA256, secret.reveal().as_bytes()));
        context.update(format!("{at_s}.").as_bytes());
        context.update(body.as_bytes());
        signature += ",v1=";
        for byte in context.sign().as_ref() {
            let _ = write!(signature, "{byte:02x}");
        }
    }
    signature
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_what_other_libraries_compute() {
        let [secret, other] = ["open sesame, open sesame", "other"].map(|text| Secret::from(text.to_owned()));
        // Of Python's hmac.
        let expected = "7c81a971eeda7dc93063289e82da204c8972f1a805a6c651df3d56b714faf64b";
        let signed = signature(&[&secret], 1_700_000_000, "{\"id\":\"d1\"}");
        assert_eq!(signed, format!("t=1700000000,v1={expected}"));
        let both = signature(&[&other, &secret], 1_700_000_000, "{\"id\":\"d1\"}");
        assert!(both.ends_with(&format!(",v1={expected}")) && both.matches(",v1=").count() == 2, "{both}");
    }
}

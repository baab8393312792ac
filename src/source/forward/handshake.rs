//! The handshake: server and client show each other that they have the same
//! key, without saying it.
//!
//! ```text
//! server  ["HELO", {"nonce": bin, "auth": "", "keepalive": true}]
//! client  ["PING", its name, salt, sha512_hex(salt, its name, nonce, key), user, password]
//! server  ["PONG", true or false, reason, its name, sha512_hex(salt, its name, nonce, key)]
//! ```
//!
//! `auth` is empty: users and passwords are not asked for. A key that is right
//! lets a client in; nothing is encrypted by it, which is what TLS is for.

use bytes::{BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha512};

use super::value::{Head, Walk, put_bin, put_str};

/// Most bytes of a PING. Those of known clients have about 400.
pub(super) const MAX_PING_BYTES: usize = 4 << 10;

/// A number used once.
pub(super) type Nonce = [u8; 16];

/// What the server knows.
#[derive(Clone)]
pub(super) struct Secret {
    pub(super) key: String,
    /// The server's own name. It must be another than the client's: with one
    /// name for both, either's digest would be the other's.
    pub(super) hostname: String,
}

/// Why a client is not let in. The text is what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    #[error("expected PING: this server lets in only clients with its shared key")]
    NoPing,
    #[error("shared_key mismatch")]
    WrongKey,
    #[error("same hostname between input and output: invalid configuration")]
    SameHostname,
}

impl Denied {
    /// The reason's name in metrics.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::NoPing => "no_ping",
            Self::WrongKey => "shared_key",
            Self::SameHostname => "same_hostname",
        }
    }
}

/// Appends the server's first message.
pub(super) fn put_helo(out: &mut BytesMut, nonce: &Nonce) {
    out.put_slice(b"\x92\xa4HELO\x83\xa5nonce");
    put_bin(out, nonce);
    out.put_slice(b"\xa4auth\xa0\xa9keepalive\xc3");
}

/// Judges a client's answer and appends the server's.
pub(super) fn answer(out: &mut BytesMut, ping: &Bytes, nonce: &Nonce, secret: &Secret) -> Result<(), Denied> {
    let judged = judge(ping, nonce, secret);
    out.put_slice(b"\x95\xa4PONG");
    let (reason, digest) = match &judged {
        Ok(salt) => (String::new(), digest(salt, secret.hostname.as_bytes(), nonce, &secret.key)),
        Err(denied) => (denied.to_string(), String::new()),
    };
    out.put_u8(if judged.is_ok() { 0xc3 } else { 0xc2 });
    put_str(out, reason.as_bytes());
    put_str(out, secret.hostname.as_bytes());
    put_str(out, digest.as_bytes());
    judged.map(drop)
}

/// The client's salt, if it has the key.
fn judge<'a>(ping: &'a Bytes, nonce: &Nonce, secret: &Secret) -> Result<&'a [u8], Denied> {
    let mut walk = Walk::new(ping);
    if walk.head() != Some(Head::Array(6)) {
        return Err(Denied::NoPing);
    }
    let mut string = || match walk.head() {
        Some(head @ (Head::Str(_) | Head::Bin(_))) => walk.content(head).ok_or(Denied::NoPing),
        _ => Err(Denied::NoPing),
    };
    let (kind, hostname, salt, claimed) = (string()?, string()?, string()?, string()?);
    if kind != b"PING" {
        return Err(Denied::NoPing);
    }
    if hostname == secret.hostname.as_bytes() {
        return Err(Denied::SameHostname);
    }
    let expected = digest(salt, hostname, nonce, &secret.key);
    if same(claimed, expected.as_bytes()) { Ok(salt) } else { Err(Denied::WrongKey) }
}

/// SHA-512 in lower-case hex.
fn digest(salt: &[u8], hostname: &[u8], nonce: &Nonce, key: &str) -> String {
    let digest =
        Sha512::new().chain_update(salt).chain_update(hostname).chain_update(nonce).chain_update(key);
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares in a time that does not tell where the difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONCE: Nonce = *b"0123456789abcdef";

    fn secret() -> Secret {
        Secret { key: "open sesame".into(), hostname: "thalweg".into() }
    }

    fn ping(name: &str, salt: &[u8], digest: &str) -> Bytes {
        let mut out = BytesMut::from(&b"\x96\xa4PING"[..]);
        put_str(&mut out, name.as_bytes());
        put_bin(&mut out, salt);
        put_str(&mut out, digest.as_bytes());
        out.put_slice(b"\xa0\xa0");
        out.freeze()
    }

    #[test]
    fn the_server_begins_with_the_helo_of_the_specification() {
        let mut out = BytesMut::new();
        put_helo(&mut out, &NONCE);
        let expected = b"\x92\xa4HELO\x83\xa5nonce\xc4\x100123456789abcdef\xa4auth\xa0\xa9keepalive\xc3";
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn a_client_with_the_key_is_let_in_and_shown_that_the_server_has_it() {
        // printf 'salt''client''0123456789abcdef''open sesame' | sha512sum
        let theirs = "c96be37ed514";
        let mut out = BytesMut::new();
        let right = digest(b"salt", b"client", &NONCE, "open sesame");
        assert!(right.starts_with(theirs), "{right}");
        assert_eq!(answer(&mut out, &ping("client", b"salt", &right), &NONCE, &secret()), Ok(()));
        let ours = digest(b"salt", b"thalweg", &NONCE, "open sesame");
        let expected = [b"\x95\xa4PONG\xc3\xa0\xa7thalweg\xd9\x80", ours.as_bytes()].concat();
        assert_eq!(&out[..], expected);
    }

    #[test]
    fn whoever_has_not_the_key_is_told_why_and_learns_nothing_more() {
        let right = digest(b"salt", b"client", &NONCE, "open sesame");
        let wrong = digest(b"salt", b"client", &NONCE, "open barley");
        let reflected = digest(b"salt", b"thalweg", &NONCE, "open sesame");
        for (ping, denied) in [
            (ping("client", b"salt", &wrong), Denied::WrongKey),
            (ping("client", b"pepper", &right), Denied::WrongKey),
            (ping("client", b"salt", &right[1..]), Denied::WrongKey),
            (ping("thalweg", b"salt", &reflected), Denied::SameHostname),
            (Bytes::from_static(b"\x93\xa1t\x01\x80"), Denied::NoPing),
            (Bytes::from_static(b"\x96\xa4PONG\xa0\xa0\xa0\xa0\xa0"), Denied::NoPing),
            (Bytes::from_static(b"\xc0"), Denied::NoPing),
        ] {
            let mut out = BytesMut::new();
            assert_eq!(answer(&mut out, &ping, &NONCE, &secret()), Err(denied));
            let reason = denied.to_string();
            assert!(out.starts_with(b"\x95\xa4PONG\xc2"), "{out:?}");
            assert!(out.ends_with(b"\xa7thalweg\xa0"), "{out:?}");
            assert!(String::from_utf8_lossy(&out).contains(&reason), "{out:?}");
        }
    }
}

//! API keys: `tw_ID_SECRET`.
//!
//! The id is 12 characters (60 random bits), the secret 52 (256 random bits),
//! both in the base32 of RFC 4648, lower case and without padding. That has
//! neither `-` nor `_`, so a double click takes a part whole and `_` can
//! separate; and it has one case and no `0` and `1`, so a key that is read
//! aloud or passes through something that folds case stays the same.
//!
//! Of the secret only its SHA-256 is kept. A slow hash makes guessing slow
//! where people choose what is hashed; 256 random bits are not guessed at any
//! speed, and each request would pay for it.

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{Principal, RateTier, Roles, Scheme, Unauthenticated};

/// What every key begins with; no token does.
pub(super) const PREFIX: &str = "tw_";
/// Bytes of a secret.
pub(super) const SECRET_BYTES: usize = 32;
/// Bytes that an id is drawn from.
const ID_BYTES: usize = 8;
const ID_CHARACTERS: usize = 12;
const SECRET_CHARACTERS: usize = 52;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A key as it is kept. It lets nobody in who has only this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// Names the key in lists and in the trail.
    pub id: String,
    /// What it is for.
    pub name: String,
    /// SHA-256 of its secret.
    #[serde(skip)]
    pub digest: [u8; 32],
    /// The only tenant it speaks for; none: any.
    pub tenant: Option<String>,
    /// What its bearer is there for.
    pub roles: Roles,
    /// How much its bearer may ask.
    pub tier: RateTier,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// From when on it is no longer good.
    pub expires_ms: Option<i64>,
    /// When it was taken back.
    pub revoked_ms: Option<i64>,
    /// When it was last seen, to a minute.
    pub used_ms: Option<i64>,
    /// The key in whose place it was made.
    pub replaces: Option<String>,
}

/// What a new key is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewKey {
    /// What it is for.
    pub name: String,
    /// The only tenant it speaks for; none: any.
    pub tenant: Option<String>,
    /// What its bearer is there for.
    pub roles: Roles,
    /// How much its bearer may ask.
    pub tier: RateTier,
    /// From when on it is no longer good, in milliseconds since the Unix epoch.
    pub expires_ms: Option<i64>,
}

/// A new key, and the only time that its text is there.
pub struct MintedKey {
    /// What is kept of it.
    pub key: ApiKey,
    /// What its bearer shows.
    pub text: String,
}

impl NewKey {
    /// Makes the key of 40 `random` bytes.
    pub fn mint(self, random: &[u8; ID_BYTES + SECRET_BYTES], now_ms: i64) -> MintedKey {
        let (drawn, secret) = random.split_at(ID_BYTES);
        let id: String = encode(drawn).chars().take(ID_CHARACTERS).collect();
        let text = format!("{PREFIX}{id}_{}", encode(secret));
        let key = ApiKey {
            id,
            name: self.name,
            digest: Sha256::digest(secret).into(),
            tenant: self.tenant,
            roles: self.roles,
            tier: self.tier,
            created_ms: now_ms,
            expires_ms: self.expires_ms,
            revoked_ms: None,
            used_ms: None,
            replaces: None,
        };
        MintedKey { key, text }
    }
}

impl ApiKey {
    /// Who somebody is that shows this key's id with `secret`. Whoever has not
    /// the secret learns nothing of the key, not even that there is one.
    pub fn principal(&self, secret: &[u8; SECRET_BYTES], now_ms: i64) -> Result<Principal, Unauthenticated> {
        let digest: [u8; 32] = Sha256::digest(secret).into();
        if !is_same(&digest, &self.digest) {
            return Err(Unauthenticated::UnknownKey);
        }
        if self.revoked_ms.is_some() {
            return Err(Unauthenticated::RevokedKey { id: self.id.clone() });
        }
        if self.is_expired(now_ms) {
            return Err(Unauthenticated::ExpiredKey { id: self.id.clone() });
        }
        Ok(Principal {
            id: self.id.as_str().into(),
            scheme: Scheme::Key,
            tenant: self.tenant.as_deref().map(Into::into),
            roles: self.roles,
            tier: self.tier,
            expires_ms: self.expires_ms,
        })
    }

    /// Whether its time is over.
    pub fn is_expired(&self, now_ms: i64) -> bool {
        self.expires_ms.is_some_and(|expires_ms| now_ms >= expires_ms)
    }
}

/// Compares in a time that does not depend on where two differ. They are
/// digests of what a client chose, so the time would tell it little; but it
/// costs nothing that it tells nothing.
fn is_same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    std::hint::black_box(a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
}

/// Id and secret of a key.
pub(super) fn parse(text: &str) -> Option<(&str, [u8; SECRET_BYTES])> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    if id.len() != ID_CHARACTERS || !id.bytes().all(|byte| ALPHABET.contains(&byte)) {
        return None;
    }
    Some((id, decode(secret)?))
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut held, mut bits) = (0_u32, 0);
    let mut put = |five: u32| {
        let character = ALPHABET.get((five & 31) as usize).copied().unwrap_or_default();
        text.push(char::from(character));
    };
    for byte in bytes {
        held = held << 8 | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            put(held >> bits);
        }
    }
    if bits > 0 {
        put(held << (5 - bits));
    }
    text
}

fn decode(text: &str) -> Option<[u8; SECRET_BYTES]> {
    if text.len() != SECRET_CHARACTERS {
        return None;
    }
    let mut bytes = [0; SECRET_BYTES];
    let mut slots = bytes.iter_mut();
    let (mut held, mut bits) = (0_u32, 0);
    for character in text.bytes() {
        let five = ALPHABET.iter().position(|known| *known == character)?;
        held = held << 5 | u32::try_from(five).ok()?;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            *slots.next()? = (held >> bits) as u8;
            held &= (1 << bits) - 1;
        }
    }
    // The last character holds 4 bits more than the secret has: of all the
    // texts that would read the same, one is the key.
    (held == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::identity::{Credential, Role, Shown};

    fn minted(random: &[u8; 40]) -> MintedKey {
        let new = NewKey {
            name: "n".into(),
            tenant: Some("acme".into()),
            roles: [Role::Viewer].into_iter().collect(),
            tier: RateTier::Dev,
            expires_ms: Some(1_000),
        };
        new.mint(random, 5)
    }

    fn shown(text: &str, key: &ApiKey, now_ms: i64) -> Result<Principal, Unauthenticated> {
        let credential = Credential::new(text);
        let Shown::Key { id, secret } = credential.shown()? else { panic!("a token") };
        assert_eq!(id, key.id);
        key.principal(&secret, now_ms)
    }

    proptest! {
        #[test]
        fn a_minted_key_is_known_again(random: [u8; 40]) {
            let MintedKey { key, text } = minted(&random);
            prop_assert_eq!(text.len(), 3 + 12 + 1 + 52);
            let principal = shown(&text, &key, 999).unwrap();
            prop_assert_eq!(&*principal.id, &key.id);
            prop_assert_eq!(principal.tenant.as_deref(), Some("acme"));
        }

        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = Credential::new(text.clone()).shown();
            let _ = Credential::new(format!("tw_{text}")).shown();
        }

        #[test]
        fn one_changed_character_is_another_key(random: [u8; 40], at in 16_usize..68, to in 0_usize..32) {
            let MintedKey { key, text } = minted(&random);
            let mut changed = text.clone().into_bytes();
            changed[at] = ALPHABET[to];
            let changed = String::from_utf8(changed).unwrap();
            prop_assume!(changed != text);
            let refused = shown(&changed, &key, 0).unwrap_err().code();
            prop_assert!(["unknown_key", "malformed_credentials"].contains(&refused), "{}", refused);
        }
    }

    #[test]
    fn the_encoding_is_that_of_rfc_4648() {
        assert_eq!(encode(b"foobar"), "mzxw6ytboi");
        assert_eq!(encode(b"f"), "my");
    }

    #[test]
    fn the_secret_stands_in_nothing_that_is_kept() {
        let MintedKey { key, text } = minted(&[7; 40]);
        let secret = text.rsplit('_').next().unwrap();
        let told = format!("{key:?} {}", serde_json::to_string(&key).unwrap());
        assert!(!told.contains(secret) && !serde_json::to_string(&key).unwrap().contains("digest"), "{told}");
    }

    #[test]
    fn a_key_that_is_over_says_so_only_to_who_has_it() {
        let MintedKey { mut key, text } = minted(&[7; 40]);
        let other = minted(&[[7; 8].as_slice(), &[8; 32]].concat().try_into().unwrap()).text;
        assert_eq!(shown(&text, &key, 1_000).unwrap_err().code(), "expired_key");
        assert_eq!(shown(&other, &key, 1_000).unwrap_err().code(), "unknown_key");
        key.revoked_ms = Some(6);
        assert_eq!(shown(&text, &key, 7).unwrap_err().code(), "revoked_key");
        assert_eq!(shown(&other, &key, 7).unwrap_err().code(), "unknown_key");
    }
}

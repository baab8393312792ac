//! API keys are made and taken back. Each act and its row in the trail are one
//! transaction.

use crate::{
    identity::{ApiKey, Entry, MintedKey, NewKey, Principal},
    store::{Store, StoreError},
};

/// Longest name and tenant of a key, in bytes.
const MAX_NAME_BYTES: usize = 256;

/// Bytes of randomness that a key is made of.
pub type Randomness = [u8; 40];

/// Why a key could not be made or taken back.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// No key has this id.
    #[error("there is no key `{id}`; `thalweg keys list` shows those there are")]
    Unknown {
        /// The id asked for.
        id: String,
    },
    /// It is no longer good.
    #[error("the key `{id}` is over already; `thalweg keys create` makes a new one")]
    Over {
        /// The key.
        id: String,
    },
    /// It would be of no use.
    #[error("the new key {reason}")]
    Useless {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeyError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "unknown_key",
            Self::Over { .. } => "key_is_over",
            Self::Useless { .. } => "useless_key",
            Self::Store(_) => "store_failed",
        }
    }
}

/// Makes a key for `by`.
pub async fn create(
    store: &Store,
    new: NewKey,
    by: &Principal,
    random: &Randomness,
    now_ms: i64,
) -> Result<MintedKey, KeyError> {
    check(&new, now_ms)?;
    let minted = new.mint(random, now_ms);
    store.add_key(&minted.key, None, &entry("keys.create", &minted.key, by, now_ms)).await?;
    Ok(minted)
}

fn check(new: &NewKey, now_ms: i64) -> Result<(), KeyError> {
    let is_name = |name: &str| (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control);
    let reasons = [
        (!is_name(&new.name), "needs a name of 1 to 256 bytes without control characters"),
        (new.roles.is_empty(), "has no role, so it could do nothing; give it one"),
        (
            new.tenant.as_deref().is_some_and(|tenant| tenant == "*" || !is_name(tenant)),
            "needs a tenant of 1 to 256 bytes without control characters; leave it out for a key that speaks for \
             all of them",
        ),
        (
            new.expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms),
            "would be over at once; let it expire later",
        ),
    ];
    match reasons.into_iter().find(|(wrong, _)| *wrong) {
        Some((_, reason)) => Err(KeyError::Useless { reason }),
        None => Ok(()),
    }
}

/// Makes a key that may do what the key `id` may. That one is good for
/// `overlap_ms` more, in which its bearers change to the new one. The new one
/// is good for as long as the old one was made to be, or until `expires_ms`.
pub async fn rotate(
    store: &Store,
    id: &str,
    (overlap_ms, expires_ms): (i64, Option<i64>),
    by: &Principal,
    random: &Randomness,
    now_ms: i64,
) -> Result<MintedKey, KeyError> {
    let old = store.key(id).await?.ok_or_else(|| KeyError::Unknown { id: id.to_owned() })?;
    if old.revoked_ms.is_some() || old.is_expired(now_ms) {
        return Err(KeyError::Over { id: old.id });
    }
    let life_ms = old.expires_ms.map(|expires_ms| expires_ms.saturating_sub(old.created_ms));
    let new = NewKey {
        name: old.name,
        tenant: old.tenant,
        roles: old.roles,
        tier: old.tier,
        expires_ms: expires_ms.or(life_ms.map(|life_ms| now_ms.saturating_add(life_ms))),
    };
    check(&new, now_ms)?;
    let mut minted = new.mint(random, now_ms);
    minted.key.replaces = Some(old.id);
    let until_ms = now_ms.saturating_add(overlap_ms);
    store.add_key(&minted.key, Some(until_ms), &entry("keys.rotate", &minted.key, by, now_ms)).await?;
    Ok(minted)
}

/// Takes the key `id` back. Daemons that know it learn so within 10 seconds.
pub async fn revoke(store: &Store, id: &str, by: &Principal, now_ms: i64) -> Result<(), KeyError> {
    let key = store.key(id).await?.ok_or_else(|| KeyError::Unknown { id: id.to_owned() })?;
    match store.revoke_key(id, now_ms, &entry("keys.revoke", &key, by, now_ms)).await? {
        true => Ok(()),
        false => Err(KeyError::Over { id: id.to_owned() }),
    }
}

fn entry(act: &'static str, key: &ApiKey, by: &Principal, now_ms: i64) -> Entry {
    let reach = if key.tenant.is_some() { "one tenant" } else { "all tenants" };
    let mut detail = format!("{}; {reach}", key.roles);
    if let Some(old) = &key.replaces {
        detail.push_str("; replaces ");
        detail.push_str(old);
    }
    Entry { detail, ..Entry::done(now_ms, by, act, key.id.as_str()) }
}

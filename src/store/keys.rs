//! API keys as both databases keep them.

use sqlx::FromRow;

use super::error::StoreError;
use crate::identity::{ApiKey, RateTier, Role, Roles};

/// A key as both databases give it.
#[derive(FromRow)]
pub(super) struct KeyRow {
    id: String,
    name: String,
    digest: Vec<u8>,
    tenant: Option<String>,
    roles: String,
    tier: String,
    created_ms: i64,
    expires_ms: Option<i64>,
    revoked_ms: Option<i64>,
    used_ms: Option<i64>,
    replaces: Option<String>,
}

impl KeyRow {
    /// The key; texts that people chose as `f` gives them back.
    pub fn key(self, f: impl Fn(String) -> String) -> Result<ApiKey, StoreError> {
        let damaged = |what: &str, found: &str| StoreError::Damaged {
            what: "API key",
            reason: format!("`{found}` is no {what}"),
        };
        let named = |name: &str| Role::named(name).ok_or_else(|| damaged("role", name));
        let roles = self.roles.split(' ').filter(|name| !name.is_empty()).map(named);
        Ok(ApiKey {
            roles: roles.collect::<Result<Roles, _>>()?,
            tier: RateTier::named(&self.tier).ok_or_else(|| damaged("rate tier", &self.tier))?,
            digest: self.digest.try_into().map_err(|_| damaged("digest", "a value of another length"))?,
            id: self.id,
            name: f(self.name),
            tenant: self.tenant.map(f),
            created_ms: self.created_ms,
            expires_ms: self.expires_ms,
            revoked_ms: self.revoked_ms,
            used_ms: self.used_ms,
            replaces: self.replaces,
        })
    }
}

/// Roles as they are stored: names with spaces between them.
pub(super) fn stored_roles(roles: Roles) -> String {
    roles.iter().map(Role::name).collect::<Vec<_>>().join(" ")
}

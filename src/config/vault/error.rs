//! Why a secret could not be had from Vault, and what to do about it. No
//! message has the token in it, or anything that a secret holds.

/// Why a reference to Vault has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::config) enum VaultError {
    #[error("`{written}` is no place in Vault: {reason}; write `${{vault:MOUNT/PATH#FIELD}}`")]
    Written { written: String, reason: &'static str },
    #[error("the environment variable `{name}` {reason}")]
    Setting { name: &'static str, reason: String },
    #[error("no client for Vault can be made: {reason}")]
    Client { reason: String },
    #[error("Vault cannot be reached at {server}: {reason}; check VAULT_ADDR, VAULT_CACERT and the network")]
    Unreachable { server: String, reason: String },
    #[error("Vault at {server} did not answer in time; look whether it is overloaded, then try again")]
    Slow { server: String },
    #[error("Vault at {server} sent more than 64 KiB for `{path}`; keep long things out of it")]
    Long { server: String, path: String },
    #[error(
        "{server} sends on to {to}, which is not followed with a token; if that is Vault, set VAULT_ADDR to it"
    )]
    Redirected { server: String, to: String },
    #[error(
        "Vault at {server} is sealed, or a standby that cannot pass requests on (503{}); unseal it, or set VAULT_ADDR to the active server",
        and(said)
    )]
    Unavailable { server: String, said: String },
    #[error(
        "Vault at {server} denies `{path}` to this token (403{}); look whether the token is still valid, its policy has `read` on `{needed}`, and the mount exists",
        and(said)
    )]
    Denied { server: String, path: String, needed: String, said: String },
    #[error("Vault at {server} has nothing at `{path}`, read as version {version}; check mount and path")]
    NoPath { server: String, path: String, version: Version },
    #[error(
        "the current version of `{path}` in Vault is deleted; restore it with `vault kv undelete`, or write it anew"
    )]
    Deleted { path: String },
    #[error("Vault's `{path}` has no field `{field}`; its fields are {}", names(fields))]
    NoField { path: String, field: String, fields: Vec<String> },
    #[error("the field `{field}` of Vault's `{path}` is no text, number or boolean")]
    NoText { path: String, field: String },
    #[error(
        "`{mount}` in Vault is of type `{kind}`, and only key-value stores can be read; use one of type `kv`"
    )]
    NotKeyValue { mount: String, kind: String },
    #[error("Vault at {server} answered {status}{}; its log says why", and(said))]
    Status { server: String, status: u16, said: String },
    #[error("what answers at {server} is no Vault: {reason}; check VAULT_ADDR")]
    NotVault { server: String, reason: String },
}

/// Which layout of a key-value store is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::config) enum Version {
    /// Told by the server, or all that it can have.
    One,
    /// Taken, because the server has no way to tell.
    AssumedOne,
    /// Told by the server.
    Two,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::One => "1 of the key-value store",
            Self::AssumedOne => "1 of the key-value store, because the server does not tell which it is",
            Self::Two => "2 of the key-value store",
        })
    }
}

fn and(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!(": {said}") }
}

fn names(fields: &[String]) -> String {
    match fields {
        [] => "none".to_owned(),
        fields => fields.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(", "),
    }
}

//! Why nobody knows who is asking.

/// A request whose sender is not known. What they showed is never part of the
/// message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// Nothing was shown.
    #[error(
        "this needs an API key or a token: over HTTP as `Authorization: Bearer ...`, over a socket as `key` in \
         the hello"
    )]
    MissingCredentials,
    /// What was shown cannot be a key or a token.
    #[error("the credentials cannot be read: {reason}")]
    MalformedCredentials {
        /// What is wrong with them.
        reason: &'static str,
    },
    /// No key has this id, or its secret is another one.
    #[error("there is no such key; `thalweg keys list` shows those there are, `keys create` makes one")]
    UnknownKey,
    /// It was good until a while ago.
    #[error("the key `{id}` has expired; `thalweg keys create` makes a new one")]
    ExpiredKey {
        /// The key.
        id: String,
    },
    /// Somebody took it back.
    #[error("the key `{id}` was revoked; `thalweg keys create` makes a new one")]
    RevokedKey {
        /// The key.
        id: String,
    },
    /// Keys are turned off.
    #[error("this pipeline takes no API keys, only tokens (`keys = true` in [auth] would change that)")]
    KeysNotTaken,
    /// There is no provider.
    #[error("this pipeline takes no tokens, only API keys ([auth.jwt] would name whose it takes)")]
    TokensNotTaken,
    /// The token names an algorithm that is not taken, or that its key is not
    /// for.
    #[error(
        "the token's algorithm is not taken; have the provider sign with one of `algorithms` in [auth.jwt], \
         all of them of public keys"
    )]
    AlgorithmRefused,
    /// The provider has no key of this name.
    #[error("the identity provider has no key of the name that the token gives; get a new token")]
    UnknownSigningKey,
    /// Somebody else signed it, or it was changed since.
    #[error("the token's signature does not hold; get a new token")]
    BadSignature,
    /// It was good until a while ago.
    #[error("the token has expired; get a new one")]
    ExpiredToken,
    /// It is good from later on.
    #[error("the token is not good yet; check the clocks here and at the identity provider")]
    ImmatureToken,
    /// Another provider's.
    #[error("the token is of another issuer than [auth.jwt] names")]
    WrongIssuer,
    /// Made for others.
    #[error(
        "the token is for another audience than [auth.jwt] names; ask the provider for one for that audience"
    )]
    WrongAudience,
    /// It does not say enough.
    #[error("the token's claim `{claim}` {wanted}; have the identity provider add it")]
    BadClaim {
        /// Which claim.
        claim: String,
        /// What it has to be.
        wanted: &'static str,
    },
    /// The provider's keys cannot be had.
    #[error("the identity provider does not answer, and its keys are not known here; try again later")]
    IdentityProviderAway,
    /// The database cannot be asked for the key.
    #[error("the store that holds the keys does not answer; try again later")]
    KeyStoreAway,
}

impl Unauthenticated {
    /// The stable code (`docs/identity.md`).
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingCredentials => "missing_credentials",
            Self::MalformedCredentials { .. } => "malformed_credentials",
            Self::UnknownKey => "unknown_key",
            Self::ExpiredKey { .. } => "expired_key",
            Self::RevokedKey { .. } => "revoked_key",
            Self::KeysNotTaken => "keys_not_taken",
            Self::TokensNotTaken => "tokens_not_taken",
            Self::AlgorithmRefused => "algorithm_refused",
            Self::UnknownSigningKey => "unknown_signing_key",
            Self::BadSignature => "bad_signature",
            Self::ExpiredToken => "expired_token",
            Self::ImmatureToken => "immature_token",
            Self::WrongIssuer => "wrong_issuer",
            Self::WrongAudience => "wrong_audience",
            Self::BadClaim { .. } => "bad_claim",
            Self::IdentityProviderAway => "identity_provider_away",
            Self::KeyStoreAway => "key_store_away",
        }
    }

    /// Whether the same credentials may be good later: it is not they that are
    /// at fault, but something here is away.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::IdentityProviderAway | Self::KeyStoreAway)
    }
}

//! How tokens may be signed.

use ring::signature::{self, RsaParameters, VerificationAlgorithm};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An algorithm of RFC 7518 or 8037. Only those of public keys are here: with
/// a shared secret whoever can check a token could also make one, and a
/// public key could be taken for the secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Algorithm {
    /// RSA, PKCS #1 v1.5, SHA-256.
    Rs256,
    /// RSA, PKCS #1 v1.5, SHA-384.
    Rs384,
    /// RSA, PKCS #1 v1.5, SHA-512.
    Rs512,
    /// RSA, PSS, SHA-256.
    Ps256,
    /// RSA, PSS, SHA-384.
    Ps384,
    /// RSA, PSS, SHA-512.
    Ps512,
    /// ECDSA on P-256, SHA-256.
    Es256,
    /// ECDSA on P-384, SHA-384.
    Es384,
    /// Ed25519.
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// How a signature of an algorithm is checked.
#[derive(Clone, Copy)]
pub(super) enum Check {
    /// With modulus and exponent; of at least 2,048 bits.
    Rsa(&'static RsaParameters),
    /// With a point on the curve of this name in a JWK.
    Curve(&'static str, &'static dyn VerificationAlgorithm),
}

impl Algorithm {
    /// The algorithm of that name in a token.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::deserialize(serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name)).ok()
    }

    pub(super) fn check(self) -> Check {
        match self {
            Self::Rs256 => Check::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            Self::Rs384 => Check::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            Self::Rs512 => Check::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            Self::Ps256 => Check::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            Self::Ps384 => Check::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            Self::Ps512 => Check::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            Self::Es256 => Check::Curve("P-256", &signature::ECDSA_P256_SHA256_FIXED),
            Self::Es384 => Check::Curve("P-384", &signature::ECDSA_P384_SHA384_FIXED),
            Self::EdDsa => Check::Curve("Ed25519", &signature::ED25519),
        }
    }
}

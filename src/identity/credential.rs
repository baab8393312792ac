//! What somebody shows to say who they are.

use super::{Unauthenticated, key};

/// Longest that is looked at: a token with a few dozen groups in it has 4 KiB.
const MAX_BYTES: usize = 8 << 10;

/// An API key or a token, as it was shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential(String);

/// Which of the two a [`Credential`] is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Shown<'a> {
    /// An API key.
    Key {
        /// Its id.
        id: &'a str,
        /// Its secret.
        secret: [u8; key::SECRET_BYTES],
    },
    /// A JSON Web Token.
    Token(&'a str),
}

impl Credential {
    /// A key or a token by itself, as a hello has it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The value of a header `Authorization`.
    pub fn of_header(value: &str) -> Result<Self, Unauthenticated> {
        let reason = "`Authorization` must be `Bearer` and the key or token";
        let malformed = Unauthenticated::MalformedCredentials { reason };
        let (scheme, rest) = value.split_once(' ').ok_or(malformed.clone())?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(malformed);
        }
        Ok(Self(rest.trim_matches(' ').to_owned()))
    }

    /// Tells a key from a token, by the key's prefix.
    pub fn shown(&self) -> Result<Shown<'_>, Unauthenticated> {
        let malformed = |reason| Unauthenticated::MalformedCredentials { reason };
        if self.0.is_empty() {
            return Err(Unauthenticated::MissingCredentials);
        }
        if self.0.len() > MAX_BYTES {
            return Err(malformed("they are longer than 8 KiB"));
        }
        if self.0.starts_with(key::PREFIX) {
            let (id, secret) =
                key::parse(&self.0).ok_or(malformed("a key is `tw_`, 12 characters, `_` and 52 more"))?;
            return Ok(Shown::Key { id, secret });
        }
        match self.0.split('.').count() {
            3 => Ok(Shown::Token(&self.0)),
            5 => Err(malformed("the token is encrypted; only signed ones are read")),
            _ => Err(malformed("a key begins with `tw_`, a token has three parts with dots between them")),
        }
    }
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(credential)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(text: &str) -> &'static str {
        Credential::new(text).shown().err().unwrap().code()
    }

    #[test]
    fn a_header_names_its_scheme() {
        assert_eq!(Credential::of_header("bearer  a.b.c"), Ok(Credential::new("a.b.c")));
        for other in ["a.b.c", "Basic dTpw", "Bearer", ""] {
            assert_eq!(Credential::of_header(other).unwrap_err().code(), "malformed_credentials", "{other}");
        }
    }

    #[test]
    fn what_can_be_neither_key_nor_token_is_refused_without_a_look_at_it() {
        assert_eq!(code_of(""), "missing_credentials");
        for text in ["tw_", "tw_a_b", "a", "a.b", "a.b.c.d.e", &format!("a.{}.c", "x".repeat(9_000))] {
            assert_eq!(code_of(text), "malformed_credentials", "{text}");
        }
        assert!(Credential::new("a.b.c").shown() == Ok(Shown::Token("a.b.c")));
    }

    #[test]
    fn a_credential_is_not_written_anywhere() {
        assert_eq!(format!("{:?}", Credential::new("open sesame")), "(credential)");
    }
}

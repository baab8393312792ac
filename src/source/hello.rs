//! The hello: how a connection says whose frames it brings.
//!
//! The first frame of a connection is a hello if it is a map with the key
//! `thalweg` and no text. As a record it would be refused for want of a text,
//! so no record is ever taken for one.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::{
    identity::Credential,
    log::MAX_NAME_BYTES,
    msgpack::{Cursor, Token},
    record::{Fault, RecordRef},
};

/// Version of the protocol that a hello speaks.
pub const VERSION: u64 = 1;
/// Largest epoch and sequence number: every language holds it exactly.
pub const MAX_NUMBER: u64 = (1 << 53) - 1;

/// Who sends on a connection, and from where on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Name of the producer, if its frames are numbered.
    pub producer: Option<Arc<str>>,
    /// Its epoch; a new one if left out.
    pub epoch: Option<u64>,
    /// Number of the first frame that follows; the next that the server
    /// expects if left out.
    pub sequence: Option<u64>,
    /// What shows who it is.
    pub key: Option<Credential>,
}

/// Why a hello is none that can be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    /// Another version of the protocol.
    #[error("`thalweg` is {found}; this server speaks version {VERSION}")]
    Version {
        /// What the hello says.
        found: String,
    },
    /// No producer, or a name that cannot be one.
    #[error("`producer` must be a string of 1 to {MAX_NAME_BYTES} bytes without control characters")]
    Producer,
    /// A key that is no string.
    #[error("`key` must be a string: an API key or a token")]
    Key,
    /// Not a number that counts.
    #[error("`{field}` must be an integer from 0 to {MAX_NUMBER}")]
    Number {
        /// The field.
        field: &'static str,
    },
}

impl Hello {
    /// Reads the first payload of a connection; `None` if it is no hello.
    pub fn parse(payload: &[u8]) -> Option<Result<Self, BadHello>> {
        if !matches!(RecordRef::parse(payload), Err(Fault::MissingText)) {
            return None;
        }
        let mut cursor = Cursor::new(payload);
        let Ok(Token::Map(pairs)) = cursor.token() else { return None };
        let (mut version, mut producer, mut epoch, mut sequence, mut key) = (None, None, None, None, None);
        for _ in 0..pairs {
            let Ok(Token::Str(field)) = cursor.token() else { return None };
            let value = cursor.token().ok()?;
            cursor.skip_contents(value, 1).ok()?;
            match field {
                "thalweg" => version = Some(value),
                "producer" => producer = Some(value),
                "epoch" => epoch = Some(value),
                "sequence" => sequence = Some(value),
                "key" => key = Some(value),
                _ => {}
            }
        }
        version.map(|version| Self::checked(version, producer, (epoch, sequence), key))
    }

    fn checked(
        version: Token<'_>,
        producer: Option<Token<'_>>,
        (epoch, sequence): (Option<Token<'_>>, Option<Token<'_>>),
        key: Option<Token<'_>>,
    ) -> Result<Self, BadHello> {
        match version {
            Token::Uint(VERSION) => {}
            Token::Uint(other) => return Err(BadHello::Version { found: other.to_string() }),
            other => return Err(BadHello::Version { found: format!("of type {}", other.type_name()) }),
        }
        let key = match key {
            None | Some(Token::Nil) => None,
            Some(Token::Str(key)) => Some(Credential::new(key)),
            Some(_) => return Err(BadHello::Key),
        };
        let (epoch, sequence) = (number("epoch", epoch)?, number("sequence", sequence)?);
        let producer = match producer {
            Some(Token::Str(name)) if is_name(name) => Some(name.into()),
            // It says who it is and numbers nothing.
            None | Some(Token::Nil) if key.is_some() && epoch.is_none() && sequence.is_none() => None,
            _ => return Err(BadHello::Producer),
        };
        Ok(Self { producer, epoch, sequence, key })
    }
}

/// The name under which the log knows a producer of `tenant`: one tenant's
/// cannot end the epochs of another's of the same name. `None` if it is too
/// long for that.
pub fn name_within(tenant: Option<&str>, name: &Arc<str>) -> Option<Arc<str>> {
    let Some(tenant) = tenant else { return Some(name.clone()) };
    let digest = Sha256::digest(tenant);
    let mut within: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    within.push('/');
    within.push_str(name);
    (within.len() <= MAX_NAME_BYTES).then(|| within.into())
}

/// Whether a producer may be called so.
pub fn is_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains(char::is_control)
}

fn number(field: &'static str, value: Option<Token<'_>>) -> Result<Option<u64>, BadHello> {
    match value {
        None | Some(Token::Nil) => Ok(None),
        Some(Token::Uint(n)) if n <= MAX_NUMBER => Ok(Some(n)),
        Some(_) => Err(BadHello::Number { field }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn parse(value: &Value) -> Option<Result<Hello, BadHello>> {
        Hello::parse(&rmp_serde::to_vec_named(value).unwrap())
    }

    #[test]
    fn a_hello_names_its_producer_and_perhaps_where_it_is() {
        let hello =
            |epoch, sequence| Some(Ok(Hello { producer: Some("p".into()), epoch, sequence, key: None }));
        assert_eq!(parse(&json!({"thalweg": 1, "producer": "p"})), hello(None, None));
        let whole = json!({"sequence": 7, "later": [1, {"x": 2}], "epoch": 3, "producer": "p", "thalweg": 1});
        assert_eq!(parse(&whole), hello(Some(3), Some(7)));
        let nil = json!({"thalweg": 1, "producer": "p", "epoch": null, "sequence": null});
        assert_eq!(parse(&nil), hello(None, None));
    }

    #[test]
    fn a_hello_with_a_key_need_not_name_a_producer() {
        let key = Some(Credential::new("tw_x"));
        let nameless = Hello { producer: None, epoch: None, sequence: None, key: key.clone() };
        assert_eq!(parse(&json!({"thalweg": 1, "key": "tw_x"})), Some(Ok(nameless.clone())));
        let named = Hello { producer: Some("p".into()), sequence: Some(3), ..nameless };
        assert_eq!(
            parse(&json!({"thalweg": 1, "producer": "p", "sequence": 3, "key": "tw_x"})),
            Some(Ok(named))
        );
    }

    #[test]
    fn producers_of_two_tenants_are_two() {
        let name: Arc<str> = "web-7".into();
        let within = |tenant| name_within(tenant, &name).unwrap();
        assert_eq!(within(None), name);
        assert_ne!(within(Some("a")), within(Some("b")));
        assert!(is_name(&within(Some("a"))) && within(Some("a")).ends_with("/web-7"));
        assert_eq!(name_within(Some("a"), &"x".repeat(112).into()), None);
    }

    #[test]
    fn a_record_is_never_taken_for_a_hello() {
        for record in [
            json!({"thalweg": 1, "producer": "p", "text": "an attribute that happens to be called so"}),
            json!({"producer": "p"}),
            json!([1]),
            json!({}),
        ] {
            assert_eq!(parse(&record), None, "{record}");
        }
    }

    #[test]
    fn a_hello_that_cannot_be_meant_says_what_would_be_right() {
        let bad = |value: Value| parse(&value).unwrap().unwrap_err().to_string();
        assert!(bad(json!({"thalweg": 2, "producer": "p"})).contains("`thalweg` is 2"));
        assert!(bad(json!({"thalweg": "1", "producer": "p"})).contains("of type string"));
        for name in [json!(""), json!("a\n"), json!("x".repeat(129)), json!(5), Value::Null] {
            assert!(bad(json!({"thalweg": 1, "producer": name})).contains("1 to 128 bytes"), "{name}");
        }
        assert!(bad(json!({"thalweg": 1})).contains("`producer`"));
        assert!(bad(json!({"thalweg": 1, "key": "k", "epoch": 1})).contains("`producer`"));
        assert!(bad(json!({"thalweg": 1, "producer": "p", "key": 7})).contains("`key`"));
        for epoch in [json!(-1), json!(1_u64 << 53), json!("0"), json!(0.5)] {
            assert!(bad(json!({"thalweg": 1, "producer": "p", "epoch": epoch})).contains("`epoch`"));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(payload: Vec<u8>) {
            let _ = Hello::parse(&payload);
            let _ = Hello::parse(&[&b"\x82\xa7thalweg\x01"[..], &payload].concat());
        }
    }
}

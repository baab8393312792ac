//! Exact deduplication: the key under which a record counts as already known.
//!
//! What a duplicate is depends on the tier:
//!
//! - A document, summary, profile or artifact says the same however often it
//!   is sent, so its key is its content within the tenant (or the session).
//! - An event happened at a time. "yes" said twice is two turns and both stay;
//!   only a re-sent event is a duplicate. Its key is its source, session, text
//!   and own id; an event without an id is known by its time and all its other
//!   fields instead, so that only records equal in every field fall together.
//!
//! No key spans tenants: one tenant's records never decide about another's.
//!
//! # Encoding
//!
//! SHA-256 over the version tag, then each field in turn as its length (`u64`,
//! big-endian) and its bytes; an optional field is preceded by one byte, 0
//! (absent) or 1 (present). No two field lists share an encoding.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    record::{Record, Tier},
    setting::SettingError,
};

/// Changes whenever equal records would get another key.
const VERSION: &[u8] = b"thalweg.dedupe.1";

/// `[derive.dedupe]` of a pipeline file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Whether duplicates are looked for.
    pub enabled: bool,
    /// Within what two contents are the same content.
    pub scope: Scope,
}

impl Default for Settings {
    fn default() -> Self {
        Self { enabled: true, scope: Scope::Tenant }
    }
}

impl Settings {
    /// Refuses values that cannot be meant: there are none here.
    pub fn validate(&self) -> Result<(), SettingError> {
        Ok(())
    }
}

/// How far a content's key reaches. Events are always told apart by session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// All sessions of a tenant together.
    Tenant,
    /// Each session of a tenant for itself, and records without one together.
    Session,
}

/// The key of `record`, whose canonical text is `text`; `None` where
/// duplicates are not looked for.
pub fn key(record: &Record, text: &str, settings: &Settings) -> Option<[u8; 32]> {
    settings.enabled.then(|| {
        let key =
            Key::new().field(record.tenant.as_bytes()).field(tier_tag(record.tier)).field(text.as_bytes());
        let key = match (record.tier, settings.scope) {
            (Tier::Event, _) => event(key, record),
            (_, Scope::Tenant) => key.optional(None),
            (_, Scope::Session) => key.optional(Some(b"session")).optional(session(record)),
        };
        key.0.finalize().into()
    })
}

fn event(key: Key, record: &Record) -> Key {
    let key = key.field(record.source.as_bytes()).optional(session(record));
    match &record.id {
        Some(id) => key.optional(Some(id.as_bytes())),
        None => key.optional(None).field(&record.ts_ms.to_be_bytes()).object(&record.attrs),
    }
}

fn session(record: &Record) -> Option<&[u8]> {
    record.session.as_deref().map(str::as_bytes)
}

/// Part of the encoding, so never to be changed.
fn tier_tag(tier: Tier) -> &'static [u8] {
    match tier {
        Tier::Event => b"event",
        Tier::Summary => b"summary",
        Tier::Doc => b"doc",
        Tier::Profile => b"profile",
        Tier::Artifact => b"artifact",
    }
}

struct Key(Sha256);

impl Key {
    fn new() -> Self {
        Self(Sha256::new()).field(VERSION)
    }

    fn field(mut self, bytes: &[u8]) -> Self {
        self.0.update((bytes.len() as u64).to_be_bytes());
        self.0.update(bytes);
        self
    }

    fn optional(mut self, bytes: Option<&[u8]>) -> Self {
        self.0.update([u8::from(bytes.is_some())]);
        match bytes {
            Some(bytes) => self.field(bytes),
            None => self,
        }
    }

    /// Number of entries, then name and value of each in the order of the
    /// names: a producer may write a map in any order.
    fn object(self, map: &serde_json::Map<String, Value>) -> Self {
        let mut entries: Vec<_> = map.iter().collect();
        entries.sort_unstable_by_key(|(name, _)| *name);
        let counted = self.field(&(entries.len() as u64).to_be_bytes());
        entries.into_iter().fold(counted, |key, (name, value)| key.field(name.as_bytes()).value(value))
    }

    fn value(self, value: &Value) -> Self {
        match value {
            Value::Object(map) => self.field(b"object").object(map),
            Value::Array(items) => items
                .iter()
                .fold(self.field(b"array").field(&(items.len() as u64).to_be_bytes()), Self::value),
            Value::String(s) => self.field(b"string").field(s.as_bytes()),
            // Null, booleans and numbers have one spelling each.
            scalar => self.field(b"scalar").field(scalar.to_string().as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn record(tier: Tier) -> Record {
        Record {
            id: None,
            ts_ms: 1_700_000_000_000,
            tenant: "acme".into(),
            session: Some("s1".into()),
            source: "chat".into(),
            tier,
            text: "yes".into(),
            attrs: serde_json::Map::new(),
        }
    }

    fn of(record: &Record) -> [u8; 32] {
        key(record, &record.text, &Settings::default()).unwrap()
    }

    #[test]
    fn a_repeated_word_is_not_a_duplicate_and_a_resent_turn_is() {
        let first = record(Tier::Event);
        assert_eq!(of(&first), of(&first.clone()));
        assert_ne!(of(&first), of(&Record { ts_ms: first.ts_ms + 1, ..first.clone() }));
        let other_speaker = json!({"user": "b"}).as_object().unwrap().clone();
        assert_ne!(of(&first), of(&Record { attrs: other_speaker, ..first.clone() }));
        assert_ne!(of(&first), of(&Record { session: None, ..first.clone() }));
    }

    #[test]
    fn an_event_with_an_id_is_known_by_it_and_an_edit_is_new() {
        let first = Record { id: Some("m1".into()), ..record(Tier::Event) };
        assert_eq!(of(&first), of(&Record { ts_ms: 0, ..first.clone() }));
        assert_ne!(of(&first), of(&Record { id: Some("m2".into()), ..first.clone() }));
        assert_ne!(of(&first), of(&Record { text: "no".into(), ..first.clone() }));
    }

    #[test]
    fn a_document_is_known_by_its_content() {
        for tier in [Tier::Doc, Tier::Summary, Tier::Profile, Tier::Artifact] {
            let first = record(tier);
            let again = Record {
                id: Some("other".into()),
                ts_ms: 0,
                source: "elsewhere".into(),
                session: None,
                ..first.clone()
            };
            assert_eq!(of(&first), of(&again));
        }
    }

    #[test]
    fn scope_session_keeps_sessions_apart() {
        let settings = Settings { scope: Scope::Session, ..Settings::default() };
        let of = |r: &Record| key(r, &r.text, &settings).unwrap();
        let doc = record(Tier::Doc);
        assert_eq!(of(&doc), of(&Record { ts_ms: 0, ..doc.clone() }));
        assert_ne!(of(&doc), of(&Record { session: Some("s2".into()), ..doc.clone() }));
        assert_ne!(of(&doc), of(&Record { session: None, ..doc.clone() }));
    }

    #[test]
    fn tenants_and_tiers_never_share_a_key() {
        for tier in [Tier::Event, Tier::Doc] {
            let first = record(tier);
            assert_ne!(of(&first), of(&Record { tenant: "bolt".into(), ..first.clone() }));
        }
        assert_ne!(of(&record(Tier::Doc)), of(&record(Tier::Summary)));
    }

    #[test]
    fn nothing_is_keyed_when_switched_off() {
        let off = Settings { enabled: false, ..Settings::default() };
        assert_eq!(key(&record(Tier::Doc), "text", &off), None);
    }

    #[test]
    fn the_key_of_version_1_stays() {
        let hex: String = of(&record(Tier::Doc)).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "f9b62d8983525efaf526535dd0a854f84ec0bc8d0e4b4dfa0c94b56724268f11");
    }

    #[test]
    fn the_order_of_attributes_does_not_matter_and_their_nesting_does() {
        let of =
            |attrs: &str| of(&Record { attrs: serde_json::from_str(attrs).unwrap(), ..record(Tier::Event) });
        assert_eq!(
            of(r#"{"a": 1, "b": {"c": [1], "d": null}}"#),
            of(r#"{"b": {"d": null, "c": [1]}, "a": 1}"#)
        );
        assert_ne!(of(r#"{"a": [[1], 2]}"#), of(r#"{"a": [[1, 2]]}"#));
        assert_ne!(of(r#"{"a": "1"}"#), of(r#"{"a": 1}"#));
    }

    proptest! {
        #[test]
        fn no_field_runs_into_the_next(tenant in "[ab]{0,3}", text in "[ab]{0,3}", source in "[ab]{0,3}",
            tenant2 in "[ab]{0,3}", text2 in "[ab]{0,3}", source2 in "[ab]{0,3}") {
            let with = |tenant: &str, text: &str, source: &str| Record {
                tenant: tenant.into(), text: text.into(), source: source.into(), ..record(Tier::Event)
            };
            let same = (&tenant, &text, &source) == (&tenant2, &text2, &source2);
            prop_assert_eq!(same, of(&with(&tenant, &text, &source)) == of(&with(&tenant2, &text2, &source2)));
        }
    }
}

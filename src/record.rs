//! Records: what a frame's payload says.
//!
//! | field | type | without it |
//! |---|---|---|
//! | `text` | string, not empty | the frame is refused |
//! | `id` | string or integer | none |
//! | `ts` | integer (ms since the Unix epoch), RFC 3339 string, or timestamp extension | time of append |
//! | `tenant`, `source` | string | the pipeline's default |
//! | `session` | string | none |
//! | `tier` | `event`, `summary`, `doc`, `profile`, `artifact` | the pipeline's default |
//!
//! nil counts as absent. Every other key is an attribute. [`RecordRef::parse`]
//! proves and reads a payload in one walk without allocating; admission calls
//! it on each frame, so what is in the log always reads.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::msgpack::{Cursor, Malformed, Token};

/// Which kind of memory a record is.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Something that happened: a message, a log line, a turn.
    Event,
    /// A digest of events.
    Summary,
    /// A document.
    Doc,
    /// What is known of a person or thing.
    Profile,
    /// A product of work: code, a file, a result.
    Artifact,
}

impl Tier {
    /// Every tier, in the order of their declaration.
    pub const ALL: [Self; 5] = [Self::Event, Self::Summary, Self::Doc, Self::Profile, Self::Artifact];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Summary => "summary",
            Self::Doc => "doc",
            Self::Profile => "profile",
            Self::Artifact => "artifact",
        }
    }

    /// The tier of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tier| tier.name() == name)
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A decoded frame with its defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The producer's own id.
    pub id: Option<String>,
    /// When it happened, in milliseconds since the Unix epoch.
    pub ts_ms: i64,
    /// Whose it is. Nothing of one tenant is ever shown to another.
    pub tenant: String,
    /// Conversation or session within the tenant.
    pub session: Option<String>,
    /// Where it came from.
    pub source: String,
    /// Which kind of memory it is.
    pub tier: Tier,
    /// The text that is searched.
    pub text: String,
    /// Every other field of the map.
    pub attrs: Map<String, Value>,
}

/// What a record gets for the fields it leaves out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Defaults {
    /// Tenant of records that name none.
    pub tenant: String,
    /// Tier of records that name none.
    pub tier: Tier,
    /// Source of records that name none.
    pub source: String,
}

impl Default for Defaults {
    fn default() -> Self {
        Self { tenant: "default".into(), tier: Tier::Event, source: "default".into() }
    }
}

/// Longest tenant, session, source or id, in bytes: they are looked up by
/// indexes, whose entries are bounded.
pub const MAX_NAME_BYTES: usize = 1_024;
/// Values and names in the attributes of a record at most, those within others
/// counted: each may have one byte only in a frame, and has some 50 in memory
/// where attributes are read.
pub const MAX_VALUES: usize = 200_000;

/// Why a payload is not a record. Positions are bytes from the start of the
/// payload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A frame of length 0.
    #[error("the frame is empty; send a MessagePack map")]
    Empty,
    /// Not well-formed.
    #[error("not MessagePack: {0}")]
    Malformed(Malformed),
    /// Well-formed, but something else than a map.
    #[error("the payload is a {found}; send a map")]
    NotAMap {
        /// What it is.
        found: &'static str,
    },
    /// Bytes after the map.
    #[error("{extra} bytes follow the map that ends at byte {at}; one frame holds one map")]
    TrailingBytes {
        /// Where the map ends.
        at: usize,
        /// Bytes after it.
        extra: usize,
    },
    /// A key of the map is not a string.
    #[error("the key at byte {at} is a {found}; keys are strings")]
    BadKey {
        /// Where the key starts.
        at: usize,
        /// What it is.
        found: &'static str,
    },
    /// A known field holds another type.
    #[error("`{field}` at byte {at} is a {found}; it must be {wanted}")]
    WrongType {
        /// The field.
        field: &'static str,
        /// Where its value starts.
        at: usize,
        /// What it is.
        found: &'static str,
        /// What it must be.
        wanted: &'static str,
    },
    /// A name that no index could hold.
    #[error("`{field}` at byte {at} has {bytes} bytes; at most {MAX_NAME_BYTES} are taken")]
    TooLong {
        /// Which field.
        field: &'static str,
        /// Where its value begins.
        at: usize,
        /// Its length.
        bytes: usize,
    },
    /// More than is kept of one record.
    #[error("the record's attributes have {values} values and names in them; at most {MAX_VALUES} are taken")]
    TooManyValues {
        /// How many.
        values: usize,
    },
    /// No text, or an empty one.
    #[error("the record has no `text`; it is the field that is searched")]
    MissingText,
    /// Not one of the five tiers.
    #[error("`tier` at byte {at} is `{found}`; it must be event, summary, doc, profile or artifact")]
    UnknownTier {
        /// Where its value starts.
        at: usize,
        /// What it says, cut to 40 characters.
        found: String,
    },
    /// A time that cannot be read or is out of range.
    #[error("`ts` at byte {at} is no time: {reason}")]
    BadTimestamp {
        /// Where its value starts.
        at: usize,
        /// Why.
        reason: String,
    },
    /// A known field twice.
    #[error("`{field}` stands twice, again at byte {at}")]
    DuplicateField {
        /// The field.
        field: &'static str,
        /// Where the second value starts.
        at: usize,
    },
}

impl From<Malformed> for Fault {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl Fault {
    /// The stable code of the wire protocol (`docs/protocol.md`).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Malformed(Malformed::NotUtf8 { .. }) => "not_utf8",
            Self::Malformed(Malformed::TooDeep { .. }) => "too_deep",
            Self::Malformed(_) => "not_messagepack",
            Self::NotAMap { .. } => "not_a_map",
            Self::TrailingBytes { .. } => "trailing_bytes",
            Self::BadKey { .. } => "bad_key",
            Self::WrongType { .. } => "wrong_type",
            Self::TooLong { .. } => "too_long",
            Self::TooManyValues { .. } => "too_many_values",
            Self::MissingText => "missing_text",
            Self::UnknownTier { .. } => "unknown_tier",
            Self::BadTimestamp { .. } => "bad_timestamp",
            Self::DuplicateField { .. } => "duplicate_field",
        }
    }
}

/// A record as it lies in its payload.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordRef<'a> {
    /// The producer's own id.
    pub id: Option<Id<'a>>,
    /// Milliseconds since the Unix epoch.
    pub ts_ms: Option<i64>,
    /// Whose it is.
    pub tenant: Option<&'a str>,
    /// Conversation or session.
    pub session: Option<&'a str>,
    /// Where it came from.
    pub source: Option<&'a str>,
    /// Which kind of memory it is.
    pub tier: Option<Tier>,
    /// The text.
    pub text: &'a str,
    payload: &'a [u8],
}

/// A producer's id for a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id<'a> {
    /// As a string.
    Str(&'a str),
    /// As a non-negative integer.
    Uint(u64),
    /// As a negative integer.
    Int(i64),
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Str(s) => s.fmt(f),
            Self::Uint(n) => n.fmt(f),
            Self::Int(n) => n.fmt(f),
        }
    }
}

/// A known field. Each frame is proved on its way in, so a key is compared
/// once, by its length first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Id,
    Ts,
    Tenant,
    Session,
    Source,
    Tier,
    Text,
}

impl Field {
    fn of(key: &str) -> Option<Self> {
        Some(match key {
            "id" => Self::Id,
            "ts" => Self::Ts,
            "tenant" => Self::Tenant,
            "session" => Self::Session,
            "source" => Self::Source,
            "tier" => Self::Tier,
            "text" => Self::Text,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Ts => "ts",
            Self::Tenant => "tenant",
            Self::Session => "session",
            Self::Source => "source",
            Self::Tier => "tier",
            Self::Text => "text",
        }
    }
}

impl<'a> RecordRef<'a> {
    /// Proves that `payload` is one record and reads it in place.
    pub fn parse(payload: &'a [u8]) -> Result<Self, Fault> {
        if payload.is_empty() {
            return Err(Fault::Empty);
        }
        let mut cursor = Cursor::new(payload);
        let pairs = match cursor.token()? {
            Token::Map(n) => n,
            other => return Err(Fault::NotAMap { found: other.type_name() }),
        };
        let mut record = Self {
            id: None,
            ts_ms: None,
            tenant: None,
            session: None,
            source: None,
            tier: None,
            text: "",
            payload,
        };
        let (mut seen, mut values) = (0u8, 0);
        for _ in 0..pairs {
            let key_at = cursor.position();
            let key = match cursor.token()? {
                Token::Str(key) => key,
                other => return Err(Fault::BadKey { at: key_at, found: other.type_name() }),
            };
            let at = cursor.position();
            let Some(field) = Field::of(key) else {
                let before = cursor.tokens();
                cursor.skip(1)?;
                values += 1 + cursor.tokens() - before;
                continue;
            };
            let bit = 1 << field as u8;
            if seen & bit != 0 {
                return Err(Fault::DuplicateField { field: field.name(), at });
            }
            seen |= bit;
            record.set(field, at, cursor.token()?)?;
        }
        if cursor.remaining() > 0 {
            return Err(Fault::TrailingBytes { at: cursor.position(), extra: cursor.remaining() });
        }
        if values > MAX_VALUES {
            return Err(Fault::TooManyValues { values });
        }
        if record.text.is_empty() {
            return Err(Fault::MissingText);
        }
        Ok(record)
    }

    fn set(&mut self, field: Field, at: usize, value: Token<'a>) -> Result<(), Fault> {
        let wrong = |wanted| Fault::WrongType { field: field.name(), at, found: value.type_name(), wanted };
        if matches!(value, Token::Nil) {
            return Ok(());
        }
        if let Token::Str(name) = value
            && field != Field::Text
            && name.len() > MAX_NAME_BYTES
        {
            return Err(Fault::TooLong { field: field.name(), at, bytes: name.len() });
        }
        match (field, value) {
            (Field::Id, Token::Str(s)) => self.id = Some(Id::Str(s)),
            (Field::Id, Token::Uint(n)) => self.id = Some(Id::Uint(n)),
            (Field::Id, Token::Int(n)) => self.id = Some(Id::Int(n)),
            (Field::Id, _) => return Err(wrong("a string or an integer")),
            (Field::Ts, value) => self.ts_ms = Some(timestamp(value, at, wrong)?),
            (Field::Tenant, Token::Str(s)) => self.tenant = Some(s),
            (Field::Session, Token::Str(s)) => self.session = Some(s),
            (Field::Source, Token::Str(s)) => self.source = Some(s),
            (Field::Text, Token::Str(s)) => self.text = s,
            (Field::Tier, Token::Str(s)) => {
                self.tier = Some(
                    Tier::named(s)
                        .ok_or_else(|| Fault::UnknownTier { at, found: s.chars().take(40).collect() })?,
                );
            }
            _ => return Err(wrong("a string")),
        }
        Ok(())
    }

    /// The attributes: every field that is not one of the known ones, as JSON.
    /// Binary becomes a string of `0x` and hex digits.
    pub fn attrs(&self) -> Map<String, Value> {
        let mut cursor = Cursor::new(self.payload);
        let Ok(Token::Map(pairs)) = cursor.token() else { return Map::new() };
        (0..pairs)
            .map_while(|_| match cursor.token() {
                Ok(Token::Str(key)) => Some((key, json(&mut cursor)?)),
                _ => None,
            })
            .filter(|(key, _)| Field::of(key).is_none())
            .map(|(key, value)| (key.to_owned(), value))
            .collect()
    }

    /// The record, with `defaults` for what it leaves out and the time of its
    /// append for a missing `ts`.
    pub fn to_record(&self, defaults: &Defaults, append_time_ms: i64) -> Record {
        Record {
            id: self.id.map(|id| id.to_string()),
            ts_ms: self.ts_ms.unwrap_or(append_time_ms),
            tenant: non_empty(self.tenant).unwrap_or(&defaults.tenant).to_owned(),
            session: non_empty(self.session).map(str::to_owned),
            source: non_empty(self.source).unwrap_or(&defaults.source).to_owned(),
            tier: self.tier.unwrap_or(defaults.tier),
            text: self.text.to_owned(),
            attrs: self.attrs(),
        }
    }
}

fn non_empty(s: Option<&str>) -> Option<&str> {
    s.filter(|s| !s.is_empty())
}

fn timestamp<'a>(value: Token<'a>, at: usize, wrong: impl Fn(&'static str) -> Fault) -> Result<i64, Fault> {
    let bad = |reason: String| Fault::BadTimestamp { at, reason };
    let range = |ms: i64| {
        jiff::Timestamp::from_millisecond(ms).map(|_| ms).map_err(|_| bad(format!("{ms} ms is out of range")))
    };
    match value {
        Token::Uint(n) => range(i64::try_from(n).unwrap_or(i64::MAX)),
        Token::Int(n) => range(n),
        Token::Str(s) => s
            .parse::<jiff::Timestamp>()
            .map(|t| t.as_millisecond())
            .map_err(|e| bad(format!("not RFC 3339: {e}"))),
        Token::Ext(-1, bytes) => {
            let (seconds, nanos) =
                ext_timestamp(bytes).ok_or_else(|| bad("not a timestamp extension".into()))?;
            let ms = seconds.checked_mul(1_000).and_then(|ms| ms.checked_add(i64::from(nanos) / 1_000_000));
            range(ms.unwrap_or(i64::MAX))
        }
        _ => Err(wrong("an integer (milliseconds), an RFC 3339 string or a timestamp")),
    }
}

/// Seconds and nanoseconds of the MessagePack timestamp extension (type -1).
fn ext_timestamp(bytes: &[u8]) -> Option<(i64, u32)> {
    let (seconds, nanos) = match bytes.len() {
        4 => (i64::from(u32::from_be_bytes(bytes.try_into().ok()?)), 0),
        8 => {
            let packed = u64::from_be_bytes(bytes.try_into().ok()?);
            (i64::try_from(packed & 0x3_ffff_ffff).ok()?, u32::try_from(packed >> 34).ok()?)
        }
        12 => {
            let (nanos, seconds) = bytes.split_at(4);
            (i64::from_be_bytes(seconds.try_into().ok()?), u32::from_be_bytes(nanos.try_into().ok()?))
        }
        _ => return None,
    };
    (nanos < 1_000_000_000).then_some((seconds, nanos))
}

/// One proved value as JSON. Floats that JSON lacks become null; keys of
/// nested maps that are not strings are written out.
fn json(cursor: &mut Cursor<'_>) -> Option<Value> {
    Some(match cursor.token().ok()? {
        Token::Nil => Value::Null,
        Token::Bool(b) => b.into(),
        Token::Int(n) => n.into(),
        Token::Uint(n) => n.into(),
        Token::Float(x) => x.into(),
        Token::Str(s) => s.into(),
        Token::Bin(bytes) | Token::Ext(_, bytes) => hex(bytes).into(),
        Token::Array(n) => (0..n).map_while(|_| json(cursor)).collect(),
        Token::Map(n) => {
            let pairs = (0..n).map_while(|_| {
                let key = match json(cursor)? {
                    Value::String(s) => s,
                    other => other.to_string(),
                };
                Some((key, json(cursor)?))
            });
            Value::Object(pairs.collect())
        }
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |s, b| s + &format!("{b:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pack(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec_named(value).unwrap()
    }

    #[test]
    fn a_full_record_reads_whole() {
        let payload = pack(&json!({
            "id": 7, "ts": "2024-05-01T10:00:00Z", "tenant": "a", "session": "s", "source": "irc",
            "tier": "doc", "text": "hello", "n": {"x": [1, -2, 1.5, true, null]}, "k": "v"
        }));
        let record = RecordRef::parse(&payload).unwrap().to_record(&Defaults::default(), 1);
        assert_eq!(record.id.as_deref(), Some("7"));
        assert_eq!(record.ts_ms, 1_714_557_600_000);
        assert_eq!((record.tenant.as_str(), record.tier), ("a", Tier::Doc));
        assert_eq!(Value::Object(record.attrs), json!({"n": {"x": [1, -2, 1.5, true, null]}, "k": "v"}));
    }

    #[test]
    fn what_is_left_out_comes_from_the_defaults_and_the_append() {
        let payload = pack(&json!({"text": "hello", "tenant": "", "session": null}));
        let record = RecordRef::parse(&payload).unwrap().to_record(&Defaults::default(), 42);
        assert_eq!(record.ts_ms, 42);
        assert_eq!((record.tenant.as_str(), record.session), ("default", None));
    }

    #[test]
    fn each_fault_has_its_code_and_place() {
        let cases: Vec<(Vec<u8>, &str, &str)> = vec![
            (vec![], "empty", "empty"),
            (vec![0xc1], "not_messagepack", "byte 0"),
            (vec![0x81, 0xa4], "not_messagepack", "4 more bytes"),
            (pack(&json!([1])), "not_a_map", "array"),
            ([pack(&json!({"text": "x"})), vec![0]].concat(), "trailing_bytes", "1 bytes"),
            (vec![0x81, 0x01, 0x02], "bad_key", "byte 1"),
            (vec![0x81, 0xa4, b't', b'e', b'x', b't', 0xa2, b'a', 0xff], "not_utf8", "its byte 1"),
            (pack(&json!({"text": 5})), "wrong_type", "`text` at byte 6 is a integer"),
            (pack(&json!({"text": "x", "tenant": 5})), "wrong_type", "`tenant`"),
            (pack(&json!({"text": "x", "session": "s".repeat(1_025)})), "too_long", "has 1025 bytes"),
            (pack(&json!({"a": 1})), "missing_text", "text"),
            (pack(&json!({"text": ""})), "missing_text", "text"),
            (pack(&json!({"text": "x", "tier": "evnt"})), "unknown_tier", "evnt"),
            (pack(&json!({"text": "x", "ts": "yesterday"})), "bad_timestamp", "RFC 3339"),
            (pack(&json!({"text": "x", "ts": u64::MAX})), "bad_timestamp", "range"),
            (
                [
                    &[0x82u8][..],
                    &pack(&json!("text")),
                    &pack(&json!("a")),
                    &pack(&json!("text")),
                    &pack(&json!("b")),
                ]
                .concat(),
                "duplicate_field",
                "byte 13",
            ),
        ];
        for (payload, code, message) in cases {
            let fault = RecordRef::parse(&payload).unwrap_err();
            assert_eq!(fault.code(), code, "{fault}");
            assert!(fault.to_string().contains(message), "{code}: {fault}");
        }
    }

    #[test]
    fn attributes_have_no_more_values_than_are_read() {
        let of = |zeros: usize| {
            let count = u32::try_from(zeros).unwrap().to_be_bytes();
            [&b"\x82\xa4text\xa1x\xa1a\xdd"[..], &count, &vec![0; zeros]].concat()
        };
        let most = of(MAX_VALUES - 2);
        assert_eq!(RecordRef::parse(&most).unwrap().attrs().len(), 1);
        assert_eq!(RecordRef::parse(&of(MAX_VALUES - 1)).unwrap_err().code(), "too_many_values");
    }

    #[test]
    fn timestamp_extensions_of_all_three_sizes_read() {
        let ext = |bytes: &[u8]| timestamp(Token::Ext(-1, bytes), 0, |_| Fault::Empty);
        assert_eq!(ext(&1_700_000_000u32.to_be_bytes()), Ok(1_700_000_000_000));
        let packed = (500_000_000u64 << 34) | 1_700_000_000;
        assert_eq!(ext(&packed.to_be_bytes()), Ok(1_700_000_000_500));
        let wide = [&7_000_000u32.to_be_bytes()[..], &(-1i64).to_be_bytes()].concat();
        assert_eq!(ext(&wide), Ok(-993));
        assert!(ext(&[1, 2, 3]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read_or_refused_without_panic(bytes: Vec<u8>) {
            if let Ok(record) = RecordRef::parse(&bytes) {
                record.attrs();
            }
        }
    }
}

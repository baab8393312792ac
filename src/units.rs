//! Quantities as people write them in a pipeline file: `64MiB`, `10m`.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. Written as an integer (bytes) or as a string with a
/// unit: `KiB`, `MiB`, `GiB` (powers of 1,024) or `KB`, `MB`, `GB` (of 1,000).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` KiB.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }
    /// `n` MiB.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }
    /// The size as an in-memory length.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

const UNITS: [(&str, u64); 8] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let s = s.trim();
        let (digits, factor) = UNITS
            .iter()
            .find_map(|(unit, factor)| Some((s.strip_suffix(unit)?.trim_end(), *factor)))
            .unwrap_or((s, 1));
        digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).map(Self).ok_or_else(|| {
            format!("`{s}` is not a size; write bytes, or a whole number with KiB, MiB, GiB, KB, MB or GB")
        })
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, factor) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= factor {
                #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
                let n = self.0 as f64 / factor as f64;
                return if self.0.is_multiple_of(factor) {
                    write!(f, "{}{unit}", self.0 / factor)
                } else {
                    write!(f, "{n:.1}{unit}")
                };
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A span of time. Written as a string with units (`500ms`, `10s`, `10m`,
/// `1h 30m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub Duration);

impl Period {
    /// `n` seconds.
    pub const fn secs(n: u64) -> Self {
        Self(Duration::from_secs(n))
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        humantime::parse_duration(s)
            .map(Self)
            .map_err(|e| format!("`{s}` is not a duration such as `500ms`, `10s` or `10m`: {e}"))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Raw<'a> {
    Number(u64),
    Borrowed(&'a str),
    Owned(String),
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        match Raw::deserialize(d).map_err(|_| {
            de::Error::custom("expected a size: bytes as an integer, or a string such as \"64MiB\"")
        })? {
            Raw::Number(n) => Ok(Self(n)),
            Raw::Borrowed(s) => s.parse().map_err(de::Error::custom),
            Raw::Owned(s) => s.parse().map_err(de::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "bytes as an integer, or a string with a unit: 64MiB, 16KiB, 1GB",
            "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "examples": ["64MiB"]}]
        })
    }
}

impl JsonSchema for Period {
    fn schema_name() -> Cow<'static, str> {
        "Period".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"description": "a duration: 500ms, 10s, 10m", "type": "string", "examples": ["10m"]})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        assert_eq!("64MiB".parse(), Ok(ByteSize::mib(64)));
        assert_eq!("12".parse(), Ok(ByteSize(12)));
        assert_eq!("3 KB".parse(), Ok(ByteSize(3_000)));
        assert!("64 mb".parse::<ByteSize>().unwrap_err().contains("KiB"));
        assert!("99999999999GiB".parse::<ByteSize>().is_err());
        assert_eq!(ByteSize::mib(64).to_string(), "64MiB");
    }

    #[test]
    fn periods_need_a_unit() {
        assert_eq!("10m".parse(), Ok(Period::secs(600)));
        assert!("10".parse::<Period>().is_err());
    }
}

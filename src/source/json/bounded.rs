//! JSON values, of which no more is made than a record may have.
//!
//! A value takes some 50 bytes in memory and may take two in JSON: read without
//! a bound, a body would cost many times its length.

use std::cell::Cell;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::record::MAX_VALUES;

/// Makes values as long as there are some left.
#[derive(Clone, Copy)]
struct Bounded<'a>(&'a Cell<usize>);

/// The value in `json`.
///
/// # Errors
/// It is not JSON, or has more than [`MAX_VALUES`] values in it.
pub(super) fn value(json: &[u8]) -> serde_json::Result<Value> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let value = next(&mut reader)?;
    reader.end()?;
    Ok(value)
}

/// Gives each value of the array in `json` to `take`, until that returns false.
///
/// # Errors
/// As [`value`], of each by itself.
pub(super) fn each(json: &[u8], take: impl FnMut(&Value) -> bool) -> serde_json::Result<()> {
    let (mut reader, enough) = (serde_json::Deserializer::from_slice(json), Cell::new(false));
    match reader.deserialize_seq(Each { take, enough: &enough }) {
        Err(_) if enough.get() => Ok(()),
        done => done.and_then(|()| reader.end()),
    }
}

fn next<'de, D: Deserializer<'de>>(reader: D) -> Result<Value, D::Error> {
    Bounded(&Cell::new(MAX_VALUES)).deserialize(reader)
}

struct Each<'a, F> {
    take: F,
    enough: &'a Cell<bool>,
}

/// A value by itself.
struct One(Value);

impl<'de> Deserialize<'de> for One {
    fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
        next(reader).map(Self)
    }
}

impl<'de, F: FnMut(&Value) -> bool> Visitor<'de> for Each<'_, F> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of records")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut values: A) -> Result<(), A::Error> {
        while let Some(One(value)) = values.next_element()? {
            if !(self.take)(&value) {
                // What is left cannot be passed over but by an error.
                self.enough.set(true);
                return Err(Error::custom("enough"));
            }
        }
        Ok(())
    }
}

impl Bounded<'_> {
    fn count<E: Error>(self) -> Result<(), E> {
        let left = self.0.get().checked_sub(1);
        left.map(|left| self.0.set(left))
            .ok_or_else(|| E::custom(format!("a record has at most {MAX_VALUES} values in it")))
    }
}

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        self.count()?;
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(value) = values.next_element_seed(self)? {
            all.push(value);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            self.count()?;
            all.insert(name, fields.next_value_seed(self)?);
        }
        Ok(Value::Object(all))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_read_as_others_read_them() {
        for json in [
            r#"{"b":[1,-2,3.5,1e400,true,null,"\u0041\ud83d\ude00"],"a":{"b":{},"c":[[]]},"a":1}"#,
            "18446744073709551615",
            " [ ] ",
            "1 2",
            "[1,]",
            "{",
            "\"\u{1}\"",
            "",
        ] {
            let others = serde_json::from_str::<Value>(json).map_err(|error| error.to_string());
            assert_eq!(value(json.as_bytes()).map_err(|error| error.to_string()), others, "{json}");
        }
        assert!(value("[".repeat(1_000).as_bytes()).is_err());
    }

    #[test]
    fn no_more_values_are_made_than_a_record_may_have() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count - 2));
        assert!(value(list(MAX_VALUES).as_bytes()).is_ok());
        assert!(value(list(MAX_VALUES + 1).as_bytes()).unwrap_err().to_string().contains("at most"));
        let fields = format!("{{{}\"z\":0}}", "\"a\":0,".repeat(MAX_VALUES / 2));
        assert!(value(fields.as_bytes()).is_err());
    }

    #[test]
    fn a_list_is_read_one_by_one_and_no_further_than_wanted() {
        let read = |json: &str, most: usize| {
            let mut taken = Vec::new();
            let take = |value: &Value| {
                taken.push(value.clone());
                taken.len() < most
            };
            each(json.as_bytes(), take).map(|()| taken)
        };
        assert_eq!(read("[1, {\"a\": 2}, []]", 9).unwrap(), [json!(1), json!({"a": 2}), json!([])]);
        assert_eq!(read("[1, 2, nonsense", 2).unwrap(), [json!(1), json!(2)]);
        assert!(read("[1, 2, nonsense", 9).is_err());
        assert!(read("[1] x", 9).is_err());
        assert_eq!(read(" []", 9).unwrap(), Vec::<Value>::new());
    }
}

//! Second pass: a checked table becomes a struct.
//!
//! serde stops at the first bad value. Every bad value is wanted, so the one
//! found is reported and taken out, and the rest is read again; the defaults
//! stand in for what was taken out.

use std::ops::Range;

use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

use super::problem::{Problem, Text};

/// Reads `table`, which stands at `path` under the heading `own`. What cannot
/// be read is added to `problems`; `None` if the rest is no `T` either.
pub(super) fn read<T: DeserializeOwned>(
    text: Text<'_>,
    mut table: DeTable<'_>,
    path: &str,
    own: &Range<usize>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    loop {
        let value = Spanned::new(own.clone(), DeValue::Table(table.clone()));
        let deserializer: ValueDeserializer<'_> = value.into_deserializer();
        let error: Error = match T::deserialize(deserializer) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_else(|| own.clone());
        let Some(key) = take_out(&mut table, &span) else {
            // Keys that are missing because they were refused are not news.
            if problems.is_empty() {
                problems.push(text.problem(&span, path, plain(error.message())));
            }
            return None;
        };
        let path = if path.is_empty() { key } else { format!("{path}.{key}") };
        // A table that lacks a key: the first pass named the key.
        let below =
            |problem: &Problem| problem.key.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.'));
        if !problems.iter().any(below) {
            problems.push(text.problem(&span, &path, plain(error.message())));
        }
    }
}

/// serde's word on a number that does not fit, without the names of Rust's
/// types; any other message as it is.
fn plain(message: &str) -> String {
    let number =
        message.strip_prefix("invalid value: integer ").and_then(|rest| rest.split_once(", expected "));
    match number {
        Some((number, kind)) if kind.starts_with('u') && number.starts_with("`-") => {
            format!("{number} is negative; write 0 or more")
        }
        Some((number, _)) => format!("{number} is out of range"),
        None => message.to_owned(),
    }
}

/// Takes the innermost value around `span` out of the table; its dotted key.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>) -> Option<String> {
    if span.is_empty() {
        // The whole file, not one of its values.
        return None;
    }
    // A table's own span is its heading, so look into every one.
    for (key, value) in table.iter_mut() {
        if let DeValue::Table(inner) = value.get_mut()
            && let Some(below) = take_out(inner, span)
        {
            return Some(format!("{}.{below}", key.get_ref()));
        }
    }
    let around = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let key = table.iter().find(|(key, value)| around(value.span()) || around(key.span()))?;
    let key = key.0.get_ref().to_string();
    table.remove(key.as_str()).map(|_| key)
}

//! Rows as `COPY … (FORMAT BINARY)` takes them.
//!
//! The format: a signature, flags and the length of an extension; per row the
//! number of its fields, and each field as its length and its bytes, -1 for
//! null; -1 at the end. Numbers are big-endian. The types' own formats are
//! those of their `recv` functions, pgvector's included.

use half::f16;

use super::text::stored;
use crate::store::keywords::Terms;
use crate::transform::words::beginning;

const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";

/// Rows to be copied, encoded.
pub(super) struct CopyRows {
    bytes: Vec<u8>,
    columns: i16,
    rows: u64,
}

impl CopyRows {
    /// For a table, or a list of columns, of `columns` columns.
    pub fn new(columns: i16) -> Self {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([0; 8]);
        Self { bytes, columns, rows: 0 }
    }

    /// Begins a row; as many values must follow as there are columns.
    pub fn row(&mut self) -> &mut Self {
        self.bytes.extend(self.columns.to_be_bytes());
        self.rows += 1;
        self
    }

    /// How many rows were begun.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// All of it, ended.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend((-1i16).to_be_bytes());
        self.bytes
    }

    /// A `bigint`.
    pub fn bigint(&mut self, value: i64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// An `integer`.
    pub fn integer(&mut self, value: i32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A `smallint`.
    pub fn smallint(&mut self, value: i16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A `text`, or a `json` whose strings are escaped.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.bytes(stored(value).as_bytes())
    }

    /// A `text` or null.
    pub fn optional_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(value),
            None => {
                self.bytes.extend((-1i32).to_be_bytes());
                self
            }
        }
    }

    /// A `bytea`.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.field(|bytes| bytes.extend(value))
    }

    /// A `tsvector` without positions: sorted by bytes, none twice.
    pub fn lexemes(&mut self, prefix: &str, terms: &Terms) -> &mut Self {
        let mut terms: Vec<(u64, &str)> = terms.iter().map(|term| (beginning(term), term)).collect();
        terms.sort_unstable();
        terms.dedup();
        self.field(|bytes| {
            bytes.extend(i32::try_from(terms.len()).unwrap_or(i32::MAX).to_be_bytes());
            for (_, term) in terms {
                bytes.extend(prefix.as_bytes());
                bytes.extend(term.as_bytes());
                bytes.extend([0, 0, 0]);
            }
        })
    }

    /// A `vector`.
    pub fn vector(&mut self, numbers: &[f32]) -> &mut Self {
        self.field(|bytes| {
            bytes.extend(dimensions(numbers));
            let at = bytes.len();
            bytes.resize(at + size_of_val(numbers), 0);
            let places = bytes.get_mut(at..).unwrap_or_default().as_chunks_mut().0;
            places.iter_mut().zip(numbers).for_each(|(place, number)| *place = number.to_be_bytes());
        })
    }

    /// A `halfvec`: each number rounded to the nearest.
    pub fn halfvec(&mut self, numbers: &[f32]) -> &mut Self {
        self.field(|bytes| {
            bytes.extend(dimensions(numbers));
            numbers.iter().for_each(|number| bytes.extend(f16::from_f32(*number).to_be_bytes()));
        })
    }

    /// A `jsonb` array of numbers.
    pub fn json_numbers(&mut self, numbers: &[f32]) -> &mut Self {
        self.field(|bytes| {
            bytes.push(1);
            bytes.push(b'[');
            for (i, number) in numbers.iter().enumerate() {
                if i > 0 {
                    bytes.push(b',');
                }
                bytes.extend(number.to_string().as_bytes());
            }
            bytes.push(b']');
        })
    }

    fn field(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let at = self.bytes.len();
        self.bytes.extend([0; 4]);
        write(&mut self.bytes);
        // A field is a text or a vector, far below 2 GiB.
        let length = i32::try_from(self.bytes.len() - at - 4).unwrap_or(i32::MAX);
        if let Some(place) = self.bytes.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        self
    }
}

/// The number of dimensions, and two bytes that pgvector leaves unused.
fn dimensions(numbers: &[f32]) -> [u8; 4] {
    let [a, b] = u16::try_from(numbers.len()).unwrap_or(u16::MAX).to_be_bytes();
    [a, b, 0, 0]
}

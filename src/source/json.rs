//! JSON objects as frames.

mod bounded;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::Value;

use crate::{
    frame::{PREFIX_BYTES, RUN_BYTES, Unit},
    record::RecordRef,
};

/// Appends the object in `json` as a frame; its fields keep their order and
/// types.
///
/// # Errors
/// A message that says what is not JSON, and where in `json`.
pub fn put_json(out: &mut BytesMut, json: &[u8]) -> Result<(), String> {
    let value = bounded::value(json).map_err(|e| format!("not JSON: {e}"))?;
    put_value(out, &value);
    Ok(())
}

/// Appends a value as a frame. That it is a record is proved at admission.
pub fn put_value(out: &mut BytesMut, value: &Value) {
    let start = out.len();
    out.put_u32(0);
    // A JSON value always serialises, and a `BytesMut` takes what it is given.
    let _ = rmp_serde::encode::write_named(&mut out.writer(), value);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    if let Some(prefix) = out.get_mut(start..start + 4) {
        prefix.copy_from_slice(&length.to_be_bytes());
    }
}

/// Something of an input: frames to submit, or a line that is none.
#[derive(Debug)]
pub enum Parsed {
    /// Frames, or an envelope that is broken.
    Unit {
        /// Number of the first frame.
        frame: u64,
        /// What was found.
        unit: Unit,
    },
    /// A line that is not JSON.
    NotJson {
        /// Its number among the frames.
        frame: u64,
        /// Where it begins.
        byte: u64,
        /// What is wrong with it.
        message: String,
        /// The line.
        line: Bytes,
    },
}

impl Parsed {
    /// Number of the frame after this part.
    pub fn end(&self) -> u64 {
        match self {
            Self::Unit { frame, unit: Unit::Run { count, .. } } => frame + u64::from(*count),
            Self::Unit { frame, .. } | Self::NotJson { frame, .. } => frame + 1,
        }
    }
}

/// Turns JSON Lines into frames as they come. Empty lines are passed over.
#[derive(Debug, Default)]
pub struct LineParser {
    frame: u64,
    byte: u64,
    run: BytesMut,
    run_first: (u64, u64),
    count: u32,
    faults: u32,
}

impl LineParser {
    /// Takes one line, with or without its line break, and returns what is
    /// complete.
    pub fn line(&mut self, line: &[u8]) -> Vec<Parsed> {
        let byte = self.byte;
        self.byte += line.len() as u64;
        let content = line.trim_ascii();
        if content.is_empty() {
            return Vec::new();
        }
        let frame = self.frame;
        self.frame += 1;
        if self.count == 0 {
            self.run_first = (frame, byte);
        }
        let start = self.run.len();
        match put_json(&mut self.run, content) {
            Ok(()) if !self.holds_a_record_at(start) => {
                self.faults = self.faults.saturating_add(1);
                // On its own, so that its fault is told with the line's place.
                let bytes = self.run.split_off(start).freeze();
                let alone = Parsed::Unit { frame, unit: Unit::Run { at: byte, count: 1, bytes } };
                self.finish().into_iter().chain([alone]).collect()
            }
            Ok(()) => {
                self.count += 1;
                if self.run.len() >= RUN_BYTES { self.finish().into_iter().collect() } else { Vec::new() }
            }
            Err(message) => {
                self.faults = self.faults.saturating_add(1);
                let line = Bytes::copy_from_slice(line);
                let bad = Parsed::NotJson { frame, byte, message, line };
                self.finish().into_iter().chain([bad]).collect()
            }
        }
    }

    fn holds_a_record_at(&self, start: usize) -> bool {
        self.run.get(start + PREFIX_BYTES..).is_some_and(|payload| RecordRef::parse(payload).is_ok())
    }

    /// What has gathered so far.
    pub fn finish(&mut self) -> Option<Parsed> {
        let (frame, byte) = self.run_first;
        let count = std::mem::take(&mut self.count);
        let bytes = self.run.split().freeze();
        (count > 0).then_some(Parsed::Unit { frame, unit: Unit::Run { at: byte, count, bytes } })
    }

    /// Lines taken that are no records.
    pub fn faults(&self) -> u32 {
        self.faults
    }

    /// Lines taken that were not empty.
    pub fn lines(&self) -> u64 {
        self.frame
    }
}

/// Frames of a JSON document: one object, or an array of objects. The values
/// of an array that are no records, for want of a text, are frames too; after
/// `most` of them the rest is not looked at.
///
/// # Errors
/// A message that says what is not JSON.
pub fn document(json: &[u8], most: u32) -> Result<(Bytes, u32), String> {
    let (mut out, mut count, mut faults) = (BytesMut::new(), 0_u32, 0);
    let mut put = |value: &Value| {
        put_value(&mut out, value);
        count = count.saturating_add(1);
        faults += u32::from(value.get("text").is_none());
        faults <= most
    };
    let read = match json.trim_ascii_start().first() {
        Some(b'[') => bounded::each(json, &mut put),
        _ => bounded::value(json).map(|one| {
            put(&one);
        }),
    };
    read.map_err(|e| format!("not JSON: {e}"))?;
    Ok((out.freeze(), count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Payloads;

    #[test]
    fn a_line_that_is_no_record_comes_alone_with_its_place() {
        let mut parser = LineParser::default();
        let lines = ["{\"text\":\"a\"}\n", "{\"text\":7}\n", "{\"text\":\"b\"}\n"];
        let mut parsed: Vec<_> = lines.iter().flat_map(|line| parser.line(line.as_bytes())).collect();
        parsed.extend(parser.finish());
        let places: Vec<_> = parsed
            .iter()
            .map(|one| match one {
                Parsed::Unit { frame, unit: Unit::Run { at, count, .. } } => (*frame, *at, *count),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(places, [(0, 0, 1), (1, 13, 1), (2, 24, 1)]);
    }

    #[test]
    fn lines_become_frames_and_a_bad_line_stands_alone_with_its_place() {
        let mut parser = LineParser::default();
        let mut parsed = Vec::new();
        for line in ["{\"text\":\"a\"}\n", "\n", "{\"text\":\"b\"}\n", "{nope\n", "{\"text\":\"c\"}"] {
            parsed.extend(parser.line(line.as_bytes()));
        }
        parsed.extend(parser.finish());
        let [first, bad, last] = parsed.as_slice() else { panic!("{parsed:?}") };
        assert!(matches!(first, Parsed::Unit { frame: 0, unit: Unit::Run { at: 0, count: 2, .. } }));
        assert!(
            matches!(bad, Parsed::NotJson { frame: 2, byte: 27, message, .. } if message.contains("not JSON"))
        );
        let Parsed::Unit { frame: 3, unit: Unit::Run { at: 33, count: 1, bytes } } = last else {
            panic!("{last:?}")
        };
        let payload = Payloads(bytes.clone()).next().unwrap();
        assert_eq!(RecordRef::parse(&payload).unwrap().text, "c");
    }
}

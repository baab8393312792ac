//! Real records to measure with: the fixtures, as frames.

use std::{fs::File, io::Read, path::Path};

use anyhow::{Context, Result, ensure};
use bytes::{Bytes, BytesMut};

use crate::{
    frame::{FrameBatch, Payloads},
    record::RecordRef,
    source::json::put_json,
};

/// The records of one fixture.
pub struct Corpus {
    /// The frames, end to end.
    pub frames: Bytes,
    /// How many.
    pub count: usize,
}

impl Corpus {
    /// Reads `NAME.jsonl.zst` in `dir`.
    pub fn load(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(format!("{name}.jsonl.zst"));
        let missing =
            || format!("{} cannot be read; say where the fixtures are with --fixtures", path.display());
        let mut text = Vec::new();
        zstd::Decoder::new(File::open(&path).with_context(missing)?)
            .and_then(|mut decoder| decoder.read_to_end(&mut text))
            .with_context(missing)?;
        let (mut frames, mut count) = (BytesMut::new(), 0);
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            put_json(&mut frames, line)
                .map_err(|e| anyhow::anyhow!("{}, record {}: {e}", path.display(), count + 1))?;
            count += 1;
        }
        ensure!(count > 0, "{} holds no records", path.display());
        Ok(Self { frames: frames.freeze(), count })
    }

    /// Several fixtures as one.
    pub fn load_all(dir: &Path, names: &[&str]) -> Result<Self> {
        let (mut frames, mut count) = (BytesMut::new(), 0);
        for name in names {
            let one = Self::load(dir, name)?;
            frames.extend_from_slice(&one.frames);
            count += one.count;
        }
        Ok(Self { frames: frames.freeze(), count })
    }

    /// The payload of each frame.
    pub fn payloads(&self) -> Vec<Bytes> {
        Payloads(self.frames.clone()).collect()
    }

    /// The text of each record.
    pub fn texts(&self) -> Result<Vec<String>> {
        let text = |payload: Bytes| Ok(RecordRef::parse(&payload)?.text.to_owned());
        Payloads(self.frames.clone()).map(text).collect()
    }

    /// The frames over and over until there are at least `bytes` bytes of
    /// them, in batches of `per_batch` frames with consecutive offsets.
    pub fn batches(&self, bytes: usize, per_batch: usize) -> Vec<FrameBatch> {
        let payloads = self.payloads();
        let (mut batches, mut base_offset, mut total) = (Vec::new(), 0, 0);
        while total < bytes && !payloads.is_empty() {
            for some in payloads.chunks(per_batch.max(1)) {
                let mut run = BytesMut::new();
                some.iter().for_each(|payload| crate::frame::put_frame(&mut run, payload));
                let count = u32::try_from(some.len()).unwrap_or(u32::MAX);
                total += run.len();
                batches.push(FrameBatch { base_offset, append_time_ms: 1, count, bytes: run.freeze() });
                base_offset += u64::from(count);
            }
        }
        batches
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corpus() -> Corpus {
        let mut frames = BytesMut::new();
        for text in ["one", "two", "three"] {
            put_json(&mut frames, format!(r#"{{"text":"{text}"}}"#).as_bytes()).unwrap();
        }
        Corpus { frames: frames.freeze(), count: 3 }
    }

    #[test]
    fn batches_repeat_the_frames_with_consecutive_offsets() {
        let corpus = corpus();
        assert_eq!(corpus.texts().unwrap(), ["one", "two", "three"]);
        let batches = corpus.batches(corpus.frames.len() + 1, 2);
        let shape: Vec<_> = batches.iter().map(|b| (b.base_offset, b.count)).collect();
        assert_eq!(shape, [(0, 2), (2, 1), (3, 2), (5, 1)]);
        let bytes: Vec<u8> = batches.iter().flat_map(|b| b.bytes.to_vec()).collect();
        assert_eq!(bytes, [&corpus.frames[..], &corpus.frames[..]].concat());
    }

    #[test]
    fn a_missing_fixture_says_how_to_name_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let error = Corpus::load(dir.path(), "irc").err().unwrap();
        assert!(format!("{error:#}").contains("--fixtures"), "{error:#}");
    }
}

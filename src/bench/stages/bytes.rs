//! What happens to frames as bytes: checksums, compression, sealing.

use std::convert::Infallible;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::{Case, Corpus, Options, throughput};
use crate::{
    record::RecordRef,
    segment::{self, Reader, SegmentHeader, seal},
};

/// Frames of a batch, as a busy source sends them.
const BATCH_FRAMES: usize = 256;
/// Bytes that are sealed: half of a segment of the default size.
const SEAL_BYTES: usize = 32 << 20;

pub(super) fn stages(options: &Options, on: &str, corpus: &Corpus) -> Result<Vec<Case>> {
    let settings = segment::Settings::default();
    let (frames, bytes) = (&corpus.frames, corpus.frames.len());
    let mut compressor = zstd::bulk::Compressor::new(settings.level)?;
    let kib = settings.block_bytes.0 >> 10;
    let mut cases = vec![
        throughput(options, format!("SHA-256, {on}"), bytes, || Ok(Sha256::digest(frames)))?,
        throughput(options, format!("CRC-32C, {on}"), bytes, || Ok(crc32c::crc32c(frames)))?,
        throughput(
            options,
            format!("zstd level {}, blocks of {kib} KiB, {on}", settings.level),
            bytes,
            || {
                let mut packed = 0;
                for block in frames.chunks(settings.block_bytes.as_usize()) {
                    packed += compressor.compress(block)?.len();
                }
                Ok(packed)
            },
        )?,
    ];
    let batches = corpus.batches(SEAL_BYTES, BATCH_FRAMES);
    let plain = batches.iter().map(|batch| batch.bytes.len()).sum();
    let dir = options.scratch_dir()?;
    let path = dir.path().join("segment.seg.zst");
    cases.push(throughput(options, format!("seal to a synced file, {on}"), plain, || {
        let batches = batches.iter().cloned().map(Ok::<_, Infallible>);
        Ok(seal(batches, header(), &settings, time_of, &path)?)
    })?);
    cases.push(throughput(options, format!("read back, checked, {on}"), plain, || {
        let reader = Reader::open(&path)?;
        let mut read = 0;
        for batch in reader.batches_from(0) {
            read += batch?.bytes.len();
        }
        ensure!(read == plain, "{read} bytes of {plain} were read back");
        Ok(read)
    })?);
    cases.push(throughput(options, format!("verify (every checksum and digest), {on}"), plain, || {
        let report = segment::verify(&path, None)?;
        ensure!(report.is_intact(), "the segment just sealed is damaged");
        Ok(())
    })?);
    Ok(cases)
}

pub(in crate::bench) fn header() -> SegmentHeader {
    SegmentHeader { stream: "bench".into(), segment_id: [7; 16], sealed_at_ms: 1 }
}

/// As the archive reads it.
pub(in crate::bench) fn time_of(payload: &[u8]) -> Option<i64> {
    RecordRef::parse(payload).ok()?.ts_ms
}

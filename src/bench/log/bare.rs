//! Group commit without anything around it: the ceiling.
//!
//! One thread writes the bytes of a whole group (what all producers have in
//! flight) into a file whose blocks are allocated and written, syncs its data,
//! and begins again. It parses nothing, wakes nobody and computes no checksum.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use bytes::Bytes;

use super::load::{Run, Shape};

/// The file and what is written into it.
pub struct BareLoop {
    file: File,
    bytes: u64,
}

impl BareLoop {
    /// A file of `bytes` bytes at `path`.
    pub fn new(path: &Path, bytes: u64) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < bytes {
            file.write_all_at(&zeros, at)?;
            at += zeros.len() as u64;
        }
        file.sync_all()?;
        Ok(Self { file, bytes })
    }

    /// Writes what the producers of `shape` would send, taken from `batches`.
    pub fn run(&self, shape: &Shape, batches: &[Bytes]) -> Result<Run> {
        let group: Vec<u8> = batches.iter().cycle().take(shape.producers).flatten().copied().collect();
        let mut latencies = Vec::with_capacity(shape.batches_each);
        let cpu = crate::bench::usage::own().cpu;
        let (started, mut at) = (Instant::now(), 0);
        for _ in 0..shape.batches_each {
            let sent = Instant::now();
            if at + group.len() as u64 > self.bytes {
                at = 0;
            }
            self.file.write_all_at(&group, at)?;
            self.file.sync_data()?;
            at += group.len() as u64;
            latencies.push(sent.elapsed().as_secs_f64() * 1e3);
        }
        let seconds = started.elapsed().as_secs_f64();
        let cpu = crate::bench::usage::own().cpu.saturating_sub(cpu);
        Ok(Run::new(shape, seconds, latencies, cpu, Duration::ZERO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_small_for_all_of_it_is_written_from_its_start_again() {
        let dir = tempfile::tempdir().unwrap();
        let bare = BareLoop::new(&dir.path().join("bare"), 1 << 20).unwrap();
        let shape = Shape { name: "test", producers: 2, batch: 700, batches_each: 4 };
        let batch = Bytes::from(vec![1; 700 * super::super::frames::FRAME_BYTES]);
        let run = bare.run(&shape, &[batch]).unwrap();
        assert!(run.records_per_s > 0.0);
        assert_eq!(std::fs::metadata(dir.path().join("bare")).unwrap().len(), 1 << 20);
    }
}

//! Ruining what was durable, and knowing what that ruins.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use rand::{RngExt, rngs::SmallRng};

use super::{disk::PAGE, life::World, number};
use crate::log::format::{BATCH_HEADER_BYTES, BatchHead, FILE_HEADER_BYTES, FileHeader, SegmentId};

/// A batch, where it stands and what it holds.
struct Batch {
    bytes: Range<u64>,
    offsets: Range<u64>,
}

/// The batches of a raw file, by a reading of the format that shares nothing
/// with the log's but the layout of headers.
fn batches(file: &[u8]) -> Vec<Batch> {
    let Some(header) = FileHeader::decode(file) else { return Vec::new() };
    let (mut found, mut at) = (Vec::new(), FILE_HEADER_BYTES);
    while at < file.len() {
        match batch_at(&header.id, file, at) {
            Some(batch) => {
                at = batch.bytes.end as usize;
                found.push(batch);
            }
            None => at += 1,
        }
    }
    found
}

fn batch_at(id: &SegmentId, file: &[u8], at: usize) -> Option<Batch> {
    let head = BatchHead::read(&file[at..])?;
    let end = at + head.size() as usize;
    let crc = crc32c::crc32c_append(head.crc_before_table(id), file.get(at + BATCH_HEADER_BYTES..end)?);
    let offsets = head.base_offset..head.end_offset()?;
    head.is_proven_by(crc).then_some(Batch { bytes: at as u64..end as u64, offsets })
}

fn is_raw(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "log")
        && path.parent().is_some_and(|folder| !folder.ends_with("quarantine"))
}

/// Ruins a few places of one raw file: flips bits, or makes sectors
/// unreadable.
pub fn ruin(world: &mut World<'_>, rng: &mut SmallRng) {
    let files: Vec<(PathBuf, Vec<u8>)> =
        world.disk.files().into_iter().filter(|(path, _)| is_raw(path)).collect();
    if files.is_empty() {
        return;
    }
    let (path, bytes) = &files[rng.random_range(0..files.len())];
    let batches = batches(bytes);
    let Some(end) = batches.last().map(|batch| batch.bytes.end) else { return };
    for _ in 0..rng.random_range(1..=3) {
        let first = if rng.random_bool(0.1) { 0 } else { FILE_HEADER_BYTES as u64 };
        let at = rng.random_range(first..end);
        let hit = if rng.random_bool(0.7) {
            world.disk.flip(path, at, rng.random_range(0..8));
            at..at + 1
        } else {
            world.disk.spoil(path, at);
            at / PAGE as u64 * PAGE as u64..(at / PAGE as u64 + 1) * PAGE as u64
        };
        if number("THALWEG_SIM_TRACE").is_some() {
            eprintln!("ruined: {} {hit:?}", path.display());
        }
        // Without its header nothing in a file is proven.
        let all = hit.start < FILE_HEADER_BYTES as u64;
        for batch in &batches {
            if all || (batch.bytes.start < hit.end && hit.start < batch.bytes.end) {
                world.oracle.ruined.extend(batch.offsets.clone());
            }
        }
    }
}

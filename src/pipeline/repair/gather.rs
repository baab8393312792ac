//! Gathering: the frames that only damaged files still hold, in runs that fit
//! between the segments that are whole.

use std::{collections::BTreeMap, ops::Range};

use bytes::Buf;

use super::{
    Repair, RepairError,
    look::{Left, Wounded},
};
use crate::{
    frame::{FrameBatch, PREFIX_BYTES},
    pipeline::{Offsets, archive::is_whole},
    segment::{Expected, rescue},
};

/// Frames for one new segment.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub batches: Vec<FrameBatch>,
    pub segment_id: [u8; 16],
    /// Files they come from.
    pub from: Vec<String>,
}

impl Run {
    pub(super) fn offsets(&self) -> Offsets {
        self.batches.iter().map(|batch| batch.base_offset..batch.end_offset()).collect()
    }
}

/// What one damaged file gives.
pub(super) struct Given {
    pub batches: Vec<FrameBatch>,
    pub segment_id: [u8; 16],
    /// Readable, and not to be trusted with an offset.
    pub unproven: u64,
}

impl Repair {
    /// Everything of `wounded` that can be read and proven. `next` is where
    /// its neighbour begins.
    pub(super) fn readable(&self, wounded: &Wounded, next: Option<u64>) -> Result<Given, RepairError> {
        let row = self.remembered.segments.iter().find(|row| row.base_offset == wounded.base);
        let mut given = Given { batches: Vec::new(), segment_id: [0; 16], unproven: 0 };
        match &wounded.left {
            Left::Nothing => {}
            Left::Claims(frames) => given.unproven = *frames,
            Left::Raw(salvage) => {
                for batch in salvage.raw.batches() {
                    let batch =
                        batch.map_err(|source| RepairError::Io { path: wounded.path.clone(), source })?;
                    given.batches.push(batch);
                }
                given.segment_id = *salvage.raw.id();
            }
            Left::Sealed => {
                let expected = Expected {
                    stream: self.stream.clone(),
                    base_offset: wounded.base,
                    end_offset: row.map(|row| row.end_offset).or(next),
                    records: row.map(|row| row.records),
                    content_digest: row.and_then(|row| unhex(&row.content_digest)),
                    append_time_ms: row.map_or_else(|| (self.clock)(), |row| row.first_time_ms),
                };
                let rescue = rescue(&wounded.path, &expected)?;
                given.batches = rescue.batches().collect::<Result<_, _>>()?;
                given.unproven = rescue.unplaced();
                let id = row.and_then(|row| unhex(&row.segment_id));
                given.segment_id = rescue.info().map(|info| info.segment_id).or(id).unwrap_or_default();
            }
        }
        given.batches.retain(is_whole);
        Ok(given)
    }
}

/// Cuts what damaged files give into runs that lie between `taken`, the
/// segments that are whole. What several files give is taken once.
pub(super) fn runs(given: Vec<(String, Given)>, taken: &Offsets) -> Vec<Run> {
    let mut frames: BTreeMap<u64, (FrameBatch, [u8; 16], String)> = BTreeMap::new();
    let mut held = taken.clone();
    for (file, Given { batches, segment_id, .. }) in given {
        for batch in batches {
            for free in held.missing(batch.base_offset..batch.end_offset()) {
                if let Some(part) = cut(&batch, &free) {
                    held.insert(free);
                    frames.insert(part.base_offset, (part, segment_id, file.clone()));
                }
            }
        }
    }
    let mut runs: Vec<Run> = Vec::new();
    for (batch, segment_id, file) in frames.into_values() {
        let follows = |run: &&mut Run| {
            let between = run.batches.last().map_or(0, FrameBatch::end_offset)..batch.base_offset;
            taken.missing(between.clone()) == [between.clone()] || between.is_empty()
        };
        match runs.last_mut().filter(|run| run.segment_id == segment_id).filter(follows) {
            Some(run) => {
                if !run.from.contains(&file) {
                    run.from.push(file);
                }
                run.batches.push(batch);
            }
            None => runs.push(Run { batches: vec![batch], segment_id, from: vec![file] }),
        }
    }
    runs
}

/// The frames of `batch` within `range`, which lies within the batch.
fn cut(batch: &FrameBatch, range: &Range<u64>) -> Option<FrameBatch> {
    let mut part = batch.clone().starting_at(range.start)?;
    let count = u32::try_from(range.end.saturating_sub(part.base_offset)).ok()?.min(part.count);
    let (mut rest, mut bytes) = (part.bytes.clone(), 0);
    for _ in 0..count {
        let length = PREFIX_BYTES + rest.clone().try_get_u32().ok()? as usize;
        bytes += length;
        rest = part.bytes.get(bytes..).map(|rest| part.bytes.slice_ref(rest))?;
    }
    part.count = count;
    part.bytes.truncate(bytes);
    (count > 0).then_some(part)
}

/// Bytes from their hex.
fn unhex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if hex.len() != 2 * N {
        return None;
    }
    for (byte, at) in bytes.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(hex.get(at..at + 2)?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::frame::put_frame;

    fn batch(offsets: Range<u64>) -> FrameBatch {
        let mut bytes = BytesMut::new();
        offsets.clone().for_each(|offset| put_frame(&mut bytes, format!("frame {offset}").as_bytes()));
        let count = (offsets.end - offsets.start) as u32;
        FrameBatch { base_offset: offsets.start, append_time_ms: 0, count, bytes: bytes.freeze() }
    }

    fn given(batches: &[Range<u64>]) -> Given {
        let batches = batches.iter().cloned().map(batch).collect();
        Given { batches, segment_id: [1; 16], unproven: 0 }
    }

    fn shapes(runs: &[Run]) -> Vec<Vec<Range<u64>>> {
        for batch in runs.iter().flat_map(|run| &run.batches) {
            assert!(is_whole(batch));
            for (offset, payload) in batch.payloads() {
                assert_eq!(payload, format!("frame {offset}"));
            }
        }
        let shape = |run: &Run| run.batches.iter().map(|b| b.base_offset..b.end_offset()).collect();
        runs.iter().map(shape).collect()
    }

    #[test]
    fn a_run_keeps_gaps_and_ends_where_a_whole_segment_lies() {
        let taken = Offsets::from_iter([10..20, 40..50]);
        let found = runs(vec![("a".into(), given(&[0..4, 6..10, 20..30, 35..40, 50..52]))], &taken);
        assert_eq!(shapes(&found), [vec![0..4, 6..10], vec![20..30, 35..40], vec![50..52]]);
    }

    #[test]
    fn what_is_held_elsewhere_is_cut_off() {
        let found =
            runs(vec![("a".into(), given(&[5..25, 30..33]))], &Offsets::from_iter([0..8, 12..15, 24..40]));
        assert_eq!(shapes(&found), [vec![8..12], vec![15..24]]);
    }

    #[test]
    fn two_damaged_files_complete_each_other() {
        let found = runs(
            vec![("a".into(), given(&[0..4, 8..10])), ("b".into(), given(&[2..7, 9..12]))],
            &Offsets::default(),
        );
        assert_eq!(shapes(&found), [vec![0..4, 4..7, 8..10, 10..12]]);
        assert_eq!(found[0].from, ["a", "b"]);
    }

    #[test]
    fn bytes_are_read_back_from_hex() {
        assert_eq!(unhex("00ff10"), Some([0, 255, 16]));
        assert_eq!((unhex::<3>("00ff"), unhex::<2>("00fg")), (None, None));
    }
}

//! Cutting batches into blocks of whole frames.

use super::{block::Frames, format::MAX_BLOCK_BYTES, info::BatchInfo, seal::SealError};
use crate::frame::FrameBatch;

/// A block before compression.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PlainBlock {
    pub bytes: Vec<u8>,
    pub first_offset: u64,
    pub end_offset: u64,
    /// The batches its frames came in, in order.
    pub runs: Vec<Run>,
}

/// Frames of one batch within one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub append_time_ms: i64,
    pub count: u32,
}

/// Turns batches into blocks.
#[derive(Debug)]
pub(super) struct Cutter {
    target_bytes: usize,
    open: PlainBlock,
    ready: Vec<PlainBlock>,
    batches: Vec<BatchInfo>,
}

impl Cutter {
    pub(super) fn new(target_bytes: usize) -> Self {
        Self {
            target_bytes: target_bytes.min(MAX_BLOCK_BYTES as usize),
            open: PlainBlock::default(),
            ready: Vec::new(),
            batches: Vec::new(),
        }
    }

    /// Takes the blocks that are complete.
    pub(super) fn take_ready(&mut self) -> Vec<PlainBlock> {
        std::mem::take(&mut self.ready)
    }

    /// Takes the last blocks, and all batches.
    pub(super) fn finish(mut self) -> (Vec<PlainBlock>, Vec<BatchInfo>) {
        self.close_block();
        (self.ready, self.batches)
    }

    /// Adds a batch; one without frames is left out. After an error the
    /// cutter is of no more use.
    pub(super) fn push(&mut self, batch: &FrameBatch) -> Result<(), SealError> {
        let FrameBatch { base_offset, append_time_ms, count, .. } = *batch;
        let due = self.batches.last().map_or(0, BatchInfo::end_offset);
        if base_offset < due {
            return Err(SealError::OutOfOrder { expected: due, found: base_offset });
        }
        let bad_batch = SealError::BadBatch { base_offset, count };
        if base_offset.checked_add(count.into()).is_none() {
            return Err(bad_batch);
        }
        let mut frames = Frames(&batch.bytes);
        let mut found = 0;
        for (offset, frame) in (base_offset..base_offset + u64::from(count)).zip(&mut frames) {
            self.push_frame(offset, append_time_ms, found > 0, frame)?;
            found += 1;
        }
        if found != count || !frames.0.is_empty() {
            return Err(bad_batch);
        }
        if count > 0 {
            self.batches.push(BatchInfo { base_offset, append_time_ms, count });
        }
        Ok(())
    }

    /// `same_batch`: the frame before this one came in the same batch.
    fn push_frame(
        &mut self,
        offset: u64,
        append_time_ms: i64,
        same_batch: bool,
        frame: &[u8],
    ) -> Result<(), SealError> {
        if frame.len() > MAX_BLOCK_BYTES as usize {
            return Err(SealError::FrameTooLarge { offset, bytes: frame.len() });
        }
        if self.open.bytes.len() + frame.len() > self.target_bytes {
            self.close_block();
        }
        let block = &mut self.open;
        if block.bytes.is_empty() {
            block.bytes.reserve_exact(self.target_bytes.max(frame.len()));
            block.first_offset = offset;
        }
        block.bytes.extend_from_slice(frame);
        block.end_offset = offset + 1;
        match block.runs.last_mut() {
            Some(run) if same_batch => run.count += 1,
            _ => block.runs.push(Run { append_time_ms, count: 1 }),
        }
        Ok(())
    }

    fn close_block(&mut self) {
        if !self.open.bytes.is_empty() {
            self.ready.push(std::mem::take(&mut self.open));
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};

    use super::*;
    use crate::frame::put_frame;

    fn batch(base_offset: u64, append_time_ms: i64, payload_lens: &[usize]) -> FrameBatch {
        let mut bytes = BytesMut::new();
        for len in payload_lens {
            put_frame(&mut bytes, &vec![b'x'; *len]);
        }
        let count = payload_lens.len() as u32;
        FrameBatch { base_offset, append_time_ms, count, bytes: bytes.freeze() }
    }

    /// First offset, end offset, bytes, frames per run.
    fn shapes(blocks: &[PlainBlock]) -> Vec<(u64, u64, usize, Vec<u32>)> {
        let runs = |b: &PlainBlock| b.runs.iter().map(|r| r.count).collect();
        blocks.iter().map(|b| (b.first_offset, b.end_offset, b.bytes.len(), runs(b))).collect()
    }

    #[test]
    fn blocks_hold_whole_frames_up_to_the_target() {
        let mut cutter = Cutter::new(20);
        cutter.push(&batch(5, 1, &[6, 6, 6])).unwrap();
        cutter.push(&batch(8, 2, &[6, 0])).unwrap();
        cutter.push(&batch(20, 3, &[6])).unwrap();
        let (blocks, batches) = cutter.finish();
        assert_eq!(shapes(&blocks), [(5, 7, 20, vec![2]), (7, 9, 20, vec![1, 1]), (9, 21, 14, vec![1, 1])]);
        assert_eq!(batches.len(), 3);
    }

    #[test]
    fn a_frame_over_the_target_has_a_block_of_its_own() {
        let mut cutter = Cutter::new(20);
        cutter.push(&batch(0, 1, &[1, 100, 1])).unwrap();
        assert_eq!(cutter.ready.iter().map(|block| block.bytes.len()).sum::<usize>(), 109);
        let ready = cutter.take_ready();
        assert_eq!(shapes(&ready), [(0, 1, 5, vec![1]), (1, 2, 104, vec![1])]);
        assert_eq!(shapes(&cutter.finish().0), [(2, 3, 5, vec![1])]);
    }

    #[test]
    fn batches_that_overlap_are_refused() {
        let mut cutter = Cutter::new(20);
        cutter.push(&batch(4, 1, &[1, 1])).unwrap();
        let error = cutter.push(&batch(5, 1, &[1])).unwrap_err();
        assert!(matches!(error, SealError::OutOfOrder { expected: 6, found: 5 }), "{error}");
    }

    #[test]
    fn a_batch_must_hold_exactly_the_frames_it_claims() {
        let good = batch(0, 1, &[1, 1]);
        let refused = |bad: FrameBatch| {
            let error = Cutter::new(20).push(&bad).unwrap_err();
            assert!(matches!(error, SealError::BadBatch { .. }), "{error}");
        };
        refused(FrameBatch { count: 1, ..good.clone() });
        refused(FrameBatch { count: 3, ..good.clone() });
        refused(FrameBatch { bytes: good.bytes.slice(..9), ..good.clone() });
        refused(FrameBatch { base_offset: u64::MAX, ..good });
    }

    #[test]
    fn a_batch_without_frames_is_left_out() {
        let mut cutter = Cutter::new(20);
        let empty = FrameBatch { base_offset: 3, append_time_ms: 0, count: 0, bytes: Bytes::new() };
        cutter.push(&empty).unwrap();
        assert_eq!(cutter.finish(), (vec![], vec![]));
    }
}

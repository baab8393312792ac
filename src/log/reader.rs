//! Reading a stream from any offset to its durable end.

use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

use tokio::sync::watch;

use super::{
    AppendError, Damage, Durable, OpenError, RawFile, Recovery, Segment, Shared, io as seam, recovery,
    walk::Place,
};
use crate::{frame::FrameBatch, segment};

/// Why a stretch of the log could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refused.
    #[error("{path} cannot be read: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A sealed segment is damaged at the offset.
    #[error(
        "offset {offset} of stream `{stream}` is damaged: {source}; `thalweg segments verify` tells what is lost"
    )]
    Damaged {
        /// The stream.
        stream: String,
        /// Where reading stopped.
        offset: u64,
        /// The damage.
        source: segment::ReadError,
    },
    /// A sealed segment cannot be read at the offset, and is not damaged.
    #[error("offset {offset} of stream `{stream}` cannot be read now: {source}")]
    Unreadable {
        /// The stream.
        stream: String,
        /// Where reading stopped.
        offset: u64,
        /// Why, and what helps.
        source: segment::ReadError,
    },
}

impl ReadError {
    /// The first offset after what is damaged; `None` if reading the same
    /// again may work.
    pub fn resume_at(&self) -> Option<u64> {
        match self {
            Self::Damaged { source: segment::ReadError::Block { end_offset, .. }, .. } => Some(*end_offset),
            _ => None,
        }
    }
}

/// A place in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    next: u64,
    /// Segment base and place in its file, if it is a raw segment that was
    /// read last.
    place: Option<(u64, Place)>,
}

impl Cursor {
    /// Before the frame at `offset`.
    pub fn at(offset: u64) -> Self {
        Self { next: offset, place: None }
    }

    /// The offset that is read next.
    pub fn offset(&self) -> u64 {
        self.next
    }
}

/// The reading end of a stream.
#[derive(Clone, Debug)]
pub struct LogReader(Arc<Shared>);

impl LogReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Opens `stream` under `root` as it stands on disk, without its lock.
    pub fn open(root: &Path, stream: &str) -> Result<(Self, Recovery), OpenError> {
        recovery::open_read_only(seam::system(), root, stream).map(|(shared, report)| (Self(shared), report))
    }

    /// Name of the stream.
    pub fn stream(&self) -> &str {
        &self.0.stream
    }

    /// How far the log is durable, now and whenever that changes.
    pub fn durable(&self) -> watch::Receiver<Durable> {
        self.0.durable.subscribe()
    }

    /// The offset after the last durable frame.
    pub fn end_offset(&self) -> u64 {
        self.0.durable.borrow().end_offset
    }

    /// Why the writer stopped, if it did.
    pub fn failed(&self) -> Option<&AppendError> {
        self.0.failed.get()
    }

    /// Why the log can take nothing at the moment; `None` once it has room.
    pub fn full(&self) -> Option<AppendError> {
        self.0.full()
    }

    /// The first offset that is still here.
    pub fn start_offset(&self) -> u64 {
        self.segments().first_key_value().map_or_else(|| self.end_offset(), |(base, _)| *base)
    }

    /// Every segment by its base offset.
    pub fn segments(&self) -> BTreeMap<u64, Segment> {
        self.0.segments.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The damage met so far: by recovery, and since then by reading closed
    /// segments. In the order of the offsets.
    pub fn damage(&self) -> Vec<Damage> {
        let mut all = self.0.damage.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for segment in self.segments().into_values() {
            if let Segment::Raw(raw) = segment {
                all.extend(raw.damage());
            }
        }
        all.sort_by_key(|damage| damage.first_offset);
        all.dedup_by_key(|damage| damage.first_offset);
        all
    }

    /// The closed segments that wait to be sealed, oldest first.
    pub fn closed(&self) -> Vec<Arc<RawFile>> {
        let mut segments = self.segments();
        // The active one, as of the same moment.
        segments.pop_last();
        segments
            .into_values()
            .filter_map(|segment| match segment {
                Segment::Raw(raw) => Some(raw),
                Segment::Sealed(_) => None,
            })
            .collect()
    }

    /// The segment that holds `offset`, or else the first one after it.
    fn segment_for(&self, offset: u64) -> Option<(u64, Segment)> {
        let segments = self.0.segments.read().unwrap_or_else(PoisonError::into_inner);
        let before = segments.range(..=offset).next_back();
        before.or_else(|| segments.first_key_value()).map(|(base, s)| (*base, s.clone()))
    }

    fn base_after(&self, base: u64) -> Option<u64> {
        let segments = self.0.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.range((Bound::Excluded(base), Bound::Unbounded)).next().map(|(base, _)| *base)
    }

    /// The batches from the cursor on, about `max_bytes` of them, and moves
    /// the cursor after them. Empty at the durable end. Blocks on the disk.
    ///
    /// A batch that starts after the cursor's offset says that the offsets
    /// between are lost.
    pub fn read(&self, cursor: &mut Cursor, max_bytes: usize) -> Result<Vec<FrameBatch>, ReadError> {
        let end = self.end_offset();
        while cursor.next < end {
            let Some((base, segment)) = self.segment_for(cursor.next) else { break };
            if base > cursor.next {
                *cursor = Cursor::at(base);
                continue;
            }
            let batches = match segment {
                Segment::Raw(raw) => read_raw(&raw, cursor, max_bytes)?,
                Segment::Sealed(sealed) => self.read_sealed(&sealed, cursor, max_bytes)?,
            };
            if let Some(last) = batches.last() {
                cursor.next = last.end_offset();
                return Ok(batches);
            }
            match self.base_after(base) {
                Some(next) => *cursor = Cursor { next: next.max(cursor.next), place: None },
                None => break,
            }
        }
        Ok(Vec::new())
    }

    fn read_sealed(
        &self,
        sealed: &segment::Reader,
        cursor: &mut Cursor,
        max_bytes: usize,
    ) -> Result<Vec<FrameBatch>, ReadError> {
        cursor.place = None;
        let (mut batches, mut taken) = (Vec::new(), 0);
        for batch in sealed.batches_from(cursor.next) {
            match batch {
                Ok(batch) => {
                    taken += batch.bytes.len();
                    batches.push(batch);
                }
                Err(_) if !batches.is_empty() => break,
                Err(source) => {
                    let (stream, offset) = (self.0.stream.clone(), cursor.next);
                    return Err(match source.is_damage() {
                        true => ReadError::Damaged { stream, offset, source },
                        false => ReadError::Unreadable { stream, offset, source },
                    });
                }
            }
            if taken >= max_bytes {
                break;
            }
        }
        Ok(batches)
    }
}

fn read_raw(raw: &RawFile, cursor: &mut Cursor, max_bytes: usize) -> Result<Vec<FrameBatch>, ReadError> {
    let base = raw.base_offset();
    let mut place = cursor.place.filter(|(of, _)| *of == base).map_or(raw.start(), |(_, place)| place);
    loop {
        let (batches, next) = raw
            .batches_at(place, max_bytes)
            .map_err(|source| ReadError::Io { path: raw.path().to_owned(), source })?;
        let done = batches.is_empty();
        let kept: Vec<FrameBatch> =
            batches.into_iter().filter_map(|batch| batch.starting_at(cursor.next)).collect();
        place = next;
        cursor.place = Some((base, place));
        if done || !kept.is_empty() {
            return Ok(kept);
        }
    }
}

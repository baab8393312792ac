//! Finding the proven batches of a raw file, in bounded memory.
//!
//! A recycled file is full of batches of its earlier lives, and frames may
//! hold anything, headers included. So a place is first asked whether a batch
//! of this life could stand there at all: offsets only rise, and those
//! missing before it need bytes to have been in. Only then is it read. Should
//! much be read in vain nevertheless, then [`Sums`] take over, so that nobody
//! can make a walk much longer than the file by what they send.

use std::io;

use memchr::memmem;

use super::{
    format::{BATCH_HEADER_BYTES, BATCH_MAGIC, Batch, BatchHead, SegmentId},
    io::{IoFile, is_media_error, read_full_at},
    sums::{PAGE_BYTES, Sums},
};
use crate::frame::PREFIX_BYTES;

/// Bytes held at once.
const WINDOW_BYTES: usize = 1 << 20;

/// Where a batch stands or ends in a file, and the offset due there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Byte of the file.
    pub position: u64,
    /// Offset of the frame there.
    pub offset: u64,
}

impl Place {
    /// The place behind `batch`, which stands here.
    pub fn after(self, batch: &Batch) -> Self {
        Self { position: self.position + batch.size as u64, offset: batch.frames.end_offset() }
    }
}

/// Part of a file, in memory.
struct Window<'a> {
    file: &'a dyn IoFile,
    /// Nothing is read from here on.
    limit: u64,
    at: u64,
    bytes: Vec<u8>,
    /// The byte after the last one that the medium does not give back; these
    /// read as zeros.
    unreadable_to: u64,
}

impl Window<'_> {
    /// The `n` bytes at `at`, fewer only at the limit or the file's end.
    fn get(&mut self, at: u64, n: usize) -> io::Result<&[u8]> {
        let n = n.min(WINDOW_BYTES);
        let holds = at >= self.at && at + n as u64 <= self.at + self.bytes.len() as u64;
        if !holds {
            self.fill(at)?;
        }
        let rest = usize::try_from(at - self.at).ok().and_then(|skip| self.bytes.get(skip..));
        let rest = rest.unwrap_or_default();
        Ok(rest.get(..n).unwrap_or(rest))
    }

    fn fill(&mut self, at: u64) -> io::Result<()> {
        let n = usize::try_from(self.limit.saturating_sub(at)).unwrap_or(WINDOW_BYTES).min(WINDOW_BYTES);
        self.at = at;
        self.bytes.resize(n, 0);
        let filled = match read_full_at(self.file, &mut self.bytes, at) {
            Err(error) if is_media_error(&error) => self.fill_by_pages()?,
            filled => filled?,
        };
        self.bytes.truncate(filled);
        Ok(())
    }

    /// Reads what can be read, page by page, with zeros for the rest: no page
    /// is read only in part, so that it reads the same from everywhere.
    fn fill_by_pages(&mut self) -> io::Result<usize> {
        let (mut at, mut rest) = (self.at, self.bytes.as_mut_slice());
        while !rest.is_empty() {
            let to_boundary = PAGE_BYTES - usize::try_from(at % PAGE_BYTES as u64).unwrap_or(0);
            let (page, after) = rest.split_at_mut(to_boundary.min(rest.len()));
            let there = match read_full_at(self.file, page, at) {
                Err(error) if is_media_error(&error) => {
                    page.fill(0);
                    self.unreadable_to = at + page.len() as u64;
                    page.len()
                }
                there => there?,
            };
            at += there as u64;
            if there < page.len() {
                break;
            }
            rest = after;
        }
        Ok(usize::try_from(at - self.at).unwrap_or(0))
    }

    /// Position of the next batch magic at or after `from`.
    fn find_magic(&mut self, from: u64) -> io::Result<Option<u64>> {
        let (mut at, overlap) = (from, BATCH_MAGIC.len() as u64 - 1);
        while at < self.limit {
            let held = (self.at + self.bytes.len() as u64).saturating_sub(at);
            let n = if at >= self.at && held > overlap { held } else { WINDOW_BYTES as u64 };
            let bytes = self.get(at, usize::try_from(n).unwrap_or(WINDOW_BYTES))?;
            if let Some(found) = memmem::find(bytes, &BATCH_MAGIC) {
                return Ok(Some(at + found as u64));
            }
            let seen = bytes.len() as u64;
            if seen <= overlap {
                return Ok(None);
            }
            at += seen - overlap;
        }
        Ok(None)
    }
}

/// A walk over a raw file, from one proven batch to the next.
pub struct Walk<'a> {
    window: Window<'a>,
    id: SegmentId,
    place: Place,
    end_offset: u64,
    /// Bytes read of batches that turned out to be none.
    in_vain: u64,
    sums: Option<Sums>,
}

impl<'a> Walk<'a> {
    /// From `place` on, up to the byte `limit`, over the batches of segment
    /// `id` that hold no offset from `end_offset` on.
    pub fn new(file: &'a dyn IoFile, id: &SegmentId, place: Place, limit: u64, end_offset: u64) -> Self {
        let window = Window { file, limit, at: 0, bytes: Vec::new(), unreadable_to: 0 };
        Self { window, id: *id, place, end_offset, in_vain: 0, sums: None }
    }

    /// The place after the last batch that was found.
    pub fn place(&self) -> Place {
        self.place
    }

    /// The byte after the last one met that the medium does not give back; 0
    /// if it gave all.
    pub fn unreadable_to(&self) -> u64 {
        self.window.unreadable_to
    }

    /// The next proven batch and where it stands; the walk is after it then.
    pub fn next(&mut self) -> io::Result<Option<(u64, BatchHead)>> {
        let mut from = self.place.position;
        while let Some(at) = self.window.find_magic(from)? {
            if let Some(head) = self.proven_at(at)? {
                let offset = head.base_offset + u64::from(head.count);
                self.place = Place { position: at + head.size(), offset };
                return Ok(Some((at, head)));
            }
            from = at + 1;
        }
        Ok(None)
    }

    /// The headers from here on that claim offsets which this segment could
    /// hold, proven or not: the end of the highest claim.
    pub fn claimed_end(&mut self) -> io::Result<Option<u64>> {
        let (mut from, mut highest) = (self.place.position, None);
        while let Some(at) = self.window.find_magic(from)? {
            let head = BatchHead::read(self.window.get(at, BATCH_HEADER_BYTES)?);
            let claim = head
                .filter(|head| self.could_stand(at, head))
                .filter(|head| head.count <= (head.length - head.table) / PREFIX_BYTES as u32)
                .and_then(|head| head.end_offset());
            highest = highest.max(claim);
            from = at + 1;
        }
        Ok(highest)
    }

    fn proven_at(&mut self, at: u64) -> io::Result<Option<BatchHead>> {
        let head = BatchHead::read(self.window.get(at, BATCH_HEADER_BYTES)?);
        let Some(head) = head.filter(|head| self.could_stand(at, head)) else { return Ok(None) };
        let crc = head.crc_before_table(&self.id);
        let body = (at + BATCH_HEADER_BYTES as u64, at + head.size());
        let crc = match &self.sums {
            Some(sums) => sums.append(crc, self.window.file, body.0, body.1)?,
            None => self.append_to(crc, body)?,
        };
        if crc.is_some_and(|crc| head.is_proven_by(crc)) {
            return Ok(Some(head));
        }
        self.in_vain += head.size();
        if self.sums.is_none() && self.in_vain > self.window.limit {
            self.sums = Some(self.sum_up()?);
        }
        Ok(None)
    }

    /// What appending the bytes of a stretch makes of `crc`; `None` if the file
    /// has become shorter.
    fn append_to(&mut self, mut crc: u32, (mut from, to): (u64, u64)) -> io::Result<Option<u32>> {
        while from < to {
            let n = usize::try_from(to - from).unwrap_or(WINDOW_BYTES);
            let bytes = self.window.get(from, n)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            crc = crc32c::crc32c_append(crc, bytes);
            from += bytes.len() as u64;
        }
        Ok(Some(crc))
    }

    fn sum_up(&mut self) -> io::Result<Sums> {
        let mut sums = Sums::from(self.place.position);
        let mut at = sums.start();
        while at < self.window.limit {
            let bytes = self.window.get(at, WINDOW_BYTES)?;
            if bytes.is_empty() {
                break;
            }
            sums.add(bytes);
            at += bytes.len() as u64;
        }
        Ok(sums)
    }

    /// Whether a batch of this life with that header could stand at `at`.
    fn could_stand(&self, at: u64, head: &BatchHead) -> bool {
        let room = (at - self.place.position) / PREFIX_BYTES as u64;
        let missing = head.base_offset.checked_sub(self.place.offset);
        missing.is_some_and(|missing| missing <= room)
            && head.end_offset().is_some_and(|end| end <= self.end_offset)
            && at + head.size() <= self.window.limit
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::IoSlice,
        sync::atomic::{AtomicU64, Ordering},
    };

    use bytes::Bytes;

    use super::*;
    use crate::log::format::batch_header;

    /// A file in memory that counts what is read of it.
    #[derive(Debug)]
    struct Counted(Vec<u8>, AtomicU64);

    impl IoFile for Counted {
        fn len(&self) -> io::Result<u64> {
            Ok(self.0.len() as u64)
        }

        fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
            let there = self.0.get(at as usize..).unwrap_or_default();
            let n = there.len().min(buffer.len());
            buffer[..n].copy_from_slice(&there[..n]);
            self.1.fetch_add(n as u64, Ordering::Relaxed);
            Ok(n)
        }

        fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
            unreachable!()
        }

        fn sync_data(&self) -> io::Result<()> {
            unreachable!()
        }

        fn sync_all(&self) -> io::Result<()> {
            unreachable!()
        }
    }

    fn batch(id: &SegmentId, base_offset: u64, frames: Vec<u8>) -> Vec<u8> {
        let frames = Bytes::from(frames);
        [&batch_header(id, base_offset, 5, 1, b"", std::slice::from_ref(&frames))[..], &frames].concat()
    }

    /// Headers that could be true, each of which claims all that follows it.
    fn lures(bytes: usize) -> Vec<u8> {
        let mut lures = vec![0; bytes];
        let mut at = 0;
        while at + 100 < bytes {
            let claimed = Bytes::from(vec![0; bytes - at - BATCH_HEADER_BYTES]);
            let lure = batch_header(&[9; 16], (at / 8) as u64, 5, 1, b"", &[claimed]);
            lures[at..at + BATCH_HEADER_BYTES].copy_from_slice(&lure);
            at += 64;
        }
        lures
    }

    #[test]
    fn a_walk_over_what_looks_like_batches_reads_little_more_than_the_file() {
        let id = [1; 16];
        let ruined = lures(1 << 20);
        let last = batch(&id, 100_000, b"the last one, proven".to_vec());
        let file = [batch(&id, 0, vec![7; 500]), ruined, last].concat();
        let length = file.len() as u64;
        let file = Counted(file, AtomicU64::new(0));
        let mut walk = Walk::new(&file, &id, Place::default(), length, u64::MAX);
        assert_eq!(walk.next().unwrap().unwrap().0, 0);
        let (at, head) = walk.next().unwrap().unwrap();
        assert_eq!((at + head.size(), head.base_offset), (length, 100_000));
        assert_eq!(walk.next().unwrap(), None);
        let (read, lures) = (file.1.into_inner(), length / 64);
        let most = 8 * length + lures * 2 * PAGE_BYTES as u64;
        assert!(read < most, "read {read} bytes of {length}, {most} were to be expected");
    }
}

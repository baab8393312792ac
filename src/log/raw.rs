//! One raw segment file: opened, scanned, read.

use std::{
    io::{self, IoSlice},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::{Bytes, BytesMut};

use super::{
    format::{BATCH_HEADER_BYTES, BatchHead, FILE_HEADER_BYTES, FileHeader, Parsed, SegmentId, parse_batch},
    io::{Access, Io, IoFile, is_media_error, read_full_at, write_all_at},
    producers::Producers,
    walk::{Place, Walk},
};
use crate::frame::FrameBatch;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// The end of a segment that has none yet.
const OPEN: u64 = u64::MAX;

/// A raw segment file and how far it is to be read.
///
/// While it is active, that is up to the last durable batch. Once closed, it
/// is up to the offset at which the next segment begins: whatever is not
/// found before that is damage, noted when it is met.
#[derive(Debug)]
pub struct RawFile {
    pub(super) file: Box<dyn IoFile>,
    path: PathBuf,
    header: FileHeader,
    capacity: u64,
    /// Nothing from this position on is read.
    proven: AtomicU64,
    /// Where the next segment begins, once there is one.
    end_offset: AtomicU64,
    /// From where on recovery has reported what is missing before that.
    reported_from: AtomicU64,
    damage: Mutex<Vec<Damage>>,
}

/// A stretch of a file that holds no proven batch although proven batches
/// follow, so that what stood there is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// First byte of the stretch.
    pub from: u64,
    /// The byte after it.
    pub to: u64,
    /// First offset that is lost.
    pub first_offset: u64,
    /// The offset after the last lost one.
    pub next_offset: u64,
}

/// What a scan of a raw file found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Position after the last proven batch.
    pub proven: u64,
    /// Offset after the last proven batch; the base offset if there is none.
    pub end_offset: u64,
    /// When the first frames were appended.
    pub first_append_ms: Option<i64>,
    /// Where the last proven batch stands.
    pub last_batch: Range<u64>,
    /// Damage before proven data.
    pub damage: Vec<Damage>,
    /// Whether the medium does not give back bytes after the last proven
    /// batch, so that more may have stood there.
    pub unreadable_end: bool,
    /// How far each producer is that the file tells of.
    pub(super) producers: Producers,
}

impl RawFile {
    pub(super) fn new(file: Box<dyn IoFile>, path: PathBuf, header: FileHeader, capacity: u64) -> Self {
        Self {
            file,
            path,
            header,
            capacity,
            proven: AtomicU64::new(FILE_HEADER_BYTES as u64),
            end_offset: AtomicU64::new(OPEN),
            reported_from: AtomicU64::new(OPEN),
            damage: Mutex::default(),
        }
    }

    /// Opens `path`; `None` if it has no valid header. Nothing of it is read
    /// before a [`Self::scan`] or before it is closed.
    pub(super) fn open(io: &dyn Io, path: &Path, access: Access) -> io::Result<Option<Self>> {
        let file = io.open(path, access)?;
        let mut head = [0; FILE_HEADER_BYTES];
        let n = match read_full_at(&*file, &mut head, 0) {
            Err(error) if is_media_error(&error) => 0,
            n => n?,
        };
        let capacity = file.len()?;
        let header = head.get(..n).and_then(FileHeader::decode);
        Ok(header.map(|header| Self::new(file, path.to_owned(), header, capacity)))
    }

    /// This life of the file.
    pub fn id(&self) -> &SegmentId {
        &self.header.id
    }

    /// Offset of the first frame.
    pub fn base_offset(&self) -> u64 {
        self.header.base_offset
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether more may be appended.
    pub(super) fn is_latest_version(&self) -> bool {
        self.header.is_latest()
    }

    /// Bytes the file has room for, its header included.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Position after the last durable batch. Of a segment that was closed
    /// when the log was opened: after the last byte, until it was read whole.
    pub fn proven(&self) -> u64 {
        self.proven.load(Ordering::Acquire)
    }

    /// The damage met so far, in the order of the offsets.
    pub fn damage(&self) -> Vec<Damage> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Declares everything before `position` durable.
    pub(super) fn set_proven(&self, position: u64) {
        self.proven.store(position, Ordering::Release);
    }

    /// Takes over what a scan found: it ends where the last proven batch does.
    pub(super) fn accept(&self, scan: &Scan) {
        self.set_proven(scan.proven);
        *self.damage.lock().unwrap_or_else(PoisonError::into_inner) = scan.damage.clone();
    }

    /// The next segment begins at `end_offset`.
    pub(super) fn close(&self, end_offset: u64) {
        self.end_offset.store(end_offset, Ordering::Release);
    }

    /// As [`Self::close`], for a file that was not scanned: it is read until
    /// its offsets reach `end_offset`, wherever in the file that is. What is
    /// missing from `reported_from` on is not its own.
    pub(super) fn trust(&self, end_offset: u64, reported_from: Option<u64>) {
        self.reported_from.store(reported_from.unwrap_or(OPEN), Ordering::Release);
        self.set_proven(self.capacity);
        self.close(end_offset);
    }

    /// Where what is missing is this segment's no more, if it ends at `next`.
    pub fn end_of_its_own(&self, next: u64) -> u64 {
        next.min(self.reported_from.load(Ordering::Acquire))
    }

    /// Where the first batch stands.
    pub(super) fn start(&self) -> Place {
        Place { position: FILE_HEADER_BYTES as u64, offset: self.base_offset() }
    }

    pub(super) fn walk(&self, from: Place, limit: u64) -> Walk<'_> {
        Walk::new(&*self.file, self.id(), from, limit, self.end_offset.load(Ordering::Acquire))
    }

    /// Finds every proven batch, and what is damaged between them. What
    /// follows the last proven batch is an unproven tail: it was never
    /// acknowledged.
    pub fn scan(&self) -> io::Result<Scan> {
        self.scan_to(self.capacity)
    }

    fn scan_to(&self, limit: u64) -> io::Result<Scan> {
        let start = self.start();
        let mut walk = self.walk(start, limit);
        let (mut first_append_ms, mut damage) = (None, Vec::new());
        let mut producers = Producers::default();
        let mut last_batch = start.position..start.position;
        loop {
            let before = walk.place();
            let Some((at, head)) = walk.next()? else { break };
            damage.extend(self.damaged(before, at, &head));
            if head.count > 0 {
                first_append_ms.get_or_insert(head.append_time_ms);
            }
            if head.table > 0 {
                let table = at + BATCH_HEADER_BYTES as u64;
                producers.replay(&self.read(table, head.table as usize, limit)?);
            }
            last_batch = at..walk.place().position;
        }
        let Place { position: proven, offset: end_offset } = walk.place();
        let unreadable_end = walk.unreadable_to() > proven;
        Ok(Scan { proven, end_offset, first_append_ms, last_batch, damage, unreadable_end, producers })
    }

    /// Writes what stands in `range` once more and makes it durable. After a
    /// failed fsync the kernel shows bytes that it takes for written and that
    /// the disk does not have; the next fsync would leave them out.
    pub(super) fn write_again(&self, range: Range<u64>) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let bytes = self.read(at, READ_BYTES, range.end)?;
            if bytes.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            write_all_at(&*self.file, &mut [IoSlice::new(&bytes)], at)?;
            at += bytes.len() as u64;
        }
        self.file.sync_data()
    }

    /// Reads everything and says what is damaged.
    pub fn prove(&self) -> io::Result<Vec<Damage>> {
        let scan = self.scan_to(self.proven())?;
        let end = Place { position: scan.proven, offset: scan.end_offset };
        Ok(scan.damage.into_iter().chain(self.lost_end(end)).collect())
    }

    /// What is lost between the place where a batch was due and the next one
    /// that is proven.
    fn damaged(&self, due: Place, at: u64, found: &BatchHead) -> Option<Damage> {
        (at > due.position).then(|| Damage {
            path: self.path.clone(),
            from: due.position,
            to: at,
            first_offset: due.offset,
            next_offset: found.base_offset,
        })
    }

    /// What is lost if nothing is proven from `due` on.
    fn lost_end(&self, due: Place) -> Option<Damage> {
        let end_offset =
            self.end_offset.load(Ordering::Acquire).min(self.reported_from.load(Ordering::Acquire));
        (end_offset != OPEN && due.offset < end_offset).then(|| Damage {
            path: self.path.clone(),
            from: due.position,
            to: self.capacity,
            first_offset: due.offset,
            next_offset: end_offset,
        })
    }

    /// Notes damage if it is news.
    fn note(&self, damage: Damage) {
        let mut known = self.damage.lock().unwrap_or_else(PoisonError::into_inner);
        if !known.iter().any(|other| other.from == damage.from) {
            known.push(damage);
            known.sort_unstable_by_key(|damage| damage.first_offset);
        }
    }

    /// Up to `n` bytes from `at`, never past `limit`.
    fn read(&self, at: u64, n: usize, limit: u64) -> io::Result<Bytes> {
        let n = n.min(usize::try_from(limit.saturating_sub(at)).unwrap_or(n));
        let mut buffer = BytesMut::zeroed(n);
        let filled = read_full_at(&*self.file, &mut buffer, at)?;
        buffer.truncate(filled);
        Ok(buffer.freeze())
    }

    /// Whether no batch follows `place`.
    fn ends_at(&self, place: Place) -> bool {
        place.position >= self.proven() || place.offset >= self.end_offset.load(Ordering::Acquire)
    }

    /// The proven batches with frames from `from` on, at least one if there is one and
    /// then up to about `max_bytes`, and the place after them. Skips what is
    /// damaged, and notes it.
    pub(super) fn batches_at(&self, from: Place, max_bytes: usize) -> io::Result<(Vec<FrameBatch>, Place)> {
        let (mut place, mut batches) = (from, Vec::new());
        let taken = |place: Place| usize::try_from(place.position - from.position).unwrap_or(usize::MAX);
        while !self.ends_at(place) && (batches.is_empty() || taken(place) < max_bytes) {
            let before = place;
            self.read_run(&mut place, max_bytes.clamp(4 << 10, READ_BYTES), &mut batches)?;
            if place == before && !self.read_next(&mut place, &mut batches)? {
                break;
            }
        }
        if place.offset >= self.end_offset.load(Ordering::Acquire) {
            // Closed, so nobody raises it.
            self.set_proven(place.position);
        }
        Ok((batches, place))
    }

    /// Reads `n` bytes, or as many as the first batch has, and takes the
    /// batches that stand in them, one right after the other.
    fn read_run(&self, place: &mut Place, n: usize, batches: &mut Vec<FrameBatch>) -> io::Result<()> {
        let (limit, mut n) = (self.proven(), n);
        loop {
            let mut bytes = match self.read(place.position, n, limit) {
                // Not all of it may be lost.
                Err(error) if is_media_error(&error) => return Ok(()),
                bytes => bytes?,
            };
            let before = *place;
            while !self.ends_at(*place)
                && let Parsed::Batch(batch) = parse_batch(self.id(), &bytes, limit - place.position)
                && batch.frames.base_offset == place.offset
            {
                bytes = bytes.slice(batch.size..);
                *place = place.after(&batch);
                batches.extend(batch.with_frames());
            }
            let whole = BatchHead::read(&bytes)
                .filter(|head| *place == before && head.base_offset == place.offset)
                .map_or(0, |head| head.size())
                .min(limit - place.position);
            match usize::try_from(whole) {
                Ok(whole) if whole > n => n = whole,
                _ => return Ok(()),
            }
        }
    }

    /// Takes the next batch, wherever it is; whether there is one. If it is
    /// not at `place`, then what stood there is lost.
    fn read_next(&self, place: &mut Place, batches: &mut Vec<FrameBatch>) -> io::Result<bool> {
        let limit = self.proven();
        let mut walk = self.walk(*place, limit);
        let Some((at, head)) = walk.next()? else {
            if let Some(damage) = self.lost_end(*place) {
                self.note(damage);
            }
            return Ok(false);
        };
        if let Some(damage) = self.damaged(*place, at, &head) {
            self.note(damage);
        }
        let size = usize::try_from(head.size()).unwrap_or(usize::MAX);
        let bytes = self.read(at, size, limit)?;
        let Parsed::Batch(batch) = parse_batch(self.id(), &bytes, limit - at) else {
            return Err(io::Error::other("what was read a moment ago reads differently now"));
        };
        batches.extend(batch.with_frames());
        *place = walk.place();
        Ok(true)
    }

    /// Every proven batch with frames, in order.
    pub fn batches(&self) -> impl Iterator<Item = io::Result<FrameBatch>> + '_ {
        let mut place = self.start();
        let mut ready = Vec::new().into_iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(batch) = ready.next() {
                    return Some(Ok(batch));
                }
                match self.batches_at(place, READ_BYTES) {
                    Ok((batches, _)) if batches.is_empty() => return None,
                    Ok((batches, next)) => {
                        ready = batches.into_iter();
                        place = next;
                    }
                    Err(e) => return Some(Err(e)),
                }
            }
        })
    }
}

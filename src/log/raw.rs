//! One raw segment file: opened, scanned, read.

use std::{
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::{Bytes, BytesMut};
use memchr::memmem;

use super::{
    format::{BATCH_MAGIC, Batch, FILE_HEADER_BYTES, FileHeader, Parsed, SegmentId, claimed_by, parse_batch},
    io::{Access, Io, IoFile, read_full_at},
    producers::Producers,
};
use crate::frame::FrameBatch;

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// A raw segment file and how far it is proven.
#[derive(Debug)]
pub struct RawFile {
    pub(super) file: Box<dyn IoFile>,
    path: PathBuf,
    header: FileHeader,
    capacity: u64,
    /// Position after the last batch that is durable.
    proven: AtomicU64,
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
    /// When the first batch was appended.
    pub first_append_ms: Option<i64>,
    /// Damage before proven data.
    pub damage: Vec<Damage>,
    /// How far each producer is that the file tells of.
    pub(super) producers: Producers,
}

/// The offsets that the batches in a file without a valid header claim to
/// hold: unproven, because the header held what would prove them, but good
/// enough to not give them again. `None` if nothing is claimed.
pub(super) fn claimed_offsets(io: &dyn Io, path: &Path) -> io::Result<Option<Range<u64>>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(base) = name.strip_suffix(".log").and_then(|base| base.parse::<u64>().ok()) else {
        return Ok(None);
    };
    let file = io.open(path, Access::Read)?;
    let mut bytes = vec![0; usize::try_from(file.len()?).unwrap_or(usize::MAX)];
    let there = read_full_at(&*file, &mut bytes, 0)?;
    bytes.truncate(there);
    // No frame is shorter than its prefix and a byte.
    let most = base + bytes.len() as u64 / 5;
    let claims = memmem::find_iter(&bytes, &BATCH_MAGIC).filter_map(|at| {
        let (first, count) = claimed_by(bytes.get(at..)?)?;
        let end = first.checked_add(count.into())?;
        (first >= base && end <= most).then_some(end)
    });
    Ok(claims.max().map(|end| base..end))
}

impl RawFile {
    pub(super) fn new(
        file: Box<dyn IoFile>,
        path: PathBuf,
        header: FileHeader,
        capacity: u64,
        proven: u64,
    ) -> Self {
        Self { file, path, header, capacity, proven: AtomicU64::new(proven) }
    }

    /// Opens `path`; `None` if it has no valid header. Nothing is proven
    /// before a [`Self::scan`].
    pub(super) fn open(io: &dyn Io, path: &Path, access: Access) -> io::Result<Option<Self>> {
        let file = io.open(path, access)?;
        let mut head = [0; FILE_HEADER_BYTES];
        let n = read_full_at(&*file, &mut head, 0)?;
        let capacity = file.len()?;
        let header = head.get(..n).and_then(FileHeader::decode);
        Ok(header.map(|header| Self::new(file, path.to_owned(), header, capacity, FILE_HEADER_BYTES as u64)))
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

    /// Position after the last durable batch.
    pub fn proven(&self) -> u64 {
        self.proven.load(Ordering::Acquire)
    }

    /// Declares everything before `position` durable.
    pub(super) fn set_proven(&self, position: u64) {
        self.proven.store(position, Ordering::Release);
    }

    /// Finds every proven batch, and what is damaged between them. What
    /// follows the last proven batch is an unproven tail: it was never
    /// acknowledged.
    pub fn scan(&self) -> io::Result<Scan> {
        // Read whole, once: a recycled file is full of batches of its earlier
        // lives, and each of them is looked at before it is told apart.
        let capacity = usize::try_from(self.capacity).unwrap_or(usize::MAX);
        let bytes = self.read(0, capacity, self.capacity)?;
        let mut scan = Scan {
            proven: FILE_HEADER_BYTES as u64,
            end_offset: self.base_offset(),
            first_append_ms: None,
            damage: Vec::new(),
            producers: Producers::default(),
        };
        let mut at = FILE_HEADER_BYTES;
        while at < bytes.len() {
            let rest = bytes.slice(at..);
            match parse_batch(self.id(), &rest, rest.len() as u64) {
                Parsed::Batch(batch) if batch.frames.base_offset >= scan.end_offset => {
                    self.note(&mut scan, &batch, at as u64);
                    at += batch.size;
                    scan.proven = at as u64;
                }
                _ => {
                    let after = rest.get(1..).unwrap_or_default();
                    match memmem::find(after, &BATCH_MAGIC) {
                        Some(found) => at += 1 + found,
                        None => break,
                    }
                }
            }
        }
        Ok(scan)
    }

    /// Takes up the batch found at `at`, and the damage before it if there is
    /// any.
    fn note(&self, scan: &mut Scan, batch: &Batch, at: u64) {
        scan.producers.replay(&batch.table);
        let batch = &batch.frames;
        if at > scan.proven || batch.base_offset > scan.end_offset {
            scan.damage.push(Damage {
                path: self.path.clone(),
                from: scan.proven,
                to: at,
                first_offset: scan.end_offset,
                next_offset: batch.base_offset,
            });
        }
        if batch.count > 0 {
            scan.first_append_ms.get_or_insert(batch.append_time_ms);
        }
        scan.end_offset = batch.end_offset();
    }

    /// Position of the next batch magic at or after `from`.
    fn next_magic(&self, from: u64) -> io::Result<Option<u64>> {
        let (mut at, overlap) = (from, BATCH_MAGIC.len() as u64 - 1);
        while at < self.capacity {
            let window = self.read(at, READ_BYTES, self.capacity)?;
            if let Some(found) = memmem::find(&window, &BATCH_MAGIC) {
                return Ok(Some(at + found as u64));
            }
            if window.len() < READ_BYTES {
                return Ok(None);
            }
            at += READ_BYTES as u64 - overlap;
        }
        Ok(None)
    }

    /// Up to `n` bytes from `at`, never past `limit`.
    fn read(&self, at: u64, n: usize, limit: u64) -> io::Result<Bytes> {
        let n = n.min(usize::try_from(limit.saturating_sub(at)).unwrap_or(n));
        let mut buffer = BytesMut::zeroed(n);
        let filled = read_full_at(&*self.file, &mut buffer, at)?;
        buffer.truncate(filled);
        Ok(buffer.freeze())
    }

    /// The proven batch at `at`, reading no further than `limit`.
    fn batch_at(&self, at: u64, limit: u64) -> io::Result<Option<Batch>> {
        let left = limit.saturating_sub(at);
        let mut want = 4 << 10;
        loop {
            let bytes = self.read(at, want, limit)?;
            match parse_batch(self.id(), &bytes, left) {
                Parsed::Batch(batch) => return Ok(Some(batch)),
                Parsed::NeedsBytes(n) if n > bytes.len() && bytes.len() == want => want = n,
                _ => return Ok(None),
            }
        }
    }

    /// The proven batches with frames from `position` on, at least one if there is one
    /// and then up to about `max_bytes`, and the position after them. Skips
    /// what is damaged.
    pub fn batches_at(&self, position: u64, max_bytes: usize) -> io::Result<(Vec<FrameBatch>, u64)> {
        let (mut at, limit) = (position.max(FILE_HEADER_BYTES as u64), self.proven());
        let mut batches = Vec::new();
        let mut taken = 0;
        while at < limit && (batches.is_empty() || taken < max_bytes) {
            let window = self.read(at, READ_BYTES.min(max_bytes.max(4 << 10)), limit)?;
            let parsed_from = at;
            let mut rest = window.clone();
            let mut keep = |batch: Batch| {
                taken += batch.size;
                if batch.frames.count > 0 {
                    batches.push(batch.frames);
                }
            };
            while let Parsed::Batch(batch) = parse_batch(self.id(), &rest, limit - at) {
                rest = rest.slice(batch.size..);
                at += batch.size as u64;
                keep(batch);
            }
            if at == parsed_from {
                match self.batch_at(at, limit)? {
                    Some(batch) => {
                        at += batch.size as u64;
                        keep(batch);
                    }
                    None => at = self.next_magic(at + 1)?.unwrap_or(limit).min(limit),
                }
            }
        }
        Ok((batches, at))
    }

    /// Every proven batch, in order.
    pub fn batches(&self) -> impl Iterator<Item = io::Result<FrameBatch>> + '_ {
        let mut at = 0;
        let mut ready = Vec::new().into_iter();
        std::iter::from_fn(move || {
            loop {
                if let Some(batch) = ready.next() {
                    return Some(Ok(batch));
                }
                match self.batches_at(at, READ_BYTES) {
                    Ok((batches, _)) if batches.is_empty() => return None,
                    Ok((batches, next)) => {
                        ready = batches.into_iter();
                        at = next;
                    }
                    Err(e) => return Some(Err(e)),
                }
            }
        })
    }
}

//! From files to a log that can go on.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, RwLock},
};

use tokio::sync::watch;

use super::{
    Damage, Durable, Segment, Shared,
    directory::Directory,
    format::{FileHeader, SegmentId, batch_header},
    io::{Access, Io},
    producers::Producers,
    raw::{RawFile, Scan},
    settings::{Ack, Settings},
    spare::Spares,
    walk::{Place, Walk},
    writer::DrawId,
};
use crate::{clock::Clock, frame::PREFIX_BYTES, segment};

/// Why a log could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process writes the stream.
    #[error(
        "{path} is in use by another process; a stream has one writer: stop the other daemon, or give this one another `stream` or `data_dir`"
    )]
    Locked {
        /// The stream's folder.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path} cannot be opened as a log: {source}")]
    Io {
        /// The stream's folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What recovery found. Nothing in it is acknowledged data, except damage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The offset that the next frame gets.
    pub end_offset: u64,
    /// Stretches before proven data that hold nothing any more.
    pub damage: Vec<Damage>,
    /// Files that cannot be read at all, where they are now: those put aside
    /// earlier as well, until the log has their offsets again or they are gone.
    pub quarantined: Vec<PathBuf>,
}

/// The state of a log after recovery.
pub(super) struct Recovered {
    pub active: Arc<RawFile>,
    pub end_offset: u64,
    pub first_append_ms: Option<i64>,
    pub producers: Producers,
    pub report: Recovery,
    segments: BTreeMap<u64, Segment>,
}

impl Recovered {
    pub fn share(&self, stream: &str) -> Arc<Shared> {
        share(stream, self.segments.clone(), &self.report, self.active.base_offset())
    }
}

fn share(stream: &str, segments: BTreeMap<u64, Segment>, report: &Recovery, active_base: u64) -> Arc<Shared> {
    Arc::new(Shared {
        writing_since: Mutex::default(),
        stream: stream.to_owned(),
        durable: watch::Sender::new(Durable { end_offset: report.end_offset, at_ms: 0, active_base }),
        segments: RwLock::new(segments),
        failed: OnceLock::new(),
        full: RwLock::default(),
        damage: Mutex::new(report.damage.clone()),
    })
}

/// The readable segments of a folder.
struct Found {
    segments: BTreeMap<u64, Segment>,
    /// The scan of the last segment, if that is a raw one.
    last: Option<(Arc<RawFile>, Scan)>,
    /// Whether a file follows it that could not be read, so that nothing may
    /// be appended to it any more.
    last_is_closed: bool,
    /// Files that cannot be read, by the offset in their name.
    unreadable: BTreeMap<u64, PathBuf>,
    /// Files that were put aside, by the offset in their name.
    put_aside: BTreeMap<u64, PathBuf>,
    /// Raw files that a sealed one has replaced, and whether it surely holds
    /// all that they did.
    replaced: Vec<(PathBuf, bool)>,
    report: Recovery,
}

/// Opens every segment, and scans the last one: the only one of which it is
/// not known where it ends. A raw segment before it was whole and durable
/// when the next one was begun, so that one's first offset says where it
/// ends; what is in it is proven when it is read.
fn find(directory: &Directory, access: Access) -> io::Result<Found> {
    let mut found = Found {
        segments: BTreeMap::new(),
        last: None,
        last_is_closed: false,
        unreadable: BTreeMap::new(),
        put_aside: directory.put_aside_files()?.into_iter().collect(),
        replaced: Vec::new(),
        report: Recovery::default(),
    };
    let (raw, sealed) = directory.list()?;
    found.open_sealed(directory, sealed);
    found.open_raw(directory, raw, access)?;
    // What was put aside because it was damaged may have been sealed as well.
    found.put_aside.retain(|base, _| !found.segments.contains_key(base));
    found.settle_ends()?;
    Ok(found)
}

impl Found {
    fn open_sealed(&mut self, directory: &Directory, bases: Vec<u64>) {
        for base in bases {
            let path = directory.sealed(base);
            match segment::Reader::open(&path) {
                Ok(reader) => {
                    self.report.end_offset = self.report.end_offset.max(reader.info().end_offset);
                    self.segments.insert(base, Segment::Sealed(Arc::new(reader)));
                }
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a sealed segment cannot be read");
                    // Only what is damaged is moved: the others may be read
                    // again by a newer build, or once the system lets us.
                    if error.is_damage() {
                        self.unreadable.insert(base, path);
                    } else {
                        self.report.quarantined.push(path);
                    }
                }
            }
        }
    }

    fn open_raw(&mut self, directory: &Directory, bases: Vec<u64>, access: Access) -> io::Result<()> {
        for &base in &bases {
            let path = directory.raw(base);
            if let Some(Segment::Sealed(sealed)) = self.segments.get(&base) {
                // The sealed file was published and the raw one not yet
                // removed, or not yet put aside.
                let end = sealed.info().end_offset;
                let whole =
                    sealed.gaps().is_empty() && (bases.contains(&end) || self.segments.contains_key(&end));
                self.replaced.push((path, whole));
                continue;
            }
            match RawFile::open(directory.io(), &path, access) {
                Ok(Some(raw)) if raw.base_offset() == base => {
                    self.segments.insert(base, Segment::Raw(Arc::new(raw)));
                }
                // Sealed by the daemon meanwhile.
                Err(e) if e.kind() == io::ErrorKind::NotFound && access == Access::Read => {}
                Err(error) if !names_the_file(&error) => return Err(error),
                opened => {
                    if let Err(error) = opened {
                        tracing::error!(path = %path.display(), %error, "a segment cannot be read");
                    }
                    self.unreadable.insert(base, path);
                }
            }
        }
        Ok(())
    }

    /// Where the next segment after `base` begins that cannot be read.
    fn next_lost(&self, base: u64) -> Option<u64> {
        let after = |files: &BTreeMap<u64, PathBuf>| files.range(base + 1..).next().map(|(base, _)| *base);
        after(&self.unreadable).into_iter().chain(after(&self.put_aside)).min()
    }

    /// Scans the last segment and tells the others where they end.
    fn settle_ends(&mut self) -> io::Result<()> {
        let mut next = None;
        for (base, segment) in self.segments.iter().rev() {
            let end = next.replace(*base);
            let Segment::Raw(raw) = segment else { continue };
            match end {
                Some(end) => raw.trust(end, self.next_lost(*base)),
                None => {
                    let scan = raw.scan()?;
                    raw.accept(&scan);
                    self.report.damage.extend(scan.damage.iter().cloned());
                    self.report.end_offset = self.report.end_offset.max(scan.end_offset);
                    self.last = Some((raw.clone(), scan));
                }
            }
        }
        Ok(())
    }

    /// Takes note that `offsets` are gone with what `path` held.
    fn lose(&mut self, io: &dyn Io, path: &Path, offsets: Range<u64>) {
        self.report.end_offset = self.report.end_offset.max(offsets.end);
        if !offsets.is_empty() {
            self.report.damage.push(Damage {
                path: path.to_owned(),
                from: 0,
                to: io.len(path).ok().flatten().unwrap_or(0),
                first_offset: offsets.start,
                next_offset: offsets.end,
            });
        }
    }

    /// Puts aside what cannot be read.
    fn quarantine(&mut self, directory: &Directory) -> io::Result<()> {
        let last = self.last.as_ref().map_or(0, |(raw, _)| raw.capacity());
        let mut reach = self.report.end_offset + last / PREFIX_BYTES as u64;
        while let Some((base, path)) = self.unreadable.pop_first() {
            let bytes = directory.io().len(&path)?.unwrap_or(0);
            let path = directory.put_aside(&path)?;
            // The segment before may have lost its end, as many frames as
            // would fit a file like this.
            let lost = bytes / PREFIX_BYTES as u64;
            if base <= reach.saturating_add(lost)
                || self.segments.is_empty()
                || self.segments.range(base..).next().is_some()
            {
                reach = reach.max(base.saturating_add(bytes));
                self.put_aside.insert(base, path);
            } else {
                // No segment of this log can begin there.
                self.report.quarantined.push(directory.put_aside_as_unknown(&path)?);
            }
        }
        Ok(())
    }

    /// If files that were put aside follow the last segment, then the log
    /// ends where they say: unproven, because what would prove it cannot be
    /// read, but good enough to not give an offset again.
    fn end_after_what_is_put_aside(&mut self, directory: &Directory) -> io::Result<()> {
        let last = self.segments.last_key_value().map(|(base, _)| *base);
        let following = self.put_aside.iter().filter(|(base, _)| last.is_none_or(|last| **base > last));
        let following: Vec<(u64, PathBuf)> = following.map(|(base, path)| (*base, path.clone())).collect();
        for (base, path) in following {
            self.last_is_closed = true;
            let end = self.report.end_offset;
            if last.is_some() && end < base {
                self.lose(directory.io(), directory.path(), end..base);
            }
            let claimed = match claimed_end(directory.io(), base, &path) {
                // As many as would fit.
                Err(error) if names_the_file(&error) => {
                    base + directory.io().len(&path)?.unwrap_or(0) / PREFIX_BYTES as u64
                }
                claimed => claimed?,
            };
            self.report.end_offset = self.report.end_offset.max(base).max(claimed);
        }
        Ok(())
    }

    /// Takes note of what the files held that are put aside: up to where the
    /// next segment begins.
    fn lose_what_is_put_aside(&mut self, io: &dyn Io) {
        let end_offset = self.report.end_offset;
        for (base, path) in self.put_aside.clone() {
            let next = self.segments.range(base..).next().map(|(next, _)| *next);
            let end = next.into_iter().chain(self.next_lost(base)).chain([end_offset]).min();
            self.lose(io, &path, base..end.unwrap_or(base));
            self.report.quarantined.push(path);
        }
    }

    /// What may have stood behind the last proven batch, where the medium
    /// does not give it back: the offsets that are still claimed there.
    fn lose_unreadable_end(&mut self, directory: &Directory) -> io::Result<()> {
        let Some((raw, scan)) = self.last.take_if(|(_, scan)| scan.unreadable_end) else { return Ok(()) };
        let end = Place { position: scan.proven, offset: scan.end_offset };
        let claimed = raw.walk(end, raw.capacity()).claimed_end()?.unwrap_or(scan.end_offset);
        self.lose(directory.io(), raw.path(), scan.end_offset..claimed);
        Ok(())
    }
}

/// Whether an error is about this one file, and not about a process that has
/// no room for more.
fn names_the_file(error: &io::Error) -> bool {
    const OUT_OF_MEMORY: i32 = 12;
    const FILES_OPEN_EVERYWHERE: i32 = 23;
    const FILES_OPEN_HERE: i32 = 24;
    let exhausted = [OUT_OF_MEMORY, FILES_OPEN_EVERYWHERE, FILES_OPEN_HERE];
    !error.raw_os_error().is_some_and(|code| exhausted.contains(&code))
        && error.kind() != io::ErrorKind::OutOfMemory
}

/// Where the batches end that the raw file at `path`, which has no header any
/// more, claims to hold from `base` on.
pub(super) fn claimed_end(io: &dyn Io, base: u64, path: &Path) -> io::Result<u64> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if !name.contains(".log") {
        return Ok(base);
    }
    let file = io.open(path, Access::Read)?;
    let start = Place { position: 0, offset: base };
    let claimed = Walk::new(&*file, &SegmentId::default(), start, file.len()?, u64::MAX).claimed_end()?;
    Ok(claimed.unwrap_or(base))
}

/// Finds what is there, makes it durable, and chooses the active segment.
pub(super) fn recover(
    directory: &Directory,
    settings: &Settings,
    spares: &Spares,
    clock: &Clock,
    draw_id: &mut DrawId,
    known: u64,
) -> Result<Recovered, OpenError> {
    let failed = |source| OpenError::Io { path: directory.path().to_owned(), source };
    // A process that was killed may have left names that are not durable yet.
    // What is decided below rests on them.
    directory.sync().map_err(failed)?;
    let mut found = find(directory, Access::ReadWrite).map_err(failed)?;
    for (path, whole) in std::mem::take(&mut found.replaced) {
        let gone = if whole { directory.io().remove(&path) } else { directory.put_aside(&path).map(drop) };
        gone.map_err(failed)?;
    }
    if let Some((raw, scan)) = &found.last {
        // Acknowledged from memory, more than the last batch may be nowhere
        // else.
        let from = if settings.ack == Ack::Memory { raw.start().position } else { scan.last_batch.start };
        raw.write_again(from..scan.last_batch.end).map_err(failed)?;
    }
    // Of the last segment that can be read. If one after it cannot, what the
    // producers sent into that is lost, and expected from them again.
    let mut producers =
        found.last.as_mut().map(|(_, scan)| std::mem::take(&mut scan.producers)).unwrap_or_default();
    producers.keep(settings.producers_kept());
    found.quarantine(directory).map_err(failed)?;
    found.lose_unreadable_end(directory).map_err(failed)?;
    found.end_after_what_is_put_aside(directory).map_err(failed)?;
    found.lose_what_is_put_aside(directory.io());
    let end = found.report.end_offset;
    if end < known {
        found.lose(directory.io(), directory.path(), end..known);
    }
    let end_offset = found.report.end_offset;
    let usable = found.last.filter(|(raw, scan)| {
        let fits = raw.is_latest_version() && raw.capacity() == settings.segment_bytes.0;
        fits && scan.end_offset == end_offset && !found.last_is_closed
    });
    let (active, first_append_ms) = match usable {
        Some((raw, scan)) => (raw, scan.first_append_ms),
        None => {
            let header = FileHeader::new(draw_id(), end_offset, clock());
            let first = first_batch(&header, &producers);
            let raw = Arc::new(spares.take(header, &first).map_err(|e| failed(io::Error::other(e)))?);
            found.segments.insert(end_offset, Segment::Raw(raw.clone()));
            (raw, None)
        }
    };
    let (report, segments) = (found.report, found.segments);
    Ok(Recovered { active, end_offset, first_append_ms, producers, report, segments })
}

/// The batch that a new file begins with, so that it alone tells how far each
/// producer is; empty if none is known.
pub(super) fn first_batch(header: &FileHeader, producers: &Producers) -> Vec<u8> {
    let table = producers.table();
    if table.is_empty() {
        return table;
    }
    let head = batch_header(&header.id, header.base_offset, header.created_ms, 0, &table, &[]);
    [&head[..], &table].concat()
}

/// Opens the log of `stream` for reading only, as it stands on disk, also
/// while a daemon writes it.
pub(super) fn open_read_only(
    io: Arc<dyn Io>,
    root: &Path,
    stream: &str,
) -> Result<(Arc<Shared>, Recovery), OpenError> {
    let directory = Directory::within(io, root, stream);
    let mut found = find(&directory, Access::Read)
        .map_err(|source| OpenError::Io { path: directory.path().to_owned(), source })?;
    found.lose_what_is_put_aside(directory.io());
    found.report.quarantined.extend(std::mem::take(&mut found.unreadable).into_values());
    let active_base = found.last.map_or(found.report.end_offset, |(raw, _)| raw.base_offset());
    Ok((share(stream, found.segments, &found.report, active_base), found.report))
}

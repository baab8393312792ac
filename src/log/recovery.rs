//! From files to a log that can go on.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, RwLock},
};

use tokio::sync::watch;

use super::{
    Damage, Durable, Segment, Shared,
    directory::Directory,
    format::{FileHeader, batch_header},
    io::{Access, Io},
    producers::Producers,
    raw::{self, RawFile, Scan},
    settings::Settings,
    spare::Spares,
    writer::DrawId,
};
use crate::{clock::Clock, segment};

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
    /// Files that cannot be read at all, where they are now.
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
        share(stream, self.segments.clone(), self.end_offset, self.active.base_offset())
    }
}

fn share(stream: &str, segments: BTreeMap<u64, Segment>, end_offset: u64, active_base: u64) -> Arc<Shared> {
    Arc::new(Shared {
        stream: stream.to_owned(),
        durable: watch::Sender::new(Durable { end_offset, at_ms: 0, active_base }),
        segments: RwLock::new(segments),
        failed: OnceLock::new(),
        full: RwLock::default(),
    })
}

/// The readable segments of a folder.
struct Found {
    segments: BTreeMap<u64, Segment>,
    /// The raw segment with the highest base, and its scan.
    last_raw: Option<(Arc<RawFile>, Scan)>,
    unreadable: Vec<PathBuf>,
    report: Recovery,
}

fn find(directory: &Directory, access: Access) -> io::Result<Found> {
    let (raw, sealed) = directory.list()?;
    let mut found = Found {
        segments: BTreeMap::new(),
        last_raw: None,
        unreadable: Vec::new(),
        report: Recovery::default(),
    };
    for base in sealed {
        let path = directory.sealed(base);
        match segment::Reader::open(&path) {
            Ok(reader) => {
                found.report.end_offset = found.report.end_offset.max(reader.info().end_offset);
                found.segments.insert(base, Segment::Sealed(Arc::new(reader)));
            }
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "a sealed segment cannot be read");
                found.unreadable.push(path);
            }
        }
    }
    for base in raw {
        if found.segments.contains_key(&base) {
            // The sealed file was published and the raw one not yet removed.
            if access == Access::ReadWrite {
                directory.io().remove(&directory.raw(base))?;
            }
            continue;
        }
        match RawFile::open(directory.io(), &directory.raw(base), access)? {
            Some(raw) if raw.base_offset() == base => found.take(Arc::new(raw))?,
            _ => found.unreadable.push(directory.raw(base)),
        }
    }
    Ok(found)
}

impl Found {
    /// Takes note that `offsets` are gone with what `path` held.
    fn lose(&mut self, io: &dyn Io, path: &Path, offsets: Range<u64>) {
        self.report.end_offset = self.report.end_offset.max(offsets.end);
        self.report.damage.push(Damage {
            path: path.to_owned(),
            from: 0,
            to: io.len(path).ok().flatten().unwrap_or(0),
            first_offset: offsets.start,
            next_offset: offsets.end,
        });
    }

    fn take(&mut self, raw: Arc<RawFile>) -> io::Result<()> {
        let scan = raw.scan()?;
        if let Some((before, end)) = self.last_raw.take().map(|(raw, scan)| (raw, scan.end_offset))
            && end < raw.base_offset()
        {
            // A closed segment lost its end: the next one says how much.
            self.report.damage.push(Damage {
                path: before.path().to_owned(),
                from: before.proven(),
                to: before.capacity(),
                first_offset: end,
                next_offset: raw.base_offset(),
            });
        }
        raw.set_proven(scan.proven);
        self.report.damage.extend(scan.damage.iter().cloned());
        self.report.end_offset = self.report.end_offset.max(scan.end_offset);
        self.segments.insert(raw.base_offset(), Segment::Raw(raw.clone()));
        self.last_raw = Some((raw, scan));
        Ok(())
    }
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
    let mut found = find(directory, Access::ReadWrite).map_err(failed)?;
    for path in std::mem::take(&mut found.unreadable) {
        let claimed = raw::claimed_offsets(directory.io(), &path).map_err(failed)?;
        let path = quarantine(directory, &path).map_err(failed)?;
        if let Some(claimed) = claimed {
            found.lose(directory.io(), &path, claimed);
        }
        found.report.quarantined.push(path);
    }
    let end = found.report.end_offset;
    if end < known && !(found.segments.is_empty() && found.report.quarantined.is_empty()) {
        found.lose(directory.io(), directory.path(), end..known);
    }
    let end_offset = found.report.end_offset;
    // Of the last file that can be read. If one after it cannot, what the
    // producers sent into that is lost, and expected from them again.
    let mut producers =
        found.last_raw.as_mut().map(|(_, scan)| std::mem::take(&mut scan.producers)).unwrap_or_default();
    producers.keep(settings.producers_kept());
    let usable = found.last_raw.filter(|(raw, scan)| {
        raw.is_latest_version()
            && raw.capacity() == settings.segment_bytes.0
            && scan.end_offset == end_offset
            && found.segments.keys().next_back() == Some(&raw.base_offset())
    });
    let (active, first_append_ms) = match usable {
        Some((raw, scan)) => {
            // A batch may have been written and not synced when the process
            // was killed; it counts, so it must be durable before it is read.
            raw.file.sync_data().map_err(failed)?;
            (raw, scan.first_append_ms)
        }
        None => {
            let header = FileHeader::new(draw_id(), end_offset, clock());
            let raw = Arc::new(spares.take(header, &first_batch(&header, &producers)).map_err(failed)?);
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

/// Puts a file that cannot be read out of the way, without losing it.
fn quarantine(directory: &Directory, path: &Path) -> io::Result<PathBuf> {
    let to = directory.quarantine(path);
    if let Some(folder) = to.parent() {
        directory.io().create_dir_all(folder)?;
    }
    directory.io().rename(path, &to)?;
    directory.sync()?;
    Ok(to)
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
    found.report.quarantined = found.unreadable;
    let active_base = found.last_raw.map_or(found.report.end_offset, |(raw, _)| raw.base_offset());
    Ok((share(stream, found.segments, found.report.end_offset, active_base), found.report))
}

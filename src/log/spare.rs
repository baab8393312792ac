//! Files ready for the next segment.
//!
//! Group commit into a file whose blocks are allocated and written is two to
//! three times faster than into one that grows, because fsync then has no
//! metadata to write. So files are zeroed ahead of their use, by a thread of
//! their own, and used again after their segment is sealed.

use std::{
    io::{self, IoSlice},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use super::{
    directory::Directory,
    format::{FILE_HEADER_BYTES, FileHeader},
    io::{Access, IoFile, is_media_error, write_all_at},
    raw::RawFile,
};

/// Why no segment was begun.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// Nothing has changed; it may be tried again.
    #[error(transparent)]
    NotTaken(#[from] io::Error),
    /// The segment may be there after a crash, or not. So nothing may be
    /// written to the one before it any more, which would then not be the
    /// last.
    #[error("{} may be there or not after a crash: {source}", path.display())]
    InDoubt {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The places of the files that are kept ready.
#[derive(Debug)]
pub struct Spares {
    directory: Directory,
    bytes: u64,
    /// Serialises every touch of them. Files of segments up to this base are
    /// not used again: their ends may hold what nobody shall find.
    slot: Mutex<Option<u64>>,
}

impl Spares {
    /// Files of `bytes` bytes in `directory`.
    pub fn new(directory: Directory, bytes: u64) -> Self {
        Self { directory, bytes, slot: Mutex::new(None) }
    }

    fn hold(&self) -> MutexGuard<'_, Option<u64>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a file ready if none is.
    pub fn fill(&self) -> io::Result<()> {
        let _held = self.hold();
        self.ensure().map(drop)
    }

    /// Takes a ready file into use as the segment of `header`, making one
    /// if there is none; `first` is its first batch, or empty. Durable when it
    /// returns, both or neither.
    pub fn take(&self, header: FileHeader, first: &[u8]) -> Result<RawFile, TakeError> {
        let path = self.directory.raw(header.base_offset);
        let _held = self.hold();
        let spare = self.ensure()?;
        let file = self.begin(&spare, header, first)?;
        self.directory.io().rename(&spare, &path)?;
        match self.directory.sync() {
            Ok(()) => {
                let raw = RawFile::new(file, path, header, self.bytes);
                raw.set_proven((FILE_HEADER_BYTES + first.len()) as u64);
                Ok(raw)
            }
            Err(source) => Err(TakeError::InDoubt { path, source }),
        }
    }

    /// Writes `header` and the first batch into the ready file.
    fn begin(&self, spare: &Path, header: FileHeader, first: &[u8]) -> io::Result<Box<dyn IoFile>> {
        let io = self.directory.io();
        let file = io.open(spare, Access::ReadWrite)?;
        let header = header.encode();
        let written = write_all_at(&*file, &mut [IoSlice::new(&header), IoSlice::new(first)], 0);
        match written.and_then(|()| file.sync_data()) {
            Ok(()) => Ok(file),
            Err(error) => {
                if is_media_error(&error) {
                    // The next attempt shall not meet the same bad place.
                    let _ = io.remove(spare);
                }
                Err(error)
            }
        }
    }

    /// Puts the file of a damaged segment aside.
    pub fn put_aside(&self, path: &Path) -> io::Result<PathBuf> {
        self.directory.put_aside(path)
    }

    /// Keeps the file of a sealed segment as a spare if nobody reads it any
    /// more and few are ready; deletes it otherwise. A damaged one is put aside:
    /// what is left of it may be wanted yet.
    pub fn recycle(&self, raw: Arc<RawFile>) -> io::Result<()> {
        let path = raw.path().to_owned();
        if !raw.damage().is_empty() {
            return self.put_aside(&path).map(drop);
        }
        let (same_size, base) = (raw.capacity() == self.bytes, raw.base_offset());
        let unread = Arc::into_inner(raw).is_some();
        let held = self.hold();
        let is_clean = held.is_none_or(|last| base > last);
        let io = self.directory.io();
        match self.spare(|len| len != Some(self.bytes))?.filter(|_| same_size && unread && is_clean) {
            Some(free) => io.rename(&path, &free)?,
            None => io.remove(&path)?,
        }
        self.directory.sync()
    }

    /// Has no file used again of a segment that begins at `last` or before.
    pub fn use_none_up_to(&self, last: u64) {
        let mut held = self.hold();
        *held = Some(held.map_or(last, |before| before.max(last)));
    }

    /// Removes every file that is kept ready.
    pub fn discard(&self) -> io::Result<()> {
        let _held = self.hold();
        for place in self.directory.spares() {
            if self.directory.io().len(&place)?.is_some() {
                self.directory.io().remove(&place)?;
            }
        }
        self.directory.sync()
    }

    /// Overwrites a file of a segment with zeros from `at` on, durably.
    pub fn overwrite(file: &dyn IoFile, at: u64) -> io::Result<()> {
        zero(file, at, file.len()?)?;
        file.sync_data()
    }

    /// The first place whose file, if one is there, has a wanted length.
    fn spare(&self, is_wanted: impl Fn(Option<u64>) -> bool) -> io::Result<Option<PathBuf>> {
        for place in self.directory.spares() {
            if is_wanted(self.directory.io().len(&place)?) {
                return Ok(Some(place));
            }
        }
        Ok(None)
    }

    /// A file with its size on disk and every block written; makes one if none
    /// is ready.
    fn ensure(&self) -> io::Result<PathBuf> {
        if let Some(ready) = self.spare(|len| len == Some(self.bytes))? {
            return Ok(ready);
        }
        let io = self.directory.io();
        let spare = self.directory.spares().next().unwrap_or_default();
        let making = self.directory.path().join("spare.tmp");
        let made = (|| {
            let file = io.create(&making)?;
            zero(&*file, 0, self.bytes)?;
            file.sync_all()?;
            io.rename(&making, &spare)
        })();
        if made.is_err() {
            // A half-made file would keep the disk full.
            let _ = io.remove(&making);
        }
        made.map(|()| spare)
    }
}

/// Writes zeros to `from..to`.
fn zero(file: &dyn IoFile, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let n = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeros.len());
        let some = zeros.get(..n).unwrap_or_default();
        write_all_at(file, &mut [IoSlice::new(some)], at)?;
        at += n as u64;
    }
    Ok(())
}

/// The thread that fills [`Spares`] when asked. Ends when dropped.
#[derive(Debug)]
pub struct Filler {
    wake: Option<crossbeam_channel::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Filler {
    /// Starts the thread.
    pub fn start(spares: Arc<Spares>) -> io::Result<Self> {
        let (wake, woken) = crossbeam_channel::bounded::<()>(1);
        let thread = std::thread::Builder::new().name("log-spare".into()).spawn(move || {
            for () in woken {
                if let Err(error) = spares.fill() {
                    // Not fatal here: the writer tries again when it needs
                    // the file, and then tells the producers.
                    tracing::warn!(%error, "no spare segment file could be prepared");
                }
            }
        })?;
        Ok(Self { wake: Some(wake), thread: Some(thread) })
    }

    /// Asks for a file to be made ready.
    pub fn wake(&self) {
        if let Some(wake) = &self.wake {
            // Full means that it is asked already.
            let _ = wake.try_send(());
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

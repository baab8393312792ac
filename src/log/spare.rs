//! Files ready for the next segment.
//!
//! Group commit into a file whose blocks are allocated and written is two to
//! three times faster than into one that grows, because fsync then has no
//! metadata to write. So files are zeroed ahead of their use, by a thread of
//! their own, and used again after their segment is sealed.

use std::{
    fs::{self, File},
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
};

use super::{
    directory::Directory,
    format::{FILE_HEADER_BYTES, FileHeader},
    raw::RawFile,
};
use crate::durable;

/// Keeps one file ready.
#[derive(Debug)]
pub struct Spares {
    directory: Directory,
    bytes: u64,
    /// Serialises every touch of the spare file.
    slot: Arc<Mutex<()>>,
    wake: Option<crossbeam_channel::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Spares {
    /// Files of `bytes` bytes in `directory`. Starts the thread that zeroes
    /// them.
    pub fn start(directory: Directory, bytes: u64) -> io::Result<Self> {
        let slot = Arc::new(Mutex::new(()));
        let (wake, woken) = crossbeam_channel::bounded::<()>(1);
        let thread = {
            let (directory, slot) = (directory.clone(), slot.clone());
            std::thread::Builder::new().name("log-spare".into()).spawn(move || {
                for () in woken {
                    let _held = slot.lock().unwrap_or_else(PoisonError::into_inner);
                    if let Err(error) = ensure(&directory, bytes) {
                        // Not fatal here: the writer tries again when it needs
                        // the file, and then tells the producers.
                        tracing::warn!(%error, "no spare segment file could be prepared");
                    }
                }
            })?
        };
        Ok(Self { directory, bytes, slot, wake: Some(wake), thread: Some(thread) })
    }

    /// Asks for a file to be made ready.
    pub fn prepare(&self) {
        if let Some(wake) = &self.wake {
            let _ = wake.try_send(());
        }
    }

    /// Takes the ready file into use as the segment of `header`, making one
    /// if there is none. Durable when it returns.
    pub fn take(&self, header: FileHeader) -> io::Result<RawFile> {
        let path = self.directory.raw(header.base_offset);
        {
            let _held = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
            ensure(&self.directory, self.bytes)?;
            let mut file = File::options().write(true).open(self.directory.spare())?;
            file.write_all(&header.encode())?;
            file.sync_data()?;
            fs::rename(self.directory.spare(), &path)?;
            durable::sync_dir(self.directory.path())?;
        }
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(RawFile::new(file, path, header, self.bytes, FILE_HEADER_BYTES as u64))
    }

    /// Keeps the file of a sealed segment as the next spare if nobody reads it
    /// any more and none is ready; deletes it otherwise.
    pub fn recycle(&self, raw: Arc<RawFile>) -> io::Result<()> {
        let path = raw.path().to_owned();
        let same_size = raw.capacity() == self.bytes;
        let unread = Arc::into_inner(raw).is_some();
        let _held = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if same_size && unread && !self.directory.spare().exists() {
            fs::rename(&path, self.directory.spare())
        } else {
            fs::remove_file(&path)
        }
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Makes the spare file exist with its size on disk and every block written.
fn ensure(directory: &Directory, bytes: u64) -> io::Result<()> {
    if fs::metadata(directory.spare()).is_ok_and(|m| m.len() == bytes) {
        return Ok(());
    }
    let making = directory.path().join("spare.tmp");
    let made = (|| {
        let mut file = File::create(&making)?;
        let zeros = vec![0; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let n = zeros.len().min(usize::try_from(left).unwrap_or(zeros.len()));
            file.write_all(zeros.get(..n).unwrap_or_default())?;
            left -= n as u64;
        }
        file.sync_all()?;
        fs::rename(&making, directory.spare())
    })();
    if made.is_err() {
        // A half-made file would keep the disk full.
        let _ = fs::remove_file(&making);
    }
    made
}

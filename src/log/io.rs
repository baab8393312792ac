//! The file system as the log sees it: every call that a crash can come
//! between.
//!
//! Two stand behind it: the machine's, and a simulated one that loses what
//! was not synced (`sim`). A call's cost is beside that of the system call
//! it makes, so the seam is dynamic.

use std::{
    fmt::Debug,
    fs::{self, File, TryLockError},
    io::{self, IoSlice},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use crate::durable;

/// A file system. Names become durable with [`Io::sync_dir`] only, contents
/// with the syncs of [`IoFile`] only.
pub trait Io: Debug + Send + Sync {
    /// Opens a file that exists.
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn IoFile>>;
    /// Creates a file for writing, empty, in the place of any that exists.
    fn create(&self, path: &Path) -> io::Result<Box<dyn IoFile>>;
    /// Gives a file another name, in the place of any that has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Creates a folder and those above it, as far as they are missing.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// The names in a folder, in any order; none if it does not exist.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Bytes of a file; `None` if it does not exist.
    fn len(&self, path: &Path) -> io::Result<Option<u64>>;
    /// Takes the lock on a file that stands for a folder, creating the file;
    /// `None` if another process holds it.
    fn lock(&self, path: &Path) -> io::Result<Option<Held>>;
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// A lock: let go when dropped, and when the process ends, however it ends.
pub type Held = Box<dyn Debug + Send + Sync>;

/// An open file. Positions are arguments, so threads share it.
pub trait IoFile: Debug + Send + Sync {
    /// Bytes of the file.
    fn len(&self) -> io::Result<u64>;
    /// Reads at `at` and says how many bytes; 0 at the end of the file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes the slices at `at`, one after another, and says how many bytes.
    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize>;
    /// Makes the contents durable, and what it takes to read them.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes the contents and everything known about the file durable.
    fn sync_all(&self) -> io::Result<()>;
}

/// Most slices that one call takes (`IOV_MAX` of Linux).
const MAX_SLICES: usize = 1_024;

/// Writes all of `slices` at `at`, in as many calls as it takes. `slices` is
/// used up.
pub fn write_all_at(file: &dyn IoFile, mut slices: &mut [IoSlice<'_>], mut at: u64) -> io::Result<()> {
    // Empty slices at the front would look like a write of nothing.
    IoSlice::advance_slices(&mut slices, 0);
    while !slices.is_empty() {
        let some = slices.get(..MAX_SLICES).unwrap_or(slices);
        match file.write_at(some, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                IoSlice::advance_slices(&mut slices, n);
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Whether `error` says that the medium cannot give the bytes back, so that
/// they are lost rather than late.
pub fn is_media_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Fills `buffer` from `at` on, as far as the file goes. Returns how many
/// bytes there were. Where the medium fails it is asked once more: much hangs
/// on its answer.
pub fn read_full_at(file: &dyn IoFile, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let (mut filled, mut asked_again) = (0, false);
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if is_media_error(&e) && !asked_again => asked_again = true,
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The machine's file system.
#[derive(Debug)]
pub struct System;

/// The machine's file system, as it is handed around.
pub fn system() -> Arc<dyn Io> {
    Arc::new(System)
}

impl Io for System {
    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn IoFile>> {
        let write = access == Access::ReadWrite;
        Ok(Box::new(File::options().read(true).write(write).open(path)?))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn IoFile>> {
        Ok(Box::new(File::create(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        durable::sync_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    fn len(&self, path: &Path) -> io::Result<Option<u64>> {
        match fs::metadata(path) {
            Ok(found) => Ok(Some(found.len())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Held>> {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

impl IoFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, at)
    }

    fn write_at(&self, slices: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        Ok(rustix::io::pwritev(self, slices, at)?)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }

    fn sync_all(&self) -> io::Result<()> {
        File::sync_all(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_slices_than_one_call_takes_are_written_whole_and_in_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = system().create(&path).unwrap();
        let pieces: Vec<Vec<u8>> =
            (0..3_000u32).map(|n| n.to_be_bytes()[..n as usize % 5].to_vec()).collect();
        let mut slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        write_all_at(&*file, &mut slices, 7).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [vec![0; 7], pieces.concat()].concat());
    }

    #[test]
    fn a_lock_is_held_by_one_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("LOCK");
        let held = system().lock(&path).unwrap();
        assert!(held.is_some());
        assert!(system().lock(&path).unwrap().is_none());
        drop(held);
        assert!(system().lock(&path).unwrap().is_some());
    }
}

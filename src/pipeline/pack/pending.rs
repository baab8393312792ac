//! The pack under way: one file in a folder of its own, held by one writer.
//!
//! | file | what it is |
//! |---|---|
//! | `LOCK` | locked by whoever packs |
//! | `pending.msgpack.zst` | the pack that is written |
//! | `pending.json` | what it is, once it is whole; until then the file is worth nothing |
//!
//! So a crash, or an object store that is away, costs no second compression,
//! and leaves no object that nobody knows: the next run puts the same bytes.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::Meta;
use crate::durable;

/// A pack that is whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Pending {
    /// SHA-256 of the file, in hex.
    pub digest: String,
    pub name: String,
    pub meta: Meta,
}

/// The right to pack here, until it is dropped.
pub(super) struct Slot {
    folder: PathBuf,
    _lock: File,
}

impl Slot {
    /// Takes the folder, and removes what is unfinished there. None if another
    /// has it.
    pub fn take(folder: &Path) -> io::Result<Option<Self>> {
        fs::create_dir_all(folder)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join("LOCK"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        durable::sweep_temporaries(folder)?;
        let slot = Self { folder: folder.to_owned(), _lock: lock };
        if slot.pending()?.is_none() {
            slot.clear()?;
        }
        Ok(Some(slot))
    }

    /// Where the pack is written.
    pub fn path(&self) -> PathBuf {
        self.folder.join("pending.msgpack.zst")
    }

    /// The pack's file, new: whoever was broken off may be writing to one of
    /// this name still.
    pub fn create(&self) -> io::Result<File> {
        self.clear()?;
        File::create_new(self.path())
    }

    fn description(&self) -> PathBuf {
        self.folder.join("pending.json")
    }

    /// The pack that is whole and was not cleared; one that another version
    /// describes in another way counts as none.
    pub fn pending(&self) -> io::Result<Option<Pending>> {
        match fs::read(self.description()) {
            Ok(json) => Ok(serde_json::from_slice(&json).ok()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Declares the written file whole.
    pub fn publish(&self, pending: &Pending) -> io::Result<()> {
        File::open(self.path())?.sync_all()?;
        durable::publish(&self.description(), |file| {
            serde_json::to_writer(file, pending).map_err(io::Error::from)
        })
    }

    /// Forgets the pack: first that it is whole, then its bytes.
    pub fn clear(&self) -> io::Result<()> {
        for path in [self.description(), self.path()] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => durable::sync_dir(&self.folder)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pack_that_was_declared_whole_outlives_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let slot = Slot::take(folder.path()).unwrap().unwrap();
        assert!(Slot::take(folder.path()).unwrap().is_none(), "one at a time");
        fs::write(slot.path(), "half").unwrap();
        drop(slot);
        let slot = Slot::take(folder.path()).unwrap().unwrap();
        assert!(!slot.path().exists() && slot.pending().unwrap().is_none());
        fs::write(slot.path(), "whole").unwrap();
        let pending = Pending { digest: "d".into(), name: "n".into(), meta: Meta::default() };
        slot.publish(&pending).unwrap();
        drop(slot);
        let slot = Slot::take(folder.path()).unwrap().unwrap();
        assert_eq!(slot.pending().unwrap(), Some(pending));
        assert_eq!(fs::read(slot.path()).unwrap(), b"whole");
        slot.clear().unwrap();
        assert!(!slot.path().exists() && slot.pending().unwrap().is_none());
    }
}

//! The files of one stream's log, and the lock that gives them one owner.

use std::{
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

/// The folder of one stream.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

/// Held by the one process that writes a stream; let go when it ends, however
/// it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

const RAW: &str = ".log";
const SEALED: &str = ".seg.zst";

impl Directory {
    /// The folder of `stream` under `root`.
    pub fn of_stream(root: &Path, stream: &str) -> Self {
        Self(root.join(stream))
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Creates the folder and takes its lock; `None` if another process holds
    /// it.
    pub fn lock(&self) -> io::Result<Option<Lock>> {
        fs::create_dir_all(&self.0)?;
        let file = File::options().create(true).truncate(false).write(true).open(self.0.join("LOCK"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Path of the raw segment that starts at `base`.
    pub fn raw(&self, base: u64) -> PathBuf {
        self.0.join(format!("{base:020}{RAW}"))
    }

    /// Path of the sealed segment that starts at `base`.
    pub fn sealed(&self, base: u64) -> PathBuf {
        self.0.join(format!("{base:020}{SEALED}"))
    }

    /// Path of the zeroed or recycled file that waits for its next use.
    pub fn spare(&self) -> PathBuf {
        self.0.join("spare")
    }

    /// Where a file that cannot be read is put aside.
    pub fn quarantine(&self, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.0.join("quarantine").join(name.as_ref())
    }

    /// Base offsets of the raw and of the sealed segments, ascending.
    pub fn list(&self) -> io::Result<(Vec<u64>, Vec<u64>)> {
        let (mut raw, mut sealed) = (Vec::new(), Vec::new());
        let entries = match fs::read_dir(&self.0) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((raw, sealed)),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            let base = |suffix: &str| name.strip_suffix(suffix)?.parse::<u64>().ok();
            if let Some(base) = base(SEALED) {
                sealed.push(base);
            } else if let Some(base) = base(RAW) {
                raw.push(base);
            }
        }
        raw.sort_unstable();
        sealed.sort_unstable();
        Ok((raw, sealed))
    }
}

/// The streams that have a folder under `root`.
pub fn streams(root: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    match fs::read_dir(root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        entries => {
            for entry in entries? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
        }
    }
    names.sort_unstable();
    Ok(names)
}

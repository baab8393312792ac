//! The files of one stream's log, and the lock that gives them one owner.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::io::{Held, Io, system};

/// The folder of one stream.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    io: Arc<dyn Io>,
}

/// Held by the one process that writes a stream; let go when it ends, however
/// it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its lock")] Held);

const RAW: &str = ".log";
const SEALED: &str = ".seg.zst";
/// Files kept for the next segments: what a burst fills faster than it can be
/// sealed need not be zeroed first.
const SPARES: usize = 4;

impl Directory {
    /// The folder of `stream` under `root`.
    pub fn of_stream(root: &Path, stream: &str) -> Self {
        Self::within(system(), root, stream)
    }

    /// As [`Self::of_stream`], in a given file system.
    pub(super) fn within(io: Arc<dyn Io>, root: &Path, stream: &str) -> Self {
        Self { path: root.join(stream), io }
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file system it is in.
    pub(super) fn io(&self) -> &dyn Io {
        &*self.io
    }

    /// Creates the folder, durably, and takes its lock; `None` if another
    /// process holds it.
    pub fn lock(&self) -> io::Result<Option<Lock>> {
        self.io.create_dir_all(&self.path)?;
        if let Some(root) = self.path.parent() {
            self.io.sync_dir(root)?;
        }
        Ok(self.io.lock(&self.path.join("LOCK"))?.map(Lock))
    }

    /// Makes the names in the folder durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.io.sync_dir(&self.path)
    }

    /// Path of the raw segment that starts at `base`.
    pub fn raw(&self, base: u64) -> PathBuf {
        self.path.join(format!("{base:020}{RAW}"))
    }

    /// Path of the sealed segment that starts at `base`.
    pub fn sealed(&self, base: u64) -> PathBuf {
        self.path.join(format!("{base:020}{SEALED}"))
    }

    /// Paths of the zeroed or recycled files that wait for their next use.
    pub fn spares(&self) -> impl Iterator<Item = PathBuf> {
        (0..SPARES).map(|n| self.path.join(format!("spare.{n}")))
    }

    /// Where files are put aside that cannot be read, or not wholly.
    pub fn quarantine(&self) -> PathBuf {
        self.path.join("quarantine")
    }

    /// Puts a file out of the way without losing it, nor one of the same name
    /// that is there already. Returns where it is now.
    pub fn put_aside(&self, path: &Path) -> io::Result<PathBuf> {
        let folder = self.quarantine();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.io.create_dir_all(&folder)?;
        // Or the file could be gone with a folder that never was durable.
        self.sync()?;
        let mut to = folder.join(name.as_ref());
        for n in 1.. {
            if self.io.len(&to)?.is_none() {
                break;
            }
            to = folder.join(format!("{name}.{n}"));
        }
        self.io.rename(path, &to)?;
        // There before it is gone here.
        self.io.sync_dir(&folder)?;
        self.sync()?;
        Ok(to)
    }

    /// Gives a file that was put aside a name that no segment has.
    pub(super) fn put_aside_as_unknown(&self, path: &Path) -> io::Result<PathBuf> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let to = path.with_file_name(format!("unknown-{name}"));
        self.io.rename(path, &to)?;
        self.io.sync_dir(&self.quarantine())?;
        Ok(to)
    }

    /// The files that were put aside, with the offset that each begins at by
    /// its name.
    pub(super) fn put_aside_files(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let folder = self.quarantine();
        let base = |name: &str| name.split('.').next().and_then(|base| base.parse::<u64>().ok());
        let mut names = self.io.list(&folder)?;
        names.sort_unstable();
        Ok(names.into_iter().filter_map(|name| Some((base(&name)?, folder.join(&name)))).collect())
    }

    /// Base offsets of the raw and of the sealed segments, ascending.
    pub fn list(&self) -> io::Result<(Vec<u64>, Vec<u64>)> {
        let (mut raw, mut sealed) = (Vec::new(), Vec::new());
        for name in self.io.list(&self.path)? {
            match segment_name(&name) {
                Some((base, true)) => sealed.push(base),
                Some((base, false)) => raw.push(base),
                None => {}
            }
        }
        raw.sort_unstable();
        sealed.sort_unstable();
        Ok((raw, sealed))
    }
}

/// The first offset that a segment's file name says, and whether it says that
/// the segment is sealed. Only names as [`Directory`] gives them: other files
/// are nobody's segment.
pub fn segment_name(name: &str) -> Option<(u64, bool)> {
    let (base, sealed) = match name.strip_suffix(SEALED) {
        Some(base) => (base, true),
        None => (name.strip_suffix(RAW)?, false),
    };
    let canonical = base.len() == 20 && base.bytes().all(|b| b.is_ascii_digit());
    canonical.then(|| base.parse().ok()).flatten().map(|base| (base, sealed))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_twenty_digits_are_segments() {
        assert_eq!(segment_name("00000000000000000007.log"), Some((7, false)));
        assert_eq!(segment_name("18446744073709551615.seg.zst"), Some((u64::MAX, true)));
        for name in ["7.log", "+0000000000000000007.log", "99999999999999999999.log", "spare", "a.log"] {
            assert_eq!(segment_name(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_put_aside_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::of_stream(dir.path(), "s");
        fs::create_dir(directory.path()).unwrap();
        for (n, name) in ["0.log", "0.log.1", "0.log.2"].iter().enumerate() {
            fs::write(directory.path().join("0.log"), [n as u8]).unwrap();
            let to = directory.put_aside(&directory.path().join("0.log")).unwrap();
            assert_eq!(to, directory.quarantine().join(name));
            assert_eq!(fs::read(to).unwrap(), [n as u8]);
        }
    }
}

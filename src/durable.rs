//! Publishing files so that a crash leaves the old state or the new one.
//!
//! Write under a temporary name in the same directory, fsync the file, rename,
//! fsync the directory: everything that becomes visible under a final name
//! goes through [`publish`], so that no caller can forget a step.
//!
//! A crash may leave a temporary behind. Its name ends with
//! [`TEMPORARY_SUFFIX`]; [`sweep_temporaries`] removes it at the next start,
//! before anything is published into that directory again.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

/// What the name of every unpublished file ends with.
pub const TEMPORARY_SUFFIX: &str = ".tmp";

/// Creates or replaces the file at `path` with what `write` puts into it.
///
/// When this returns `Ok`, the file is complete under its final name and stays
/// so after a power cut. When it returns an error, `path` is as it was, unless
/// the error came from the last step, the fsync of the directory: then the new
/// file is in place but may not survive a power cut.
///
/// # Errors
/// Whatever `write` returns, or what the file system answered; the latter
/// names the path and the step.
pub fn publish<T>(path: &Path, write: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
    try_publish(path, write, |error| error)
}

/// [`publish`] for writers with an error type of their own; `from_io` makes
/// that type from the errors of the publishing steps.
///
/// # Errors
/// As [`publish`].
pub fn try_publish<T, E>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
    from_io: impl Fn(io::Error) -> E,
) -> Result<T, E> {
    let step = |what: &str, error: io::Error| {
        let message = format!("cannot {what} for {}: {error}", path.display());
        from_io(io::Error::new(error.kind(), message))
    };
    let (mut file, temporary) = create_temporary(path).map_err(|e| step("create a temporary file", e))?;
    let unpublished = RemoveOnDrop(&temporary);
    let value = write(&mut file)?;
    file.sync_all().map_err(|e| step("fsync the temporary file", e))?;
    fs::rename(&temporary, path).map_err(|e| step("rename the temporary file", e))?;
    std::mem::forget(unpublished);
    sync_dir(directory_of(path)).map_err(|e| step("fsync the directory", e))?;
    Ok(value)
}

/// Makes the names in `dir` (files created, renamed, removed) survive a power
/// cut.
///
/// # Errors
/// If `dir` cannot be opened or synced.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// A folder that is there whole, or not at all. Dropped before
/// [`Self::publish`], it is removed.
#[derive(Debug)]
pub struct NewDirectory {
    path: PathBuf,
    partial: PathBuf,
}

impl NewDirectory {
    /// Begins the folder `path` under the name `path.partial`.
    ///
    /// # Errors
    /// If one of the two names is taken, or the system refuses.
    pub fn begin(path: &Path) -> io::Result<Self> {
        let mut partial = path.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        if path.symlink_metadata().is_ok() {
            let message = format!("{} is there already; name a folder that is not", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        fs::create_dir_all(directory_of(path))?;
        fs::create_dir(&partial).map_err(|error| {
            let left = match error.kind() {
                io::ErrorKind::AlreadyExists => "; if nothing writes it now, a crash left it: remove it",
                _ => "",
            };
            io::Error::new(error.kind(), format!("{}: {error}{left}", partial.display()))
        })?;
        Ok(Self { path: path.to_owned(), partial })
    }

    /// Where to write until then.
    pub fn partial(&self) -> &Path {
        &self.partial
    }

    /// Makes everything in it durable, then gives the folder its name.
    ///
    /// # Errors
    /// What the file system answered; unless it was the last step, nothing is
    /// there then.
    pub fn publish(self) -> io::Result<()> {
        sync_tree(&self.partial)?;
        fs::rename(&self.partial, &self.path)?;
        sync_dir(directory_of(&self.path))
    }
}

impl Drop for NewDirectory {
    fn drop(&mut self) {
        // Once published there is nothing under this name.
        let _ = fs::remove_dir_all(&self.partial);
    }
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => sync_tree(&entry.path())?,
            false => File::open(entry.path())?.sync_all()?,
        }
    }
    sync_dir(dir)
}

/// Removes the temporaries that a crash left in `dir` and returns their paths.
///
/// Call it before anything is published into `dir`: it cannot tell a leftover
/// from a file that is being written.
///
/// # Errors
/// If `dir` cannot be read or synced, or a temporary cannot be removed.
pub fn sweep_temporaries(dir: &Path) -> io::Result<Vec<PathBuf>> {
    sweep_temporaries_of(dir, |_| true)
}

/// As [`sweep_temporaries`], only of files whose final name `is_mine`.
///
/// # Errors
/// As [`sweep_temporaries`].
pub fn sweep_temporaries_of(dir: &Path, is_mine: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut swept = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let is_temporary = entry.file_name().as_encoded_bytes().ends_with(TEMPORARY_SUFFIX.as_bytes());
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_temporary && is_mine(final_name(&name)) && entry.file_type()?.is_file() {
            fs::remove_file(entry.path())?;
            swept.push(entry.path());
        }
    }
    if !swept.is_empty() {
        sync_dir(dir)?;
    }
    Ok(swept)
}

/// The name that a temporary would have been given: without its last two
/// parts.
fn final_name(temporary: &str) -> &str {
    let name = temporary.strip_suffix(TEMPORARY_SUFFIX).unwrap_or(temporary);
    name.rsplit_once('.').map_or(name, |(name, _attempt)| name)
}

/// A new file beside `path`. Names are unique per process and attempt, so two
/// publishers of one path never write into the same file.
fn create_temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, "the path does not end with a file name")
    })?;
    loop {
        let mut temporary = OsString::from(name);
        let attempt = NEXT.fetch_add(1, Ordering::Relaxed);
        temporary.push(format!(".{}-{attempt}{TEMPORARY_SUFFIX}", std::process::id()));
        let temporary = path.with_file_name(temporary);
        match File::options().read(true).write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            // Left by a crashed process that had the same id.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Also runs when the writer panics. A file that cannot be removed is what
/// [`sweep_temporaries`] is for.
struct RemoveOnDrop<'a>(&'a Path);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.0);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_published_file_replaces_the_old_one_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pointer");
        publish(&path, |f| f.write_all(b"old")).unwrap();
        let written = publish(&path, |f| f.write(b"new")).unwrap();
        assert_eq!(written, 3);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["pointer"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pointer");
        publish(&path, |f| f.write_all(b"old")).unwrap();
        let failed = publish(&path, |f| {
            f.write_all(b"half")?;
            Err::<(), _>(io::Error::other("disk on fire"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "disk on fire");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["pointer"]);
    }

    #[test]
    fn until_the_writer_is_done_only_a_temporary_is_visible() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pointer");
        publish(&path, |_| {
            let seen = names(dir.path());
            assert_eq!(seen.len(), 1);
            assert!(seen[0].starts_with("pointer.") && seen[0].ends_with(TEMPORARY_SUFFIX));
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn two_publishers_of_one_path_never_share_a_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pointer");
        publish(&path, |outer| {
            publish(&path, |inner| inner.write_all(b"inner"))?;
            outer.write_all(b"outer")
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"outer");
    }

    #[test]
    fn a_sweep_removes_temporaries_only() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.seg.zst", "a.seg.zst.7-0.tmp", "tmp"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::create_dir(dir.path().join("kept.tmp")).unwrap();
        let swept = sweep_temporaries(dir.path()).unwrap();
        assert_eq!(swept, [dir.path().join("a.seg.zst.7-0.tmp")]);
        assert_eq!(names(dir.path()), ["a.seg.zst", "kept.tmp", "tmp"]);
        for name in ["a.seg.zst.7-0.tmp", "spare.tmp"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let swept = sweep_temporaries_of(dir.path(), |name| name == "a.seg.zst").unwrap();
        assert_eq!(swept, [dir.path().join("a.seg.zst.7-0.tmp")]);
    }

    #[test]
    fn a_folder_is_there_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        let new = NewDirectory::begin(&path).unwrap();
        fs::create_dir(new.partial().join("inner")).unwrap();
        fs::write(new.partial().join("inner/file"), b"bytes").unwrap();
        assert_eq!(names(dir.path()), ["backup.partial"]);
        assert!(NewDirectory::begin(&path).unwrap_err().to_string().contains("remove it"));
        drop(new);
        assert_eq!(names(dir.path()), [""; 0]);
        let new = NewDirectory::begin(&path).unwrap();
        fs::write(new.partial().join("file"), b"bytes").unwrap();
        new.publish().unwrap();
        assert_eq!((names(dir.path()), names(&path)), (vec!["backup".to_owned()], vec!["file".to_owned()]));
        assert!(NewDirectory::begin(&path).unwrap_err().to_string().contains("is there already"));
    }

    #[test]
    fn an_error_names_the_path_and_the_step() {
        let error = publish(Path::new("/nowhere/at/all"), |_| Ok(())).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("cannot create a temporary file for /nowhere/at/all"));
        assert!(publish(Path::new("/"), |_| Ok(())).is_err());
    }
}

//! The folder of dictionaries beside a stream's segments.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::{Dictionary, MAX_DICTIONARY_BYTES, Malformed, hex};
use crate::durable;

/// Why a dictionary could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is in none of the places where it could be.
    #[error(
        "the dictionary {} is missing; looked for {}; `thalweg dictionaries restore` puts it back from the object store",
        hex(digest),
        looked_at.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" and ")
    )]
    Missing {
        /// SHA-256 of the dictionary.
        digest: [u8; 32],
        /// The files that could have been it.
        looked_at: Vec<PathBuf>,
    },
    /// The file has its name and other bytes.
    #[error(
        "{} is not the dictionary {}: its SHA-256 is {}; remove it, then `thalweg dictionaries restore` puts the right one there",
        path.display(),
        hex(expected),
        hex(found)
    )]
    Altered {
        /// The file.
        path: PathBuf,
        /// SHA-256 of the dictionary.
        expected: [u8; 32],
        /// SHA-256 of the file.
        found: [u8; 32],
    },
    /// The bytes are no dictionary.
    #[error("{} holds no dictionary: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        source: Malformed,
    },
    /// The pointer to the adopted dictionary holds something else.
    #[error(
        "{} holds no digest; remove it to seal without a dictionary, or train a new one",
        path.display()
    )]
    Pointer {
        /// The pointer.
        path: PathBuf,
    },
    /// The file system failed. Worth another try.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Name of the folder, beside the segments.
const FOLDER: &str = "dictionaries";
/// Name of the pointer in it.
const ADOPTED: &str = "adopted";
const EXTENSION: &str = "dict";

/// The dictionaries beside one stream's segments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// The folder of the segments.
    segments: PathBuf,
}

impl Library {
    /// Of the segments in `folder`. Nothing is created.
    pub fn of_segments(folder: &Path) -> Self {
        Self { segments: folder.to_owned() }
    }

    /// Of the segment in the file at `path`: in the folder of its stream, or in
    /// the quarantine there.
    pub fn beside(path: &Path) -> Self {
        let folder = path.parent().unwrap_or(Path::new(""));
        let of_stream = if folder.ends_with("quarantine") { folder.parent() } else { None };
        Self::of_segments(of_stream.unwrap_or(folder))
    }

    /// The folder of the dictionaries.
    pub fn folder(&self) -> PathBuf {
        self.segments.join(FOLDER)
    }

    /// Where the dictionary lies that has this digest.
    pub fn path(&self, digest: &[u8; 32]) -> PathBuf {
        self.folder().join(file_name(digest))
    }

    /// The dictionary with this digest, from its folder or, for a segment
    /// that was copied out, from beside the segment. Read once per process
    /// while anyone uses it.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(&self, digest: &[u8; 32]) -> Result<Arc<Dictionary>, LoadError> {
        if let Some(loaded) = in_use(digest) {
            return Ok(loaded);
        }
        let looked_at = vec![self.path(digest), self.segments.join(file_name(digest))];
        for path in &looked_at {
            if let Some(dictionary) = read(path)? {
                let found = dictionary.identity.digest;
                if found != *digest {
                    return Err(LoadError::Altered { path: path.clone(), expected: *digest, found });
                }
                return Ok(share(dictionary));
            }
        }
        Err(LoadError::Missing { digest: *digest, looked_at })
    }

    /// Every sound dictionary in the folder: for blocks whose index, and with
    /// it the digest, is gone.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn all(&self) -> io::Result<Vec<Arc<Dictionary>>> {
        Ok(self.list()?.into_iter().filter_map(|digest| self.load(&digest).ok()).collect())
    }

    /// Digests of the dictionaries in the folder, ascending.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<[u8; 32]>> {
        let mut digests = Vec::new();
        match fs::read_dir(self.folder()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            entries => {
                for entry in entries? {
                    let name = entry?.file_name();
                    let digest = name.to_str().and_then(|name| name.strip_suffix(".dict")).and_then(unhex);
                    digests.extend(digest);
                }
            }
        }
        digests.sort_unstable();
        Ok(digests)
    }

    /// Keeps a copy, durably, in the place of whatever has its name.
    ///
    /// # Errors
    /// What the file system says.
    pub fn keep(&self, dictionary: &Dictionary) -> io::Result<()> {
        match fs::create_dir(self.folder()) {
            Ok(()) => durable::sync_dir(&self.segments)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        let path = self.path(&dictionary.identity.digest);
        durable::publish(&path, |file| file.write_all(&dictionary.bytes))
    }

    /// Whether the folder has a sound copy.
    ///
    /// # Errors
    /// [`LoadError::Io`] only.
    pub fn holds(&self, digest: &[u8; 32]) -> Result<bool, LoadError> {
        match read(&self.path(digest)) {
            Ok(found) => Ok(found.is_some_and(|found| found.identity.digest == *digest)),
            Err(LoadError::Malformed { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The dictionary that new segments are to be sealed with; `None` if none
    /// was adopted.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn adopted(&self) -> Result<Option<Arc<Dictionary>>, LoadError> {
        self.adopted_digest()?.map(|digest| self.load(&digest)).transpose()
    }

    /// The digest of [`Library::adopted`], whether it is there or not.
    ///
    /// # Errors
    /// [`LoadError::Pointer`] or [`LoadError::Io`].
    pub fn adopted_digest(&self) -> Result<Option<[u8; 32]>, LoadError> {
        let path = self.folder().join(ADOPTED);
        match fs::read_to_string(&path) {
            Ok(text) => unhex(text.trim_end()).map(Some).ok_or(LoadError::Pointer { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(LoadError::Pointer { path }),
            Err(source) => Err(LoadError::Io { path, source }),
        }
    }

    /// From now on new segments are to be sealed with `dictionary`, of which a
    /// copy is kept first.
    ///
    /// # Errors
    /// What the file system says.
    pub fn adopt(&self, dictionary: &Dictionary) -> io::Result<()> {
        self.keep(dictionary)?;
        let pointer = dictionary.identity.hex() + "\n";
        durable::publish(&self.folder().join(ADOPTED), |file| file.write_all(pointer.as_bytes()))
    }

    /// From now on new segments are to be sealed without a dictionary.
    ///
    /// # Errors
    /// What the file system says.
    pub fn abandon(&self) -> io::Result<()> {
        remove(&self.folder().join(ADOPTED))?;
        durable::sync_dir(&self.folder())
    }

    /// Removes the copy of a dictionary that nothing needs any more.
    ///
    /// # Errors
    /// What the file system says.
    pub fn remove(&self, digest: &[u8; 32]) -> io::Result<()> {
        remove(&self.path(digest))?;
        durable::sync_dir(&self.folder())
    }
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn file_name(digest: &[u8; 32]) -> String {
    format!("{}.{EXTENSION}", hex(digest))
}

/// The dictionary in the file at `path`; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Dictionary>, LoadError> {
    let failed = |source| LoadError::Io { path: path.to_owned(), source };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_DICTIONARY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let malformed = |source| LoadError::Malformed { path: path.to_owned(), source };
    Dictionary::new(bytes).map(Some).map_err(malformed)
}

/// 32 bytes from 64 hex digits.
pub(super) fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 2 * digest.len() || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

/// What is loaded and in use. Thousands of segments share one dictionary, and
/// a digest means the same bytes in every folder.
static IN_USE: Mutex<BTreeMap<[u8; 32], Weak<Dictionary>>> = Mutex::new(BTreeMap::new());

fn in_use(digest: &[u8; 32]) -> Option<Arc<Dictionary>> {
    IN_USE.lock().unwrap_or_else(PoisonError::into_inner).get(digest)?.upgrade()
}

fn share(dictionary: Dictionary) -> Arc<Dictionary> {
    let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    in_use.retain(|_, weak| weak.strong_count() > 0);
    let digest = dictionary.identity.digest;
    if let Some(already) = in_use.get(&digest).and_then(Weak::upgrade) {
        return already;
    }
    let shared = Arc::new(dictionary);
    in_use.insert(digest, Arc::downgrade(&shared));
    shared
}

#[cfg(test)]
mod tests {
    use super::{super::testing::trained, *};

    #[test]
    fn a_kept_dictionary_is_found_by_its_digest_and_shared() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::beside(&dir.path().join("x.seg.zst"));
        assert_eq!(library.list().unwrap(), Vec::<[u8; 32]>::new());
        let dictionary = trained(100, 8 << 10);
        let digest = dictionary.identity().digest;
        assert!(!library.holds(&digest).unwrap());
        library.keep(&dictionary).unwrap();
        library.keep(&dictionary).unwrap();
        assert!(library.holds(&digest).unwrap());
        let (a, b) = (library.load(&digest).unwrap(), library.load(&digest).unwrap());
        assert!(Arc::ptr_eq(&a, &b));
        assert_eq!(a.bytes(), dictionary.bytes());
        assert_eq!(library.list().unwrap(), [digest]);
        fs::write(library.path(&[7; 32]), b"no dictionary").unwrap();
        let all: Vec<_> = library.all().unwrap().iter().map(|found| found.identity()).collect();
        assert_eq!(all, [dictionary.identity()]);
    }

    #[test]
    fn a_missing_dictionary_is_named_and_so_is_where_it_was_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::of_segments(dir.path());
        let error = library.load(&[0xAB; 32]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&"ab".repeat(32)), "{text}");
        assert!(text.contains(&dir.path().join("dictionaries").display().to_string()), "{text}");
        assert!(matches!(error, LoadError::Missing { looked_at, .. } if looked_at.len() == 2));
    }

    #[test]
    fn a_copy_beside_the_segment_is_found_too() {
        let dir = tempfile::tempdir().unwrap();
        let dictionary = trained(200, 8 << 10);
        let digest = dictionary.identity().digest;
        fs::write(dir.path().join(file_name(&digest)), dictionary.bytes()).unwrap();
        assert_eq!(Library::of_segments(dir.path()).load(&digest).unwrap().identity(), dictionary.identity());
    }

    #[test]
    fn another_dictionary_under_the_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::of_segments(dir.path());
        let (named, other) = (trained(300, 8 << 10), trained(5_000, 8 << 10));
        let expected = named.identity().digest;
        library.keep(&named).unwrap();
        fs::write(library.path(&expected), other.bytes()).unwrap();
        let error = library.load(&expected).unwrap_err();
        assert!(matches!(error, LoadError::Altered { found, .. } if found == other.identity().digest));
        assert!(!library.holds(&expected).unwrap());
        fs::write(library.path(&expected), b"no dictionary").unwrap();
        assert!(matches!(library.load(&expected), Err(LoadError::Malformed { .. })));
        assert!(!library.holds(&expected).unwrap());
        library.keep(&named).unwrap();
        assert!(library.holds(&expected).unwrap());
    }

    #[test]
    fn the_adopted_dictionary_is_the_last_that_was_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let library = Library::of_segments(dir.path());
        assert!(library.adopted().unwrap().is_none());
        let (first, second) = (trained(400, 8 << 10), trained(5_000, 8 << 10));
        library.adopt(&first).unwrap();
        library.adopt(&second).unwrap();
        assert_eq!(library.adopted().unwrap().unwrap().identity(), second.identity());
        assert_eq!(library.list().unwrap().len(), 2, "the first may be needed still");
        fs::remove_file(library.path(&second.identity().digest)).unwrap();
        assert!(matches!(library.adopted(), Err(LoadError::Missing { .. })));
        fs::write(library.folder().join(ADOPTED), "nonsense").unwrap();
        assert!(matches!(library.adopted(), Err(LoadError::Pointer { .. })));
    }
}

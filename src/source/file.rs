//! Files, folders and standard input.
//!
//! One thread reads a folder's files one after the other into bounded pieces;
//! they go to the log as they come, several files in one write. How many
//! frames of each are acknowledged is kept in the store, so that a restart
//! goes on after them; what was under way at a crash comes again, and
//! deduplication knows it.

mod bookmarks;
mod pieces;
mod taking;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

pub use self::pieces::read_pieces;
use self::{
    bookmarks::Bookmarks,
    taking::{Input, Step, take},
};
use crate::{
    pipeline::{Ingest, Origin},
    store::{SourceProgress, Store},
    units::ByteSize,
};

/// What a file holds. A `.zst` around either is opened by its magic bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Frames end to end, as on a socket; a sealed segment too.
    Frames,
    /// A JSON object a line.
    JsonLines,
}

impl Content {
    /// What the name of `path` says it holds; `None` if it says nothing known.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let name = name.strip_suffix(".zst").unwrap_or(name);
        match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            "frames" | "seg" | "msgpack" => Some(Self::Frames),
            _ => None,
        }
    }
}

/// The files at `path` whose content is known: itself, or those in the folder,
/// by name.
pub fn files_at(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && Content::of(&entry.path()).is_some() {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// How often a watched folder is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// A file or folder that is read into a pipeline.
#[derive(Clone, Debug)]
pub struct Files {
    /// The source's name.
    pub source: String,
    /// File or folder.
    pub path: PathBuf,
    /// What the files hold; by their names if `None`.
    pub content: Option<Content>,
    /// Whether to go on looking for new files.
    pub watch: bool,
}

impl Files {
    /// Whether there is something to read, and it is known what it holds.
    ///
    /// # Errors
    /// If the path is not there, or its name does not say what it holds.
    pub fn look(&self) -> io::Result<()> {
        let files = files_at(&self.path);
        let files = files.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.path.display())))?;
        files.iter().try_for_each(|path| self.content_of(path).map(drop))
    }

    fn content_of(&self, path: &Path) -> io::Result<Content> {
        self.content.or_else(|| Content::of(path)).ok_or_else(|| {
            io::Error::other("its name does not say what it holds; set `format` to \"jsonl\" or \"frames\"")
        })
    }

    /// Reads every file that is new or has changed, and watches for more if
    /// asked to. Ends when all is read, or when the pipeline closes.
    ///
    /// # Errors
    /// If a file cannot be read, or the log or the store takes nothing.
    pub async fn run(self, store: Store, ingest: Ingest) -> io::Result<()> {
        let mut bookmarks = Bookmarks::in_store(store.clone());
        loop {
            let known = store.progress(&self.source).await.map_err(io::Error::other)?;
            let known = known.iter().chain(bookmarks.unkept());
            let mut known: HashMap<String, SourceProgress> =
                known.map(|progress| (progress.path.clone(), progress.clone())).collect();
            let files = files_at(&self.path)?;
            let (this, max_frame) = (self.clone(), ingest.max_frame());
            let read_all = move |out: &mut dyn FnMut(Step) -> bool| {
                for path in files {
                    let name = path.display().to_string();
                    let before = known.remove(&name);
                    if !this.read(&path, name, before, max_frame, out) {
                        break;
                    }
                }
            };
            take(read_all, &ingest, Some(&mut bookmarks)).await?;
            if !self.watch || ingest.closing().is_cancelled() {
                return Ok(());
            }
            tokio::select! {
                () = ingest.closing().cancelled() => return Ok(()),
                () = tokio::time::sleep(WATCH_EVERY) => {}
            }
        }
    }

    /// Reads the file at `path` from where it was read to `before`. Whether to
    /// go on with the next: not if it fails, or `out` wants no more.
    fn read(
        &self,
        path: &Path,
        name: String,
        before: Option<SourceProgress>,
        max_frame: ByteSize,
        out: &mut dyn FnMut(Step) -> bool,
    ) -> bool {
        let opened = self.open(path, &name, before);
        let read = match opened {
            Ok(None) => return true,
            Ok(Some((file, content, progress))) => {
                let origin = Origin { source: self.source.clone(), peer: Some(name), tenant: None };
                if !out(Step::Begin(Input { origin, progress: Some(progress) })) {
                    return false;
                }
                pieces::read_pieces(file, content, max_frame, &mut |piece| out(Step::Part(piece)))
            }
            Err(error) => Err(error),
        };
        let read = read.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())));
        let is_read = read.is_ok();
        out(Step::End(read)) && is_read
    }

    /// The file at `path`, what it holds and from where on it is to be read,
    /// unless it was read to its end.
    fn open(
        &self,
        path: &Path,
        name: &str,
        before: Option<SourceProgress>,
    ) -> io::Result<Option<(File, Content, SourceProgress)>> {
        let content = self.content_of(path)?;
        let meta = fs::metadata(path)?;
        let mtime_ns = meta
            .modified()?
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
        let same = before.filter(|p| p.size == meta.len() && p.mtime_ns == mtime_ns);
        if same.as_ref().is_some_and(|p| p.done) {
            return Ok(None);
        }
        let progress = SourceProgress {
            source: self.source.clone(),
            path: name.to_owned(),
            size: meta.len(),
            mtime_ns,
            records: same.map_or(0, |p| p.records),
            done: false,
        };
        Ok(Some((File::open(path)?, content, progress)))
    }
}

/// Reads standard input to its end.
///
/// # Errors
/// If it cannot be read, or the log takes nothing.
pub async fn stdin(source: String, content: Content, ingest: Ingest) -> io::Result<()> {
    let origin = Origin { source, peer: None, tenant: None };
    let max_frame = ingest.max_frame();
    let read = move |out: &mut dyn FnMut(Step) -> bool| {
        if out(Step::Begin(Input { origin, progress: None })) {
            let read = read_pieces(io::stdin(), content, max_frame, &mut |piece| out(Step::Part(piece)));
            out(Step::End(read));
        }
    };
    take(read, &ingest, None).await
}

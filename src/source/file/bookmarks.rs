//! How far files are read, kept in the store.

use std::{
    io, mem,
    time::{Duration, Instant},
};

use crate::store::{SourceProgress, Store};

/// How often it is kept how far files are read, while they are.
const KEEP_EVERY: Duration = Duration::from_millis(50);

/// How far files are read. Kept at times only, many files together: they
/// would otherwise cost more to remember than to read, and behind the last
/// time lies only what deduplication knows.
pub(super) struct Bookmarks {
    store: Store,
    kept: Instant,
    /// What the store is to be told: of each file once, of the one that is
    /// being read last.
    moved: Vec<SourceProgress>,
}

impl Bookmarks {
    /// Kept in `store`.
    pub fn in_store(store: Store) -> Self {
        Self { store, kept: Instant::now(), moved: Vec::new() }
    }

    /// Notes how far a file is read, and has it kept now and then.
    pub async fn move_to(&mut self, at: &SourceProgress) -> io::Result<()> {
        self.moved.pop_if(|last| last.path == at.path);
        self.moved.push(at.clone());
        if self.kept.elapsed() < KEEP_EVERY { Ok(()) } else { self.keep().await }
    }

    /// A store that has no room just now must not end the source: the next
    /// time says the same of the file that is being read, and more.
    pub async fn keep(&mut self) -> io::Result<()> {
        self.kept = Instant::now();
        let moved = mem::take(&mut self.moved);
        let Some(last) = moved.last() else { return Ok(()) };
        match self.store.set_progress(&moved).await {
            Err(error) if error.is_transient() => {
                let (file, records, files) = (&last.path, last.records, moved.len());
                tracing::warn!(%error, file, records, files, "how far files are read could not be kept");
                Ok(())
            }
            done => done.map_err(io::Error::other),
        }
    }
}

//! How far files are read, kept in the store.

use std::{
    collections::HashMap,
    io, mem,
    time::{Duration, Instant},
};

use crate::store::{SourceProgress, Store};

/// How often it is kept how far files are read, while they are.
pub(super) const KEEP_EVERY: Duration = Duration::from_millis(50);

/// How far files are read. Kept at times only, many files together: they
/// would otherwise cost more to remember than to read. What is not kept yet
/// when the process dies comes again.
pub(super) struct Bookmarks {
    store: Store,
    kept: Instant,
    /// What the store is to be told, by path.
    moved: HashMap<String, SourceProgress>,
}

impl Bookmarks {
    /// Kept in `store`.
    pub fn in_store(store: Store) -> Self {
        Self { store, kept: Instant::now(), moved: HashMap::new() }
    }

    /// What the store has not been told yet, which it may say otherwise.
    pub fn unkept(&self) -> impl Iterator<Item = &SourceProgress> {
        self.moved.values()
    }

    /// Notes how far a file is read, and has it kept now and then.
    pub async fn move_to(&mut self, at: &SourceProgress) -> io::Result<()> {
        self.moved.insert(at.path.clone(), at.clone());
        if self.kept.elapsed() < KEEP_EVERY { Ok(()) } else { self.keep().await }
    }

    /// A store that has no room just now must not end the source: it is told
    /// the next time.
    pub async fn keep(&mut self) -> io::Result<()> {
        self.kept = Instant::now();
        if self.moved.is_empty() {
            return Ok(());
        }
        let moved: Vec<SourceProgress> = mem::take(&mut self.moved).into_values().collect();
        match self.store.set_progress(&moved).await {
            Err(error) if error.is_transient() => {
                let files = moved.len();
                tracing::warn!(%error, files, "how far files are read could not be kept; it is tried again");
                self.moved = moved.into_iter().map(|at| (at.path.clone(), at)).collect();
                Ok(())
            }
            done => done.map_err(io::Error::other),
        }
    }
}

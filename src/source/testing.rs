//! A pipeline's way in, for the tests of this module.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    log::{self, Log},
    pipeline::{Ingest, progress::Progress},
    store::{Checkpoint, Store},
    units::ByteSize,
};

/// A way in, and what it needs.
pub struct Way {
    pub log: Log,
    pub ingest: Ingest,
    pub store: Store,
    _folder: tempfile::TempDir,
}

impl Way {
    /// One for frames of at most `max_frame` bytes.
    pub async fn open(max_frame: ByteSize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let segment_bytes = ByteSize::mib(4);
        let settings =
            log::Settings { segment_bytes, max_frame_bytes: max_frame, ..log::Settings::default() };
        let ids = Box::new(rand::random);
        let (log, _) = Log::open(folder.path(), "s", &settings, clock::system(), ids).unwrap();
        let store = Store::open(&folder.path().join("store.sqlite")).await.unwrap();
        let progress = Arc::new(Progress::new(Checkpoint::default()));
        let closing = CancellationToken::new();
        let writer = log.writer();
        let ingest = Ingest::new("p", writer, store.clone(), progress, clock::system(), max_frame, closing);
        Self { log, ingest, store, _folder: folder }
    }
}

//! A store in one SQLite file: opening it, its connections, its schema.
//! The SQL stands in the files beside this one, one noun each.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use libsqlite3_sys as ffi;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Sqlite, SqlitePool, Transaction};

use self::matrix::Matrices;
use super::Settings;
use super::error::{Doing, StoreError};
use super::frequencies::Frequencies;
use super::spaces::SpaceRow;

mod artifacts;
mod audit;
mod backup;
mod canaries;
mod checkpoint;
mod commit;
mod damage;
mod dead_letters;
mod erasures;
mod forget;
mod insert;
mod inspect;
mod jobs;
mod keys;
mod lists;
mod lost;
mod matrix;
mod migration;
mod nearest;
mod new_rows;
mod progress;
mod replay;
mod retention;
mod segments;
mod spaces;
mod spending;
mod stored;
mod texts;
mod trail;
mod waiting;
mod webhooks;

/// Readers at once. Searching is bound by the processor, so more would only
/// wait for each other.
const READERS: u32 = 8;

/// Large enough that a vector of 1,024 numbers stays within its b-tree page:
/// one that spills costs a second read for every row of a scan.
const PAGE_BYTES: u32 = 16_384;

/// How long a writer waits for the writer of another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(30);

/// One database file. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub(super) struct SqliteStore {
    inner: Arc<Inner>,
}

struct Inner {
    writer: SqlitePool,
    readers: SqlitePool,
    matrices: Matrices,
    spaces: Mutex<HashMap<i64, Arc<SpaceRow>>>,
    frequencies: Frequencies,
}

impl SqliteStore {
    /// Opens the file at `path`; of `settings` all but the path is used.
    pub async fn open(path: &Path, settings: &Settings) -> Result<Self, StoreError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        register_vector_functions();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .page_size(PAGE_BYTES)
            .journal_mode(SqliteJournalMode::Wal)
            // A commit moves a checkpoint, so it must be on disk before the
            // log below it may be given up.
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("cache_size", "-65536")
            .pragma("temp_store", "memory")
            .pragma("mmap_size", "1073741824");
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            // SQLite ends a transaction by itself when the disk is full; the
            // driver still counts it as open and could begin no other. Such a
            // connection is replaced.
            .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
            .connect_with(options.clone())
            .await
            .map_err(|e| failed(e.into()))?;
        sqlx::migrate!("migrations/sqlite").run(&writer).await.map_err(|e| failed(e.into()))?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(options.pragma("query_only", "on"))
            .await
            .map_err(|e| failed(e.into()))?;
        Ok(Self {
            inner: Arc::new(Inner {
                writer,
                readers,
                matrices: Matrices::new(settings.vector_memory.as_usize()),
                spaces: Mutex::default(),
                frequencies: Frequencies::default(),
            }),
        })
    }

    /// Waits for running calls and closes the file.
    pub async fn close(&self) {
        self.inner.readers.close().await;
        self.inner.writer.close().await;
    }

    /// Bytes of the database: its pages, those still in the write-ahead log
    /// included.
    pub async fn database_bytes(&self) -> Result<u64, StoreError> {
        sqlx::query_scalar::<_, i64>("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            .fetch_one(self.readers())
            .await
            .map(i64::cast_unsigned)
            .doing("measuring the database")
    }

    pub(super) fn readers(&self) -> &SqlitePool {
        &self.inner.readers
    }

    fn writer(&self) -> &SqlitePool {
        &self.inner.writer
    }

    fn matrices(&self) -> &Matrices {
        &self.inner.matrices
    }

    pub(super) fn frequencies(&self) -> &Frequencies {
        &self.inner.frequencies
    }

    /// Begins a write at once, so that it can neither deadlock with nor lose
    /// to another writer half way.
    pub(super) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StoreError> {
        self.inner.writer.begin_with("BEGIN IMMEDIATE").await.doing("beginning a transaction")
    }

    pub(super) fn remembered_space(&self, space_key: i64) -> Option<Arc<SpaceRow>> {
        self.inner.spaces.lock().unwrap_or_else(PoisonError::into_inner).get(&space_key).cloned()
    }

    pub(super) fn remember_space(&self, space: Arc<SpaceRow>) {
        let mut spaces = self.inner.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.insert(space.space_key, space);
    }

    pub(super) fn forget_spaces(&self) {
        self.inner.spaces.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    pub(super) fn forget_space(&self, space_key: i64) {
        self.inner.spaces.lock().unwrap_or_else(PoisonError::into_inner).remove(&space_key);
    }
}

/// Makes the distance functions of sqlite-vec known to every connection
/// opened from here on.
fn register_vector_functions() {
    static ONCE: Once = Once::new();
    type EntryPoint = unsafe extern "C" fn(
        *mut ffi::sqlite3,
        *mut *mut std::ffi::c_char,
        *const ffi::sqlite3_api_routines,
    ) -> std::ffi::c_int;
    ONCE.call_once(|| {
        // SAFETY: `sqlite3_vec_init` is an extension entry point with exactly
        // this signature; the crate declares it without arguments. It is
        // linked statically, so the pointer stays valid for the process.
        // Registering cannot fail but for want of memory; then the first
        // query that needs a distance says that the function is missing.
        unsafe {
            let entry: EntryPoint = std::mem::transmute(sqlite_vec::sqlite3_vec_init as *const ());
            ffi::sqlite3_auto_extension(Some(entry));
        }
    });
}

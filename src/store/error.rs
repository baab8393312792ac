//! What can go wrong in a store.

use std::path::PathBuf;

use sqlx::postgres::PgDatabaseError;

/// A store could not do what was asked. Nothing of the failed call was
/// written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or brought to this version's schema.
    #[error("cannot open the store {}: {source}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite or the migration said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The URL of the database cannot be read.
    #[error("store.url cannot be read: {reason}; it is postgres://USER:PASSWORD@HOST:PORT/NAME")]
    Url {
        /// What is wrong with it.
        reason: String,
    },
    /// The database cannot be reached or brought to this version's schema.
    #[error("cannot open the store {database}: {source}")]
    Connect {
        /// USER@HOST:PORT/NAME.
        database: String,
        /// What the driver or the migration said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The database failed.
    #[error("the store failed while {doing}: {source}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What the database said.
        source: sqlx::Error,
    },
    /// Another owner has taken over this stream since the lease was given.
    #[error(
        "the lease of {pipeline}/{stream} (epoch {epoch}) is no longer valid: another writer has taken over; \
         acquire a new lease and read on from its checkpoint"
    )]
    Fenced {
        /// Pipeline of the lease.
        pipeline: String,
        /// Stream of the lease.
        stream: String,
        /// Epoch of the lease.
        epoch: u64,
    },
    /// A batch does not say exactly once what became of each of its offsets.
    #[error("the batch of offsets {from}..{to} does not add up: {reason}")]
    Unbalanced {
        /// First offset of the batch.
        from: u64,
        /// End of the batch, excluded.
        to: u64,
        /// What is missing or said twice.
        reason: String,
    },
    /// A vector that must not be stored or compared.
    #[error("{of}: the vector cannot be used: {reason}")]
    Vector {
        /// Whose vector: `offset 7, chunk 0` or `query`.
        of: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A record's content is already stored. It became known after the batch
    /// was judged; judge it again.
    #[error(
        "{count} deduplication keys of this batch are already taken; look them up again and mark their records \
         as deduplicated"
    )]
    Duplicate {
        /// How many keys.
        count: u64,
    },
    /// The space was never registered here.
    #[error("the store knows no embedding space with key {space_key}; register it first")]
    UnknownSpace {
        /// The key asked for.
        space_key: i64,
    },
    /// No embedder of this pipeline makes vectors of the live space.
    #[error(
        "the live embedding space of the store ({}) is none that the pipeline file has an embedder for; \
         `thalweg models list` shows the spaces: name the live one's model in [embed], and one to change to \
         in [migrate]", live.map_or("none".to_owned(), |key| format!("key {key}"))
    )]
    NotServed {
        /// The live space's key, if there is a live one.
        live: Option<i64>,
    },
    /// The batch's vectors are of a space that is no longer live.
    #[error("the embedding space with key {space_key} is no longer live; embed the batch again")]
    NotLive {
        /// The batch's space.
        space_key: i64,
    },
    /// The space lacks vectors that the live one has.
    #[error(
        "the space with key {space_key} lacks {chunks} vectors that the live one has; let the daemon run until \
         it is complete"
    )]
    Behind {
        /// The space.
        space_key: i64,
        /// How many.
        chunks: u64,
    },
    /// The space's vectors are deleted.
    #[error("the space with key {space_key} is retired, its vectors are gone; it has to be built anew")]
    Retired {
        /// The space.
        space_key: i64,
    },
    /// The space is live, or there is none with this key.
    #[error("the space with key {space_key} is live or unknown; switch to another one first")]
    NotRetirable {
        /// The space.
        space_key: i64,
    },
    /// The question cannot be answered as put.
    #[error("the query cannot be answered: {reason}")]
    Query {
        /// What to change.
        reason: &'static str,
    },
    /// There is something where a backup was to be restored.
    #[error("{place}; a backup is restored only where nothing is: move it away, or name another place")]
    Occupied {
        /// What is there.
        place: String,
    },
    /// A program of the database's own failed.
    #[error("{program}: {reason}")]
    Tool {
        /// Its name.
        program: &'static str,
        /// What it said, or why it was not run.
        reason: String,
    },
    /// A file of the store cannot be written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A stored value cannot be read back.
    #[error("the store holds a {what} that cannot be read: {reason}; run `thalweg audit`")]
    Damaged {
        /// Which kind of value.
        what: &'static str,
        /// Why not.
        reason: String,
    },
}

impl StoreError {
    /// Whether the same call may succeed later: the database was busy or away,
    /// no connection was free, or the disk was full or refused to read or
    /// write. Nothing is written by halves; but where the connection was lost
    /// in a commit, it may be written whole.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database { source: sqlx::Error::Database(e), .. } => {
                e.code().is_some_and(|code| match e.try_downcast_ref::<PgDatabaseError>() {
                    Some(_) => is_transient_in_postgres(&code),
                    None => is_transient_in_sqlite(&code),
                })
            }
            Self::Database { source, .. } => {
                matches!(
                    source,
                    sqlx::Error::PoolTimedOut
                        | sqlx::Error::Io(_)
                        | sqlx::Error::WorkerCrashed
                        // A connection that is out of step; another one is not.
                        | sqlx::Error::Protocol(_)
                        | sqlx::Error::BeginFailed
                )
            }
            _ => false,
        }
    }
}

fn is_transient_in_sqlite(code: &str) -> bool {
    const BUSY: i32 = 5;
    const LOCKED: i32 = 6;
    const IO: i32 = 10;
    const FULL: i32 = 13;
    const CANNOT_OPEN: i32 = 14;
    // Extended codes keep the primary one in their low byte.
    code.parse::<i32>().is_ok_and(|code| matches!(code & 0xff, BUSY | LOCKED | IO | FULL | CANNOT_OPEN))
}

/// By class of SQLSTATE: connections (08), want of resources (53), objects in
/// use (55), intervention (57), the system (58), transactions that met (40);
/// states of transactions (25): on a server made a standby, after a failed
/// statement, after a time-out.
fn is_transient_in_postgres(code: &str) -> bool {
    ["08", "25", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
}

/// Says what was being done when the database failed.
pub(super) trait Doing<T> {
    /// Wraps the error with `doing`, a phrase that follows "while".
    fn doing(self, doing: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Database { doing, source })
    }
}

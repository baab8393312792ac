//! Whose a stream is.

use sqlx::FromRow;

/// The data directory that a stream's log lies in.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct StreamOwner {
    /// The directory's identity: 32 hex digits, drawn when it was new.
    pub identity: String,
    /// The machine it was on when it claimed the stream.
    pub host: String,
    /// When that was, in milliseconds since the Unix epoch.
    pub since_ms: i64,
}

//! How far file sources have read each file.

use sqlx::FromRow;

/// How far a source has read a file. A file whose size or time differ from
/// these is another file.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct SourceProgress {
    /// The source's name in the pipeline.
    pub source: String,
    /// The file, as the source names it.
    pub path: String,
    /// Its size in bytes.
    #[sqlx(try_from = "i64")]
    pub size: u64,
    /// When it was last changed, in nanoseconds since the Unix epoch.
    pub mtime_ns: i64,
    /// Records taken from it.
    #[sqlx(try_from = "i64")]
    pub records: u64,
    /// Whether it was read to its end.
    pub done: bool,
}

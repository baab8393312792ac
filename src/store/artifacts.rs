//! The registry of immutable objects.

use sqlx::FromRow;

/// An immutable object in the object store.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct ArtifactRow {
    /// SHA-256 of its bytes, in hex.
    pub digest: String,
    /// `segment`, `pack`, `dictionary`, `report` and the like.
    pub kind: String,
    /// For people; need not be unique.
    pub name: String,
    /// Its size.
    #[sqlx(try_from = "i64")]
    pub bytes: u64,
    /// Where it lies, as the object store names it.
    pub location: String,
    /// When it was registered, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// Whatever belongs to its kind, as a JSON object.
    pub meta: String,
}

//! What an erasure did. It names nobody.

use serde::{Deserialize, Serialize};

/// What was done in one stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The stream.
    pub stream: String,
    /// Frames before this offset were looked at.
    pub until_offset: u64,
    /// Frames that were emptied, in sealed segments.
    pub frames: u64,
    /// Records that were searchable.
    pub records: u64,
    /// Their chunks, and as many vectors and keyword entries.
    pub chunks: u64,
    /// Vectors taken out of the shared cache.
    pub cached: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Segments that were written anew.
    pub segments: Vec<Renewed>,
    /// Corpus packs that were written anew.
    pub packs: Vec<Renewed>,
    /// Digests of dictionaries that were trained on what was erased.
    pub dictionaries: Vec<String>,
    /// Files in quarantine, whose frames were saved or lost before.
    pub quarantine: Vec<String>,
    /// Objects that were deleted.
    pub objects: Vec<String>,
}

/// An artifact that was written anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renewed {
    /// What people know it by.
    pub name: String,
    /// Frames that are empty, or left out, now.
    pub frames: u64,
    /// SHA-256 of the object as it was; none if it was not kept yet.
    pub before: Option<String>,
    /// SHA-256 of the object now; none of a pack with nothing left in it.
    pub after: Option<String>,
}

//! What a socket leads to.

use super::sessions::Sessions;
use crate::{access::Access, pipeline::Ingest};

/// Where connections go: who may come in, how many at a time, and what takes
/// their frames. Cheap to clone.
#[derive(Clone)]
pub struct Entrance {
    /// What takes their frames.
    pub ingest: Ingest,
    /// How many at a time.
    pub sessions: Sessions,
    /// Who.
    pub access: Access,
}

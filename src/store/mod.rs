//! Rows, vectors, keywords and catalog of one database.
//!
//! A [`Store`] is one SQLite file. Deriving writes it with
//! [`Store::commit`]: the rows of a batch, what became of every other offset
//! of it, and the checkpoint, all in one transaction, so that the answer to
//! "how far did we get?" can never disagree with what is stored. Readers work
//! beside the writer on their own snapshot.
//!
//! Retrieval ([`Store::search`]) takes the nearest vectors and the best
//! keyword matches of one tenant and unites them ([`fusion`]). Vectors are
//! compared exactly, never by an approximate index.
//!
//! Pure parts, without a database: [`fusion`], [`keywords`] and the balance of
//! a [`Batch`]. SQL stands in the files beside them, one noun each.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::setting::SettingError;
use crate::units::ByteSize;

mod artifacts;
mod canaries;
mod checkpoint;
mod commit;
mod damage;
mod dead_letters;
mod error;
mod frequencies;
pub mod fusion;
mod hits;
mod insert;
mod inspect;
pub mod keywords;
mod lost;
mod matches;
mod matrix;
mod migration;
mod nearest;
mod new_rows;
mod progress;
mod replay;
mod rows;
mod search;
mod segments;
mod spaces;
mod spending;
mod sqlite;
mod stored;
#[cfg(test)]
mod tests;
mod texts;
mod vector;
mod waiting;

pub use artifacts::ArtifactRow;
pub use checkpoint::{Checkpoint, Lease};
pub use damage::{Damage, DamageKind};
pub use dead_letters::{DeadLetter, DeadLetterState, NewDeadLetter};
pub use error::StoreError;
pub use hits::{Hit, Lineage};
pub use migration::{Missing, Sample};
pub use progress::SourceProgress;
pub use replay::Replayed;
pub use rows::{Batch, ChunkRow, OutcomeKind, OutcomeRow, RecordRow};
pub use search::{Answer, Mode, Query};
pub use segments::SegmentRow;
pub use spaces::{SpaceRow, SpaceState};
pub use sqlite::Store;
pub use stored::{StoredChunk, StoredRecord};
pub use texts::StoredVectors;
pub use waiting::{Moved, WaitingChunk, WaitingPage};

/// Why a record is a dead letter: the embedder will never take its text.
pub const EMBED_INPUT: &str = "embed_input";

/// The `store` section of a pipeline file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The database file, relative to the data directory.
    pub path: String,
    /// Memory for the vectors of large tenants, which are compared there
    /// instead of in the database; 0 turns it off.
    pub vector_memory: ByteSize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { path: "store.sqlite".into(), vector_memory: ByteSize::mib(256) }
    }
}

impl Settings {
    /// Refuses an empty path.
    pub fn validate(&self) -> Result<(), SettingError> {
        SettingError::unless(
            !self.path.trim().is_empty(),
            "path",
            "must name the database file, such as `store.sqlite`",
        )
    }
}

//! Rows, vectors, keywords and catalog of one database.
//!
//! A [`Store`] is one SQLite file or one PostgreSQL database. Deriving writes
//! it with [`Store::commit`]: the rows of a batch, what became of every other
//! offset of it, and the checkpoint, all in one transaction, so that the
//! answer to "how far did we get?" can never disagree with what is stored.
//! Readers work beside the writers on their own snapshot.
//!
//! Retrieval ([`Store::search`]) takes the nearest vectors and the best
//! keyword matches of one tenant and unites them ([`fusion`]).
//!
//! What is asked of a store stands in `handle`; the files beside it hold what
//! both databases share: the types, and everything that needs no database
//! ([`fusion`], [`keywords`], the balance of a [`Batch`], the flow of a
//! search). SQL stands in `sqlite` and `postgres`, one noun a file.

mod analysed;
mod artifacts;
mod audit;
mod backup;
mod checkpoint;
mod damage;
mod dead_letters;
mod erasures;
mod error;
mod forget;
mod frequencies;
pub mod fusion;
mod handle;
mod hits;
mod inventory;
mod jobs;
mod keys;
pub mod keywords;
mod lost;
mod matches;
mod migration;
mod postgres;
mod progress;
mod replay;
mod rows;
mod search;
mod segments;
mod settings;
mod spaces;
mod sqlite;
mod stems;
mod stored;
mod streams;
#[cfg(test)]
mod tests;
mod texts;
mod trail;
mod vector;
mod waiting;
mod webhooks;

pub use analysed::Analysed;
pub use artifacts::ArtifactRow;
pub use audit::{Counted, OutcomeCount, RowCounts};
pub use backup::{Copied, Engine, TableDigest};
pub use checkpoint::{Checkpoint, Lease};
pub use damage::{Damage, DamageKind};
pub use dead_letters::{DeadLetter, DeadLetterHead, DeadLetterState, NewDeadLetter};
pub use erasures::{Erasure, ErasureOfStream};
pub use error::StoreError;
pub use forget::{Forgetting, Forgotten, PinnedRecords, Subject};
pub use handle::Store;
pub use hits::{Hit, Lineage};
pub use inventory::TableCount;
pub use jobs::{ChooseJob, HeldJob, JobClaim, JobEnd, JobFilter, JobProgress, JobRow, JobState, NewJob};
pub use migration::{Missing, Sample};
pub use postgres::{DatabaseProbe, probe};
pub use progress::SourceProgress;
pub use replay::Replayed;
pub use rows::{Batch, ChunkRow, OutcomeKind, OutcomeRow, RecordRow};
pub use search::{Answer, Mode, Query, Scan, TierScan};
pub use segments::SegmentRow;
pub use settings::{Settings, VectorElement, VectorIndex};
pub use spaces::{SpaceRow, SpaceState};
pub use stored::{StoredChunk, StoredRecord};
pub use streams::StreamOwner;
pub use texts::StoredVectors;
pub use trail::NewTrailRow;
pub use waiting::{Moved, WaitingChunk, WaitingPage};
pub use webhooks::{Delivery, DeliveryClaim, DeliveryFilter, DeliveryNote, DeliveryState, NewDelivery};

/// Why a record is a dead letter: the embedder will never take its text.
pub const EMBED_INPUT: &str = "embed_input";

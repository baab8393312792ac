//! The dataflow: in through [`Ingest`], along the log, out through
//! [`derive`] (rows) and [`archive`] (segments, and the [`dictionaries`] they are sealed with);
//! again by [`replay`]; found by [`search`]. What is wrong with the log's files: [`survey`],
//! [`damage`], [`repair`]. Records that the embedder does not take for now: `defer`, [`backfill`].
//! Which embedder serves: [`serving`], and the space that may be next: [`shadow`]; whether it is still the same: [`canary`]; what it
//! costs: [`spending`]. Whether objects and registry agree: [`inventory`]; counters and rows: [`audit`].
//! Documents of a period as one artifact: [`pack`]. What is taken away again: [`erase`], [`retention`]. A
//! copy of the store: [`backup`]. How far long work is: [`meter`].

pub mod admit;
pub mod archive;
pub mod audit;
pub mod backfill;
pub mod backup;
pub(crate) mod batching;
pub mod canary;
mod catalog;
pub mod damage;
mod defer;
pub mod derive;
pub mod deriver;
pub mod dictionaries;
pub mod erase;
pub mod estimate;
pub mod flow;
pub mod frames;
mod ingest;
pub mod inventory;
pub mod meter;
mod offsets;
pub mod ownership;
pub mod pack;
pub mod progress;
pub mod repair;
pub mod replay;
pub mod retention;
pub mod search;
pub mod serving;
pub mod shadow;
mod shown;
pub mod spending;
pub mod stages;
pub mod survey;
pub mod upkeep;
pub mod why;

pub use ingest::{Answer, Bounds, Ingest, Origin, Producer, Refusal, Submitted, TENANT_FORBIDDEN};
pub use offsets::Offsets;

//! The dataflow: in through [`Ingest`], along the log, out through
//! [`derive`] (rows) and [`archive`] (segments, and the [`dictionaries`] they are sealed with);
//! again by [`replay`]; found by [`search`]. What is wrong with the log's files: [`survey`],
//! [`damage`], [`repair`].

pub mod admit;
pub mod archive;
mod catalog;
pub mod damage;
pub mod derive;
pub mod deriver;
pub mod dictionaries;
mod ingest;
mod offsets;
pub mod progress;
pub mod repair;
pub mod replay;
pub mod search;
pub mod survey;

pub use ingest::{Answer, Ingest, Origin, Producer, Refusal, Submitted};
pub use offsets::Offsets;

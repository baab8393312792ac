//! The dataflow: in through [`Ingest`], along the log, out through
//! [`derive`] (rows) and [`archive`] (segments, and the [`dictionaries`] they are sealed with); again by
//! [`replay`]; found by [`search`].

pub mod admit;
pub mod archive;
pub mod derive;
pub mod deriver;
pub mod dictionaries;
mod ingest;
pub mod progress;
pub mod replay;
pub mod search;

pub use ingest::{Answer, Ingest, Origin, Producer, Refusal, Submitted};

//! The log: durable appends, alone and through a daemon, beside what others
//! do and what nothing can be faster than.
//!
//! | module | measures |
//! |---|---|
//! | [`alone`] | the log of the library, without a socket |
//! | [`served`] | a daemon's TCP source, beside a peer |
//! | [`growth`] | the same over more and more gigabytes, and a restart on them |
//!
//! One generator ([`load`]) drives every server with the same frames
//! ([`frames`]) in the same shape; the [`bare`] loop is the ceiling.

mod alone;
mod bare;
mod frames;
mod growth;
mod load;
mod redis;
mod served;

use anyhow::Result;

use super::{Case, Options};

pub use growth::growth;

/// A system that durable appends are compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// Redis Streams with `appendfsync always`
    Redis,
}

/// Measures durable appends, beside `peer` if one is named.
///
/// # Errors
/// If the log, a daemon, the peer or the file system fails.
pub fn log(options: &Options, peer: Option<Peer>) -> Result<Vec<Case>> {
    let mut cases = served::cases(options, peer)?;
    cases.extend(alone::cases(options)?);
    Ok(cases)
}

//! Sources: where frames come from. Each hands its bytes to
//! [`crate::pipeline::Ingest`] and does no more than its transport asks.

pub mod amend;
pub mod client;
pub mod door;
pub mod entrance;
pub mod file;
pub mod forward;
pub mod hello;
pub mod json;
pub mod redrive;
pub mod sessions;
pub mod socket;
pub mod wire;

mod connection;
mod guard;
mod intake;
#[cfg(test)]
mod testing;

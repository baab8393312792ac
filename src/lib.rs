//! Thalweg: a streaming data pipeline engine.
//!
//! Live frames go into a crash-safe log; everything else only reads the log:
//! sealed segments, a vector index and whatever else is derived from it.
//! `docs/architecture.md` draws the whole; the modules below are listed from
//! the bottom up, and none imports a module listed after it
//! (`scripts/check-layers` keeps it so).

#![cfg_attr(
    any(test, fuzzing),
    allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)
)]

#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;

pub mod breaker;
pub mod clock;
pub mod http_client;
pub mod metrics;
pub mod secret;
pub mod setting;
pub mod tls;
pub mod units;

pub mod http_server;

pub mod identity;
pub mod redis;

pub mod rate_limit;

pub mod durable;
pub mod frame;
pub mod msgpack;

pub mod record;

pub mod dataflow;
pub mod dictionary;
pub mod segment;

pub mod log;

pub mod transform;

pub mod embed;

pub mod store;

pub mod access;

pub mod artifact;

pub mod jobs;

pub mod webhooks;

pub mod config;

pub mod pipeline;

pub mod workbench;

pub mod worker;

pub mod source;

pub mod reload;

pub mod api;

pub mod embed_server;

pub mod daemon;

pub mod bench;

pub mod cli;

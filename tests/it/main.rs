//! What Thalweg promises, tested from outside.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test that meets the unexpected should fail where it stands"
)]

mod api;
mod audit;
mod backfill;
mod backup;
mod claims;
mod cli;
mod crash;
mod daemon;
mod damage;
mod dictionaries;
mod disk_full;
mod embed_server;
mod erase;
mod forward;
mod health;
mod hostile;
mod http_identity;
mod idempotent;
mod identity;
mod jobs;
mod ledger;
mod log;
mod migration;
mod models;
mod objects;
mod packs;
mod postgres;
mod producer;
mod protocol;
mod providers;
mod proxy;
mod redis;
mod reload;
mod remote;
mod repair;
mod rerun;
mod retention;
mod secrets;
mod segments;
mod sessions;
mod slo;
mod sources;
mod stop;
mod tenants;
mod tools;
mod top;
mod vault;
mod webhooks;

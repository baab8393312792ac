//! PostgreSQL: loading beside bare `COPY` and beside the usual Python loop,
//! and searching through a daemon beside the bare SQL. SQLite: searching
//! through a daemon, beside nothing.
//!
//! Each run has a database of its own, made on the server at `--url` and
//! dropped afterwards. Texts are the fixtures', over and over; the vectors are
//! made up, near to each other in groups as those of texts are.

mod load;
mod rows;
mod search;
mod sqlite;

use std::path::PathBuf;

use anyhow::Result;

use super::{Better, Case, Options, Sample, progress, sample::quantile, sample_of};

/// Parts of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Rows into an empty database
    Load,
    /// Ten nearest of one tenant, through the HTTP interface
    Search,
    /// Searches while rows come in at full rate
    Both,
    /// Ten nearest of one tenant in a SQLite file, through the HTTP interface
    Sqlite,
    /// Memory while a million rows stream through
    Memory,
}

/// What to measure, and with what.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A database on the server; not touched itself.
    pub url: String,
    /// The Python that has psycopg and pgvector; none: without that peer.
    pub python: Option<PathBuf>,
    /// Rows to load.
    pub rows: usize,
    /// Only these parts; all but the last if empty.
    pub only: Vec<Part>,
}

/// Measures the PostgreSQL store.
///
/// # Errors
/// If the server cannot be reached or has no pgvector, or the fixtures are
/// missing.
pub fn store(options: &Options, settings: &Settings) -> Result<Vec<Case>> {
    let asked = |part| settings.only.contains(&part) || (settings.only.is_empty() && part != Part::Memory);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut cases = Vec::new();
    if asked(Part::Load) {
        cases.extend(load::load(options, settings, &runtime)?);
    }
    if asked(Part::Search) {
        cases.extend(search::search(options, settings, &runtime)?);
    }
    if asked(Part::Both) {
        cases.extend(search::while_loading(options, settings, &runtime)?);
    }
    if asked(Part::Sqlite) {
        cases.extend(sqlite::search(options, &runtime)?);
    }
    if asked(Part::Memory) {
        cases.extend(load::memory(options, settings, &runtime)?);
    }
    Ok(cases)
}

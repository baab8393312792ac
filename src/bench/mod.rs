//! Measuring the engine on this machine.
//!
//! Each benchmark makes or finds its own data, works in a temporary folder of
//! its own and gives [`Case`]s; [`report`] shows them. Where there is
//! something to compare with (a peer that does the same work, or the bare loop
//! that nothing can be faster than), the two run in turn ([`sample`]), so that
//! whatever else the machine does falls on both.

mod daemon;
mod data;
pub mod dictionaries;
mod embed;
mod log;
pub mod machine;
mod pipeline;
mod postgres;
pub mod quality;
pub mod report;
pub mod sample;
mod segment;
mod slo;
mod stages;
mod store;
pub mod usage;

use std::{fmt::Display, path::PathBuf, time::Instant};

pub use dictionaries::dictionaries;
pub use embed::{Against, Part as EmbedPart, embed};
pub use log::{Peer, growth, log};
pub use pipeline::{CocoIndex, Part as PipelinePart, beside_cocoindex, pipeline};
pub use quality::quality;
pub use report::{Better, Case, Report};
pub use sample::{Sample, sample_of};
pub use segment::segment;
pub use slo::{Part as SloPart, Settings as SloSettings, slo};
pub use stages::stages;
pub use store::{Part as StorePart, Settings as StoreSettings, store};

/// What every benchmark is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// How often everything is measured; at least 1.
    pub runs: usize,
    /// Folder of the fixtures.
    pub fixtures: PathBuf,
    /// Folder for what is written; a temporary one is made in it.
    pub scratch: PathBuf,
}

impl Options {
    /// A folder that is removed with everything in it once it is dropped.
    ///
    /// # Errors
    /// What the file system says.
    pub fn scratch_dir(&self) -> std::io::Result<tempfile::TempDir> {
        tempfile::Builder::new().prefix("thalweg-bench-").tempdir_in(&self.scratch)
    }
}

/// Says on standard error what is being measured: some of it takes minutes.
pub fn progress(what: impl Display) {
    eprintln!("bench: {what}");
}

/// The result of `work` and the seconds it took.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let started = Instant::now();
    let done = work();
    (done, started.elapsed().as_secs_f64())
}

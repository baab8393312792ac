//! `thalweg segments`.

mod cat;
mod inspect;
mod list;
mod repair;
mod seal;
mod verify;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};

use super::{
    Output,
    place::{Found, Place},
};
use crate::log::{LogReader, Segment};

/// List, inspect, print, verify, repair or seal segments of the log.
///
/// All but `repair` and `seal` only read, and work beside a running daemon.
/// With --url `list` and `inspect` show what a daemon has of the sealed ones;
/// the others work only where the data is.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg segments list
  thalweg segments list --url https://memory.example.org
  thalweg segments inspect 0 --json
  thalweg segments cat 0 --jsonl | jq .text
  thalweg segments verify
  thalweg segments repair --dry-run
  thalweg segments seal -p pipelines/quickstart.toml")]
pub struct Segments {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List the segments of the stream; with --url the sealed ones
    List,
    /// Show what a segment holds, block by block; with --url what the catalog
    /// says of a sealed one
    Inspect {
        /// An offset in the segment, such as its first
        #[arg(value_name = "BASE")]
        base: u64,
    },
    /// Write the frames of a segment to standard output, as they were sent
    Cat {
        /// An offset in the segment, such as its first
        #[arg(value_name = "BASE")]
        base: u64,
        /// Write records as JSON Lines instead
        #[arg(long)]
        jsonl: bool,
    },
    /// Compare every byte with what was written; exit code 3 if something is
    /// damaged
    Verify {
        /// First offsets of segments, or sealed files; everything if left out
        #[arg(value_name = "BASE|FILE")]
        targets: Vec<String>,
    },
    /// Make the catalog agree with the files, and save what can be proven of
    /// damaged ones; the daemon must not run
    ///
    /// Rows of segments are made again from files and objects. A damaged
    /// segment is replaced by its intact copy in the object store; failing
    /// that, every frame of it that can be proven goes into a new segment. The
    /// damaged file is kept in quarantine/ in the folder of the stream. The
    /// report says which offsets are lost; what is lost is remembered, shown by
    /// `segments list`, and no longer held against the daemon's health. A
    /// second run changes nothing.
    ///
    /// Exit codes: 0 everything is right now; 1 failed; 3 offsets are lost,
    /// something cannot be judged or proven, or a dry run found something to
    /// do.
    Repair {
        /// Only say what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Close the active segment and archive everything that is closed; the
    /// daemon must not run
    Seal,
}

impl Segments {
    pub(super) fn run(self) -> Result<ExitCode> {
        let (place, output) = (self.place, self.output);
        match self.what {
            What::List => super::block_on(list::list(place.find()?, output)),
            What::Inspect { base } => match place.find()? {
                Found::Here(pipeline) => inspect::inspect(&pipeline, base, output),
                Found::There(daemon) => super::block_on(inspect::inspect_there(&daemon, base, output)),
            },
            What::Cat { base, jsonl } => cat::cat(&place.here("segments cat")?, base, jsonl),
            What::Verify { targets } => {
                super::block_on(verify::verify(&place.here("segments verify")?, &targets, output))
            }
            What::Repair { dry_run } => {
                super::block_on(repair::repair(&place.here("segments repair")?, dry_run, output))
            }
            What::Seal => super::block_on(seal::seal(place.here("segments seal")?, output)),
        }
    }
}

/// The segment that holds `offset`, and its first offset.
fn segment_at(log: &LogReader, offset: u64) -> Result<(u64, Segment)> {
    match log.segments().range(..=offset).next_back() {
        Some((base, segment)) if offset < log.end_offset() || *base == offset => Ok((*base, segment.clone())),
        _ => bail!("no segment holds offset {offset}; `thalweg segments list` shows them"),
    }
}

/// What a segment that is not sealed is called.
fn raw_state(log: &LogReader, base: u64) -> &'static str {
    if log.durable().borrow().active_base == base { "active" } else { "closed" }
}

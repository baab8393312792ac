//! `thalweg dictionaries`.

mod list;
mod train;

use std::{num::NonZeroUsize, process::ExitCode};

use anyhow::Result;
use clap::{Args, Subcommand};

use super::{Output, PipelineFile, offline};
use crate::{
    pipeline::dictionaries::{Dictionaries as Trained, trial::Training},
    store::Store,
    units::ByteSize,
    workbench::{dictionaries_of, open_artifacts},
};

/// Train dictionaries that make segments smaller, and list or restore them.
///
/// A segment with a dictionary is smaller and has smaller blocks, so that one
/// record is read faster, and can be read only together with its dictionary:
/// `zstd -D DICTIONARY -dc x.seg.zst`. All of this works beside a running
/// daemon, which seals its next segment with what was adopted.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg dictionaries train --dry-run
  thalweg dictionaries train
  thalweg dictionaries list
  thalweg dictionaries show 3f2a91")]
pub struct Dictionaries {
    #[command(subcommand)]
    what: What,
    #[command(flatten)]
    pipeline: PipelineFile,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Train on the latest sealed segments, judge on the newest quarter of
    /// them, and adopt what wins by `dictionary_margin`
    Train {
        /// How many of the latest segments to look at
        #[arg(long, value_name = "N", default_value = "8")]
        segments: NonZeroUsize,
        /// Sizes to try
        #[arg(long, value_name = "SIZE", value_delimiter = ',', default_value = "16KiB,64KiB,112KiB")]
        sizes: Vec<ByteSize>,
        /// Draws other samples
        #[arg(long, value_name = "N", default_value = "0")]
        seed: u64,
        /// Only say what would be adopted
        #[arg(long)]
        dry_run: bool,
    },
    /// List the dictionaries of the stream, oldest first
    List,
    /// Show a dictionary, its figures, and the segments that need it
    Show {
        /// Its digest, or as much of it as is unique
        #[arg(value_name = "DIGEST")]
        digest: String,
    },
    /// Put the copies beside the log back that are missing or altered
    Restore,
}

impl Dictionaries {
    pub(super) fn run(self) -> Result<ExitCode> {
        let Self { what, pipeline, output } = self;
        let pipeline = pipeline.load()?;
        super::block_on(async {
            let store: Store = offline::store(&pipeline).await?;
            let artifacts = open_artifacts(&pipeline, &store)?;
            let trained: Trained = dictionaries_of(&pipeline, &artifacts);
            match what {
                What::Train { segments, sizes, seed, dry_run } => {
                    let training = Training { segments, sizes, seed };
                    train::train(&pipeline, &trained, training, dry_run, output).await?;
                }
                What::List => list::list(&trained, &store, output).await?,
                What::Show { digest } => list::show(&trained, &store, &digest, output).await?,
                What::Restore => {
                    let restored = trained.restore().await?;
                    output.print(&restored, |restored| match restored.as_slice() {
                        [] => "nothing to restore: every dictionary is beside the log\n".to_owned(),
                        some => some.iter().map(|digest| format!("restored  {digest}\n")).collect(),
                    })?;
                }
            }
            store.close().await;
            Ok(ExitCode::SUCCESS)
        })
    }
}

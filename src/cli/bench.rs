//! `thalweg bench`.

use std::{num::NonZeroUsize, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Args, Subcommand, ValueEnum};

use super::output;
use crate::{
    bench::{
        self, Against, Case, CocoIndex, EmbedPart, Options, Peer, PipelinePart, Report, SloPart, SloSettings,
        StorePart, StoreSettings,
        dictionaries::{Grid, Table},
        machine::Machine,
        quality::{self, Part},
    },
    clock,
};

/// Measure the engine on this machine.
///
/// Each benchmark makes or finds its own data and prints a table; what it has
/// to say meanwhile goes to standard error. Figures mean something only of a
/// release build on an idle machine.
#[derive(Debug, Args)]
pub struct Bench {
    #[command(subcommand)]
    name: Name,
    /// Write the report as JSON to this file, too
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Print the table as Markdown
    #[arg(long, global = true)]
    markdown: bool,
    /// How often everything is measured
    #[arg(long, global = true, value_name = "N", default_value = "5")]
    runs: NonZeroUsize,
    /// Folder of the fixtures
    #[arg(long, global = true, value_name = "DIR", default_value = "fixtures")]
    fixtures: PathBuf,
    /// Folder on the disk that is to be measured [default: the system's temporary folder]
    #[arg(long, global = true, value_name = "DIR")]
    scratch: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Name {
    /// What each stage can do alone, on real records
    Stages,
    /// How well it finds things, on labelled data
    Quality {
        /// Folder of data that may be used but not handed on
        #[arg(long, value_name = "DIR", default_value = "../shared/data")]
        data: PathBuf,
        /// The Python with sentence-transformers, to compare vectors with
        #[arg(long, value_name = "PYTHON", default_value = "python3")]
        reference: PathBuf,
        /// Measure other settings beside the defaults
        #[arg(long)]
        sweep: bool,
        /// Measure only this part; may be given again
        #[arg(long, value_name = "PART")]
        only: Vec<Part>,
    },
    /// Durable appends, beside a bare loop of write and sync
    Log {
        /// Another system to send the same to, in turn
        #[arg(long, value_name = "PEER")]
        against: Option<Peer>,
        /// Send so many gigabytes instead, each to a daemon of its own that is then killed
        #[arg(long, value_name = "GB", value_delimiter = ',', conflicts_with = "against")]
        growth: Vec<u32>,
    },
    /// Sealing and reading segments, beside the zstd program
    Segment,
    /// What dictionaries give and cost, by block size and level
    Dictionaries {
        /// Folder of data that may be used but not handed on
        #[arg(long, value_name = "DIR", default_value = "../shared/data")]
        data: PathBuf,
        /// Levels of compression
        #[arg(long, value_name = "LEVEL", value_delimiter = ',', default_value = "1,3,9")]
        levels: Vec<i32>,
    },
    /// The local model with each element, beside the bare multiply-add loop
    Embed {
        /// Another system to give the same texts to, in turn
        #[arg(long, value_name = "PEER")]
        against: Option<EmbedPeer>,
        /// The Python that has the peer's packages
        #[arg(long, value_name = "PYTHON", default_value = "python3")]
        python: PathBuf,
        /// Folder of data that may be used but not handed on
        #[arg(long, value_name = "DIR", default_value = "../shared/data")]
        data: PathBuf,
        /// Measure only this part; may be given again
        #[arg(long, value_name = "PART")]
        only: Vec<EmbedPart>,
    },
    /// PostgreSQL: loading beside bare COPY, searching beside bare SQL
    Store {
        /// A database on the server; each run makes one of its own beside it
        #[arg(long, value_name = "URL", env = "THALWEG_TEST_POSTGRES")]
        url: String,
        /// The Python that has psycopg and pgvector, to load with as well
        #[arg(long, value_name = "PYTHON")]
        python: Option<PathBuf>,
        /// Rows to load
        #[arg(long, value_name = "N", default_value = "100000")]
        rows: usize,
        /// Measure only this part; may be given again
        #[arg(long, value_name = "PART")]
        only: Vec<StorePart>,
    },
    /// The whole path through a daemon: acknowledged, indexed, searchable
    Pipeline {
        /// Records to send in each run [default: all there are, or 1000 with the local model; 10000
        /// from a file]
        #[arg(long, value_name = "N")]
        records: Option<usize>,
        /// Measure only this part; may be given again
        #[arg(long, value_name = "PART")]
        only: Vec<PipelinePart>,
        /// Another system to give the same files to, in turn, instead
        #[arg(long, value_name = "PEER", requires = "url", conflicts_with_all = ["records", "only"])]
        against: Option<PipelinePeer>,
        /// The Python that has the peer's packages
        #[arg(long, value_name = "PYTHON", default_value = "python3")]
        python: PathBuf,
        /// A database on the server that both fill; each run makes one of its own beside it
        #[arg(long, value_name = "URL", env = "THALWEG_TEST_POSTGRES")]
        url: Option<String>,
    },
    /// Whether a daemon keeps what is promised of it: latency, errors, overload, what keys cost
    Slo(Slo),
}

/// Of `thalweg bench slo`.
#[derive(Debug, Args)]
struct Slo {
    /// How many seconds each run of an objective lasts
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// How many seconds the overload lasts
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    overload_seconds: u64,
    /// Little data, runs and an overload of one second: to see that it works, not how fast
    #[arg(long, conflicts_with_all = ["seconds", "overload_seconds"])]
    quick: bool,
    /// Measure only this part; may be given again
    #[arg(long, value_name = "PART")]
    only: Vec<SloPart>,
}

impl Slo {
    fn settings(&self) -> SloSettings {
        let (seconds, overload) = if self.quick { (1, 1) } else { (self.seconds, self.overload_seconds) };
        SloSettings {
            seconds: Duration::from_secs(seconds),
            overload: Duration::from_secs(overload),
            quick: self.quick,
            only: self.only.clone(),
        }
    }
}

/// What indexes files, too.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PipelinePeer {
    /// CocoIndex with a stub for an embedder
    #[value(name = "cocoindex")]
    CocoIndex,
}

/// What embeds, too.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum EmbedPeer {
    /// sentence-transformers in fp32, and ONNX Runtime in int8 beside it
    SentenceTransformers,
}

impl Name {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Stages => "stages",
            Self::Quality { .. } => "quality",
            Self::Log { .. } => "log",
            Self::Segment => "segment",
            Self::Dictionaries { .. } => "dictionaries",
            Self::Embed { .. } => "embed",
            Self::Store { .. } => "store",
            Self::Pipeline { .. } => "pipeline",
            Self::Slo(_) => "slo",
        }
    }

    /// What was found, and a table that shows it better than one row a case.
    fn run(&self, options: &Options) -> Result<(Vec<Case>, Option<Table>)> {
        let cases = match self {
            Self::Stages => bench::stages(options),
            Self::Quality { data, reference, sweep, only } => {
                let settings = quality::Settings {
                    data: data.clone(),
                    python: reference.clone(),
                    sweep: *sweep,
                    only: only.clone(),
                };
                bench::quality(options, &settings)
            }
            Self::Log { growth, .. } if !growth.is_empty() => bench::growth(options, growth),
            Self::Log { against, .. } => bench::log(options, *against),
            Self::Segment => bench::segment(options),
            Self::Dictionaries { data, levels } => {
                let grid = Grid { data: data.clone(), levels: levels.clone() };
                let (cases, table) = bench::dictionaries(options, &grid)?;
                return Ok((cases, Some(table)));
            }
            Self::Embed { against, python, data, only } => {
                let python = against.map(|EmbedPeer::SentenceTransformers| python.clone());
                bench::embed(options, &Against { data: data.clone(), python, only: only.clone() })
            }
            Self::Store { url, python, rows, only } => {
                let (url, python, only) = (url.clone(), python.clone(), only.clone());
                bench::store(options, &StoreSettings { url, python, rows: *rows, only })
            }
            Self::Pipeline { against: Some(PipelinePeer::CocoIndex), python, url, .. } => {
                let url = url.clone().context("--against needs --url")?;
                bench::beside_cocoindex(options, &CocoIndex { url, python: python.clone() })
            }
            Self::Pipeline { records, only, .. } => bench::pipeline(options, *records, only),
            Self::Slo(slo) => bench::slo(options, &slo.settings()),
        };
        Ok((cases?, None))
    }
}

impl Bench {
    pub(super) fn run(self) -> Result<ExitCode> {
        let scratch = self.scratch.unwrap_or_else(std::env::temp_dir);
        let options = Options { runs: self.runs.get(), fixtures: self.fixtures, scratch };
        let machine = Machine::look(&options.scratch);
        for warning in machine.warnings() {
            bench::progress(format_args!("warning: {warning}"));
        }
        let at = jiff::Timestamp::from_millisecond(clock::system_ms())?.to_string();
        let (results, table) = self.name.run(&options)?;
        let report = Report { bench: self.name.as_str().to_owned(), at, machine, results };
        if let Some(path) = &self.json {
            let json = serde_json::to_string_pretty(&report)? + "\n";
            std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))?;
        }
        output::line(&report.machine.summary())?;
        let rows = table.unwrap_or_else(|| report.rows());
        let shown = if self.markdown { output::markdown(&rows) } else { output::table(&rows) };
        output::line(shown.trim_end())?;
        Ok(ExitCode::SUCCESS)
    }
}

//! The command line: one file per command.
//!
//! Exit codes: 0 done; 1 failed; 2 the arguments or the pipeline file are
//! wrong; 3 stopped with work left for the next start (`run`), or something
//! was found that is not as it should be (`verify`, `doctor`, `replay`,
//! `audit`, `restore`, `health`, `why`).

mod artifacts;
mod audit;
mod backup;
mod bench;
mod capabilities;
mod check;
mod daemon;
mod dead_letters;
mod dictionaries;
mod doctor;
mod embed_server;
mod erase;
mod health;
mod jobs;
mod keys;
mod manual;
mod meter;
mod models;
mod offline;
mod output;
mod pack;
mod place;
mod quota;
mod reload;
mod replay;
mod restore;
mod retention;
mod run;
mod search;
mod segments;
mod send;
mod service;
mod simulate;
mod status;
mod top;
mod webhooks;
mod why;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

pub use output::Output;
use place::PlaceError;

use crate::config::{self, ConfigErrors, Pipeline};

/// One engine for the memory of agents and search: live streams in, a
/// crash-safe log, an index that is current to the second, segments that can
/// be replayed and proved.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    // What each is, and examples, stand with its arguments.
    Run(run::Run),
    Check(check::Check),
    Send(send::Send),
    Status(status::Status),
    Health(health::Health),
    Capabilities(capabilities::Capabilities),
    Simulate(simulate::Simulate),
    Quota(quota::Quota),
    Reload(reload::Reload),
    Top(top::Top),
    Search(search::Search),
    Replay(replay::Replay),
    Retention(retention::Retention),
    Segments(segments::Segments),
    Artifacts(artifacts::Artifacts),
    Pack(pack::Pack),
    Audit(audit::Audit),
    Jobs(jobs::Jobs),
    Webhooks(webhooks::Webhooks),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Dictionaries(dictionaries::Dictionaries),
    DeadLetters(dead_letters::DeadLetters),
    Erase(erase::Erase),
    Keys(keys::Keys),
    Models(models::Models),
    EmbedServer(embed_server::EmbedServer),
    /// Measure the engine on this machine
    Bench(bench::Bench),
    Doctor(doctor::Doctor),
    Why(why::Why),
    Completions(manual::Completions),
    Manual(manual::Manual),
}

/// The pipeline file that is meant if none is named.
const USUAL_PIPELINE: &str = "pipelines/quickstart.toml";

/// Which pipeline a command is about.
#[derive(Clone, Debug, Args)]
pub struct PipelineFile {
    /// The pipeline file
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "THALWEG_PIPELINE",
        default_value = USUAL_PIPELINE,
        global = true
    )]
    pipeline: PathBuf,
}

impl PipelineFile {
    fn load(&self) -> Result<Pipeline, ConfigErrors> {
        load(&self.pipeline)
    }
}

/// Loads a pipeline file with this process's environment.
fn load(path: &Path) -> Result<Pipeline, ConfigErrors> {
    config::load(path, &|name| std::env::var(name).ok())
}

/// Everything is as it should be, or not.
const FOUND_WRONG: u8 = 3;

/// Runs a command and says how the process should exit.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Run(command) => command.run(),
        Command::Check(command) => command.run(),
        Command::Send(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Health(command) => command.run(),
        Command::Capabilities(command) => command.run(),
        Command::Simulate(command) => command.run(),
        Command::Quota(command) => command.run(),
        Command::Reload(command) => command.run(),
        Command::Top(command) => command.run(),
        Command::Search(command) => command.run(),
        Command::Replay(command) => command.run(),
        Command::Retention(command) => command.run(),
        Command::Segments(command) => command.run(),
        Command::Artifacts(command) => command.run(),
        Command::Pack(command) => command.run(),
        Command::Audit(command) => command.run(),
        Command::Jobs(command) => command.run(),
        Command::Webhooks(command) => command.run(),
        Command::Backup(command) => command.run(),
        Command::Restore(command) => command.run(),
        Command::Dictionaries(command) => command.run(),
        Command::DeadLetters(command) => command.run(),
        Command::Erase(command) => command.run(),
        Command::Keys(command) => command.run(),
        Command::Models(command) => command.run(),
        Command::EmbedServer(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Why(command) => command.run(),
        Command::Completions(command) => Ok(command.run()),
        Command::Manual(command) => command.run(),
    };
    done.unwrap_or_else(|error| {
        output::error(&error);
        let misused = error.is::<ConfigErrors>() || error.is::<PlaceError>();
        if misused { ExitCode::from(2) } else { ExitCode::FAILURE }
    })
}

/// Runs `future` on a runtime of its own.
fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_of_all_commands_fit_together() {
        Cli::command().debug_assert();
    }
}

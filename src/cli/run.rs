//! `thalweg run`.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;
use tokio_util::sync::CancellationToken;

use super::{backup::PostgresPrograms, load, service};
use crate::{
    daemon::{self, Addresses, Ended, Options, Reloading},
    metrics, reload,
};

/// Run a pipeline: take frames, log, derive, answer searches.
///
/// SIGTERM and SIGINT stop it: sources answer what they took, the log is
/// synced, and what is in it is derived until `shutdown.deadline`. A second
/// signal stops it at once; nothing acknowledged is lost either way. SIGHUP has
/// it take the pipeline file anew, as `thalweg reload` does.
///
/// Exit codes: 0 stopped and everything derived; 1 failed; 2 the pipeline
/// file is wrong; 3 stopped with work left, which goes on at the next start.
#[derive(Debug, Args)]
pub struct Run {
    /// The pipeline file
    #[arg(value_name = "FILE", env = "THALWEG_PIPELINE", default_value = "pipelines/quickstart.toml")]
    pipeline: PathBuf,
    /// Stop once all files and standard input are read and derived
    #[arg(long)]
    once: bool,
    /// Take the stream from another data directory, which is gone for good
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    postgres: PostgresPrograms,
    /// What to log: a level, or `target=level` pairs
    #[arg(long, value_name = "FILTER", env = "THALWEG_LOG", default_value = "info")]
    log: String,
}

impl Run {
    pub(super) fn run(self) -> Result<ExitCode> {
        let pipeline = load(&self.pipeline)?;
        service::start_logging(&self.log)?;
        let metrics = metrics::install()?;
        let options = Options { once: self.once, take_over: self.take_over, pg_bin: self.postgres.pg_bin };
        let file = self.pipeline;
        let ended = super::block_on(async move {
            let stop = CancellationToken::new();
            let _watching = service::stop_at_signals(stop.clone());
            let (reloads, requests) = reload::channel();
            let _reloading = service::reload_at_signals(reloads.clone())?;
            let load = Box::new(move || load(&file));
            let reloading = Reloading { load, requests, reloads };
            daemon::run(pipeline, options, reloading, metrics, stop, announce).await
        })?;
        Ok(match ended {
            Ended::Drained => {
                tracing::info!("stopped; everything taken is derived");
                ExitCode::SUCCESS
            }
            Ended::Unfinished(what) => {
                tracing::warn!(?what, "stopped at the deadline; the rest goes on at the next start");
                ExitCode::from(super::FOUND_WRONG)
            }
        })
    }
}

/// Tells people, and programs that wait for this line, where the daemon is.
fn announce(addresses: &Addresses) {
    tracing::info!(http = addresses.http, sources = ?addresses.sources, "ready");
    let mut out = std::io::stdout().lock();
    let text = if out.is_terminal() {
        let mut text = format!("ready  http://{}\n", addresses.http);
        for (name, address) in &addresses.sources {
            text += &format!("       {name} on {address}\n");
        }
        text
    } else {
        let sources: serde_json::Map<_, _> =
            addresses.sources.iter().map(|(name, at)| (name.clone(), at.clone().into())).collect();
        serde_json::json!({"ready": true, "http": addresses.http, "sources": sources}).to_string() + "\n"
    };
    // Nobody may be reading; the daemon works all the same.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

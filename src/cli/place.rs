//! Where a command finds what it is about: in the store of a pipeline file, or
//! at a running daemon.

use std::{env, path::PathBuf};

use clap::Args;

use super::{USUAL_PIPELINE, daemon::Daemon, load, send::secret};
use crate::{
    config::{ConfigErrors, Pipeline},
    secret::Secret,
};

/// Of a command that works on a store and at a daemon alike.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// The pipeline file whose store is opened, with or without a running
    /// daemon [env: THALWEG_PIPELINE] [default: pipelines/quickstart.toml]
    #[arg(short, long, value_name = "FILE", global = true)]
    pipeline: Option<PathBuf>,
    /// Ask the daemon that runs at this address instead. Only this flag does
    /// so: THALWEG_URL is for commands that always ask a daemon
    #[arg(long, value_name = "URL", global = true)]
    url: Option<String>,
    /// API key or token, for a daemon with [auth]; better in the environment
    #[arg(
        long,
        value_name = "KEY",
        env = "THALWEG_KEY",
        hide_env_values = true,
        value_parser = secret,
        global = true
    )]
    pub(super) key: Option<Secret>,
}

/// Where it is.
#[derive(Debug)]
pub(super) enum Found {
    /// In what belongs to this pipeline file.
    Here(Box<Pipeline>),
    /// At this daemon.
    There(Daemon),
}

/// Why it is not clear where.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// Both were named.
    #[error("--pipeline opens a store and --url asks a daemon: give one of them")]
    Both,
    /// A daemon cannot be asked for it.
    #[error(
        "`thalweg {command}` works only where the data is; run it on the daemon's machine, without --url"
    )]
    OnlyHere {
        /// What was to be done.
        command: &'static str,
    },
    /// The pipeline file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigErrors),
}

impl Place {
    /// Where what is asked for is.
    ///
    /// # Errors
    /// If both are named, or the pipeline file is wrong.
    pub(super) fn find(&self) -> Result<Found, PlaceError> {
        match self.daemon()? {
            Some(daemon) => Ok(Found::There(daemon)),
            None => Ok(Found::Here(load(&self.file())?.into())),
        }
    }

    /// The daemon, if one is named.
    ///
    /// # Errors
    /// If a pipeline file is named too.
    pub(super) fn daemon(&self) -> Result<Option<Daemon>, PlaceError> {
        match (&self.url, &self.pipeline) {
            (Some(_), Some(_)) => Err(PlaceError::Both),
            (url, _) => Ok(url.clone().map(|url| Daemon::new(url, self.key.clone()))),
        }
    }

    /// The pipeline file, where no daemon is named.
    pub(super) fn file(&self) -> PathBuf {
        let named = self.pipeline.clone().or_else(|| env::var_os("THALWEG_PIPELINE").map(PathBuf::from));
        named.unwrap_or_else(|| USUAL_PIPELINE.into())
    }

    /// The pipeline for `command`, which works only where its data is.
    ///
    /// # Errors
    /// If a daemon is named, or the pipeline file is wrong.
    pub(super) fn here(&self, command: &'static str) -> Result<Pipeline, PlaceError> {
        match self.find()? {
            Found::Here(pipeline) => Ok(*pipeline),
            Found::There(_) => Err(PlaceError::OnlyHere { command }),
        }
    }
}

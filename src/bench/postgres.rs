//! Databases on the server under test, and what its processes use.

use std::{fs, path::Path, str::FromStr, time::Duration};

use anyhow::{Context, Result};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, postgres::PgConnectOptions};

use crate::{
    secret::Secret,
    store::{Settings, Store},
};

/// A database of one run, dropped with it.
pub struct Database {
    pub url: String,
    server: PgConnectOptions,
    name: String,
}

impl Database {
    /// Makes one on the server of `url`.
    pub async fn new(url: &str) -> Result<Self> {
        let server = PgConnectOptions::from_str(url).context("--url cannot be read")?;
        let name = format!("thalweg_bench_{:016x}", rand::random::<u64>());
        let mut connection = server.connect().await.context("the server at --url cannot be reached")?;
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await?;
        connection.close().await?;
        let url = plain_url(server.clone().database(&name));
        Ok(Self { url, server, name })
    }

    /// A store in it.
    pub async fn store(&self) -> Result<Store> {
        let settings = Settings { url: Some(Secret::from(self.url.clone())), ..Settings::default() };
        Ok(Store::open_with(Path::new("unused"), &settings).await?)
    }

    /// A connection of our own to it.
    pub async fn connect(&self) -> Result<PgConnection> {
        Ok(self.server.clone().database(&self.name).connect().await?)
    }

    pub async fn remove(self) -> Result<()> {
        let mut connection = self.server.connect().await?;
        connection.execute(AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", self.name))).await?;
        connection.close().await?;
        Ok(())
    }
}

/// Processor time of every process named `postgres` on this machine, those
/// that ended included.
pub fn cpu() -> Duration {
    // SAFETY: sysconf only reads a constant of the system.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1);
    let ticks: u64 = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter_map(|stat| ticks_of_postgres(&stat))
        .sum();
    Duration::from_millis(ticks * 1_000 / per_second)
}

/// Fields 14 to 17 after the command: its own time and that of the children
/// it has waited for.
fn ticks_of_postgres(stat: &str) -> Option<u64> {
    let (command, fields) = stat.rsplit_once(')')?;
    if !command.ends_with("(postgres") {
        return None;
    }
    let fields = fields.split_ascii_whitespace().skip(11).take(4);
    Some(fields.filter_map(|field| field.parse::<u64>().ok()).sum())
}

/// A URL without the parameters that only this driver knows.
fn plain_url(options: PgConnectOptions) -> String {
    let mut url = options.to_url_lossy();
    url.set_query(None);
    url.to_string()
}

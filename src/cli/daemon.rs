//! A running daemon, asked over HTTP.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::{Serialize, de::DeserializeOwned};

use crate::http_client;

/// Which running daemon a command is about.
#[derive(Clone, Debug, Args)]
pub struct Daemon {
    /// Address of the daemon's HTTP interface
    #[arg(long, value_name = "URL", env = "THALWEG_URL", default_value = "http://127.0.0.1:7400")]
    pub url: String,
}

impl Daemon {
    /// Asks the daemon.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = self.at(path);
        let response = http_client::local()?.get(&url).timeout(Duration::from_secs(30)).send().await;
        Self::understand(&url, response).await
    }

    /// Puts a question to the daemon.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, question: &impl Serialize) -> Result<T> {
        let url = self.at(path);
        let request = http_client::local()?.post(&url).json(question).timeout(Duration::from_secs(60));
        Self::understand(&url, request.send().await).await
    }

    fn at(&self, path: &str) -> String {
        let url = self.url.trim_end_matches('/');
        let scheme = if url.contains("://") { "" } else { "http://" };
        format!("{scheme}{url}{path}")
    }

    async fn understand<T: DeserializeOwned>(
        url: &str,
        response: reqwest::Result<reqwest::Response>,
    ) -> Result<T> {
        let response = response.with_context(|| {
            format!("no daemon answers at {url}; is `thalweg run` up, and its [http] there?")
        })?;
        let status = response.status();
        let body = response.bytes().await.with_context(|| format!("{url} broke off its answer"))?;
        if !status.is_success() {
            bail!("{url} answered {status}: {}", String::from_utf8_lossy(&body));
        }
        serde_json::from_slice(&body).with_context(|| format!("{url} is no Thalweg daemon of this version"))
    }
}

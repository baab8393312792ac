//! A running daemon, asked over HTTP.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use reqwest::{Method, RequestBuilder};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::send::secret;
use crate::{http_client, secret::Secret};

/// Which running daemon a command is about.
#[derive(Clone, Debug, Args)]
pub struct Daemon {
    /// Address of the daemon's HTTP interface
    #[arg(long, value_name = "URL", env = "THALWEG_URL", default_value = "http://127.0.0.1:7400")]
    pub url: String,
    /// API key or token, where the daemon has [auth]; better in the environment
    #[arg(long, value_name = "KEY", env = "THALWEG_KEY", hide_env_values = true, value_parser = secret)]
    pub key: Option<Secret>,
}

impl Daemon {
    /// Asks the daemon.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, |request| request.timeout(Duration::from_secs(30))).await
    }

    /// Puts a question to the daemon.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, question: &impl Serialize) -> Result<T> {
        self.ask(Method::POST, path, |request| request.json(question).timeout(Duration::from_secs(60))).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<T> {
        let url = self.at(path);
        let client =
            if url.starts_with("https:") { http_client::trusting()?.build()? } else { http_client::local()? };
        let request = complete(client.request(method, &url));
        if self.key.is_some()
            && url.starts_with("http:")
            && !url.parse().is_ok_and(|url| http_client::stays_here(&url))
        {
            bail!("{url} would be sent the key in the clear; write https://, or ask on that machine itself");
        }
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.reveal()),
            None => request,
        };
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
        let response = response.map_err(|error| match error.is_timeout() && !error.is_connect() {
            true => anyhow::Error::new(error).context(format!(
                "{url} has not answered in time; what it was asked for may be done yet: its log says so"
            )),
            false => anyhow::Error::new(error)
                .context(format!("no daemon answers at {url}; is `thalweg run` up, and its [http] there?")),
        })?;
        let status = response.status();
        let body = response.bytes().await.with_context(|| format!("{url} broke off its answer"))?;
        if !status.is_success() {
            let problem: Option<Value> = serde_json::from_slice(&body).ok();
            let said = problem.as_ref().and_then(|problem| {
                Some(format!("{} ({})", problem["detail"].as_str()?, problem["code"].as_str()?))
            });
            let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
            bail!("{url} answered {status}: {said}");
        }
        serde_json::from_slice(&body).with_context(|| format!("{url} is no Thalweg daemon of this version"))
    }
}

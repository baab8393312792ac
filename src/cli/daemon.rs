//! A running daemon, asked over HTTP.

use std::{sync::OnceLock, time::Duration};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url, redirect};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::send::secret;
use crate::{
    api::{Page, cursor},
    http_client,
    secret::Secret,
};

/// Which running daemon a command is about.
#[derive(Clone, Debug, Args)]
pub struct Daemon {
    /// Address of the daemon's HTTP interface
    #[arg(
        long,
        value_name = "URL",
        env = "THALWEG_URL",
        default_value = "http://127.0.0.1:7400",
        global = true
    )]
    pub url: String,
    /// API key or token, where the daemon has [auth]; better in the environment
    #[arg(
        long,
        value_name = "KEY",
        env = "THALWEG_KEY",
        hide_env_values = true,
        value_parser = secret,
        global = true
    )]
    pub key: Option<Secret>,
    #[arg(skip)]
    client: OnceLock<Client>,
}

/// Parameters after the question mark; those without a value are left out.
type Query<'a> = &'a [(&'a str, Option<String>)];

/// What the daemon said.
pub(super) struct Said {
    url: Url,
    status: StatusCode,
    body: Bytes,
}

/// How long it is waited to be shown something.
const TO_SEE: Duration = Duration::from_secs(30);
/// How long it is waited for something to be done; a daemon answers within its
/// `[http] request_timeout`, 90 s unless its pipeline file says otherwise.
const TO_DO: Duration = Duration::from_secs(120);
/// Items of a page at most.
const PAGE: usize = 1_000;

impl Daemon {
    /// The one at `url`.
    pub(super) fn new(url: String, key: Option<Secret>) -> Self {
        Self { url, key, client: OnceLock::new() }
    }

    /// Asks the daemon.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, &[], |request| request).await?.fine()
    }

    /// Asks the daemon, whatever its answer is.
    pub(super) async fn look(&self, path: &str) -> Result<Said> {
        self.ask(Method::GET, path, &[], |request| request).await
    }

    /// Puts a question to the daemon.
    pub(super) async fn post<T: DeserializeOwned>(&self, path: &str, question: &impl Serialize) -> Result<T> {
        self.ask(Method::POST, path, &[], |request| request.json(question)).await?.fine()
    }

    /// Has the daemon take something away.
    pub(super) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::DELETE, path, &[], |request| request).await?.fine()
    }

    /// The first `limit` items of a list after the one with the key `after`,
    /// and where it goes on; all pages of it if they are no more.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &str,
        of: Query<'_>,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Page<T>> {
        let mut all = Page { items: Vec::new(), next_cursor: after.as_ref().map(cursor) };
        loop {
            let left = limit.saturating_sub(all.items.len()).min(PAGE);
            let page = [("limit", Some(left.to_string())), ("cursor", all.next_cursor.take())];
            let said = self.ask(Method::GET, path, &[of, &page].concat(), |request| request).await?;
            let page: Page<T> = said.fine()?;
            let is_last = page.next_cursor.is_none() || page.items.is_empty();
            all.items.extend(page.items);
            all.next_cursor = page.next_cursor;
            if is_last || all.items.len() >= limit {
                return Ok(all);
            }
        }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: Query<'_>,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Said> {
        let url = self.at(path, query)?;
        if self.key.is_some() && url.scheme() == "http" && !http_client::stays_here(&url) {
            bail!("{url} would be sent the key in the clear; write https://, or ask on that machine itself");
        }
        let patience = if method == Method::GET { TO_SEE } else { TO_DO };
        let request = complete(self.client(&url)?.request(method, url.clone()).timeout(patience));
        let request = match &self.key {
            Some(key) => request.bearer_auth(key.reveal()),
            None => request,
        };
        let response =
            request.send().await.map_err(|error| match error.is_timeout() && !error.is_connect() {
                true => anyhow::Error::new(error).context(format!(
                    "{url} has not answered in time; what it was asked for may be done yet: its log says so"
                )),
                false => anyhow::Error::new(error).context(format!(
                    "no daemon answers at {url}; is `thalweg run` up, and its [http] there?"
                )),
            })?;
        let status = response.status();
        let body = response.bytes().await.with_context(|| format!("{url} broke off its answer"))?;
        Ok(Said { url, status, body })
    }

    /// The client for all questions. It goes where it is sent and nowhere else:
    /// the key is for nobody that an answer names.
    fn client(&self, url: &Url) -> Result<&Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let client = match url.scheme() {
            "https" => http_client::trusting()?,
            _ => http_client::plain()?.no_proxy(),
        };
        let client = client.redirect(redirect::Policy::none()).build()?;
        Ok(self.client.get_or_init(|| client))
    }

    fn at(&self, path: &str, query: Query<'_>) -> Result<Url> {
        let base = self.url.trim_end_matches('/');
        let scheme = if base.contains("://") { "" } else { "http://" };
        let url = Url::parse(&format!("{scheme}{base}{path}"));
        let mut url = url.with_context(|| format!("`{}` is no address of a daemon", self.url))?;
        for (name, value) in query {
            if let Some(value) = value {
                url.query_pairs_mut().append_pair(name, value);
            }
        }
        Ok(url)
    }
}

impl Said {
    /// Whether the daemon is there and cannot serve now.
    pub(super) fn is_unavailable(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE
    }

    /// What was asked for, or the daemon's own words why not.
    pub(super) fn fine<T: DeserializeOwned>(self) -> Result<T> {
        if self.status.is_success() {
            return self.read();
        }
        let Self { url, status, body } = self;
        if status.is_redirection() {
            bail!("{url} answered {status}, which is not followed; name the address of the daemon itself");
        }
        let problem: Option<Value> = serde_json::from_slice(&body).ok();
        let said = problem.as_ref().and_then(|problem| {
            Some(format!("{} ({})", problem["detail"].as_str()?, problem["code"].as_str()?))
        });
        bail!(
            "{url} answered {status}: {}",
            said.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned())
        )
    }

    /// What was asked for, whatever the status.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("{} is no Thalweg daemon of this version", self.url))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_stays_a_value_whatever_stands_in_it() {
        let at = |url: &str, query: Query<'_>| {
            Daemon::new(url.to_owned(), None).at("/api/v1/jobs", query).unwrap().to_string()
        };
        let of = [("kind", Some("a&b=c #/?".to_owned())), ("state", None)];
        assert_eq!(at("memory:7400/", &of), "http://memory:7400/api/v1/jobs?kind=a%26b%3Dc+%23%2F%3F");
        assert_eq!(at("https://memory/thalweg", &[]), "https://memory/thalweg/api/v1/jobs");
        assert!(Daemon::new("http://[".into(), None).at("/x", &[]).is_err());
    }
}

//! Asks Vault.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    iter::successors,
    thread,
    time::Duration,
};

use futures::{StreamExt, stream};
use reqwest::{
    Client, Response, Url,
    header::{HeaderMap, HeaderValue, LOCATION},
    redirect::Policy,
};
use tokio::time::{Instant, timeout_at};

use super::{
    answer::{self, Answer, Fields, Question},
    error::VaultError,
    server::Server,
};
use crate::http_client::{self, ClientError};

/// For a connection and an answer.
const REQUEST: Duration = Duration::from_secs(5);
/// For everything that one load of a pipeline file asks.
const ALL: Duration = Duration::from_secs(10);
/// Longest answer in bytes.
const LONGEST_ANSWER: usize = 64 << 10;
/// Paths read at the same time.
const AT_ONCE: usize = 4;

type Read = BTreeMap<String, Result<Fields, VaultError>>;

/// Reads all of `paths`.
pub(super) fn read_all(server: Server, paths: &BTreeSet<String>) -> Result<Read, VaultError> {
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(|error| VaultError::Client { reason: error.to_string() })?;
            let vault = Vault::new(server)?;
            Ok(runtime.block_on(vault.read_all(paths)))
        });
        reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A server that is asked.
struct Vault {
    server: Server,
    name: String,
    client: Client,
}

impl Vault {
    fn new(server: Server) -> Result<Self, VaultError> {
        let headers = headers(&server)?;
        let made = client(&server, headers);
        let client = made.map_err(|error| VaultError::Client { reason: error.to_string() })?;
        Ok(Self { name: server.name(), server, client })
    }

    async fn read_all(&self, paths: &BTreeSet<String>) -> Read {
        let end = Instant::now() + ALL;
        let read = async |path: &String| {
            let read = timeout_at(end, self.read(path)).await;
            (path.clone(), read.unwrap_or_else(|_| Err(VaultError::Slow { server: self.name.clone() })))
        };
        stream::iter(paths).map(read).buffer_unordered(AT_ONCE).collect().await
    }

    async fn read(&self, path: &str) -> Result<Fields, VaultError> {
        let question = |needed| Question { server: &self.name, token: &self.server.token, path, needed };
        let parts = path.split('/');
        let told =
            self.get(path, self.server.at(["sys", "internal", "ui", "mounts"].into_iter().chain(parts)));
        let mount = answer::mount(&question(path), &told.await?)?;
        let place = mount.place(path);
        let answered = self.get(path, self.server.at(place.split('/'))).await?;
        answer::fields(&question(&place), mount.version, &answered)
    }

    async fn get(&self, path: &str, url: Url) -> Result<Answer, VaultError> {
        let response = self.client.get(url).send().await.map_err(|error| self.failed(error))?;
        let status = response.status().as_u16();
        let to = redirection(&response);
        let body = self.body(path, response).await?;
        Ok(Answer { status, to, body })
    }

    async fn body(&self, path: &str, mut response: Response) -> Result<Vec<u8>, VaultError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.failed(error))? {
            if body.len() + chunk.len() > LONGEST_ANSWER {
                return Err(VaultError::Long { server: self.name.clone(), path: path.to_owned() });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn failed(&self, error: reqwest::Error) -> VaultError {
        let error = error.without_url();
        let server = self.name.clone();
        if error.is_timeout() && !error.is_connect() {
            return VaultError::Slow { server };
        }
        let causes = successors(Error::source(&error), |cause| (*cause).source());
        let reason = causes.last().map_or_else(|| error.to_string(), ToString::to_string);
        VaultError::Unreachable { server, reason }
    }
}

/// Where an answer sends on to, without path and query.
fn redirection(response: &Response) -> Option<String> {
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    Some(response.url().join(location).ok()?.origin().ascii_serialization())
}

fn client(server: &Server, headers: HeaderMap) -> Result<Client, ClientError> {
    let builder = match &server.authorities {
        _ if server.address.scheme() == "http" => http_client::plain()?.no_proxy(),
        Some(pem) => http_client::trusting_only(pem.as_bytes())?,
        None => http_client::trusting()?,
    };
    let builder = builder.default_headers(headers).redirect(Policy::none());
    Ok(builder.connect_timeout(REQUEST).timeout(REQUEST).build()?)
}

/// What every request says, as Vault's own client does.
fn headers(server: &Server) -> Result<HeaderMap, VaultError> {
    let value = |name, text: &str| {
        let refused = |_| VaultError::Setting { name, reason: "cannot be sent in a header".to_owned() };
        HeaderValue::from_str(text).map_err(refused)
    };
    let mut token = value("VAULT_TOKEN", server.token.reveal())?;
    token.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert("x-vault-request", HeaderValue::from_static("true"));
    headers.insert("x-vault-token", token);
    if let Some(namespace) = &server.namespace {
        headers.insert("x-vault-namespace", value("VAULT_NAMESPACE", namespace)?);
    }
    Ok(headers)
}

//! A bucket of a server that speaks S3.
//!
//! **Checksums.** Every request carries the SHA-256 of its body in
//! `x-amz-content-sha256`, which the signature covers. A server has to hash
//! the body to check the signature's claim, so whatever is altered on the way
//! is refused. The newer `x-amz-checksum-*` headers are not used: servers other
//! than Amazon's ignore them or answer without them. What is read from disk to
//! be sent is compared with its digest first, and the size of what was
//! written is asked for after.
//!
//! **Written once.** What fits one request is put with `If-None-Match: *`. The
//! completion of an upload in parts takes no condition that all servers obey
//! (radosgw ignores it there), and needs none: the name is the digest, so two
//! that complete the same name write the same bytes.

use std::{path::PathBuf, sync::Arc, time::Duration};

use object_store::{
    BackoffConfig, ClientOptions, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload, RetryConfig,
    StaticCredentialProvider,
    aws::{AmazonS3, AmazonS3Builder},
    client::{HttpClient, HttpConnector},
    list::{PaginatedListOptions, PaginatedListStore},
    path::Path as Location,
    prefix::PrefixStore,
};

use super::{
    credentials::{self, FromFile, Source},
    error::{ArtifactError, Meaning, meaning},
    settings::{S3Place, Settings},
};
use crate::http_client;

/// How long one attempt may take to find the server.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a request may be without an answer, and an answer without a byte:
/// a part of 8 MiB at 2.3 Mbit/s.
const SILENCE: Duration = Duration::from_secs(30);
/// No new attempt at one request after this; whoever asked decides when to ask
/// again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a conditional put is tried that lost against one that was undone.
const ATTEMPTS: u32 = 3;

/// A bucket, and where in it.
pub(super) struct Bucket {
    pub s3: AmazonS3,
    pub place: S3Place,
    /// Where is written down how far uploads are.
    pub uploads: PathBuf,
    pub part_bytes: u64,
    client: reqwest::Client,
}

/// Makes the client of this program with the patience above.
#[derive(Debug)]
struct Connector(reqwest::Client);

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

impl Bucket {
    /// The bucket that `settings` name. Sends nothing.
    pub fn open(place: S3Place, settings: &Settings, uploads: PathBuf) -> Result<Self, ArtifactError> {
        let client = if place.is_plain() { http_client::plain()? } else { http_client::trusting()? };
        let client = client
            .connect_timeout(CONNECT)
            .read_timeout(SILENCE)
            .build()
            .map_err(http_client::ClientError::from)?;
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let region = settings.region.clone().or_else(|| variable("AWS_REGION"));
        let region = region.or_else(|| variable("AWS_DEFAULT_REGION")).unwrap_or_else(|| "us-east-1".into());
        let retry = RetryConfig {
            backoff: BackoffConfig { max_backoff: Duration::from_secs(3), ..BackoffConfig::default() },
            max_retries: 20,
            retry_timeout: PATIENCE,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&place.bucket)
            .with_region(region)
            .with_virtual_hosted_style_request(!place.path_style)
            // One name each; not all servers know the request for many.
            .with_disable_bulk_delete(true)
            .with_retry(retry)
            .with_http_connector(Connector(client.clone()));
        if let Some(endpoint) = place.client_endpoint() {
            builder = builder.with_endpoint(endpoint);
        }
        builder = match credentials::source(settings, variable, |path| path.exists())? {
            Source::Environment(keys) => builder
                .with_credentials(Arc::new(StaticCredentialProvider::new(credentials::credential(&keys)))),
            Source::File(file) => builder.with_credentials(Arc::new(FromFile::open(file)?)),
            Source::Machine => of_machine(builder, variable),
        };
        let s3 = builder
            .build()
            .map_err(|source| ArtifactError::Objects { location: place.to_string(), source })?;
        Ok(Self { s3, place, uploads, part_bytes: settings.part_bytes.0, client })
    }

    /// The objects below the prefix, named without it.
    pub fn objects(&self) -> Arc<dyn ObjectStore> {
        Arc::new(PrefixStore::new(self.s3.clone(), self.place.prefix.as_str()))
    }

    /// The key of the object at `location`.
    pub fn key(&self, location: &Location) -> Location {
        match self.place.prefix.as_str() {
            "" => location.clone(),
            prefix => Location::from(format!("{prefix}/{location}")),
        }
    }

    /// What `source`, which came while `location` was asked for, means.
    pub fn error(&self, location: &str, source: object_store::Error) -> ArtifactError {
        let place = self.place.to_string();
        match meaning(&source) {
            Meaning::Away(reason) => ArtifactError::Away { place, reason },
            Meaning::Refused { code, advice } => ArtifactError::Refused { place, code, advice },
            Meaning::Object => ArtifactError::Objects { location: location.to_owned(), source },
        }
    }

    /// Asks the server for one name, which shows whether it is there, knows
    /// the keys and has the bucket.
    pub async fn reach(&self) -> Result<(), ArtifactError> {
        let options = PaginatedListOptions { max_keys: Some(1), ..PaginatedListOptions::default() };
        self.s3.list_paginated(None, options).await.map_err(|source| self.error("", source))?;
        Ok(())
    }

    /// What time it is for the server, in milliseconds since the Unix epoch.
    pub async fn time_ms(&self) -> Option<i64> {
        let endpoint = self.place.client_endpoint().unwrap_or_else(|| "https://s3.amazonaws.com".into());
        let answer = self.client.get(endpoint).send().await.ok()?;
        let date = answer.headers().get(reqwest::header::DATE)?.to_str().ok()?;
        jiff::fmt::rfc2822::parse(date).ok().map(|time| time.timestamp().as_millisecond())
    }

    /// Size of the object with this key, if it is there.
    pub async fn size(&self, key: &Location) -> Result<Option<u64>, ArtifactError> {
        match self.s3.head(key).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(source) => match self.error(key.as_ref(), source) {
                // This request is answered without a reason; the other is not.
                refused @ ArtifactError::Refused { .. } => self.reach().await.and(Err(refused)),
                error => Err(error),
            },
        }
    }

    /// Puts what fits one request, unless it is there.
    pub async fn put_once(&self, key: &Location, bytes: &bytes::Bytes) -> Result<(), ArtifactError> {
        let mut attempt = 1;
        loop {
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.s3.put_opts(key, PutPayload::from(bytes.clone()), options).await {
                Ok(_) => return Ok(()),
                Err(source @ object_store::Error::AlreadyExists { .. }) => {
                    // Also what Amazon answers (409) while somebody else's
                    // put or removal of that name is under way.
                    match self.size(key).await? {
                        Some(size) if size == bytes.len() as u64 => return Ok(()),
                        Some(_) => return self.replace(key, bytes).await,
                        None if attempt == ATTEMPTS => return Err(self.error(key.as_ref(), source)),
                        None => attempt += 1,
                    }
                }
                Err(source) => return Err(self.error(key.as_ref(), source)),
            }
        }
    }

    /// Puts what fits one request in the place of what is there, which is not
    /// what its name says.
    pub async fn replace(&self, key: &Location, bytes: &bytes::Bytes) -> Result<(), ArtifactError> {
        tracing::warn!(object = %key, "an object that is not what its name says is replaced");
        let put = self.s3.put(key, PutPayload::from(bytes.clone())).await;
        put.map(|_| ()).map_err(|source| self.error(key.as_ref(), source))
    }
}

/// Lets the client ask for keys as Amazon's machines and containers are given
/// them.
fn of_machine(builder: AmazonS3Builder, variable: impl Fn(&str) -> Option<String>) -> AmazonS3Builder {
    const NAMES: [&str; 6] = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    ];
    NAMES.into_iter().fold(builder, |builder, name| {
        let key = name.to_ascii_lowercase().parse();
        match (variable(name), key) {
            (Some(value), Ok(key)) => builder.with_config(key, value),
            _ => builder,
        }
    })
}

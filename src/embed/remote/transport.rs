//! One request, one reply: bytes and headers, bounded in time and size.

use std::{
    error::Error,
    io::{self, Read},
    time::Duration,
};

use bytes::Bytes;
use flate2::{Compression, read::GzDecoder, read::GzEncoder};
use reqwest::{
    Client, Response,
    header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue},
    redirect::Policy,
};
use tokio_rustls::rustls;

use super::{classify::Fault, settings::Endpoint};
use crate::http_client::{self, ClientError};

/// A connection that is not there by then will not come.
const CONNECT: Duration = Duration::from_secs(5);
/// Idle connections are closed before the services close them.
const IDLE: Duration = Duration::from_secs(50);
/// Bytes of an error message that are read.
const ERROR_BYTES: usize = 64 << 10;

/// The way to one endpoint. Connections are kept and used again.
pub struct Transport {
    client: Client,
    url: String,
    gzip_requests: bool,
}

/// What came back, whatever it means.
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    /// As it came: compressed, if `gzipped`.
    pub body: Vec<u8>,
    pub gzipped: bool,
}

impl Transport {
    /// Prepares the way; nothing is sent yet. Reads this machine's
    /// certificates, if the address needs them.
    pub fn new(endpoint: &Endpoint) -> Result<Self, ClientError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if endpoint.gzip_requests {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        // A key that fits no header was refused with the settings.
        let bearer =
            endpoint.key.as_ref().map(|key| HeaderValue::try_from(format!("Bearer {}", key.reveal())));
        if let Some(Ok(mut bearer)) = bearer {
            bearer.set_sensitive(true);
            headers.insert(AUTHORIZATION, bearer);
        }
        let builder =
            if endpoint.url.starts_with("https:") { http_client::trusting()? } else { http_client::plain()? };
        let client = builder
            .default_headers(headers)
            .user_agent(concat!("thalweg/", env!("CARGO_PKG_VERSION")))
            // A key is for the address it was written beside, and no other.
            .redirect(Policy::none())
            .timeout(endpoint.timeout.0)
            .connect_timeout(CONNECT.min(endpoint.timeout.0))
            .pool_idle_timeout(IDLE)
            .tcp_nodelay(true)
            .build()?;
        let url = format!("{}{}", endpoint.url.trim_end_matches('/'), endpoint.api.path());
        Ok(Self { client, url, gzip_requests: endpoint.gzip_requests })
    }

    /// `body` as it is to be sent.
    pub fn encoded(&self, body: Vec<u8>) -> Vec<u8> {
        if !self.gzip_requests {
            return body;
        }
        let mut compressed = Vec::with_capacity(body.len() / 3);
        // Reading from memory cannot fail.
        let _ = GzEncoder::new(body.as_slice(), Compression::fast()).read_to_end(&mut compressed);
        compressed
    }

    /// Sends `body`, already [`encoded`](Self::encoded), and reads at most
    /// `most` bytes of what comes back.
    pub async fn post(&self, body: Bytes, most: usize) -> Result<Reply, Unanswered> {
        let sent = self.client.post(&self.url).body(body).send().await;
        let response =
            sent.map_err(|error| Unanswered { received: !error.is_connect(), fault: fault(error) })?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let gzipped =
            headers.get(CONTENT_ENCODING).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"gzip"));
        let success = response.status().is_success();
        let read = read(response, if success { most } else { ERROR_BYTES }).await;
        let body = match read {
            Ok(Some(body)) => body,
            // What a failure says is only for people.
            _ if !success => Vec::new(),
            Ok(None) => return Err(Unanswered { received: true, fault: too_long(most) }),
            Err(error) => return Err(Unanswered { received: true, fault: fault(error) }),
        };
        Ok(Reply { status, headers, body, gzipped })
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Unanswered {
    pub fault: Fault,
    /// Whether the service may have received the request, and charge for it.
    pub received: bool,
}

impl Reply {
    /// The body, decompressed, of at most `most` bytes.
    pub fn plain(self, most: usize) -> Result<Vec<u8>, Fault> {
        if !self.gzipped {
            return Ok(self.body);
        }
        let mut plain = Vec::new();
        let limit = most as u64 + 1;
        let read = GzDecoder::new(self.body.as_slice()).take(limit).read_to_end(&mut plain);
        if plain.len() > most {
            return Err(too_long(most));
        }
        read.map_err(|error| Fault::transient(format!("its compressed answer cannot be read: {error}")))?;
        Ok(plain)
    }
}

fn too_long(most: usize) -> Fault {
    Fault::transient(format!("its answer is longer than {most} bytes, more than the vectors take"))
}

/// The body, if it has at most `most` bytes.
async fn read(mut response: Response, most: usize) -> reqwest::Result<Option<Vec<u8>>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > most {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// A certificate that is not accepted stays so; anything else may pass.
fn fault(error: reqwest::Error) -> Fault {
    let error = error.without_url();
    if error.is_timeout() {
        let what =
            if error.is_connect() { "it could not be reached in time" } else { "it did not answer in time" };
        return Fault::transient(what);
    }
    let mut reason = error.to_string();
    let mut source = error.source();
    let mut untrusted = false;
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        untrusted |= is_untrusted(cause);
        source = cause.source();
    }
    if untrusted { Fault::Configuration { reason } } else { Fault::transient(reason) }
}

/// What TLS says is wrapped in errors of I/O, more than once.
fn is_untrusted(cause: &(dyn Error + 'static)) -> bool {
    let mut inner = cause;
    while let Some(next) = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        inner = next;
    }
    matches!(inner.downcast_ref(), Some(rustls::Error::InvalidCertificate(_)))
}

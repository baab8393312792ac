//! Clients for outgoing HTTP: the one place that makes them, because the one
//! place that knows with whose cryptography.

use std::net::IpAddr;

use reqwest::{ClientBuilder, Url};
use tokio_rustls::rustls::{
    self, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The system has no certificates to trust.
    #[error("no certificate authorities are found on this machine (install `ca-certificates`, or name a file in SSL_CERT_FILE){}", .reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    NoAuthorities {
        /// What went wrong with those that were looked at.
        reason: Option<String>,
    },
    /// A file of certificates is none.
    #[error("there is no certificate in PEM format in the file that names whom to trust")]
    NoCertificate,
    /// The parts do not fit together.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The client cannot be made.
    #[error("an HTTP client cannot be made: {0}")]
    Client(#[from] reqwest::Error),
}

/// A client for this machine, in plain text: it trusts no certificate, and so
/// needs none to be installed, and it goes through no proxy, which would read
/// the keys.
pub fn local() -> Result<reqwest::Client, ClientError> {
    Ok(plain()?.no_proxy().build()?)
}

/// Whether only this machine sees what is sent to `url`.
pub fn stays_here(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

/// The beginnings of a client that trusts whom this machine trusts. Reads the
/// certificates and blocks meanwhile.
pub fn trusting() -> Result<ClientBuilder, ClientError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    if usable == 0 {
        let reason = found.errors.first().map(ToString::to_string);
        return Err(ClientError::NoAuthorities { reason });
    }
    with_roots(roots)
}

/// As [`trusting`], but trusts the authorities in `pem` and no others.
pub fn trusting_only(pem: &[u8]) -> Result<ClientBuilder, ClientError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.map_err(|_| ClientError::NoCertificate)?)?;
    }
    if roots.is_empty() { Err(ClientError::NoCertificate) } else { with_roots(roots) }
}

/// As [`trusting`], but with no certificates: for addresses in plain text.
pub fn plain() -> Result<ClientBuilder, ClientError> {
    with_roots(RootCertStore::empty())
}

fn with_roots(roots: RootCertStore) -> Result<ClientBuilder, ClientError> {
    let mut tls = ClientConfig::builder_with_provider(ring::default_provider().into())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(reqwest::Client::builder().tls_backend_preconfigured(tls))
}

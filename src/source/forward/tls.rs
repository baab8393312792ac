//! TLS for a listener, from PEM files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
    },
};

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read as PEM.
    #[error("{key} = {path:?} has no {what} that can be read: {reason}; it must be a file in PEM format")]
    Pem {
        /// The setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The certificate and the key do not make a server.
    #[error("tls.cert {cert:?} and tls.key {key:?} cannot be used: {source}")]
    Unusable {
        /// File of the certificate.
        cert: PathBuf,
        /// File of the private key.
        key: PathBuf,
        /// What is wrong with them.
        source: rustls::Error,
    },
}

/// A server with the certificate chain in `cert` and its private key in `key`.
pub(super) fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let pem = |key, path: &Path, what| {
        let path = path.to_owned();
        move |reason: pem::Error| TlsError::Pem { key, path, what, reason: reason.to_string() }
    };
    let no_certificate = pem("tls.cert", cert, "certificate");
    let chain = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain =
        chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
    let chain = chain.map_err(no_certificate)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(pem("tls.key", key, "private key"))?;
    let unusable = |source| TlsError::Unusable { cert: cert.to_owned(), key: key.to_owned(), source };
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(unusable)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

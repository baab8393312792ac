//! TLS for a listener, from PEM files that may be replaced while it listens.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::ring,
        pki_types::{
            CertificateDer, PrivateKeyDer,
            pem::{self, PemObject},
        },
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

/// Files of a TLS server, in PEM format. They are read again when they
/// change; connections that are open keep what they began with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub struct Settings {
    /// Its certificate, then those that vouch for it; relative to the working
    /// directory.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

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

/// How long the files are trusted not to have changed. Looking is two calls
/// of `stat`.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What tells a file from the one it was.
type Stamp = Option<(SystemTime, u64)>;

/// Makes encrypted connections of plain ones. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    identity: Arc<Identity>,
}

/// The certificate and its key, as the files have them.
#[derive(Debug)]
struct Identity {
    settings: Settings,
    current: RwLock<Arc<CertifiedKey>>,
    seen: Mutex<(Instant, [Stamp; 2])>,
}

impl Tls {
    /// A server with the certificate chain and the private key that `settings`
    /// name.
    ///
    /// # Errors
    /// If a file cannot be read, or the two do not belong together.
    pub fn open(settings: &Settings) -> Result<Self, TlsError> {
        let stamps = stamps(settings);
        let identity = Arc::new(Identity {
            settings: settings.clone(),
            current: RwLock::new(Arc::new(read(settings)?)),
            seen: Mutex::new((Instant::now(), stamps)),
        });
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|source| unusable(settings, source))?
            .with_no_client_auth()
            .with_cert_resolver(identity.clone());
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), identity })
    }

    /// What takes the next connection, with the files as they are now. Files
    /// that cannot be used are reported once, and those before them kept.
    pub fn acceptor(&self) -> &TlsAcceptor {
        self.identity.follow(Instant::now());
        &self.acceptor
    }
}

impl Identity {
    fn follow(&self, now: Instant) {
        // Whoever comes while another looks does not wait for the disk.
        let Ok(mut seen) = self.seen.try_lock() else { return };
        if now.saturating_duration_since(seen.0) < LOOK_EVERY {
            return;
        }
        let stamps = stamps(&self.settings);
        seen.0 = now;
        if stamps == seen.1 {
            return;
        }
        match read(&self.settings) {
            Ok(identity) => {
                seen.1 = stamps;
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
                tracing::info!(cert = %self.settings.cert.display(), "the TLS certificate was read again");
            }
            // Certificate and key are two files: the other may be on its way.
            Err(error) => tracing::error!(%error, "the TLS certificate stays the one that was read before"),
        }
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn stamps(settings: &Settings) -> [Stamp; 2] {
    [&settings.cert, &settings.key].map(|path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.modified().ok()?, meta.len()))
    })
}

fn read(settings: &Settings) -> Result<CertifiedKey, TlsError> {
    let pem = |key, path: &Path, what| {
        let path = path.to_owned();
        move |reason: pem::Error| TlsError::Pem { key, path, what, reason: reason.to_string() }
    };
    let chain =
        CertificateDer::pem_file_iter(&settings.cert).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let chain =
        chain.and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) });
    let chain = chain.map_err(pem("tls.cert", &settings.cert, "certificate"))?;
    let key = PrivateKeyDer::from_pem_file(&settings.key);
    let key = key.map_err(pem("tls.key", &settings.key, "private key"))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|source| unusable(settings, source))
}

fn unusable(settings: &Settings, source: rustls::Error) -> TlsError {
    TlsError::Unusable { cert: settings.cert.clone(), key: settings.key.clone(), source }
}

//! Accepts connections, over TCP or TLS.

use std::{io, sync::Arc};

use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::Instrument;

use super::{
    INFLATED_TIMES,
    connection::{self, HANDSHAKE_TIMEOUT},
    event::Mapping,
    handshake::{Nonce, Secret},
    inflate::Limits,
    intake::Shared,
    unpack::Terms,
};
use crate::{
    access::Access,
    config,
    dataflow::Cpu,
    metrics,
    pipeline::{Ingest, Origin},
    source::{entrance::Entrance, socket::watched},
    tls::{Tls, TlsError},
};

/// Draws the nonce of a connection; no two should be alike.
pub type DrawNonce = Box<dyn FnMut() -> [u8; 16] + Send>;

/// A source of type `forward` whose certificate, if it has one, is read.
pub struct Listener {
    tls: Option<Tls>,
    settings: config::Forward,
}

impl Listener {
    /// Reads the files of `tls`.
    pub fn open(settings: &config::Forward) -> Result<Self, TlsError> {
        let tls = settings.tls.as_ref().map(Tls::open).transpose()?;
        Ok(Self { tls, settings: settings.clone() })
    }

    /// Accepts and serves connections at `door` until the pipeline closes, then
    /// waits for those that are open. `sessions` bounds how many there are; one too
    /// many is closed, and its sender tries again.
    pub async fn run(
        self,
        door: Arc<TcpListener>,
        Entrance { ingest, sessions, access }: Entrance,
        cpu: Cpu,
        mut draw_nonce: DrawNonce,
    ) -> io::Result<()> {
        let Self { tls, settings } = self;
        let shared = Arc::new(shared(&settings, ingest, access, cpu));
        let closing = shared.ingest.closing();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = closing.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = door.accept() => accepted,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                // Out of file descriptors, or a client gone before it was
                // accepted: neither ends the source.
                Err(error) => {
                    tracing::warn!(%error, source = settings.name, "a connection could not be accepted");
                    sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let origin = Origin {
                source: settings.name.clone(),
                peer: Some(peer.to_string()),
                tenant: settings.tenant.as_deref().map(Arc::from),
            };
            let (tls, shared, sessions, nonce) =
                (tls.clone(), shared.clone(), sessions.clone(), draw_nonce());
            let served = async move {
                match sessions.admit(shared.ingest.closing()).await {
                    Ok(_place) => watched(serve(socket, tls, &origin, nonce, &shared), &origin).await,
                    Err(refused) => metrics::connection_refused(refused.label()),
                }
            };
            connections.spawn(served.in_current_span());
        }
        drop(door);
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

fn shared(settings: &config::Forward, ingest: Ingest, access: Access, cpu: Cpu) -> Shared {
    let max_message = settings.max_message_bytes;
    let mapping = Mapping { text_keys: settings.text_keys.clone(), max_frame: ingest.max_frame().as_usize() };
    let total = max_message.0.saturating_mul(INFLATED_TIMES);
    let limits = Limits { entry: max_message.as_usize(), total };
    let secret = settings
        .shared_key
        .as_ref()
        .map(|key| Secret { key: key.reveal().to_owned(), hostname: settings.self_hostname.clone() });
    let terms = Terms { mapping, limits };
    Shared { ingest, access, cpu, terms, max_message: max_message.as_usize(), secret }
}

async fn serve(
    socket: TcpStream,
    tls: Option<Tls>,
    origin: &Origin,
    nonce: Nonce,
    shared: &Arc<Shared>,
) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let Some(tls) = tls else {
        let (read, write) = socket.into_split();
        return connection::serve(read, write, origin, nonce, shared).await;
    };
    let accepted = tokio::select! {
        () = shared.ingest.closing().cancelled() => return Ok(()),
        accepted = timeout(HANDSHAKE_TIMEOUT, tls.acceptor().accept(socket)) => accepted,
    };
    let accepted =
        accepted.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no TLS in time")));
    match accepted {
        Ok(stream) => {
            let (read, write) = tokio::io::split(stream);
            connection::serve(read, write, origin, nonce, shared).await
        }
        // It only looked whether there is a server.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => {
            metrics::connection_refused("tls");
            Err(error)
        }
    }
}

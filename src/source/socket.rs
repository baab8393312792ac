//! TCP and Unix sockets: the same protocol on both.

use std::{io, os::unix::fs::FileTypeExt, path::Path, pin::Pin, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    task::JoinSet,
};
use tracing::Instrument;

use super::{
    connection::{serve, turn_away},
    entrance::Entrance,
};
use crate::{metrics, pipeline::Origin};

/// A bound listening socket.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket; its file is removed at the end.
    Unix(UnixListener, std::path::PathBuf),
}

impl Listener {
    /// Listens on a TCP address.
    pub async fn tcp(address: &str) -> io::Result<Self> {
        TcpListener::bind(address).await.map(Self::Tcp)
    }

    /// Listens on a Unix socket. A socket left over by a dead process is
    /// replaced; a live one, or another kind of file, is an error.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        if std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("another process listens on {}", path.display()),
                ));
            }
            std::fs::remove_file(path)?;
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        UnixListener::bind(path).map(|listener| Self::Unix(listener, path.to_owned()))
    }

    /// The address to connect to.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "unknown".into(), |a| a.to_string()),
            Self::Unix(_, path) => path.display().to_string(),
        }
    }

    /// Accepts and serves connections until the pipeline closes, then waits
    /// for those that are open.
    pub async fn run(self, source: String, entrance: Entrance) -> io::Result<()> {
        let ingest = &entrance.ingest;
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = ingest.closing().cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = self.accept(&source, &entrance) => accepted,
            };
            match accepted {
                Ok(connection) => {
                    connections.spawn(connection.in_current_span());
                }
                // Out of file descriptors, or a client gone before it was
                // accepted: neither ends the source.
                Err(error) => {
                    tracing::warn!(%error, source, "a connection could not be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        while connections.join_next().await.is_some() {}
        if let Self::Unix(_, path) = &self {
            let _ = std::fs::remove_file(path);
        }
        Ok(())
    }

    async fn accept(
        &self,
        source: &str,
        entrance: &Entrance,
    ) -> io::Result<Pin<Box<dyn Future<Output = ()> + Send>>> {
        let origin = |peer| Origin { source: source.to_owned(), peer, tenant: None };
        let entrance = entrance.clone();
        Ok(match self {
            Self::Tcp(listener) => {
                let (socket, peer) = listener.accept().await?;
                socket.set_nodelay(true)?;
                let (read, write) = socket.into_split();
                Box::pin(session(read, write, origin(Some(peer.to_string())), entrance))
            }
            Self::Unix(listener, _) => {
                let (socket, _) = listener.accept().await?;
                let (read, write) = socket.into_split();
                Box::pin(session(read, write, origin(None), entrance))
            }
        })
    }
}

/// One connection from its first moment to its last, if it gets a place.
async fn session<R, W>(read: R, write: W, origin: Origin, entrance: Entrance)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let Entrance { ingest, sessions, .. } = &entrance;
    match sessions.admit(ingest.closing()).await {
        Ok(_place) => watched(serve(read, write, origin.clone(), &entrance), &origin).await,
        Err(refused) => {
            metrics::connection_refused(refused.label());
            if let Some(_place) = sessions.tell() {
                // Whether it heard that is its own affair.
                let _ = turn_away(read, write, &sessions.refusal(refused)).await;
            }
        }
    }
}

/// Counts an open connection and logs how it broke, if it did.
pub(super) async fn watched(connection: impl Future<Output = io::Result<()>>, origin: &Origin) {
    let _open = metrics::connection_open();
    if let Err(error) = connection.await {
        tracing::info!(%error, source = origin.source, peer = origin.peer, "a connection broke");
    }
}

//! Doors: bound listening sockets.
//!
//! A door stays open while those who serve it change: whoever connects in
//! between waits in the system's queue and is served by the next.

use std::{
    io,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::{TcpListener, UnixListener};

use crate::config::Source;

/// A bound listening socket. Clones are the same one.
#[derive(Clone, Debug)]
pub enum Door {
    /// TCP.
    Tcp(Arc<TcpListener>),
    /// A Unix socket.
    Unix(Arc<UnixDoor>),
}

/// A bound Unix socket; its file is removed at the end.
#[derive(Debug)]
pub struct UnixDoor {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

/// Where a door is, as the pipeline file says.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Address and port; 0 is a port of the system's choice.
    Tcp(std::net::SocketAddr),
    /// The socket's file.
    Unix(PathBuf),
}

impl Place {
    /// Where `source` listens; `None` if it does not, or not by itself.
    pub fn of(source: &Source) -> Option<Self> {
        match source {
            Source::Tcp(tcp) => Some(Self::Tcp(tcp.listen.0)),
            Source::Forward(forward) => Some(Self::Tcp(forward.listen.0)),
            Source::Unix(unix) => Some(Self::Unix(unix.path.clone())),
            Source::File(_) | Source::Stdin(_) | Source::Http(_) => None,
        }
    }

    /// Whether the system is to choose the port.
    pub fn is_any_port(&self) -> bool {
        matches!(self, Self::Tcp(address) if address.port() == 0)
    }

    /// Binds it.
    pub async fn bind(&self) -> io::Result<Door> {
        match self {
            Self::Tcp(address) => Door::tcp(*address).await,
            Self::Unix(path) => Door::unix(path).await,
        }
    }
}

impl Door {
    /// Listens on a TCP address.
    pub async fn tcp(address: std::net::SocketAddr) -> io::Result<Self> {
        Ok(Self::Tcp(Arc::new(TcpListener::bind(address).await?)))
    }

    /// Listens on a Unix socket. A socket left over by a dead process is
    /// replaced; a live one, or another kind of file, is an error.
    pub async fn unix(path: &Path) -> io::Result<Self> {
        if std::fs::metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            if tokio::net::UnixStream::connect(path).await.is_ok() {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!("somebody listens on {} already", path.display()),
                ));
            }
            std::fs::remove_file(path)?;
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let listener = UnixListener::bind(path)?;
        Ok(Self::Unix(Arc::new(UnixDoor { listener, path: path.to_owned() })))
    }

    /// The address to connect to.
    pub fn address(&self) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| "unknown".into(), |a| a.to_string()),
            Self::Unix(door) => door.path.display().to_string(),
        }
    }
}

impl Drop for UnixDoor {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

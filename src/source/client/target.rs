//! Where a client connects to.

use std::{fmt, io, path::PathBuf, str::FromStr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

/// A server that takes frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `tcp://HOST:PORT`.
    Tcp(String),
    /// `unix:///PATH`.
    Unix(PathBuf),
}

/// The halves of a connection.
pub(super) type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

impl Target {
    pub(super) async fn connect(&self) -> io::Result<Halves> {
        Ok(match self {
            Self::Tcp(address) => {
                let socket = TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                let (read, write) = socket.into_split();
                (Box::new(read), Box::new(write))
            }
            Self::Unix(path) => {
                let (read, write) = UnixStream::connect(path).await?.into_split();
                (Box::new(read), Box::new(write))
            }
        })
    }
}

impl FromStr for Target {
    type Err = String;

    /// An address as people write it; `HOST:PORT` and a path beginning with
    /// `/` or `.` need no scheme.
    fn from_str(s: &str) -> Result<Self, String> {
        if let Some(path) = s.strip_prefix("unix://").or(Some(s).filter(|s| s.starts_with(['/', '.']))) {
            return match path {
                "" => Err(format!("`{s}` names no socket; write unix:///path/of/the.sock")),
                path => Ok(Self::Unix(path.into())),
            };
        }
        let address = s.strip_prefix("tcp://").unwrap_or(s);
        match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(address.to_owned()))
            }
            _ => Err(format!("`{s}` is no address; write tcp://host:port or unix:///path/of/the.sock")),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        let tcp = |s: &str| Ok(Target::Tcp(s.into()));
        let unix = |s: &str| Ok(Target::Unix(s.into()));
        assert_eq!("tcp://localhost:7410".parse(), tcp("localhost:7410"));
        assert_eq!("[::1]:7410".parse(), tcp("[::1]:7410"));
        assert_eq!("unix:///run/t.sock".parse(), unix("/run/t.sock"));
        assert_eq!("unix://data/t.sock".parse(), unix("data/t.sock"));
        assert_eq!("./t.sock".parse(), unix("./t.sock"));
        for wrong in ["", "unix://", "localhost", "http://localhost:80", "localhost:99999", ":7410"] {
            assert!(wrong.parse::<Target>().is_err(), "{wrong}");
        }
    }
}

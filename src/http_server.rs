//! Serving HTTP to strangers: connections are bounded in number, and in the
//! time that they may take to say what they want.
//!
//! What a request may cost once it is said is the handlers' matter. A
//! connection beyond the bound is answered at once that there is no room, so
//! that a balancer in front turns to another daemon.

mod patience;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use self::patience::Patient;
use crate::tls::Tls;

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long the head of a request may take to arrive, and how long a
/// connection may wait for its next one.
const HEAD: Duration = Duration::from_secs(30);
/// How long an answer may wait for a client that does not read it.
const UNREAD: Duration = Duration::from_secs(30);
/// Bytes of the head of a request; more is answered with 431.
const HEAD_BYTES: usize = 64 << 10;
/// How long the answer that there is no room may take.
const REFUSAL: Duration = Duration::from_millis(250);
/// Pause after the system had no connection to give, for want of descriptors.
const NO_SOCKETS: Duration = Duration::from_millis(100);

/// Sent as it is, for a connection that finds no room.
const NO_ROOM: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\n\
content-type: application/problem+json\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 172\r\n\r\n\
{\"type\":\"urn:thalweg:problem:too_many_connections\",\"title\":\"Service Unavailable\",\"status\":503,\
\"code\":\"too_many_connections\",\"detail\":\"no room for a connection; come again\"}";

/// Where a request comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// What requests are answered by. It may be changed while it is served: then
/// requests that begin later, also on connections that are open, go to the
/// new one. Clones are the same one.
#[derive(Clone)]
pub struct Routes(Arc<RwLock<Router>>);

impl Routes {
    /// Answers by `router`.
    pub fn new(router: Router) -> Self {
        Self(Arc::new(RwLock::new(router)))
    }

    /// Answers by `router` from now on.
    pub fn replace(&self, router: Router) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = router;
    }

    fn now(&self) -> Router {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A bound address that is not served yet.
pub struct Server {
    listener: Arc<TcpListener>,
    tls: Option<Tls>,
    room: Arc<Semaphore>,
    unread: Duration,
}

impl Server {
    /// Serves at most `connections` at once on `listener`.
    pub fn new(listener: Arc<TcpListener>, tls: Option<Tls>, connections: usize) -> Self {
        let room = Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS)));
        Self { listener, tls, room, unread: UNREAD }
    }

    /// Gives up a connection on which no byte of an answer could be written
    /// for `most`; 30 s unless said.
    pub fn unread_for(self, most: Duration) -> Self {
        Self { unread: most, ..self }
    }

    /// Serves until `stop` is cancelled and the open requests are answered.
    /// Connections without one end at once then; if this is dropped, all do.
    ///
    /// # Errors
    /// If the listener is broken for good.
    pub async fn serve(self, routes: Routes, stop: CancellationToken) -> io::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (socket, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_passing(&error) => continue,
                Err(error) => {
                    tracing::error!(%error, "no connection can be taken");
                    tokio::time::sleep(NO_SOCKETS).await;
                    continue;
                }
            };
            // Answers are small and complete: there is nothing to gather.
            let _ = socket.set_nodelay(true);
            match self.room.clone().try_acquire_owned() {
                Ok(place) => {
                    let (routes, tls, stop) = (routes.clone(), self.tls.clone(), stop.clone());
                    let socket = Patient::new(socket, self.unread);
                    connections.spawn(connection(socket, Peer(peer), tls, routes, stop, place));
                }
                Err(_) if self.tls.is_none() => {
                    connections.spawn(refuse(socket));
                }
                Err(_) => {}
            }
        }
        // Whoever comes now is for others to serve, or is refused.
        drop(self.listener);
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

/// Whether the next attempt may well succeed.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

async fn refuse(mut socket: TcpStream) {
    let _ = timeout(REFUSAL, socket.write_all(NO_ROOM)).await;
}

async fn connection(
    socket: Patient<TcpStream>,
    peer: Peer,
    tls: Option<Tls>,
    routes: Routes,
    stop: CancellationToken,
    _place: OwnedSemaphorePermit,
) {
    match tls {
        None => requests(socket, peer, routes, stop).await,
        Some(tls) => {
            let shaking = timeout(HANDSHAKE, tls.acceptor().accept(socket));
            match stop.run_until_cancelled(shaking).await {
                Some(Ok(Ok(encrypted))) => requests(encrypted, peer, routes, stop).await,
                Some(Ok(Err(error))) => tracing::debug!(peer = %peer.0, %error, "no TLS"),
                Some(Err(_)) => tracing::debug!(peer = %peer.0, "no TLS in time"),
                None => {}
            }
        }
    }
}

async fn requests<S>(socket: S, peer: Peer, routes: Routes, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = Arc::new(AtomicBool::new(false));
    let asks = asked.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        asks.store(true, Ordering::Relaxed);
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(peer);
        let answer = routes.now().oneshot(request);
        async move { Ok::<_, Infallible>(answer.await.unwrap_or_else(|never| match never {})) }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_BYTES);
    let mut serving = pin!(http.serve_connection(TokioIo::new(socket), service));
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        // Whoever has not asked for anything yet is not waited for; later,
        // hyper itself knows whether the connection is between two requests.
        () = stop.cancelled() => match asked.load(Ordering::Relaxed) {
            false => return,
            true => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer = %peer.0, %error, "a connection broke off");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_of_a_connection_is_a_whole_answer() {
        let text = std::str::from_utf8(NO_ROOM).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        let problem: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(problem["status"], 503);
    }
}

//! TCP and Unix sockets: the same protocol on both.

use std::{io, pin::Pin, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
};
use tracing::Instrument;

use super::{
    connection::{serve, turn_away},
    door::Door,
    entrance::Entrance,
};
use crate::{metrics, pipeline::Origin};

/// Accepts and serves connections of `source` at `door` until the pipeline
/// closes, then waits for those that are open.
pub async fn run(door: Door, source: String, entrance: Entrance) -> io::Result<()> {
    let ingest = &entrance.ingest;
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = ingest.closing().cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            accepted = accept(&door, &source, &entrance) => accepted,
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
    // Whoever comes now waits for the next who serves it, or is refused.
    drop(door);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn accept(
    door: &Door,
    source: &str,
    entrance: &Entrance,
) -> io::Result<Pin<Box<dyn Future<Output = ()> + Send>>> {
    let origin = |peer| Origin { source: source.to_owned(), peer, tenant: None };
    let entrance = entrance.clone();
    Ok(match door {
        Door::Tcp(listener) => {
            let (socket, peer) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let (read, write) = socket.into_split();
            Box::pin(session(read, write, origin(Some(peer.to_string())), entrance))
        }
        Door::Unix(door) => {
            let (socket, _) = door.listener.accept().await?;
            let (read, write) = socket.into_split();
            Box::pin(session(read, write, origin(None), entrance))
        }
    })
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

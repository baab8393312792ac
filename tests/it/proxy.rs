//! A proxy between a daemon and a real server: it writes down what is asked,
//! and can be told to fail as networks and servers do.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::task::AbortOnDropHandle;

/// Listens until dropped.
pub struct Proxy {
    /// `http://127.0.0.1:PORT`.
    pub endpoint: String,
    state: Arc<State>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    /// Method and target of each request, and the status of its answer.
    seen: Mutex<Vec<(String, Option<u16>)>>,
    /// Nobody is let through.
    away: AtomicBool,
    /// Parts of uploads that are let through; the others wait for ever.
    parts: AtomicUsize,
    /// The next body is altered.
    alters: AtomicBool,
}

impl Proxy {
    /// Before the server at `endpoint`.
    pub async fn before(endpoint: &str) -> Self {
        let server = endpoint.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { parts: AtomicUsize::new(usize::MAX), ..State::default() });
        let task = tokio::spawn(listen(listener, server, state.clone()));
        Self { endpoint: format!("http://{address}"), state, _task: AbortOnDropHandle::new(task) }
    }

    /// What was asked since the last time, and what was answered.
    pub fn take(&self) -> Vec<(String, Option<u16>)> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// Breaks every connection off, or lets them through again.
    pub fn away(&self, away: bool) {
        self.state.away.store(away, Ordering::SeqCst);
    }

    /// Lets this many more parts of uploads through and keeps the others
    /// waiting.
    pub fn parts(&self, most: usize) {
        self.state.parts.store(most, Ordering::SeqCst);
    }

    /// Alters one byte of the next body.
    pub fn alter(&self) {
        self.state.alters.store(true, Ordering::SeqCst);
    }
}

async fn listen(listener: TcpListener, server: String, state: Arc<State>) {
    let mut connections = Vec::new();
    loop {
        let (client, _) = listener.accept().await.unwrap();
        if state.away.load(Ordering::SeqCst) {
            continue;
        }
        let serving = serve(client, server.clone(), state.clone());
        connections.push(AbortOnDropHandle::new(tokio::spawn(async move {
            // Either side may go away at any time.
            let _ = serving.await;
        })));
    }
}

async fn serve(client: TcpStream, server: String, state: Arc<State>) -> std::io::Result<()> {
    let (from_server, to_server) = TcpStream::connect(server).await?.into_split();
    let (from_client, to_client) = client.into_split();
    let last = Arc::new(Mutex::new(None));
    let gone = async {
        while !state.away.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        done = forward(from_client, to_server, &state, &last) => done,
        done = answer(from_server, to_client, &state, &last) => done,
        () = gone => Ok(()),
    }
}

/// Requests of one connection, one after the other.
async fn forward(
    mut client: OwnedReadHalf,
    mut server: OwnedWriteHalf,
    state: &State,
    last: &Mutex<Option<usize>>,
) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            if client.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        let length = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, value)| value.trim().parse().unwrap());
        while buffer.len() < end + length {
            if client.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        let mut words = head.split(' ');
        let line = format!("{} {}", words.next().unwrap(), words.next().unwrap());
        let is_part = line.starts_with("PUT") && line.contains("partNumber=");
        let passes = |most: usize| most.checked_sub(1);
        if is_part && state.parts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, passes).is_err() {
            std::future::pending::<()>().await;
        }
        if length > 0 && line.starts_with("PUT") && state.alters.swap(false, Ordering::SeqCst) {
            buffer[end + length / 2] ^= 1;
        }
        {
            let mut seen = state.seen.lock().unwrap();
            *last.lock().unwrap() = Some(seen.len());
            seen.push((line, None));
        }
        server.write_all(&buffer[..end + length]).await?;
        buffer.drain(..end + length);
    }
}

async fn answer(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    state: &State,
    last: &Mutex<Option<usize>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = server.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        let status =
            buffer.strip_prefix(b"HTTP/1.1 ").map(|rest| String::from_utf8_lossy(&rest[..3]).into_owned());
        if let (Some(status), Some(at)) = (status, *last.lock().unwrap()) {
            let mut seen = state.seen.lock().unwrap();
            if let Some((_, slot)) = seen.get_mut(at).filter(|(_, slot)| slot.is_none()) {
                *slot = status.parse().ok();
            }
        }
        client.write_all(&buffer[..n]).await?;
    }
}

//! Clients that mean no good: none gets in, and none costs more than its
//! limit. What they send of it is in `api`, `identity` and `sessions` too.

use std::time::{Duration, Instant};

use axum::{Router, routing::get};
use thalweg::http_server::Server;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::daemon::SOON;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

/// A server alone, without a daemon around it.
struct Served {
    address: String,
    stop: CancellationToken,
    done: JoinHandle<std::io::Result<()>>,
}

/// Serves `router` to `connections` at once, each of which may leave an answer
/// unread for `unread`.
async fn serve(router: Router, connections: usize, unread: Duration) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let stop = CancellationToken::new();
    let server = Server::new(listener, None, connections).unread_for(unread);
    let done = tokio::spawn(server.serve(router, stop.clone()));
    Served { address, stop, done }
}

impl Served {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(&self.address).await.unwrap()
    }
}

/// Reads up to the end, however it comes.
async fn rest(mut socket: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(SOON, socket.read_to_end(&mut bytes)).await.expect("it is not closed");
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_client_that_never_reads_its_answer_gives_its_place_back() {
    let long = || async { vec![b'x'; 32 << 20] };
    let router = Router::new().route("/", get(|| async { "short" })).route("/long", get(long));
    let served = serve(router, 1, Duration::from_secs(1)).await;
    let mut deaf = served.connect().await;
    deaf.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let began = Instant::now();
    loop {
        let mut next = served.connect().await;
        let _ = next.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        let answer = rest(next).await;
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "it holds its place: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() >= Duration::from_millis(500), "it was given a while");
    drop(deaf);
}

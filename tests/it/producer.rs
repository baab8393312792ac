//! A producer as `docs/protocol.md` describes it, written from that page
//! alone: it shares no code with the daemon.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::daemon::SOON;

/// One frame around `record`.
pub fn frame(record: &impl Serialize) -> Vec<u8> {
    framed(&rmp_serde::to_vec_named(record).unwrap())
}

/// One frame around `payload`.
pub fn framed(payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    [&length.to_be_bytes()[..], payload].concat()
}

/// A frame of a record with nothing but a text.
pub fn text_frame(text: &str) -> Vec<u8> {
    frame(&serde_json::json!({"text": text}))
}

/// The frame that says whose frames follow.
pub fn hello(producer: &str, epoch: Option<u64>, sequence: Option<u64>) -> Vec<u8> {
    frame(&serde_json::json!({"thalweg": 1, "producer": producer, "epoch": epoch, "sequence": sequence}))
}

/// An answer of the server; fields of all types in one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Reply {
    #[serde(rename = "type")]
    pub kind: String,
    pub level: String,
    pub stream: String,
    pub count: u64,
    pub offset: u64,
    pub frame: u64,
    pub byte: u64,
    pub code: String,
    pub message: String,
    pub fatal: bool,
    pub reason: String,
    pub retry_after_ms: u64,
    pub producer: String,
    pub epoch: u64,
    pub sequence: u64,
    pub duplicate: bool,
}

/// The half that frames are written to.
pub type Sender = Box<dyn AsyncWrite + Send + Unpin>;

/// The half that answers are read from.
pub struct Replies(Box<dyn AsyncRead + Send + Unpin>);

/// One connection.
pub struct Producer {
    pub sender: Sender,
    pub replies: Replies,
}

impl Producer {
    /// Over TCP.
    pub async fn tcp(address: &str) -> Self {
        Self::try_tcp(address).await.unwrap()
    }

    /// Over TCP, to a server that may be gone.
    pub async fn try_tcp(address: &str) -> std::io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (read, write) = socket.into_split();
        Ok(Self { sender: Box::new(write), replies: Replies(Box::new(read)) })
    }

    /// Over TCP, as a producer that numbers its frames. Gives the number that
    /// the server expects.
    pub async fn named(address: &str, producer: &str, epoch: Option<u64>, from: Option<u64>) -> (Self, u64) {
        let mut connection = Self::tcp(address).await;
        connection.send(&hello(producer, epoch, from)).await;
        let welcome = connection.replies.expect().await;
        assert_eq!((welcome.kind.as_str(), welcome.producer.as_str()), ("welcome", producer), "{welcome:?}");
        assert_eq!(welcome.epoch, epoch.unwrap_or(welcome.epoch));
        (connection, welcome.sequence)
    }

    /// Over a Unix socket.
    pub async fn unix(path: &str) -> Self {
        let (read, write) = UnixStream::connect(path).await.unwrap().into_split();
        Self { sender: Box::new(write), replies: Replies(Box::new(read)) }
    }

    /// Over the halves of a connection.
    pub fn over(
        read: impl AsyncRead + Send + Unpin + 'static,
        write: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { sender: Box::new(write), replies: Replies(Box::new(read)) }
    }

    /// Writes bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.sender.write_all(bytes).await.unwrap();
        self.sender.flush().await.unwrap();
    }

    /// Sends one record and returns the offset it is acknowledged with.
    pub async fn put(&mut self, record: &impl Serialize) -> u64 {
        self.send(&frame(record)).await;
        let reply = self.replies.expect().await;
        assert_eq!((reply.kind.as_str(), reply.count), ("ack", 1), "{reply:?}");
        reply.offset
    }

    /// Sends frames and waits for as many acks. Gives the offsets.
    pub async fn put_all(&mut self, frames: &[Vec<u8>]) -> Vec<u64> {
        let all = frames.concat();
        let (sender, replies) = (&mut self.sender, &mut self.replies);
        let ((), offsets) = tokio::join!(async { sender.write_all(&all).await.unwrap() }, async {
            let mut offsets = Vec::new();
            while offsets.len() < frames.len() {
                let reply = replies.expect().await;
                assert_eq!(reply.kind, "ack", "{reply:?}");
                offsets.extend(reply.offset..reply.offset + reply.count);
            }
            offsets
        });
        offsets
    }

    /// Says that nothing more comes and reads the answers that are left.
    pub async fn finish(mut self) -> Vec<Reply> {
        // The server may have closed already.
        let _ = self.sender.shutdown().await;
        self.replies.rest().await
    }
}

impl Replies {
    /// The next answer; `None` once the server has closed.
    pub async fn next(&mut self) -> io::Result<Option<Reply>> {
        let mut prefix = [0; 4];
        match self.0.read_exact(&mut prefix).await {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            read => read?,
        };
        let mut payload = vec![0; u32::from_be_bytes(prefix) as usize];
        self.0.read_exact(&mut payload).await?;
        Ok(Some(rmp_serde::from_slice(&payload).map_err(io::Error::other)?))
    }

    /// The next answer, which must come soon.
    pub async fn expect(&mut self) -> Reply {
        timeout(SOON, self.next()).await.expect("no answer came").unwrap().expect("the server closed")
    }

    /// All answers until the server closes, which must be soon.
    pub async fn rest(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        while let Some(reply) = timeout(SOON, self.next()).await.expect("the server did not close").unwrap() {
            replies.push(reply);
        }
        replies
    }
}

/// Frames acknowledged by `replies`, one by one, as (index, offset).
pub fn acked(replies: &[Reply]) -> Vec<(u64, u64)> {
    let (mut at, mut acked) = (0, Vec::new());
    for reply in replies {
        match reply.kind.as_str() {
            "ack" => {
                acked.extend((0..reply.count).map(|n| (at + n, reply.offset + n)));
                at += reply.count;
            }
            "error" => {
                assert_eq!(reply.frame, at, "an answer out of order: {reply:?}");
                at += 1;
            }
            _ => {}
        }
    }
    acked
}

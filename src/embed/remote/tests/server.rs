//! A server that misbehaves as it is told: HTTP/1.1 on plain TCP, so that it
//! can also stop in the middle of a body.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

/// Numbers in the vectors of the tests.
pub const DIMENSIONS: usize = 4;

/// A request that has come.
#[derive(Clone, Debug)]
pub struct Seen {
    /// From 0.
    pub number: usize,
    pub path: String,
    pub headers: HashMap<String, String>,
    /// As it came, perhaps compressed.
    pub raw: Vec<u8>,
    pub body: Value,
    pub texts: Vec<String>,
}

/// What is done about it.
pub enum Reply {
    /// An answer with these headers.
    With(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Nothing, ever.
    Hang,
    /// An answer that breaks off after so many bytes of its body.
    Reset(Vec<u8>, usize),
    /// The same, later.
    Later(Duration, Box<Reply>),
}

impl Reply {
    pub fn json(status: u16, body: &Value) -> Self {
        Self::With(status, Vec::new(), body.to_string().into_bytes())
    }

    /// An answer as it should be, in OpenAI's words.
    pub fn good(seen: &Seen) -> Self {
        Self::json(200, &answer(&seen.texts))
    }

    pub fn header(self, name: &'static str, value: impl Into<String>) -> Self {
        match self {
            Self::With(status, mut headers, body) => {
                headers.push((name, value.into()));
                Self::With(status, headers, body)
            }
            other => other,
        }
    }
}

/// OpenAI's answer to these texts.
pub fn answer(texts: &[String]) -> Value {
    let data: Vec<Value> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| json!({"object": "embedding", "index": index, "embedding": vector(text)}))
        .collect();
    let tokens: usize = texts.iter().map(|text| text.split_whitespace().count() + 2).sum();
    json!({"object": "list", "data": data, "model": "m", "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})
}

/// The vector of a text: not of length 1, and another one for each text.
pub fn vector(text: &str) -> [f32; DIMENSIONS] {
    let hash = crc32c::crc32c(text.as_bytes()).to_le_bytes();
    hash.map(|byte| f32::from(byte) + 1.0)
}

/// That vector as it is to be stored.
pub fn stored(text: &str) -> Vec<f32> {
    let vector = vector(text).map(f64::from);
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    #[expect(clippy::cast_possible_truncation)]
    vector.iter().map(|x| (x / length) as f32).collect()
}

type Behaviour = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

/// A running server. Dropped, it is gone, with all its connections.
pub struct Server {
    pub url: String,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

struct Shared {
    behaviour: Behaviour,
    seen: Mutex<Vec<Seen>>,
    /// Texts that were answered well, as often as they were.
    served: Mutex<Vec<String>>,
    connections: AtomicUsize,
}

impl Server {
    pub async fn start(behaviour: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            behaviour: Arc::new(behaviour),
            seen: Mutex::default(),
            served: Mutex::default(),
            connections: AtomicUsize::new(0),
        });
        let accepting = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                accepting.connections.fetch_add(1, Ordering::Relaxed);
                connections.spawn(serve(stream, Arc::clone(&accepting)));
            }
        });
        Self { url, shared, _task: AbortOnDropHandle::new(task) }
    }

    /// A server that always does as it should.
    pub async fn good() -> Self {
        Self::start(Reply::good).await
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    pub fn requests(&self) -> usize {
        self.shared.seen.lock().unwrap().len()
    }

    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How often each text was answered with a vector.
    pub fn served(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for text in self.shared.served.lock().unwrap().iter() {
            *counts.entry(text.clone()).or_default() += 1;
        }
        counts
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    stream.set_nodelay(true).unwrap();
    let mut stream = BufReader::new(stream);
    while let Some((path, headers, raw)) = receive(&mut stream).await {
        let gzipped = headers.get("content-encoding").is_some_and(|value| value == "gzip");
        let plain = if gzipped { gunzip(&raw) } else { raw.clone() };
        let body: Value = serde_json::from_slice(&plain).unwrap();
        let list = body.get("input").or_else(|| body.get("inputs")).unwrap().as_array().unwrap();
        let texts = list.iter().map(|text| text.as_str().unwrap().to_owned()).collect();
        let seen = {
            let mut all = shared.seen.lock().unwrap();
            let seen = Seen { number: all.len(), path, headers, raw, body, texts };
            all.push(seen.clone());
            seen
        };
        let mut reply = (shared.behaviour)(&seen);
        while let Reply::Later(wait, then) = reply {
            tokio::time::sleep(wait).await;
            reply = *then;
        }
        match reply {
            Reply::With(status, headers, body) => {
                if status == 200 {
                    shared.served.lock().unwrap().extend(seen.texts);
                }
                let mut head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
                for (name, value) in headers {
                    head.push_str(&format!("{name}: {value}\r\n"));
                }
                stream.write_all(format!("{head}\r\n").as_bytes()).await.unwrap();
                stream.write_all(&body).await.unwrap();
            }
            Reply::Hang => std::future::pending().await,
            Reply::Reset(body, after) => {
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(&body[..after]).await.unwrap();
                stream.flush().await.unwrap();
                stream.get_ref().set_zero_linger().unwrap();
                return;
            }
            Reply::Later(..) => unreachable!(),
        }
    }
}

async fn receive(stream: &mut BufReader<TcpStream>) -> Option<(String, HashMap<String, String>, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.lines();
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let headers: HashMap<String, String> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
        .collect();
    let mut body = vec![0; headers.get("content-length")?.parse().ok()?];
    stream.read_exact(&mut body).await.ok()?;
    Some((path, headers, body))
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes), &mut plain).unwrap();
    plain
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut compressed = Vec::new();
    let mut encoder = flate2::read::GzEncoder::new(bytes, flate2::Compression::fast());
    std::io::Read::read_to_end(&mut encoder, &mut compressed).unwrap();
    compressed
}

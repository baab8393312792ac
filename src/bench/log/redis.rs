//! Redis Streams that sync before they answer: `appendfsync always`.

use std::{
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};

use super::load::Wire;
use crate::bench::daemon::Process;

const READY: Duration = Duration::from_secs(10);

/// A server of its own.
pub struct Redis {
    process: Process,
    address: String,
}

impl Redis {
    /// Starts `redis-server` on a free port with everything it keeps in `dir`.
    pub fn start(dir: &Path) -> Result<Self> {
        // Free a moment ago; another program could take it in between.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        std::fs::create_dir_all(dir)?;
        let process = Process::start(
            Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--dir"])
                .arg(dir)
                .args(["--appendonly", "yes", "--appendfsync", "always", "--save", ""])
                .stdin(Stdio::null())
                .stdout(Stdio::null()),
        )
        .context("Debian has it in the package redis-server")?;
        let address = format!("127.0.0.1:{port}");
        let started = Instant::now();
        while TcpStream::connect(&address).is_err() {
            ensure!(started.elapsed() < READY, "redis-server was not ready in time");
            sleep(Duration::from_millis(10));
        }
        Ok(Self { process, address })
    }

    /// Where it listens.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// The payloads as commands that append them to one stream, `count` to a
/// batch.
pub fn batches(payloads: &[Bytes], count: usize) -> Vec<Bytes> {
    let batch = |some: &[Bytes]| {
        let mut out = BytesMut::new();
        for payload in some {
            out.put_slice(b"*5\r\n$4\r\nXADD\r\n$1\r\ns\r\n$1\r\n*\r\n$1\r\nf\r\n$");
            out.put_slice(payload.len().to_string().as_bytes());
            out.put_slice(b"\r\n");
            out.put_slice(payload);
            out.put_slice(b"\r\n");
        }
        out.freeze()
    };
    payloads.chunks(count).map(batch).collect()
}

/// The command that empties the stream, so that memory does not grow from run
/// to run.
pub fn clear(address: &str) -> Result<()> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(b"*2\r\n$3\r\nDEL\r\n$1\r\ns\r\n*1\r\n$12\r\nBGREWRITEAOF\r\n")?;
    let mut answer = [0; 256];
    ensure!(stream.read(&mut answer)? > 0 && answer.first() == Some(&b':'), "redis-server did not empty it");
    Ok(())
}

/// Answers to `XADD`: one bulk string each, the entry's id.
pub struct Resp;

impl Wire for Resp {
    fn count(&self, bytes: &[u8]) -> Result<(usize, usize)> {
        let (mut count, mut used) = (0, 0);
        let mut lines = memchr::memmem::find_iter(bytes, b"\r\n");
        while let (Some(head), Some(id)) = (lines.next(), lines.next()) {
            let first = bytes.get(used).copied();
            ensure!(first == Some(b'$') && head > used, "redis-server refused: {:?}", bytes.get(used..id));
            count += 1;
            used = id + 2;
        }
        Ok((count, used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_answers_are_counted_and_a_part_is_left() {
        let count = |text: &str| Resp.count(text.as_bytes()).unwrap();
        assert_eq!(count("$15\r\n1700000000000-0\r\n$15\r\n1700000000000-1\r\n"), (2, 44));
        assert_eq!(count("$15\r\n1700000000000-0\r\n$15\r\n1700"), (1, 22));
        assert_eq!(count("$15\r"), (0, 0));
        assert!(Resp.count(b"-ERR no\r\n-ERR no\r\n").is_err());
    }
}

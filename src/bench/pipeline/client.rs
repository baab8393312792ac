//! A producer that keeps to `docs/protocol.md`.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};
use tokio_util::codec::FramedRead;

use crate::{
    frame::{DEFAULT_MAX_FRAME, FrameCodec, Payloads, Unit, put_frame},
    source::wire::Reply,
};

/// Bytes handed to the socket at once when sending as fast as possible.
const WRITE_BYTES: usize = 64 << 10;

/// Sends `payloads` as fast as the daemon takes them. Returns the seconds
/// until the last was acknowledged.
pub async fn flood(address: &str, payloads: &[Bytes]) -> Result<f64> {
    let (answers, mut write) = connect(address).await?;
    let mut frames = BytesMut::new();
    payloads.iter().for_each(|payload| put_frame(&mut frames, payload));
    let frames = frames.freeze();
    let expected = payloads.len() as u64;
    let started = Instant::now();
    let sending = async {
        for part in frames.chunks(WRITE_BYTES) {
            write.write_all(part).await?;
        }
        write.shutdown().await?;
        Ok::<_, anyhow::Error>(())
    };
    let mut answers = Answers::new(answers);
    let receiving = async {
        let mut acknowledged = 0;
        while acknowledged < expected {
            acknowledged += answers.next().await?;
        }
        Ok::<_, anyhow::Error>(started.elapsed().as_secs_f64())
    };
    let ((), seconds) = tokio::try_join!(sending, receiving)?;
    Ok(seconds)
}

/// Sends one payload each `every`, whether or not the one before is answered.
/// Returns the milliseconds from when each was due to its acknowledgement: a
/// daemon that falls behind cannot hide it by slowing the producer down.
pub async fn paced(address: &str, payloads: &[Bytes], every: Duration) -> Result<Vec<f64>> {
    let (answers, mut write) = connect(address).await?;
    let due: Vec<Instant> = {
        let start = Instant::now() + every;
        (0..).map(|n| start + every * n).take(payloads.len()).collect()
    };
    let sending = async {
        let mut frame = BytesMut::new();
        for (payload, due) in payloads.iter().zip(&due) {
            tokio::time::sleep_until((*due).into()).await;
            frame.clear();
            put_frame(&mut frame, payload);
            write.write_all(&frame).await?;
        }
        write.shutdown().await?;
        Ok::<_, anyhow::Error>(())
    };
    let mut answers = Answers::new(answers);
    let receiving = async {
        let mut waiting: VecDeque<Instant> = due.iter().copied().collect();
        let mut latencies = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            for _ in 0..answers.next().await? {
                let due = waiting.pop_front().context("the daemon acknowledged more than was sent")?;
                latencies.push(due.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok::<_, anyhow::Error>(latencies)
    };
    let ((), latencies) = tokio::try_join!(sending, receiving)?;
    Ok(latencies)
}

async fn connect(address: &str) -> Result<(OwnedReadHalf, OwnedWriteHalf)> {
    let stream = TcpStream::connect(address).await.with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream.into_split())
}

struct Answers {
    units: FramedRead<OwnedReadHalf, FrameCodec>,
    ready: VecDeque<Bytes>,
}

impl Answers {
    fn new(read: OwnedReadHalf) -> Self {
        Self { units: FramedRead::new(read, FrameCodec::new(DEFAULT_MAX_FRAME)), ready: VecDeque::new() }
    }

    /// How many frames the next answer acknowledges.
    async fn next(&mut self) -> Result<u64> {
        let payload = loop {
            if let Some(payload) = self.ready.pop_front() {
                break payload;
            }
            match self.units.next().await.context("the daemon closed the connection")?? {
                Unit::Run { bytes, .. } => self.ready.extend(Payloads(bytes)),
                broken => bail!("the daemon's answer is broken: {broken:?}"),
            }
        };
        match rmp_serde::from_slice(&payload)? {
            Reply::Ack { count, .. } => {
                ensure!(count > 0, "the daemon acknowledged nothing");
                Ok(count)
            }
            refused => bail!("the daemon refused a record: {refused:?}"),
        }
    }
}

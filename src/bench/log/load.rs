//! The generator: some producers, each a thread with one connection, each
//! with one batch in flight unless its [`Wire`] says otherwise.

use std::{
    collections::VecDeque,
    io::{Read, Write},
    net::TcpStream,
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;

use super::frames::FRAME_BYTES;
use crate::bench::{sample::quantile, usage};

/// Who sends, and how much at once.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Name in tables.
    pub name: &'static str,
    /// Connections.
    pub producers: usize,
    /// Frames of a batch.
    pub batch: usize,
    /// Batches that each producer sends.
    pub batches_each: usize,
}

impl Shape {
    /// Frames in all.
    pub fn records(&self) -> usize {
        self.producers * self.batches_each * self.batch
    }
}

/// What one run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// Acknowledged records per second.
    pub records_per_s: f64,
    /// The same in megabytes of frames.
    pub mb_per_s: f64,
    /// From the first byte of a batch written to its last acknowledgement.
    pub p50_ms: f64,
    /// The same.
    pub p99_ms: f64,
    /// Processor time of the server, per gigabyte of frames.
    pub cpu_s_per_gb: f64,
    /// Processor time of the generator, per gigabyte of frames.
    pub generator_cpu_s_per_gb: f64,
}

impl Run {
    /// Of `shape` done within `seconds`, for `cpu` of the server and
    /// `generator_cpu` of the generator.
    #[expect(clippy::cast_precision_loss, reason = "millions of records")]
    pub fn new(
        shape: &Shape,
        seconds: f64,
        mut latencies_ms: Vec<f64>,
        cpu: Duration,
        generator_cpu: Duration,
    ) -> Self {
        let (records, bytes) = (shape.records() as f64, (shape.records() * FRAME_BYTES) as f64);
        Self {
            records_per_s: records / seconds,
            mb_per_s: bytes / seconds / 1e6,
            p50_ms: quantile(&mut latencies_ms, 0.5),
            p99_ms: quantile(&mut latencies_ms, 0.99),
            cpu_s_per_gb: cpu.as_secs_f64() / (bytes / 1e9),
            generator_cpu_s_per_gb: generator_cpu.as_secs_f64() / (bytes / 1e9),
        }
    }
}

/// How a server is spoken to.
pub trait Wire: Sync {
    /// Bytes that begin a connection; their answer is part of [`Self::count`].
    fn hello(&self) -> &[u8] {
        &[]
    }

    /// How many records the whole answers at the front of `bytes` acknowledge,
    /// and how many bytes those answers have.
    fn count(&self, bytes: &[u8]) -> Result<(usize, usize)>;

    /// Batches that a producer sends before it waits for the first of them to
    /// be acknowledged whole.
    fn in_flight(&self) -> usize {
        1
    }

    /// Whether records are acknowledged at all. If not, a producer sends its
    /// batches one after the other and then ends its side; all have arrived
    /// when the server ends the other.
    fn acknowledges(&self) -> bool {
        true
    }
}

/// What the producers saw.
pub struct Seen {
    /// From the first connection's first byte to the last acknowledgement.
    pub seconds: f64,
    /// Of each batch, in milliseconds.
    pub latencies_ms: Vec<f64>,
    /// Processor time of the generator itself.
    pub cpu: Duration,
}

/// Sends `batches`, over and over, to `address` in `shape`.
pub fn drive(address: &str, shape: &Shape, wire: &impl Wire, batches: &[Bytes]) -> Result<Seen> {
    let connected = Barrier::new(shape.producers + 1);
    let cpu = usage::own().cpu;
    thread::scope(|scope| {
        let producers: Vec<_> = (0..shape.producers)
            .map(|n| {
                let connected = &connected;
                scope.spawn(move || {
                    let producer = Producer::connect(address, wire);
                    connected.wait();
                    producer?.send(shape, batches, n)
                })
            })
            .collect();
        connected.wait();
        let started = Instant::now();
        let mut latencies_ms = Vec::new();
        for producer in producers {
            latencies_ms.extend(producer.join().map_err(|_| anyhow!("a producer panicked"))??);
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(Seen { seconds, latencies_ms, cpu: usage::own().cpu.saturating_sub(cpu) })
    })
}

struct Producer<'a, W> {
    stream: TcpStream,
    wire: &'a W,
    answers: Vec<u8>,
    filled: usize,
    /// Records that are acknowledged and that nobody has waited for yet.
    acknowledged: usize,
}

/// An answer that takes longer is a fault.
const PATIENCE: Duration = Duration::from_secs(60);

impl<'a, W: Wire> Producer<'a, W> {
    fn connect(address: &str, wire: &'a W) -> Result<Self> {
        let mut stream =
            TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(wire.hello())?;
        Ok(Self { stream, wire, answers: vec![0; 64 << 10], filled: 0, acknowledged: 0 })
    }

    /// The milliseconds that each batch took.
    fn send(mut self, shape: &Shape, batches: &[Bytes], first: usize) -> Result<Vec<f64>> {
        let mut latencies = Vec::with_capacity(shape.batches_each);
        let mut in_flight = VecDeque::new();
        let mine = batches.iter().cycle().skip(first * batches.len() / shape.producers);
        for batch in mine.take(shape.batches_each) {
            in_flight.push_back(Instant::now());
            self.stream.write_all(batch)?;
            if self.wire.acknowledges() && in_flight.len() >= self.wire.in_flight() {
                self.hear_first(shape, &mut in_flight, &mut latencies)?;
            }
        }
        while self.wire.acknowledges() && !in_flight.is_empty() {
            self.hear_first(shape, &mut in_flight, &mut latencies)?;
        }
        ensure!(self.acknowledged == 0, "more was acknowledged than was sent");
        if !self.wire.acknowledges() {
            self.stream.shutdown(std::net::Shutdown::Write)?;
            while self.stream.read(&mut self.answers)? > 0 {}
        }
        Ok(latencies)
    }

    fn hear_first(
        &mut self,
        shape: &Shape,
        in_flight: &mut VecDeque<Instant>,
        latencies: &mut Vec<f64>,
    ) -> Result<()> {
        self.wait_for(shape.batch)?;
        latencies.extend(in_flight.pop_front().map(|sent| sent.elapsed().as_secs_f64() * 1e3));
        Ok(())
    }

    /// Waits until as many more records are acknowledged.
    fn wait_for(&mut self, records: usize) -> Result<()> {
        while self.acknowledged < records {
            let space = self.answers.get_mut(self.filled..).unwrap_or_default();
            let n = self.stream.read(space).context("waiting for an answer")?;
            ensure!(n > 0, "the server closed the connection");
            self.filled += n;
            let (count, used) = self.wire.count(self.answers.get(..self.filled).unwrap_or_default())?;
            self.acknowledged += count;
            self.answers.copy_within(used..self.filled, 0);
            self.filled -= used;
        }
        self.acknowledged -= records;
        Ok(())
    }
}

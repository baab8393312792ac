//! From messages to the pipeline: events are gathered into runs of frames,
//! handed in, and followed by the acks that wait for them.

use std::{io, sync::Arc};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    event::Run,
    handshake::Secret,
    message::{Chunk, Message},
    unpack::{Refused, Step, Terms, Unpack},
};
use crate::{
    access::Access,
    dataflow::Cpu,
    frame::Unit,
    pipeline::{Ingest, Origin, Submitted},
};

/// What the connections of a source share.
pub(super) struct Shared {
    pub(super) ingest: Ingest,
    pub(super) access: Access,
    pub(super) cpu: Cpu,
    pub(super) terms: Terms,
    /// Most bytes of a message on the wire.
    pub(super) max_message: usize,
    pub(super) secret: Option<Secret>,
}

/// In the order of the events.
pub(super) enum Outgoing {
    Submitted(Submitted),
    /// Everything before it belongs to this chunk or to earlier ones.
    Ack(Chunk),
}

/// The half that answers has ended; nothing more is to be read.
pub(super) struct Gone;

/// Gathers events into runs of frames, across messages, and hands them in.
pub(super) struct Intake<'a> {
    origin: &'a Origin,
    shared: &'a Arc<Shared>,
    queue: mpsc::Sender<Outgoing>,
    run: Run,
    /// Number of the run's first frame, and where its message begins.
    first: (u64, u64),
    /// Events taken so far.
    frames: u64,
    /// Chunks whose last events are in the run.
    acks: Vec<Chunk>,
}

impl<'a> Intake<'a> {
    /// Of one connection, which begins.
    pub(super) fn new(origin: &'a Origin, shared: &'a Arc<Shared>, queue: mpsc::Sender<Outgoing>) -> Self {
        Self { origin, shared, queue, run: Run::default(), first: (0, 0), frames: 0, acks: Vec::new() }
    }

    /// Cancelled when no more is to be read.
    pub(super) fn closing(&self) -> &CancellationToken {
        self.shared.ingest.closing()
    }

    /// Most bytes of a message.
    pub(super) fn max_message(&self) -> usize {
        self.shared.max_message
    }

    /// Resolves once the half that answers has ended.
    pub(super) async fn gone(&self) {
        self.queue.closed().await;
    }

    /// Takes the events of a message that begins at byte `at`.
    pub(super) async fn take(&mut self, mut message: Message, at: u64) -> Result<(), Gone> {
        let chunk = message.chunk.take();
        let mut unpack = Unpack::new(message, &self.shared.terms);
        loop {
            if self.run.count == 0 {
                self.first = (self.frames, at);
            }
            let before = self.run.count;
            let step;
            (unpack, step) = self.step(unpack).await;
            self.frames += u64::from(self.run.count - before);
            match step {
                Step::Full => self.flush().await?,
                Step::Unfit(frame) => {
                    self.flush().await?;
                    self.submit((self.frames, at), 1, frame).await?;
                    self.frames += 1;
                }
                Step::Refused(refused) => self.refuse(at, refused, false).await?,
                Step::End => break,
            }
        }
        self.acks.extend(chunk);
        Ok(())
    }

    /// The next step; on a thread that computes if something is to be
    /// inflated. A run of plain events is made in about a millisecond, less
    /// than handing it over would gain.
    async fn step(&mut self, mut unpack: Unpack) -> (Unpack, Step) {
        if !unpack.is_packed() {
            let step = unpack.fill(&self.shared.terms, &mut self.run);
            return (unpack, step);
        }
        let (shared, mut run) = (self.shared.clone(), std::mem::take(&mut self.run));
        let step;
        (unpack, run, step) = self
            .shared
            .cpu
            .run(move || {
                let step = unpack.fill(&shared.terms, &mut run);
                (unpack, run, step)
            })
            .await;
        self.run = run;
        (unpack, step)
    }

    /// Hands in the run, then the acks that were waiting for it.
    pub(super) async fn flush(&mut self) -> Result<(), Gone> {
        if self.run.count > 0 {
            let (frames, count) = self.run.take();
            self.submit(self.first, count, frames).await?;
        }
        for chunk in std::mem::take(&mut self.acks) {
            self.send(Outgoing::Ack(chunk)).await?;
        }
        Ok(())
    }

    async fn submit(&self, (frame, at): (u64, u64), count: u32, bytes: Bytes) -> Result<(), Gone> {
        let unit = Unit::Run { at, count, bytes };
        for submitted in self.shared.ingest.submit(self.origin, frame, unit).await {
            self.send(Outgoing::Submitted(submitted)).await?;
        }
        Ok(())
    }

    /// Keeps a dead letter for something of the message at byte `at`.
    async fn refuse(&mut self, at: u64, refused: Refused, fatal: bool) -> Result<(), Gone> {
        self.flush().await?;
        let Refused { code, message, payload } = refused;
        let place = (self.frames, at);
        self.frames += 1;
        let ingest = &self.shared.ingest;
        let submitted = ingest.refuse(self.origin, place, code, message, fatal, payload).await;
        self.send(Outgoing::Submitted(submitted)).await
    }

    /// Refuses what begins at byte `at`, after which nothing can be read.
    pub(super) async fn refuse_rest(&mut self, at: u64, refused: Refused) -> io::Result<()> {
        let (source, peer) = (&self.origin.source, &self.origin.peer);
        tracing::info!(source, peer, code = refused.code, "{}", refused.message);
        // Nobody is left to be told if the other half is gone.
        let _ = self.refuse(at, refused, true).await;
        Ok(())
    }

    async fn send(&self, outgoing: Outgoing) -> Result<(), Gone> {
        self.queue.send(outgoing).await.map_err(|_| Gone)
    }
}

//! From a thread that reads to the log.

use std::{collections::VecDeque, io};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::{
    super::json::Parsed,
    bookmarks::{Bookmarks, KEEP_EVERY},
};
use crate::{
    frame::{FrameBatch, Unit},
    pipeline::{Answer, Ingest, Origin, Refusal, Submitted},
    store::SourceProgress,
};

/// Steps of reading ahead of the log.
const READ_AHEAD: usize = 4;
/// Stretches of frames under way to the log.
const UNDER_WAY: usize = 16;

/// What is read, in order: inputs, one after the other.
#[derive(Debug)]
pub(super) enum Step {
    /// The next input.
    Begin(Input),
    /// A part of it.
    Part(Parsed),
    /// It has ended, or could not be read on.
    End(io::Result<()>),
}

/// What is read.
#[derive(Clone, Debug)]
pub(super) struct Input {
    pub origin: Origin,
    /// How far it was read before, if that is kept.
    pub progress: Option<SourceProgress>,
}

impl Input {
    fn skip(&self) -> u64 {
        self.progress.as_ref().map_or(0, |progress| progress.records)
    }
}

/// Hands what `read` gives to `ingest`, until all of it is settled. `read`
/// runs on a thread of its own and is told when nobody wants more. Returns
/// early, without error, when the pipeline closes.
///
/// # Errors
/// If an input cannot be read, or the log or the store takes nothing.
pub(super) async fn take(
    read: impl FnOnce(&mut dyn FnMut(Step) -> bool) + Send + 'static,
    ingest: &Ingest,
    bookmarks: Option<&mut Bookmarks>,
) -> io::Result<()> {
    let (steps, read_steps) = mpsc::channel(READ_AHEAD);
    let (ended, end) = oneshot::channel();
    // A thread of its own, and not one of the runtime's: those are waited for
    // at exit, and a read of standard input may never return.
    std::thread::Builder::new().name("reader".into()).spawn(move || {
        read(&mut |step| steps.blocking_send(step).is_ok());
        ended.send(())
    })?;
    let mut taking =
        Taking { ingest, bookmarks, read: None, under_way: VecDeque::new(), stretches: 0, settled: None };
    let taken = taking.all(read_steps).await;
    let kept = taking.keep().await;
    match taken? {
        Ended::Closing => kept,
        // Fails if the thread panicked.
        Ended::Read => end.await.map_err(io::Error::other).and(kept),
    }
}

/// How taking ended without an error.
enum Ended {
    Read,
    Closing,
}

/// What is under way to the log, in order.
enum UnderWay {
    Begin(Input),
    Stretch(Submitted),
    End(io::Result<()>),
}

struct Taking<'a> {
    ingest: &'a Ingest,
    bookmarks: Option<&'a mut Bookmarks>,
    /// The input that is read.
    read: Option<Input>,
    under_way: VecDeque<UnderWay>,
    /// Stretches of `under_way`.
    stretches: usize,
    /// The input whose frames are being settled.
    settled: Option<Settled>,
}

/// What became of an input.
struct Settled {
    input: Input,
    /// Frames that are durable in the log.
    acknowledged: u64,
    /// Frames that were refused and kept as dead letters.
    refused: u64,
}

impl Taking<'_> {
    async fn all(&mut self, mut steps: mpsc::Receiver<Step>) -> io::Result<Ended> {
        loop {
            let step = tokio::select! {
                biased;
                () = self.ingest.closing().cancelled() => None,
                step = steps.recv() => step,
                // Reading takes its time: what has been read is settled and
                // kept meanwhile, so that it does not come again if this is
                // the end.
                () = tokio::time::sleep(KEEP_EVERY), if !self.under_way.is_empty() => {
                    if !self.settle_beyond(0).await? {
                        return Ok(Ended::Closing);
                    }
                    self.keep().await?;
                    continue;
                }
            };
            let last = step.is_none();
            match step {
                Some(step) => self.hand_in(step).await,
                None => steps.close(),
            }
            if !self.settle_beyond(if last { 0 } else { UNDER_WAY }).await? {
                return Ok(Ended::Closing);
            }
            if last {
                let closing = self.ingest.closing().is_cancelled();
                return Ok(if closing { Ended::Closing } else { Ended::Read });
            }
        }
    }

    /// Settles what is under way, first come first, until no more than `most`
    /// stretches are; false if the pipeline closes before, and the next start
    /// goes on there.
    async fn settle_beyond(&mut self, most: usize) -> io::Result<bool> {
        let is_due =
            |next: &mut UnderWay, stretches| stretches > most || !matches!(next, UnderWay::Stretch(_));
        while let Some(next) = self.under_way.pop_front_if(|next| is_due(next, self.stretches)) {
            if !self.settle(next).await? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn hand_in(&mut self, step: Step) {
        match step {
            Step::Begin(input) => {
                self.read = Some(input.clone());
                self.under_way.push_back(UnderWay::Begin(input));
            }
            Step::Part(part) => {
                let Some(input) = self.read.as_ref().filter(|input| part.end() > input.skip()) else {
                    return;
                };
                let submitted = submit(part, input.skip(), &input.origin, self.ingest).await;
                self.stretches += submitted.len();
                self.under_way.extend(submitted.into_iter().map(UnderWay::Stretch));
            }
            Step::End(end) => self.under_way.push_back(UnderWay::End(end)),
        }
    }

    /// Waits for what is under way first; false if the pipeline closes
    /// before.
    async fn settle(&mut self, next: UnderWay) -> io::Result<bool> {
        match next {
            UnderWay::Begin(input) => self.settled = Some(Settled { input, acknowledged: 0, refused: 0 }),
            UnderWay::Stretch(submitted) => {
                self.stretches -= 1;
                return self.settle_stretch(submitted).await;
            }
            UnderWay::End(end) => {
                end?;
                let done = self.settled.take().and_then(Settled::done);
                if let (Some(bookmarks), Some(done)) = (&mut self.bookmarks, done) {
                    bookmarks.move_to(&done).await?;
                }
            }
        }
        Ok(true)
    }

    async fn settle_stretch(&mut self, submitted: Submitted) -> io::Result<bool> {
        let end = submitted.end_frame();
        let answer = self.ingest.settle_patiently(submitted).await;
        let Some(settled) = &mut self.settled else { return Ok(true) };
        match answer {
            Answer::Taken { count, .. } => settled.acknowledged += u64::from(count),
            Answer::Refused(refusal) if is_log_refusal(refusal.code) => {
                let closing = self.ingest.closing().is_cancelled();
                return if closing { Ok(false) } else { Err(settled.failed(&refusal)) };
            }
            Answer::Refused(_) => settled.refused += 1,
        }
        if let Some(progress) = &mut settled.input.progress {
            progress.records = end;
            if let Some(bookmarks) = &mut self.bookmarks {
                bookmarks.move_to(progress).await?;
            }
        }
        Ok(true)
    }

    /// Has the store keep what is noted.
    async fn keep(&mut self) -> io::Result<()> {
        match &mut self.bookmarks {
            Some(bookmarks) => bookmarks.keep().await,
            None => Ok(()),
        }
    }
}

impl Settled {
    /// The input as it is read to its end, if that is kept.
    fn done(self) -> Option<SourceProgress> {
        let Self { input: Input { progress, .. }, acknowledged, refused } = self;
        let mut progress = progress?;
        progress.done = true;
        tracing::info!(source = progress.source, file = progress.path, acknowledged, refused, "file read");
        Some(progress)
    }

    /// The log took nothing: the input must not be passed over as done.
    fn failed(&self, refusal: &Refusal) -> io::Error {
        let error = format!("{}: {}", refusal.code, refusal.message);
        io::Error::other(match &self.input.progress {
            Some(progress) => format!("{}: {error}", progress.path),
            None => error,
        })
    }
}

/// Whether the log took nothing.
fn is_log_refusal(code: &str) -> bool {
    matches!(code, "log_full" | "log_failed" | "closing")
}

/// `piece` without the frames before number `first`.
fn starting_at(piece: Parsed, first: u64) -> Parsed {
    let Parsed::Unit { frame, unit: Unit::Run { at, count, bytes } } = piece else { return piece };
    let whole = bytes.len();
    let batch = FrameBatch { base_offset: frame, append_time_ms: 0, count, bytes };
    let cut = batch.starting_at(first).unwrap_or(FrameBatch {
        base_offset: first,
        append_time_ms: 0,
        count: 0,
        bytes: Bytes::new(),
    });
    let at = at + (whole - cut.bytes.len()) as u64;
    Parsed::Unit { frame: cut.base_offset, unit: Unit::Run { at, count: cut.count, bytes: cut.bytes } }
}

/// Hands in one part of an input, without the frames before number `skip`.
async fn submit(part: Parsed, skip: u64, origin: &Origin, ingest: &Ingest) -> VecDeque<Submitted> {
    match starting_at(part, skip) {
        Parsed::Unit { frame, unit } => ingest.submit(origin, frame, unit).await,
        Parsed::NotJson { frame, byte, message, line } => {
            [ingest.refuse(origin, (frame, byte), "not_json", message, false, line).await].into()
        }
    }
}

//! One life of the process: a log opened on the simulated disk, and driven
//! step by step.

use std::{
    collections::VecDeque,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use tokio::sync::oneshot;

use super::{
    disk::Disk,
    oracle::{Oracle, Serial, Trust, payload},
};
use crate::{
    frame::{FrameBatch, put_frame},
    log::{
        AppendError, Appended, Claim, Cursor, LogReader, OpenError, Ready, Recovery, Sealer, Settings,
        directory::Directory,
        group::{Append, Item},
        writer::Request,
    },
    segment::{self, SegmentHeader},
};

pub const STREAM: &str = "s";

/// What outlives a process.
pub struct World<'a> {
    pub disk: Disk,
    pub root: &'a Path,
    pub oracle: Oracle,
    pub settings: Settings,
    pub trust: Trust,
    pub rng: SmallRng,
    pub now: Arc<AtomicI64>,
    next_serial: Serial,
    producers: [Producer; PRODUCERS],
}

/// Producers that number their frames.
pub const PRODUCERS: usize = 2;

/// What a producer has not been told about, in the order of its numbers: it
/// sends that again before anything else.
#[derive(Debug, Default)]
struct Producer {
    unanswered: VecDeque<Numbered>,
    next: u64,
}

#[derive(Clone, Debug)]
struct Numbered {
    first: u64,
    frames: Bytes,
    serials: Vec<Serial>,
}

/// A process that has the log open.
pub struct Life {
    ready: Ready,
    reader: LogReader,
    cursor: Cursor,
    tail: Vec<FrameBatch>,
    failed: bool,
}

type Answer = oneshot::Receiver<Result<Appended, AppendError>>;

impl<'a> World<'a> {
    /// A new disk with nothing on it but `root`, a folder of the machine into
    /// which segments are sealed.
    pub fn new(root: &'a Path, settings: Settings, trust: Trust, seed: u64) -> Self {
        Self {
            disk: Disk::new(root, seed ^ 0xd15c),
            root,
            oracle: Oracle::default(),
            settings,
            trust,
            rng: SmallRng::seed_from_u64(seed),
            now: Arc::new(AtomicI64::new(1_000)),
            next_serial: 0,
            producers: Default::default(),
        }
    }

    /// Opens the log, and checks what is in it.
    pub fn open(&mut self) -> Result<Life, OpenError> {
        let now = self.now.clone();
        let clock = Arc::new(move || now.fetch_add(1, Ordering::Relaxed));
        let mut ids = SmallRng::seed_from_u64(self.rng.random());
        let draw_id = Box::new(move || ids.random());
        let io = Arc::new(self.disk.clone());
        let known = self.oracle.known;
        let ready = Ready::open(io, self.root, STREAM, &self.settings, clock, draw_id, known)?;
        let reader = LogReader::new(ready.handle.shared.clone());
        let cursor = Cursor::at(reader.end_offset());
        let mut life = Life { ready, reader, cursor, tail: Vec::new(), failed: false };
        if let Some(batches) = self.read_all(&life) {
            let Recovery { end_offset, quarantined, .. } = life.ready.report.clone();
            assert!(self.trust != Trust::Sound || quarantined.is_empty(), "put aside: {quarantined:?}");
            let damage = life.reader.damage();
            self.oracle.check_recovered(&batches, end_offset, &damage, self.trust);
            life.tail = batches;
        }
        Ok(life)
    }

    /// Everything in the log; `None` if the machine goes down meanwhile.
    fn read_all(&mut self, life: &Life) -> Option<Vec<FrameBatch>> {
        let max_bytes = [1, 700, 5_000, 1 << 20][self.rng.random_range(0..4)];
        let read = read_on(&life.reader, &mut Cursor::at(0), max_bytes, &self.disk);
        (!self.disk.is_down()).then_some(read)
    }

    /// Reads everything again, and checks it.
    pub fn check(&mut self, life: &mut Life) {
        if let Some(batches) = self.read_all(life) {
            self.oracle.check_running(&batches, self.trust);
            // Whoever follows the end sees the same.
            life.tail.extend(read_on(&life.reader, &mut life.cursor, 900, &self.disk));
            if !self.disk.is_down() {
                self.oracle.check_running(&life.tail, self.trust);
            }
        }
    }

    /// Sends `appends` appends at once, of a few frames each.
    pub fn append(&mut self, life: &mut Life, appends: usize, frame_bytes: usize) {
        let mut waiting = Vec::new();
        for _ in 0..appends {
            let (frames, serials) = self.some_frames(frame_bytes);
            self.oracle.hand_in(&frames, &serials);
            let answer = life.send(frames, serials.len() as u32, None);
            waiting.push((serials, answer));
        }
        life.run(&self.disk);
        waiting.into_iter().for_each(|(serials, answer)| self.hear(&serials, answer));
    }

    /// Sends what a producer does not know the fate of again, and `appends`
    /// new appends after it, at once: each must be there once in the end.
    pub fn append_numbered(&mut self, life: &mut Life, producer: usize, appends: usize, frame_bytes: usize) {
        for _ in 0..appends {
            let (frames, serials) = self.some_frames(frame_bytes);
            let Producer { unanswered, next } = &mut self.producers[producer];
            let first = *next;
            *next += serials.len() as u64;
            unanswered.push_back(Numbered { first, frames, serials });
        }
        let mut waiting = Vec::new();
        for Numbered { first, frames, serials } in self.producers[producer].unanswered.clone() {
            self.oracle.hand_in(&frames, &serials);
            let count = serials.len() as u32;
            let claim = Claim { producer: format!("p{producer}").into(), epoch: 1, first, count };
            waiting.push((serials, life.send(frames, count, Some(claim))));
        }
        life.run(&self.disk);
        let mut one_is_missing = false;
        for (serials, answer) in waiting {
            if self.hear_numbered(&serials, answer, one_is_missing) {
                self.producers[producer].unanswered.retain(|append| append.serials != serials);
            } else {
                one_is_missing |= !self.oracle.is_shown(&serials);
            }
        }
    }

    /// Whether the append is known to be in the log.
    fn hear_numbered(&mut self, serials: &[Serial], mut answer: Answer, one_is_missing: bool) -> bool {
        match answer.try_recv() {
            Ok(Ok(Appended { duplicates: 0, .. })) if one_is_missing && self.trust == Trust::Sound => {
                panic!("{serials:?} were taken before those in front of them")
            }
            Ok(Ok(at)) if at.duplicates == 0 => {
                self.oracle.acknowledged(serials, at, self.trust);
                true
            }
            Ok(Ok(at)) => {
                self.oracle.recognised(serials, at, self.trust);
                true
            }
            Ok(Err(AppendError::Full { .. })) if !self.disk.is_down() => {
                self.oracle.refused(serials);
                false
            }
            Ok(Err(AppendError::Producer(error))) => {
                assert!(one_is_missing || self.trust != Trust::Sound, "{error}");
                self.oracle.refused(serials);
                // On another disk the log may have lost where a producer was.
                self.trust != Trust::Sound
            }
            _ => false,
        }
    }

    fn some_frames(&mut self, frame_bytes: usize) -> (Bytes, Vec<Serial>) {
        let mut frames = BytesMut::new();
        let mut serials = Vec::new();
        for _ in 0..self.rng.random_range(1..=3) {
            let length = self.rng.random_range(8..=frame_bytes);
            put_frame(&mut frames, &payload(self.next_serial, length));
            serials.push(self.next_serial);
            self.next_serial += 1;
        }
        (frames.freeze(), serials)
    }

    fn hear(&mut self, serials: &[Serial], mut answer: Answer) {
        match answer.try_recv() {
            Ok(Ok(at)) => self.oracle.acknowledged(serials, at, self.trust),
            // From a machine that is down nobody hears.
            Ok(Err(AppendError::Full { .. })) if !self.disk.is_down() => self.oracle.refused(serials),
            _ => {}
        }
    }

    /// Asks for the active segment to be closed.
    pub fn close(&mut self, life: &mut Life) {
        let (reply, _answer) = oneshot::channel();
        life.ready.handle.requests.send(Request::Close(reply)).unwrap();
        life.run(&self.disk);
    }

    /// Lets the active segment grow old.
    pub fn wait(&mut self, life: &mut Life) {
        self.now.fetch_add(self.settings.segment_age.0.as_millis() as i64, Ordering::Relaxed);
        if !life.failed {
            life.failed = life.ready.writer.step(Duration::ZERO).is_break();
        }
    }

    /// Makes a spare ready, as the thread of a running log does.
    pub fn fill_spare(&mut self, life: &mut Life) {
        let _ = life.ready.writer.spares.fill();
    }

    /// Seals the oldest closed segment and lets its file go.
    pub fn seal(&mut self, life: &mut Life) {
        let Some(raw) = life.reader.closed().into_iter().next() else { return };
        let path = Directory::of_stream(self.root, STREAM).sealed(raw.base_offset());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let header = SegmentHeader { stream: STREAM.into(), segment_id: *raw.id(), sealed_at_ms: 0 };
        let sealer =
            Sealer { shared: life.ready.handle.shared.clone(), spares: life.ready.writer.spares.clone() };
        match segment::seal(raw.batches(), header, &segment::Settings::default(), |_| None, &path) {
            Ok(_) if !self.disk.is_down() => {}
            Err(segment::SealError::Empty) if !self.disk.is_down() => {
                assert_ne!(self.trust, Trust::Sound, "an empty segment was closed");
                let _ = sealer.set_aside(&raw, None);
                return;
            }
            Err(error) if !self.disk.is_down() => panic!("{error}"),
            _ => return,
        }
        if self.disk.publish(&path).is_ok() {
            let _ = sealer.replace(raw, segment::Reader::open(&path).unwrap());
        }
    }

    /// The reader of the log takes note of how far it has come.
    pub fn rely(&mut self) {
        let end = self.oracle.end_offset();
        self.oracle.known = self.rng.random_range(self.oracle.known..=end.max(self.oracle.known));
    }
}

impl Life {
    fn send(&self, frames: Bytes, count: u32, claim: Option<Claim>) -> Answer {
        let (reply, answer) = oneshot::channel();
        let room = self.ready.handle.room.clone().try_acquire_owned().unwrap();
        let append = Item::Append(Append { frames, count, claim, reply, room });
        self.ready.handle.requests.send(Request::Item(append)).unwrap();
        answer
    }

    /// Serves all that was sent.
    fn run(&mut self, disk: &Disk) {
        let Ready { writer, handle, .. } = &mut self.ready;
        while !(self.failed || handle.requests.is_empty() && writer.waiting.is_empty()) {
            let was_down = disk.is_down();
            if let ControlFlow::Break(ended) = writer.step(Duration::ZERO) {
                assert!(ended.is_err(), "the writer ends before its handles");
                self.failed = true;
            }
            assert!(!was_down || self.failed || writer.shared.full().is_some(), "who is down serves nobody");
        }
    }

    /// Whether the log accepts nothing more.
    pub fn has_failed(&self) -> bool {
        self.failed
    }
}

/// Reads from the cursor to the durable end.
fn read_on(reader: &LogReader, cursor: &mut Cursor, max_bytes: usize, disk: &Disk) -> Vec<FrameBatch> {
    let mut all = Vec::new();
    loop {
        match reader.read(cursor, max_bytes) {
            Ok(batches) if batches.is_empty() => return all,
            Ok(batches) => all.extend(batches),
            Err(_) if disk.is_down() => return all,
            Err(error) => panic!("{error}"),
        }
    }
}

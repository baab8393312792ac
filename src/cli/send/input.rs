//! What is to be sent: files and standard input, as frames.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, Result, anyhow};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    frame::Unit,
    source::{
        amend::{Field, amend},
        client::Frames,
        file::{Content, read_pieces},
        json::Parsed,
    },
    units::ByteSize,
};

/// The largest frame that any pipeline takes; the server says what it takes.
const MAX_FRAME: ByteSize = ByteSize::mib(1 << 10);
/// Pieces read ahead.
const READ_AHEAD: usize = 4;
/// Unreadable records that are kept.
const KEPT: usize = 10;

/// Which frames are sent, and as what.
#[derive(Clone, Debug)]
pub struct Selection {
    pub content: Option<Content>,
    pub skip: u64,
    pub limit: Option<u64>,
    pub set: Vec<Field>,
}

/// Where frames came from, and what could not be read.
#[derive(Debug, Default)]
pub struct Places(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Number of the first frame sent of a run, its file, and its number
    /// there.
    runs: Vec<(u64, usize, u64)>,
    files: Vec<String>,
    unreadable: u64,
    first_unreadable: Vec<(String, String)>,
}

impl Places {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the frame that was sent as number `sent` came from.
    pub fn of(&self, sent: u64) -> String {
        let known = self.known();
        let run = known.runs.partition_point(|(first, ..)| *first <= sent).checked_sub(1);
        let Some((first, file, number)) = run.and_then(|run| known.runs.get(run)) else {
            return format!("frame {sent}");
        };
        place(known.files.get(*file), number + (sent - first))
    }

    /// How many records could not be read, and what was wrong with the first.
    pub fn unreadable(&self) -> (u64, Vec<(String, String)>) {
        let known = self.known();
        (known.unreadable, known.first_unreadable.clone())
    }

    fn run(&self, sent: u64, number: u64) {
        let mut known = self.known();
        let file = known.files.len() - 1;
        let goes_on = known.runs.last().is_some_and(|(s, f, n)| *f == file && n + (sent - s) == number);
        if !goes_on {
            known.runs.push((sent, file, number));
        }
    }

    fn cannot_read(&self, number: u64, why: String) {
        let mut known = self.known();
        known.unreadable += 1;
        if known.first_unreadable.len() < KEPT {
            let place = place(known.files.last(), number);
            known.first_unreadable.push((place, why));
        }
    }
}

fn place(file: Option<&String>, number: u64) -> String {
    format!("record {} of {}", number + 1, file.map_or("the input", String::as_str))
}

/// Starts reading `paths` (`-` is standard input). The handle tells why the
/// reading ended.
pub fn start(
    paths: Vec<PathBuf>,
    selection: Selection,
    places: Arc<Places>,
) -> (mpsc::Receiver<Frames>, JoinHandle<Result<()>>) {
    let (out, frames) = mpsc::channel(READ_AHEAD);
    let reading = tokio::task::spawn_blocking(move || {
        let mut shaper = Shaper { selection, places, out, passed: 0, sent: 0 };
        for path in paths {
            if !shaper.read(&path)? {
                break;
            }
        }
        Ok(())
    });
    (frames, reading)
}

struct Shaper {
    selection: Selection,
    places: Arc<Places>,
    out: mpsc::Sender<Frames>,
    /// Frames met, over all files.
    passed: u64,
    sent: u64,
}

impl Shaper {
    /// Reads one file; whether more is wanted after it.
    fn read(&mut self, path: &Path) -> Result<bool> {
        let (name, input) = open(path)?;
        let content = self.selection.content.or_else(|| match path.to_str() {
            Some("-") => Some(Content::JsonLines),
            _ => Content::of(path),
        });
        let content = content.ok_or_else(|| {
            anyhow!("{name}: its name does not say what it holds; add --format jsonl or frames")
        })?;
        self.places.known().files.push(name.clone());
        let (pieces, mut parts) = mpsc::channel(READ_AHEAD);
        let reader = std::thread::spawn(move || {
            read_pieces(input, content, MAX_FRAME, &mut |piece| pieces.blocking_send(piece).is_ok())
        });
        let mut more = true;
        while more && let Some(part) = parts.blocking_recv() {
            more = self.take(part);
        }
        drop(parts);
        // A standard input that nobody ends would never be read to its end;
        // the thread that waits for it ends with the process.
        if !more && path.to_str() == Some("-") {
            return Ok(false);
        }
        let read = reader.join().map_err(|_| anyhow!("{name}: reading it panicked"))?;
        read.context(name)?;
        Ok(more)
    }

    /// Passes one part on; whether more is wanted.
    fn take(&mut self, part: Parsed) -> bool {
        let (number, why) = match part {
            Parsed::Unit { frame, unit: Unit::Run { count, bytes, .. } } => {
                return self.pass(frame, Frames { bytes, count: u64::from(count) });
            }
            Parsed::Unit { frame, unit: Unit::Oversized { claimed, .. } } => {
                (frame, format!("its length claims {claimed} bytes, over {MAX_FRAME}"))
            }
            Parsed::Unit { frame, unit: Unit::Truncated { bytes, .. } } => {
                (frame, format!("the input ends after {} bytes of it", bytes.len()))
            }
            Parsed::NotJson { frame, message, .. } => (frame, message),
        };
        self.passed += 1;
        if self.passed > self.selection.skip {
            self.places.cannot_read(number, why);
        }
        true
    }

    fn pass(&mut self, mut number: u64, mut frames: Frames) -> bool {
        let skipped = self.selection.skip.saturating_sub(self.passed).min(frames.count);
        self.passed += frames.count;
        number += frames.take_front(skipped, usize::MAX).count;
        let left = self.selection.limit.map_or(u64::MAX, |limit| limit - self.sent);
        let frames = frames.take_front(left, usize::MAX);
        if frames.count == 0 {
            return left > 0;
        }
        self.places.run(self.sent, number);
        self.sent += frames.count;
        self.out.blocking_send(amend(&frames, &self.selection.set)).is_ok()
            && self.selection.limit.is_none_or(|limit| self.sent < limit)
    }
}

fn open(path: &Path) -> Result<(String, Box<dyn Read + Send>)> {
    if path.to_str() == Some("-") {
        return Ok(("standard input".into(), Box::new(io::stdin())));
    }
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| name.clone())?;
    Ok((name, Box::new(file)))
}

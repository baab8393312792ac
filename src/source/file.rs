//! Files, folders and standard input.
//!
//! A file is read by a thread of its own into bounded pieces. How many frames
//! of it are acknowledged is kept in the store, so that a restart goes on
//! after them; what was under way at a crash comes again, and deduplication
//! knows it.

use std::{
    collections::{HashMap, VecDeque},
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant, UNIX_EPOCH},
};

use bytes::{Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::Decoder;

use super::json::{LineParser, Parsed};
use crate::{
    frame::{FrameBatch, FrameCodec, Unit, put_frame},
    pipeline::{Answer, Ingest, Origin, Submitted},
    store::{SourceProgress, Store},
    units::ByteSize,
};

/// What a file holds. A `.zst` around either is opened by its magic bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Frames end to end, as on a socket; a sealed segment too.
    Frames,
    /// A JSON object a line.
    JsonLines,
}

impl Content {
    /// What the name of `path` says it holds; `None` if it says nothing known.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let name = name.strip_suffix(".zst").unwrap_or(name);
        match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            "frames" | "seg" | "msgpack" => Some(Self::Frames),
            _ => None,
        }
    }
}

/// Pieces read ahead of the log.
const READ_AHEAD: usize = 4;
/// Stretches of frames under way to the log.
const UNDER_WAY: usize = 16;

/// What became of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Frames that are durable in the log.
    pub acknowledged: u64,
    /// Frames that were refused and kept as dead letters.
    pub refused: u64,
}

/// Reads `input` to its end into `ingest`, passing over the first `skip`
/// frames. `bookmark` is moved to the number of frames that are settled, now
/// and then and at the end. Returns early, without error, when the pipeline
/// closes.
pub async fn ingest_reader(
    input: impl Read + Send + 'static,
    content: Content,
    origin: &Origin,
    skip: u64,
    ingest: &Ingest,
    mut bookmark: Option<&mut Bookmark>,
) -> io::Result<Taken> {
    let (pieces, mut read) = mpsc::channel(READ_AHEAD);
    let (ended, end) = oneshot::channel();
    let max_frame = ingest.max_frame();
    // A thread of its own, and not one of the runtime's: those are waited for
    // at exit, and a read of standard input may never return.
    std::thread::Builder::new()
        .name("reader".into())
        .spawn(move || ended.send(read_pieces(input, content, max_frame, &pieces)))?;
    let mut taken = Taken::default();
    let mut under_way: VecDeque<Submitted> = VecDeque::new();
    loop {
        let piece = tokio::select! {
            biased;
            () = ingest.closing().cancelled() => None,
            piece = read.recv() => piece,
        };
        match &piece {
            Some(piece) if piece.end() <= skip => continue,
            Some(_) => {}
            None => read.close(),
        }
        let last = piece.is_none();
        if let Some(piece) = piece {
            under_way.extend(submit(piece, skip, origin, ingest).await);
        }
        let keep = if last { 0 } else { UNDER_WAY };
        while under_way.len() > keep {
            let Some(submitted) = under_way.pop_front() else { break };
            let end = submitted.end_frame();
            match ingest.settle_patiently(submitted).await {
                Answer::Taken { count, .. } => taken.acknowledged += u64::from(count),
                Answer::Refused(refusal) if is_log_refusal(refusal.code) => {
                    if ingest.closing().is_cancelled() {
                        // The next start goes on here.
                        return Ok(taken);
                    }
                    return Err(io::Error::other(format!("{}: {}", refusal.code, refusal.message)));
                }
                Answer::Refused(_) => taken.refused += 1,
            }
            if let Some(bookmark) = &mut bookmark {
                bookmark.move_to(end).await?;
            }
        }
        if last {
            break;
        }
    }
    if ingest.closing().is_cancelled() {
        return Ok(taken);
    }
    end.await.map_err(io::Error::other)??;
    Ok(taken)
}

/// The log took nothing: the file must not be passed over as done.
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
pub async fn submit(part: Parsed, skip: u64, origin: &Origin, ingest: &Ingest) -> VecDeque<Submitted> {
    match starting_at(part, skip) {
        Parsed::Unit { frame, unit } => ingest.submit(origin, frame, unit).await,
        Parsed::NotJson { frame, byte, message, line } => {
            [ingest.refuse(origin, (frame, byte), "not_json", message, false, line).await].into()
        }
    }
}

/// The blocking half: reads and cuts `input` until its end or until nobody
/// wants more.
pub fn read_pieces(
    input: impl Read,
    content: Content,
    max_frame: ByteSize,
    pieces: &mpsc::Sender<Parsed>,
) -> io::Result<()> {
    let mut input = unpacked(input)?;
    match content {
        Content::Frames => read_frames(&mut input, max_frame, pieces),
        Content::JsonLines => read_lines(&mut input, max_frame, pieces),
    }
}

const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// `input`, decompressed if it begins as Zstandard does.
fn unpacked<'a>(input: impl Read + 'a) -> io::Result<Box<dyn BufRead + 'a>> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    if input.fill_buf()?.starts_with(&ZSTD_MAGIC) {
        let decoder = zstd::Decoder::with_buffer(input)?;
        return Ok(Box::new(BufReader::with_capacity(256 << 10, decoder)));
    }
    Ok(Box::new(input))
}

fn read_frames(
    input: &mut dyn BufRead,
    max_frame: ByteSize,
    pieces: &mpsc::Sender<Parsed>,
) -> io::Result<()> {
    let mut codec = FrameCodec::new(max_frame);
    let (mut buffer, mut frame, mut ended) = (BytesMut::new(), 0, false);
    while !ended {
        let read = input.fill_buf()?;
        let n = read.len();
        buffer.extend_from_slice(read);
        input.consume(n);
        ended = n == 0;
        loop {
            let unit = if ended { codec.decode_eof(&mut buffer)? } else { codec.decode(&mut buffer)? };
            let Some(unit) = unit else { break };
            let Some(unit) = without_emptied(unit) else { continue };
            let piece = Parsed::Unit { frame, unit };
            frame = piece.end();
            if pieces.blocking_send(piece).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A run of frames without those that are empty, if any is not: in a sealed
/// segment they stand for what was erased.
fn without_emptied(unit: Unit) -> Option<Unit> {
    let Unit::Run { at, count, bytes } = unit else { return Some(unit) };
    let batch = FrameBatch { base_offset: 0, append_time_ms: 0, count, bytes };
    if batch.payloads().all(|(_, payload)| !payload.is_empty()) {
        return Some(Unit::Run { at, count, bytes: batch.bytes });
    }
    let (mut kept, mut left) = (BytesMut::new(), 0);
    for (_, payload) in batch.payloads().filter(|(_, payload)| !payload.is_empty()) {
        put_frame(&mut kept, &payload);
        left += 1;
    }
    (left > 0).then(|| Unit::Run { at, count: left, bytes: kept.freeze() })
}

fn read_lines(input: &mut dyn BufRead, max_frame: ByteSize, pieces: &mpsc::Sender<Parsed>) -> io::Result<()> {
    // JSON is longer than MessagePack, but not by this much; a longer line
    // can only be refused, so it is not gathered whole.
    let max_line = 8 * max_frame.0 + (64 << 10);
    let mut parser = LineParser::default();
    let mut line = Vec::new();
    loop {
        line.clear();
        input.take(max_line).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 == max_line && line.last() != Some(&b'\n') {
            return Err(io::Error::other(format!(
                "line {} is longer than {max_line} bytes; no record of it would fit in max_frame_bytes ({max_frame})",
                parser.lines() + 1
            )));
        }
        for parsed in parser.line(&line) {
            if pieces.blocking_send(parsed).is_err() {
                return Ok(());
            }
        }
    }
    if let Some(rest) = parser.finish() {
        let _ = pieces.blocking_send(rest);
    }
    Ok(())
}

/// The files at `path` whose content is known: itself, or those in the folder,
/// by name.
pub fn files_at(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_file() && Content::of(&entry.path()).is_some() {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// How often it is kept how far a file is read, while it is.
const KEEP_EVERY: Duration = Duration::from_millis(50);
/// How often a watched folder is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// A file or folder that is read into a pipeline.
#[derive(Clone, Debug)]
pub struct Files {
    /// The source's name.
    pub source: String,
    /// File or folder.
    pub path: PathBuf,
    /// What the files hold; by their names if `None`.
    pub content: Option<Content>,
    /// Whether to go on looking for new files.
    pub watch: bool,
}

impl Files {
    /// Whether there is something to read, and it is known what it holds.
    ///
    /// # Errors
    /// If the path is not there, or its name does not say what it holds.
    pub fn look(&self) -> io::Result<()> {
        let files = files_at(&self.path);
        let files = files.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", self.path.display())))?;
        files.iter().try_for_each(|path| self.content_of(path).map(drop))
    }

    fn content_of(&self, path: &Path) -> io::Result<Content> {
        self.content.or_else(|| Content::of(path)).ok_or_else(|| {
            io::Error::other("its name does not say what it holds; set `format` to \"jsonl\" or \"frames\"")
        })
    }

    /// Reads every file that is new or has changed, and watches for more if
    /// asked to. Ends when all is read, or when the pipeline closes.
    pub async fn run(self, store: Store, ingest: Ingest) -> io::Result<()> {
        loop {
            let known = store.progress(&self.source).await.map_err(io::Error::other)?;
            let mut known: HashMap<String, SourceProgress> =
                known.into_iter().map(|progress| (progress.path.clone(), progress)).collect();
            for path in files_at(&self.path)? {
                let name = path.display().to_string();
                let before = known.remove(&name);
                self.read(&path, name, before, &store, &ingest)
                    .await
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))?;
                if ingest.closing().is_cancelled() {
                    return Ok(());
                }
            }
            if !self.watch {
                return Ok(());
            }
            tokio::select! {
                () = ingest.closing().cancelled() => return Ok(()),
                () = tokio::time::sleep(WATCH_EVERY) => {}
            }
        }
    }

    /// Reads the file at `path` from where it was read to `before`.
    async fn read(
        &self,
        path: &Path,
        name: String,
        before: Option<SourceProgress>,
        store: &Store,
        ingest: &Ingest,
    ) -> io::Result<()> {
        let content = self.content_of(path)?;
        let meta = fs::metadata(path)?;
        let mtime_ns = meta
            .modified()?
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX));
        let same = before.filter(|p| p.size == meta.len() && p.mtime_ns == mtime_ns);
        if same.as_ref().is_some_and(|p| p.done) {
            return Ok(());
        }
        let skip = same.map_or(0, |p| p.records);
        let mut bookmark = Bookmark {
            store: store.clone(),
            kept: Instant::now(),
            at: SourceProgress {
                source: self.source.clone(),
                path: name.clone(),
                size: meta.len(),
                mtime_ns,
                records: skip,
                done: false,
            },
        };
        let origin = Origin { source: self.source.clone(), peer: Some(name.clone()), tenant: None };
        let file = File::open(path)?;
        let taken = ingest_reader(file, content, &origin, skip, ingest, Some(&mut bookmark)).await;
        bookmark.at.done = taken.is_ok() && !ingest.closing().is_cancelled();
        let kept = bookmark.keep().await;
        let taken = taken?;
        kept?;
        if bookmark.at.done {
            tracing::info!(source = self.source, file = name, taken.acknowledged, taken.refused, "file read");
        }
        Ok(())
    }
}

/// How far a file is read, kept in the store.
pub struct Bookmark {
    store: Store,
    at: SourceProgress,
    kept: Instant,
}

impl Bookmark {
    /// Kept at times only: many small files would otherwise cost more to
    /// remember than to read.
    async fn move_to(&mut self, records: u64) -> io::Result<()> {
        self.at.records = records;
        if self.kept.elapsed() < KEEP_EVERY { Ok(()) } else { self.keep().await }
    }

    /// A store that has no room just now must not end the source: the next
    /// time says the same and more, and behind the last one lies only what
    /// deduplication knows.
    async fn keep(&mut self) -> io::Result<()> {
        self.kept = Instant::now();
        let records = self.at.records;
        match self.store.set_progress(&self.at).await {
            Err(error) if error.is_transient() => {
                tracing::warn!(%error, file = self.at.path, records, "how far the file is read could not be kept");
                Ok(())
            }
            done => done.map_err(io::Error::other),
        }
    }
}

/// Reads standard input to its end.
pub async fn stdin(source: String, content: Content, ingest: Ingest) -> io::Result<()> {
    let origin = Origin { source, peer: None, tenant: None };
    ingest_reader(io::stdin(), content, &origin, 0, &ingest, None).await.map(drop)
}

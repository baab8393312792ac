//! Sealing: batches in, one published file out, in one pass.
//!
//! The thread pool compresses blocks; the calling thread meanwhile cuts and
//! hashes the next ones, and writes and hashes in order what comes back. So
//! the pool never waits for the end of a round, and memory is bounded by the
//! blocks under way and the index, whatever the segment's size.

use std::{
    collections::VecDeque,
    error::Error,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use crossbeam_channel::{Receiver, TryRecvError, bounded};
use rayon::{ScopeFifo, Yield};
use sha2::{Digest as _, Sha256};
use zstd::dict::EncoderDictionary;

use super::{
    Settings,
    block::{self, Frames, Packer},
    cut::{Cutter, PlainBlock},
    format::{Digest, MAX_BLOCK_BYTES, MAX_INDEX_BYTES, MAX_STREAM_BYTES},
    index,
    info::{BatchInfo, BlockInfo, Index, SegmentInfo},
    seek_table,
};
use crate::{
    dictionary::{Dictionary, Identity},
    durable,
    frame::FrameBatch,
    units::ByteSize,
};

/// Blocks under way per thread: enough to keep the pool busy while blocks
/// differ and the calling thread cuts, few enough to keep memory small.
const BLOCKS_PER_THREAD: usize = 8;

/// Why a segment could not be sealed. Nothing was published, unless only the
/// directory's fsync failed; the batches can be sealed again from the start.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file system or the compressor failed. Worth another try once the
    /// cause (disk full, memory) is gone.
    #[error("cannot write the segment {}: {source}", path.display())]
    Io {
        /// The file that was to be published.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The batches could not be read.
    #[error("cannot read the batches to seal: {source}")]
    Batches {
        /// What the iterator returned.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A batch begins before the end of the one before it.
    #[error("batches are out of order: offset {found} follows, {expected} or later was due")]
    OutOfOrder {
        /// The end of the batch before.
        expected: u64,
        /// The base offset of the batch.
        found: u64,
    },
    /// A batch's bytes are not the frames it claims.
    #[error("the batch at offset {base_offset} does not hold exactly {count} whole frames")]
    BadBatch {
        /// The batch's base offset.
        base_offset: u64,
        /// The frames it claims.
        count: u32,
    },
    /// A frame does not fit a block.
    #[error("the frame at offset {offset} has {bytes} bytes, over the cap of {MAX_BLOCK_BYTES}")]
    FrameTooLarge {
        /// The frame's offset.
        offset: u64,
        /// Its bytes, prefix included.
        bytes: usize,
    },
    /// The stream's name does not fit the index.
    #[error("the stream's name has {bytes} bytes, over the cap of {MAX_STREAM_BYTES}")]
    StreamNameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The batches do not fit the index. Seal fewer in one segment.
    #[error("the index of {batches} batches is over the cap of {MAX_INDEX_BYTES} bytes; seal fewer")]
    IndexTooLarge {
        /// Number of batches.
        batches: usize,
    },
    /// There is no frame to seal.
    #[error("there are no frames to seal")]
    Empty,
}

/// What the index says beside the frames.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Stream the frames belong to; at most [`MAX_STREAM_BYTES`] bytes.
    pub stream: String,
    /// Identity of the segment.
    pub segment_id: [u8; 16],
    /// The time now, in milliseconds since the Unix epoch.
    pub sealed_at_ms: i64,
}

/// A sealed and published segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The file.
    pub path: PathBuf,
    /// Stream the frames belong to.
    pub stream: String,
    /// Identity of the segment.
    pub segment_id: [u8; 16],
    /// Offset of the first frame.
    pub base_offset: u64,
    /// The offset after the last frame.
    pub end_offset: u64,
    /// Number of frames.
    pub records: u64,
    /// Bytes of all frames, prefixes included.
    pub plain_bytes: u64,
    /// Bytes of the file.
    pub object_bytes: u64,
    /// SHA-256 of all frames.
    pub content_digest: [u8; 32],
    /// SHA-256 of the file.
    pub object_digest: [u8; 32],
    /// Earliest record time, in milliseconds since the Unix epoch.
    pub first_time_ms: i64,
    /// Latest record time, in milliseconds since the Unix epoch.
    pub last_time_ms: i64,
    /// Number of blocks.
    pub blocks: usize,
    /// When it was sealed, in milliseconds since the Unix epoch.
    pub sealed_at_ms: i64,
}

/// Compresses `batches` into a segment and publishes it at `path`, replacing
/// what was there.
///
/// Offsets must ascend; a gap between batches is kept. A batch without frames
/// is left out. `time_of` tells a record's time, in milliseconds since the
/// Unix epoch, from its payload; it is called once for each frame, on the
/// thread pool. Where it returns `None` the batch's append time stands in.
///
/// Computes and blocks: not for a tokio thread.
///
/// # Errors
/// See [`SealError`].
pub fn seal<E>(
    batches: impl IntoIterator<Item = Result<FrameBatch, E>>,
    header: SegmentHeader,
    settings: &Settings,
    time_of: impl Fn(&[u8]) -> Option<i64> + Sync,
    path: &Path,
) -> Result<Sealed, SealError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    seal_with(batches, header, settings, None, time_of, path)
}

/// As [`seal`], in blocks that need `dictionary` to be read if there is one.
/// A copy of it must lie where a [`Reader`](super::Reader) of `path` finds it
/// before anyone reads the segment.
///
/// # Errors
/// See [`SealError`].
pub fn seal_with<E>(
    batches: impl IntoIterator<Item = Result<FrameBatch, E>>,
    header: SegmentHeader,
    settings: &Settings,
    dictionary: Option<&Dictionary>,
    time_of: impl Fn(&[u8]) -> Option<i64> + Sync,
    path: &Path,
) -> Result<Sealed, SealError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let io_error = |source| SealError::Io { path: path.to_owned(), source };
    let form = Form::new(settings, dictionary).map_err(io_error)?;
    let write = |file: &mut File| form.seal(batches, header, time_of, file, path);
    durable::try_publish(path, write, io_error)
}

/// Bytes of the file that [`seal_with`] would make, without making it.
///
/// Computes: not for a tokio thread.
///
/// # Errors
/// See [`SealError`].
pub fn weigh<E>(
    batches: impl IntoIterator<Item = Result<FrameBatch, E>>,
    header: SegmentHeader,
    settings: &Settings,
    dictionary: Option<&Dictionary>,
) -> Result<u64, SealError>
where
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let nowhere = Path::new("");
    let form = Form::new(settings, dictionary)
        .map_err(|source| SealError::Io { path: nowhere.to_owned(), source })?;
    let sealed = form.seal(batches, header, |_| None, &mut io::sink(), nowhere)?;
    Ok(sealed.object_bytes)
}

/// How blocks are made.
struct Form<'a> {
    level: i32,
    block_bytes: ByteSize,
    dictionary: Option<(&'a Dictionary, EncoderDictionary<'static>)>,
}

impl<'a> Form<'a> {
    fn new(settings: &Settings, dictionary: Option<&'a Dictionary>) -> io::Result<Self> {
        let level = settings.level;
        let prepared =
            dictionary.map(|dictionary| Ok::<_, io::Error>((dictionary, dictionary.encoder(level)?)));
        let block_bytes =
            if dictionary.is_some() { settings.dictionary_block_bytes } else { settings.block_bytes };
        Ok(Self { level, block_bytes, dictionary: prepared.transpose()? })
    }

    /// `path` names `out` in errors.
    fn seal<E>(
        &self,
        batches: impl IntoIterator<Item = Result<FrameBatch, E>>,
        header: SegmentHeader,
        time_of: impl Fn(&[u8]) -> Option<i64> + Sync,
        out: &mut impl Write,
        path: &Path,
    ) -> Result<Sealed, SealError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
    {
        if header.stream.len() > MAX_STREAM_BYTES {
            return Err(SealError::StreamNameTooLong { bytes: header.stream.len() });
        }
        let io_error = |source| SealError::Io { path: path.to_owned(), source };
        let packer = Packer::new(self.level, self.dictionary.as_ref().map(|(_, prepared)| prepared));
        let dictionary = self.dictionary.as_ref().map(|(dictionary, _)| dictionary.identity());
        rayon::in_place_scope_fifo(|pool| {
            let mut cutter = Cutter::new(self.block_bytes.as_usize());
            let mut sealer = Sealer::new(out, self.block_bytes, &packer, &time_of, pool);
            for batch in batches {
                let batch = batch.map_err(|e| SealError::Batches { source: e.into() })?;
                cutter.push(&batch)?;
                for block in cutter.take_ready() {
                    sealer.push(block).map_err(io_error)?;
                }
            }
            let (blocks, batches) = cutter.finish();
            for block in blocks {
                sealer.push(block).map_err(io_error)?;
            }
            sealer.finish(header, dictionary, batches, path)
        })
    }
}

/// A compressed block, complete but for its position.
struct PackedBlock {
    bytes: Vec<u8>,
    info: BlockInfo,
}

/// A block on its way through the pool.
struct UnderWay {
    plain_bytes: usize,
    packed: Receiver<io::Result<PackedBlock>>,
}

/// Writes the file from front to back.
struct Sealer<'a, 'pool, 'scope, 'd, W, T> {
    out: &'a mut W,
    packer: &'scope Packer<'d>,
    time_of: &'scope T,
    pool: &'pool ScopeFifo<'scope>,
    /// Most plain bytes under way, unless one block alone has more.
    most_bytes: usize,
    /// In the order of the file.
    under_way: VecDeque<UnderWay>,
    blocks: Vec<BlockInfo>,
    seek_entries: Vec<seek_table::Entry>,
    content: Sha256,
    object: Sha256,
    position: u64,
}

impl<'a, 'pool, 'scope, 'd, W, T> Sealer<'a, 'pool, 'scope, 'd, W, T>
where
    W: Write,
    T: Fn(&[u8]) -> Option<i64> + Sync,
{
    fn new(
        out: &'a mut W,
        block_bytes: ByteSize,
        packer: &'scope Packer<'d>,
        time_of: &'scope T,
        pool: &'pool ScopeFifo<'scope>,
    ) -> Self {
        let blocks = rayon::current_num_threads() * BLOCKS_PER_THREAD;
        Self {
            out,
            packer,
            time_of,
            pool,
            most_bytes: block_bytes.as_usize().saturating_mul(blocks),
            under_way: VecDeque::new(),
            blocks: Vec::new(),
            seek_entries: Vec::new(),
            content: Sha256::new(),
            object: Sha256::new(),
            position: 0,
        }
    }

    /// Hashes `block` and gives it to the pool, as soon as there is room.
    fn push(&mut self, block: PlainBlock) -> io::Result<()> {
        let plain_bytes = block.bytes.len();
        self.content.update(&block.bytes);
        let room = self.most_bytes.saturating_sub(plain_bytes);
        while self.under_way.iter().map(|block| block.plain_bytes).sum::<usize>() > room {
            self.write_next()?;
        }
        let (packer, time_of) = (self.packer, self.time_of);
        let (done, packed) = bounded(1);
        self.pool.spawn_fifo(move |_| {
            // Nobody waits for it once sealing has failed.
            let _ = done.send(pack(&block, packer, time_of));
        });
        self.under_way.push_back(UnderWay { plain_bytes, packed });
        Ok(())
    }

    /// Writes the first block under way, if there is one.
    fn write_next(&mut self) -> io::Result<()> {
        let Some(UnderWay { packed, .. }) = self.under_way.pop_front() else {
            return Ok(());
        };
        let PackedBlock { bytes, mut info } = wait_for(&packed)?;
        info.position = self.position;
        self.blocks.push(info);
        self.seek_entries.push(seek_table::Entry {
            compressed: info.compressed_len,
            plain: info.plain_len,
            checksum: block::content_checksum(&bytes),
        });
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        self.object.update(bytes);
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Writes the last blocks, the index and the seek table.
    fn finish(
        mut self,
        header: SegmentHeader,
        dictionary: Option<Identity>,
        batches: Vec<BatchInfo>,
        path: &Path,
    ) -> Result<Sealed, SealError> {
        let io_error = |source| SealError::Io { path: path.to_owned(), source };
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
            return Err(SealError::Empty);
        };
        let (base_offset, end_offset) = (first.base_offset, last.end_offset());
        while !self.under_way.is_empty() {
            self.write_next().map_err(io_error)?;
        }
        let info = SegmentInfo {
            stream: header.stream,
            segment_id: header.segment_id,
            base_offset,
            end_offset,
            records: batches.iter().map(|b| u64::from(b.count)).sum(),
            plain_bytes: self.blocks.iter().map(|b| u64::from(b.plain_len)).sum(),
            // Known below; the index does not say it.
            object_bytes: 0,
            content_digest: Digest::from(self.content.finalize_reset()),
            first_time_ms: self.blocks.iter().map(|b| b.first_time_ms).min().unwrap_or_default(),
            last_time_ms: self.blocks.iter().map(|b| b.last_time_ms).max().unwrap_or_default(),
            sealed_at_ms: header.sealed_at_ms,
            level: self.packer.level,
            dictionary,
        };
        let index = Index { info, batches, blocks: std::mem::take(&mut self.blocks) };
        let frame = index::encode(&index)
            .map_err(io_error)?
            .ok_or(SealError::IndexTooLarge { batches: index.batches.len() })?;
        self.write(&frame).map_err(io_error)?;
        // The frame's own header holds its size in 32 bits.
        self.seek_entries.push(seek_table::Entry::of_skippable(frame.len() as u32));
        let table = seek_table::encode(&self.seek_entries);
        self.write(&table).map_err(io_error)?;
        Ok(sealed(index, self.position, self.object, path))
    }
}

fn sealed(index: Index, object_bytes: u64, object: Sha256, path: &Path) -> Sealed {
    let Index { info, blocks, .. } = index;
    Sealed {
        path: path.to_owned(),
        stream: info.stream,
        segment_id: info.segment_id,
        base_offset: info.base_offset,
        end_offset: info.end_offset,
        records: info.records,
        plain_bytes: info.plain_bytes,
        object_bytes,
        content_digest: info.content_digest,
        object_digest: object.finalize().into(),
        first_time_ms: info.first_time_ms,
        last_time_ms: info.last_time_ms,
        blocks: blocks.len(),
        sealed_at_ms: info.sealed_at_ms,
    }
}

/// Waits for a block. A thread of the pool itself works meanwhile: else all
/// of them could wait for blocks that nobody compresses.
fn wait_for(packed: &Receiver<io::Result<PackedBlock>>) -> io::Result<PackedBlock> {
    loop {
        match packed.try_recv() {
            Ok(packed) => return packed,
            Err(TryRecvError::Empty) if rayon::yield_now() == Some(Yield::Executed) => {}
            // Another thread has begun it.
            Err(_) => return packed.recv().unwrap_or_else(|_| Err(io::Error::other("compressing panicked"))),
        }
    }
}

fn pack(
    block: &PlainBlock,
    packer: &Packer<'_>,
    time_of: &(impl Fn(&[u8]) -> Option<i64> + Sync),
) -> io::Result<PackedBlock> {
    let bytes = packer.pack(&block.bytes)?;
    let append_times =
        block.runs.iter().flat_map(|run| std::iter::repeat_n(run.append_time_ms, run.count as usize));
    let (earliest, latest) = Frames(&block.bytes)
        .zip(append_times)
        .map(|(frame, append_time)| time_of(block::payload(frame)).unwrap_or(append_time))
        .fold((i64::MAX, i64::MIN), |(a, b), time| (a.min(time), b.max(time)));
    let info = BlockInfo {
        position: 0,
        // Both are capped: a block at `MAX_BLOCK_BYTES`, what zstd makes of it
        // little above that.
        compressed_len: bytes.len() as u32,
        plain_len: block.bytes.len() as u32,
        crc32c: crc32c::crc32c(&bytes),
        first_offset: block.first_offset,
        end_offset: block.end_offset,
        count: block.runs.iter().map(|run| run.count).sum(),
        first_time_ms: earliest,
        last_time_ms: latest,
    };
    Ok(PackedBlock { bytes, info })
}

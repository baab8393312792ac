//! Reading a segment: whole blocks, the original batches, single frames.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use super::{
    block::{self, BlockFault, Frames},
    index::IndexError,
    info::{BatchInfo, BlockInfo, Index, SegmentInfo},
    locate::{self, Located},
};
use crate::{
    dictionary::{Dictionary, Identity, Library, LoadError},
    frame::{FrameBatch, PREFIX_BYTES},
};

/// Why a segment could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system failed. Worth another try.
    #[error("cannot read the segment {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The index cannot be used, so nothing can be read by offset; `verify`
    /// says what else is damaged, and `zstd -dc` may still give the frames.
    #[error("the segment {} cannot be opened: {source}", path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with the index.
        source: IndexError,
    },
    /// The blocks need a dictionary that cannot be had. The file itself is
    /// sound, and can be read once the dictionary is back.
    #[error("the segment {} needs a dictionary: {source}", path.display())]
    Dictionary {
        /// The file.
        path: PathBuf,
        /// Which dictionary, and where it was looked for.
        source: Box<LoadError>,
    },
    /// One block is damaged; the others can be read.
    #[error(
        "block {block} of the segment {} (bytes from {position}, offsets {first_offset} to \
         {end_offset}, the latter excluded) is damaged: {reason}",
        path.display()
    )]
    Block {
        /// The file.
        path: PathBuf,
        /// Which block, from 0.
        block: usize,
        /// Its first byte in the file.
        position: u64,
        /// Offset of its first frame.
        first_offset: u64,
        /// The offset after its last frame.
        end_offset: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such block.
    #[error("the segment {} has {blocks} blocks, there is no block {block}", path.display())]
    NoSuchBlock {
        /// The file.
        path: PathBuf,
        /// The block asked for, from 0.
        block: usize,
        /// How many there are.
        blocks: usize,
    },
}

impl ReadError {
    /// Whether the file itself is damaged, so that reading it again gives the
    /// same error.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Block { .. } => true,
            Self::Index { source, .. } => !matches!(source, IndexError::Version { .. }),
            Self::Io { .. } | Self::Dictionary { .. } | Self::NoSuchBlock { .. } => false,
        }
    }
}

/// An open segment. Holds its index in memory (24 bytes a batch, 56 a block);
/// every read is a `pread`, so threads share it freely.
///
/// Nothing is cached: a point read decompresses one block.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    index: Index,
    /// The dictionary of the blocks, once one of them was read.
    dictionary: OnceLock<Arc<Dictionary>>,
}

impl Reader {
    /// Opens a segment and reads its index, and nothing else. A dictionary is
    /// looked for, in the [`Library`] beside the file, when the first block
    /// is read.
    ///
    /// # Errors
    /// [`ReadError::Io`] or [`ReadError::Index`].
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let io_error = |source| ReadError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io_error)?;
        let file_len = file.metadata().map_err(io_error)?.len();
        let Located { index, .. } = locate::locate(&file, file_len)
            .map_err(io_error)?
            .map_err(|source| ReadError::Index { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), file, index, dictionary: OnceLock::new() })
    }

    /// From an index that was found to belong to `file`, wherever it stood.
    pub(super) fn with_index(path: &Path, file: File, index: Index) -> Self {
        Self { path: path.to_owned(), file, index, dictionary: OnceLock::new() }
    }

    /// Offsets within the segment that it holds no frame for: damage from
    /// before it was sealed.
    pub fn gaps(&self) -> Vec<std::ops::Range<u64>> {
        let batches = self.index.batches.iter();
        batches
            .zip(self.index.batches.iter().skip(1))
            .filter(|(before, after)| before.end_offset() < after.base_offset)
            .map(|(before, after)| before.end_offset()..after.base_offset)
            .collect()
    }

    /// What the segment holds.
    pub fn info(&self) -> &SegmentInfo {
        &self.index.info
    }

    /// What each block holds, in offset order.
    pub fn blocks(&self) -> &[BlockInfo] {
        &self.index.blocks
    }

    /// The frames of block `block`, prefixes included, held against length,
    /// count and the content's checksum.
    ///
    /// # Errors
    /// [`ReadError::Io`], [`ReadError::Dictionary`], [`ReadError::Block`] or
    /// [`ReadError::NoSuchBlock`].
    pub fn read_block(&self, block: usize) -> Result<Bytes, ReadError> {
        let info = self.index.blocks.get(block).ok_or_else(|| ReadError::NoSuchBlock {
            path: self.path.clone(),
            block,
            blocks: self.index.blocks.len(),
        })?;
        // The index frame begins where the last block ends, and it was there:
        // so the length is within the file.
        let mut packed = vec![0; info.compressed_len as usize];
        match self.file.read_exact_at(&mut packed, info.position) {
            Ok(()) => {}
            // Cut short since it was opened, or the medium does not give it
            // back.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof || is_media_error(&error) => {
                return Err(self.damaged(block, info, &BlockFault::Decompress(error)));
            }
            Err(source) => return Err(ReadError::Io { path: self.path.clone(), source }),
        }
        let dictionary = self.dictionary()?;
        block::unpack(&packed, info, dictionary).map_err(|fault| self.damaged(block, info, &fault))
    }

    /// The dictionary that the blocks need, if they need one.
    fn dictionary(&self) -> Result<Option<&Dictionary>, ReadError> {
        if self.index.info.dictionary.is_none() {
            return Ok(None);
        }
        if let Some(loaded) = self.dictionary.get() {
            return Ok(Some(loaded));
        }
        let found = dictionary_of(&self.path, &self.index.info)?;
        Ok(found.map(|found| &**self.dictionary.get_or_init(|| found)))
    }

    fn damaged(&self, block: usize, info: &BlockInfo, fault: &BlockFault) -> ReadError {
        ReadError::Block {
            path: self.path.clone(),
            block,
            position: info.position,
            first_offset: info.first_offset,
            end_offset: info.end_offset,
            reason: fault.to_string(),
        }
    }

    /// The batches as the log took them, from `offset` on; the first is cut to
    /// begin at `offset` if it lies within.
    ///
    /// A batch that lies in several blocks comes in as many pieces, each with
    /// the batch's append time. After an error the iterator goes on with the
    /// next block.
    pub fn batches_from(&self, offset: u64) -> Batches<'_> {
        let block = self.block_at_or_after(offset);
        Batches { reader: self, offset, block, pieces: Vec::new().into_iter() }
    }

    /// The payload of the frame at `offset`; `None` if it lies outside the
    /// segment or in a gap.
    ///
    /// # Errors
    /// As [`Reader::read_block`].
    pub fn frame(&self, offset: u64) -> Result<Option<Bytes>, ReadError> {
        let block = self.block_at_or_after(offset);
        let Some(info) = self.index.blocks.get(block) else {
            return Ok(None);
        };
        let mut before = 0;
        for run in self.runs(info) {
            if offset < run.base_offset {
                return Ok(None);
            }
            if offset < run.end_offset() {
                let plain = self.read_block(block)?;
                let nth = before + (offset - run.base_offset) as usize;
                return Ok(Frames(&plain).nth(nth).map(|frame| plain.slice_ref(frame).slice(PREFIX_BYTES..)));
            }
            before += run.count as usize;
        }
        Ok(None)
    }

    /// The block with the first frame at `offset` or after it.
    fn block_at_or_after(&self, offset: u64) -> usize {
        self.index.blocks.partition_point(|b| b.end_offset <= offset)
    }

    /// The batches of one block, cut to it.
    fn runs(&self, block: &BlockInfo) -> impl Iterator<Item = BatchInfo> + '_ {
        let (first, end) = (block.first_offset, block.end_offset);
        let batches = &self.index.batches;
        let from = batches.partition_point(|b| b.end_offset() <= first);
        batches.iter().skip(from).take_while(move |b| b.base_offset < end).map(move |batch| {
            let base_offset = batch.base_offset.max(first);
            // No longer than the batch.
            let count = (batch.end_offset().min(end) - base_offset) as u32;
            BatchInfo { base_offset, append_time_ms: batch.append_time_ms, count }
        })
    }

    /// A block's frames as the batches they came in.
    fn pieces(&self, block: usize) -> Result<Vec<FrameBatch>, ReadError> {
        let plain = self.read_block(block)?;
        let Some(info) = self.index.blocks.get(block) else {
            return Ok(Vec::new());
        };
        let mut frames = Frames(&plain);
        Ok(self
            .runs(info)
            .map(|run| {
                let begin = plain.len() - frames.0.len();
                let len = frames.by_ref().take(run.count as usize).map(<[u8]>::len).sum::<usize>();
                FrameBatch {
                    base_offset: run.base_offset,
                    append_time_ms: run.append_time_ms,
                    count: run.count,
                    bytes: plain.slice(begin..begin + len),
                }
            })
            .collect())
    }
}

/// The dictionary that the blocks of the segment at `path` need, from beside
/// the file.
pub(super) fn dictionary_of(path: &Path, info: &SegmentInfo) -> Result<Option<Arc<Dictionary>>, ReadError> {
    let load = |needed: Identity| Library::beside(path).load(&needed.digest);
    info.dictionary
        .map(load)
        .transpose()
        .map_err(|source| ReadError::Dictionary { path: path.to_owned(), source: Box::new(source) })
}

/// Batches of a segment, in order. See [`Reader::batches_from`].
#[derive(Debug)]
pub struct Batches<'a> {
    reader: &'a Reader,
    /// Nothing before this is wanted.
    offset: u64,
    /// The next block to read.
    block: usize,
    pieces: std::vec::IntoIter<FrameBatch>,
}

impl Iterator for Batches<'_> {
    type Item = Result<FrameBatch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let wanted = self.pieces.by_ref().find_map(|piece| piece.starting_at(self.offset));
            if let Some(batch) = wanted {
                return Some(Ok(batch));
            }
            if self.block >= self.reader.index.blocks.len() {
                return None;
            }
            let block = self.block;
            self.block += 1;
            match self.reader.pieces(block) {
                Ok(pieces) => self.pieces = pieces.into_iter(),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// Whether `error` says that the bytes are lost rather than late.
fn is_media_error(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

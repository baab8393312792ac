//! Getting the frames out of a damaged segment, each with the offset it had.
//!
//! | what is left | how offsets are known |
//! |---|---|
//! | the index, wherever it stands now | it says so; each block is proven by its CRC-32C |
//! | all blocks, and the content digest from elsewhere | the digest proves the blocks, and the segment had no gap |
//! | blocks from the front or up to the end | by counting, if it is known that the segment had no gap and where it began or ended |
//!
//! Frames whose offset cannot be known are counted and not given out.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    format::Digest,
    info::{Index, SegmentInfo},
    locate::{locate_displaced, read_at},
    read::{ReadError, Reader},
    salvage::{Unit, salvage, unpack_unlisted},
};
use crate::{
    dictionary::{Dictionary, Library},
    frame::FrameBatch,
};

/// What is known of a segment from elsewhere: its file name, the catalog, its
/// neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Stream of the frames.
    pub stream: String,
    /// Offset of the first frame.
    pub base_offset: u64,
    /// The offset after the last frame, if that is known; without `records`
    /// the one that it cannot be beyond.
    pub end_offset: Option<u64>,
    /// Number of frames, if that is known.
    pub records: Option<u64>,
    /// SHA-256 of all frames, if that is known.
    pub content_digest: Option<[u8; 32]>,
    /// Stands in for the time of append where that is lost, in milliseconds
    /// since the Unix epoch.
    pub append_time_ms: i64,
}

/// What can be read of a damaged segment.
#[derive(Debug)]
pub struct Rescue {
    source: Source,
    unplaced: u64,
}

#[derive(Debug)]
enum Source {
    Indexed(Box<Reader>),
    Counted {
        path: PathBuf,
        file: File,
        blocks: Vec<Placed>,
        append_time_ms: i64,
        dictionaries: Vec<Arc<Dictionary>>,
    },
}

/// A block without index, and where its frames belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Placed {
    position: u64,
    len: u64,
    first_offset: u64,
}

/// Looks for everything that can still be read of the segment at `path`.
///
/// Reads the whole file. Computes and blocks: not for a tokio thread.
///
/// # Errors
/// Only what is no damage: [`ReadError::Io`].
pub fn rescue(path: &Path, expected: &Expected) -> Result<Rescue, ReadError> {
    let io_error = |source| ReadError::Io { path: path.to_owned(), source };
    let file = File::open(path).map_err(io_error)?;
    let file_len = file.metadata().map_err(io_error)?.len();
    let wanted = |index: &Index| {
        index.info.stream == expected.stream && index.info.base_offset == expected.base_offset
    };
    if let Some((mut index, start)) = locate_displaced(&file, file_len, wanted).map_err(io_error)? {
        find_blocks(&file, file_len, &mut index, start).map_err(io_error)?;
        let reader = Box::new(Reader::with_index(path, file, index));
        return Ok(Rescue { source: Source::Indexed(reader), unplaced: 0 });
    }
    let dictionaries = Library::beside(path).all().map_err(io_error)?;
    let found = salvage(&file, file_len, &dictionaries).map_err(io_error)?;
    let blocks = place(&found.units, found.content_digest, expected);
    let placed: u64 = found
        .units
        .iter()
        .filter_map(|unit| match unit {
            Unit::Block { position, frames, .. } if blocks.iter().any(|b| b.position == *position) => {
                Some(*frames)
            }
            _ => None,
        })
        .sum();
    let append_time_ms = expected.append_time_ms;
    let source = Source::Counted { path: path.to_owned(), file, blocks, append_time_ms, dictionaries };
    Ok(Rescue { source, unplaced: found.frames - placed })
}

/// Moves each block of `index` to where its bytes are: where the index says,
/// or as far from there as the index itself was moved.
fn find_blocks(file: &File, file_len: u64, index: &mut Index, start: u64) -> io::Result<()> {
    let moved = start.cast_signed().wrapping_sub(index.position().cast_signed());
    if moved == 0 {
        return Ok(());
    }
    for block in &mut index.blocks {
        let there = block.position.checked_add_signed(moved);
        for position in [Some(block.position), there].into_iter().flatten() {
            let within = position.checked_add(block.compressed_len.into()).is_some_and(|end| end <= file_len);
            if within
                && crc32c::crc32c(&read_at(file, position, block.compressed_len as usize)?) == block.crc32c
            {
                block.position = position;
                break;
            }
        }
    }
    Ok(())
}

/// Where the frames of the blocks belong, for those of which that is known.
fn place(units: &[Unit], content: Option<Digest>, expected: &Expected) -> Vec<Placed> {
    let Some((end, span)) =
        expected.end_offset.and_then(|end| Some((end, end.checked_sub(expected.base_offset)?)))
    else {
        return Vec::new();
    };
    // With gaps, or frames missing where there may be gaps, counting is of no
    // use.
    let holes = units.contains(&Unit::Hole);
    match expected.records {
        Some(records) if records != span => return Vec::new(),
        None if holes => return Vec::new(),
        _ => {}
    }
    let frames = |unit: &Unit| match unit {
        Unit::Block { frames, .. } => *frames,
        Unit::Hole => 0,
    };
    let total: u64 = units.iter().map(frames).sum();
    let whole = content.is_some() && content == expected.content_digest;
    // More than there were, or fewer though nothing is missing, or as many
    // although something is: not the frames that are expected.
    if !whole && (total > span || holes == (total == span)) {
        return Vec::new();
    }
    let mut placed = Vec::new();
    let mut at = expected.base_offset;
    for unit in units {
        let Unit::Block { position, len, frames } = *unit else { break };
        placed.push(Placed { position, len, first_offset: at });
        at += frames;
    }
    if !holes || whole {
        return placed;
    }
    let mut tail = Vec::new();
    let mut at = end;
    for unit in units.iter().rev() {
        let Unit::Block { position, len, frames } = *unit else { break };
        at -= frames;
        tail.push(Placed { position, len, first_offset: at });
    }
    placed.extend(tail.into_iter().rev());
    placed
}

impl Rescue {
    /// What the index says the segment held, if the index is left.
    pub fn info(&self) -> Option<&SegmentInfo> {
        match &self.source {
            Source::Indexed(reader) => Some(reader.info()),
            Source::Counted { .. } => None,
        }
    }

    /// Frames that can be read, but whose offsets cannot be known.
    pub fn unplaced(&self) -> u64 {
        self.unplaced
    }

    /// Everything that can be read and has its offset, in order. What is
    /// damaged is left out.
    ///
    /// # Errors
    /// Of an item: whatever is no damage.
    pub fn batches(&self) -> Box<dyn Iterator<Item = Result<FrameBatch, ReadError>> + '_> {
        match &self.source {
            Source::Indexed(reader) => Box::new(
                reader.batches_from(0).filter(|batch| !batch.as_ref().is_err_and(ReadError::is_damage)),
            ),
            Source::Counted { path, file, blocks, append_time_ms, dictionaries } => {
                let read = move |block: &Placed| {
                    let packed = read_at(file, block.position, block.len as usize)
                        .map_err(|source| ReadError::Io { path: path.clone(), source })?;
                    // It could be read before; a file that changes meanwhile
                    // is no longer the one that was looked at.
                    let (plain, frames) = unpack_unlisted(&packed, dictionaries).map_err(|reason| {
                        ReadError::Io { path: path.clone(), source: io::Error::other(reason) }
                    })?;
                    Ok(FrameBatch {
                        base_offset: block.first_offset,
                        append_time_ms: *append_time_ms,
                        count: frames as u32,
                        bytes: plain.into(),
                    })
                };
                Box::new(blocks.iter().map(read))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::segment::{
        testing::{Fixture, batch, fixture, small_batches},
        verify,
    };

    const STREAM: &str = "irc";

    fn expected(sealed: &crate::segment::Sealed) -> Expected {
        Expected {
            stream: STREAM.into(),
            base_offset: sealed.base_offset,
            end_offset: Some(sealed.end_offset),
            records: Some(sealed.records),
            content_digest: Some(sealed.content_digest),
            append_time_ms: 77,
        }
    }

    /// Offsets and payloads of what is rescued, and how many have no offset.
    fn rescued(path: &Path, expected: &Expected) -> (Vec<(u64, Vec<u8>)>, u64) {
        let rescue = rescue(path, expected).unwrap();
        let frames = rescue.batches().map(Result::unwrap).flat_map(|batch| {
            batch.payloads().map(|(offset, payload)| (offset, payload.to_vec())).collect::<Vec<_>>()
        });
        (frames.collect(), rescue.unplaced())
    }

    fn all(batches: &[FrameBatch]) -> Vec<(u64, Vec<u8>)> {
        batches.iter().flat_map(FrameBatch::payloads).map(|(at, payload)| (at, payload.to_vec())).collect()
    }

    /// Twelve frames without gaps, two in each of six blocks.
    fn gapless() -> (Vec<FrameBatch>, Fixture) {
        let payloads: Vec<Vec<u8>> =
            (0..12u8).map(|n| (0..28).map(|i| n.wrapping_mul(31) ^ (i * 7)).collect()).collect();
        let batches = vec![batch(100, 5, &payloads[..5]), batch(105, 6, &payloads[5..])];
        let fixture = fixture(&batches, 64);
        assert_eq!(fixture.sealed.blocks, 6);
        (batches, fixture)
    }

    fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
        assert!(!verify(path, None).unwrap().is_intact());
    }

    #[test]
    fn with_the_index_only_the_frames_of_damaged_blocks_are_gone() {
        let batches = small_batches();
        let Fixture { path, sealed, dir: _dir } = fixture(&batches, 64);
        let hit = Reader::open(&path).unwrap().blocks()[3];
        edit(&path, |bytes| bytes[hit.position as usize + 12] ^= 1);
        let kept: Vec<_> = all(&batches).into_iter().filter(|(at, _)| *at != 20).collect();
        assert_eq!(rescued(&path, &expected(&sealed)), (kept, 0));
    }

    #[test]
    fn garbage_in_front_and_bytes_gone_move_blocks_and_index() {
        let batches = small_batches();
        let Fixture { path, sealed, dir: _dir } = fixture(&batches, 64);
        let whole = fs::read(&path).unwrap();
        edit(&path, |bytes| drop(bytes.splice(0..0, *b"garbage")));
        assert_eq!(rescued(&path, &expected(&sealed)), (all(&batches), 0));
        fs::write(&path, &whole).unwrap();
        let block = Reader::open(&path).unwrap().blocks()[1];
        edit(&path, |bytes| drop(bytes.drain(block.position as usize..block.position as usize + 5)));
        let lost = block.first_offset..block.end_offset;
        let kept: Vec<_> = all(&batches).into_iter().filter(|(at, _)| !lost.contains(at)).collect();
        assert_eq!(rescued(&path, &expected(&sealed)), (kept, 0));
    }

    #[test]
    fn another_segment_within_the_frames_is_not_taken_for_this_one() {
        let Fixture { path, sealed, dir: _dir } = fixture(&small_batches(), 64);
        let other = Expected { base_offset: 7, ..expected(&sealed) };
        edit(&path, |bytes| bytes.push(0));
        assert_eq!(rescued(&path, &other).0, []);
    }

    #[test]
    fn without_index_the_front_of_a_cut_file_is_counted_from_its_base() {
        let (batches, Fixture { path, sealed, dir: _dir }) = gapless();
        let third = Reader::open(&path).unwrap().blocks()[3].position as usize;
        edit(&path, |bytes| bytes.truncate(third + 4));
        let known = expected(&sealed);
        assert_eq!(rescued(&path, &known), (all(&batches)[..6].to_vec(), 0));
        assert_eq!(rescued(&path, &Expected { records: Some(11), ..known.clone() }), (vec![], 6));
        assert_eq!(rescued(&path, &Expected { end_offset: None, ..known.clone() }), (vec![], 6));
        assert_eq!(rescue(&path, &known).unwrap().batches().next().unwrap().unwrap().append_time_ms, 77);
    }

    #[test]
    fn without_index_both_sides_of_a_damaged_block_are_counted() {
        let (batches, Fixture { path, sealed, dir: _dir }) = gapless();
        let (hit, index) = {
            let reader = Reader::open(&path).unwrap();
            let last = reader.blocks()[5];
            (reader.blocks()[2], last.position as usize + last.compressed_len as usize)
        };
        edit(&path, |bytes| {
            bytes[index + 30] ^= 1;
            bytes[hit.position as usize + 14] ^= 1;
        });
        let kept: Vec<_> = all(&batches).into_iter().filter(|(at, _)| !(104..106).contains(at)).collect();
        assert_eq!(rescued(&path, &expected(&sealed)), (kept, 0));
    }

    #[test]
    fn without_index_whole_content_is_proven_by_its_digest_or_its_count() {
        let (batches, Fixture { path, sealed, dir: _dir }) = gapless();
        let end = fs::metadata(&path).unwrap().len() as usize;
        edit(&path, |bytes| bytes[end - 160] ^= 1);
        assert_eq!(rescued(&path, &expected(&sealed)), (all(&batches), 0));
        let by_count = Expected { content_digest: None, ..expected(&sealed) };
        assert_eq!(rescued(&path, &by_count), (all(&batches), 0));
        let by_neighbours = Expected { records: None, ..by_count.clone() };
        assert_eq!(rescued(&path, &by_neighbours), (all(&batches), 0));
        let too_few = Expected { end_offset: Some(113), records: Some(13), ..by_count };
        assert_eq!(rescued(&path, &too_few), (vec![], 12));
    }

    #[test]
    fn nothing_is_rescued_of_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let (_, Fixture { sealed, .. }) = gapless();
        for bytes in [vec![], vec![0; 5_000], b"thwg-idx".repeat(100)] {
            fs::write(&path, bytes).unwrap();
            assert_eq!(rescued(&path, &expected(&sealed)), (vec![], 0));
        }
    }
}

//! Finding the index from the end of a file.

use std::{fs::File, io, os::unix::fs::FileExt};

use super::{
    format::{MAX_INDEX_BYTES, TRAILER_MAGIC},
    index::{self, IndexError, TRAILER_BYTES},
    info::Index,
    seek_table::{self, FOOTER_BYTES},
};

/// How far from the end a trailer is looked for when the seek table does not
/// say where it is: the seek table of some 350,000 blocks.
const SEARCH_BYTES: u64 = 4 << 20;

/// How many trailers found that way are tried. The true one is the last unless
/// something was appended; frames made to look like many trailers must not
/// keep the search busy.
const SEARCH_CANDIDATES: usize = 8;

/// An index and its frame's place in the file.
#[derive(Debug)]
pub(super) struct Located {
    pub index: Index,
    /// The byte after its frame.
    pub end: u64,
}

/// Reads `len` bytes at `position`; the caller has held `len` against the
/// file's length or a cap.
pub(super) fn read_at(file: &File, position: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, position)?;
    Ok(bytes)
}

/// Where the seek table begins, if the file ends with a seek table's footer.
pub(super) fn seek_table_position(file: &File, file_len: u64) -> io::Result<Option<u64>> {
    let Some(position) = file_len.checked_sub(FOOTER_BYTES as u64) else {
        return Ok(None);
    };
    let mut footer = [0; FOOTER_BYTES];
    file.read_exact_at(&mut footer, position)?;
    Ok(seek_table::frame_len_from_footer(&footer).and_then(|len| file_len.checked_sub(len)))
}

/// Finds the index: directly before the seek table, or, if that is damaged,
/// wherever near the end a trailer proves to belong to an index of this file.
pub(super) fn locate(file: &File, file_len: u64) -> io::Result<Result<Located, IndexError>> {
    let mut error = IndexError::Missing;
    if let Some(end) = seek_table_position(file, file_len)? {
        match index_ending_at(file, end)? {
            Ok(located) => return Ok(Ok(located)),
            Err(found) => error = found,
        }
    }
    let searched = file_len.min(SEARCH_BYTES);
    let from = file_len - searched;
    // At most `SEARCH_BYTES`.
    let tail = read_at(file, from, searched as usize)?;
    let candidates = tail
        .windows(TRAILER_MAGIC.len())
        .enumerate()
        .rev()
        .filter(|(_, window)| *window == TRAILER_MAGIC)
        .take(SEARCH_CANDIDATES);
    for (at, _) in candidates {
        match index_ending_at(file, from + (at + TRAILER_MAGIC.len()) as u64)? {
            Ok(located) => return Ok(Ok(located)),
            Err(found) if error == IndexError::Missing => error = found,
            Err(_) => {}
        }
    }
    Ok(Err(error))
}

/// Finds an index near the end that `is_wanted`, and where its frame begins,
/// also where the blocks do not end there: bytes were added or are gone before
/// it.
pub(super) fn locate_displaced(
    file: &File,
    file_len: u64,
    is_wanted: impl Fn(&Index) -> bool,
) -> io::Result<Option<(Index, u64)>> {
    let from = file_len.saturating_sub(SEARCH_BYTES);
    let tail = read_at(file, from, (file_len - from) as usize)?;
    let trailers = memchr::memmem::rfind_iter(&tail, &TRAILER_MAGIC).take(SEARCH_CANDIDATES);
    for at in trailers {
        let end = from + (at + TRAILER_MAGIC.len()) as u64;
        if let Ok((index, start)) = decode_ending_at(file, end)?
            && is_wanted(&index)
        {
            return Ok(Some((index, start)));
        }
    }
    Ok(None)
}

fn index_ending_at(file: &File, end: u64) -> io::Result<Result<Located, IndexError>> {
    Ok(decode_ending_at(file, end)?.and_then(|(index, start)| {
        // Frames may hold anything, a whole segment too: its index is not
        // this file's.
        if index.position() == start {
            Ok(Located { index, end })
        } else {
            Err(IndexError::Malformed { what: "blocks that do not end where the index begins" })
        }
    }))
}

/// The index whose frame ends at `end`, and where it begins.
fn decode_ending_at(file: &File, end: u64) -> io::Result<Result<(Index, u64), IndexError>> {
    let Some(position) = end.checked_sub(TRAILER_BYTES as u64) else {
        return Ok(Err(IndexError::Missing));
    };
    let mut trailer = [0; TRAILER_BYTES];
    file.read_exact_at(&mut trailer, position)?;
    let Some((start, len)) = index::frame_len_from_trailer(&trailer)
        .filter(|len| *len <= u64::from(MAX_INDEX_BYTES))
        .and_then(|len| Some((end.checked_sub(len)?, usize::try_from(len).ok()?)))
    else {
        return Ok(Err(IndexError::Missing));
    };
    Ok(index::decode(&read_at(file, start, len)?).map(|index| (index, start)))
}

//! Reads single files of a zip archive, as Python's wheels are.
//!
//! The format: PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12 and 4.3.16. Sums
//! are not compared: whoever reads a model compares digests. Archives of
//! 4 GiB and more are not read.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
};

use flate2::read::DeflateDecoder;

const END: &[u8] = b"PK\x05\x06";
const ENTRY: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
/// Length of the record at the end without its comment.
const END_BYTES: usize = 22;
const ENTRY_BYTES: usize = 46;
const LOCAL_BYTES: usize = 30;
/// Longest comment at the end.
const MOST_COMMENT_BYTES: usize = 65_535;

/// The contents of the file called `name` in `archive`.
///
/// # Errors
/// If there is none, the archive is damaged, or it is packed in a way that is
/// not understood.
pub fn open(archive: &File, name: &str) -> io::Result<Box<dyn Read>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, format!("{what}; is it a wheel?"));
    let directory = directory(archive)?.ok_or_else(|| bad("the archive has no directory"))?;
    let entry = entry(&directory, name).ok_or_else(|| bad(&format!("the archive has no file `{name}`")))?;
    let mut file = archive.try_clone()?;
    file.seek(SeekFrom::Start(entry.at.into()))?;
    let mut local = [0; LOCAL_BYTES];
    file.read_exact(&mut local)?;
    let lengths = u16_at(&local, 26).zip(u16_at(&local, 28)).filter(|_| local.starts_with(LOCAL));
    let (name_length, extra) =
        lengths.ok_or_else(|| bad("a file of the archive is not where it should be"))?;
    file.seek(SeekFrom::Current(i64::from(name_length) + i64::from(extra)))?;
    let packed = BufReader::new(file).take(entry.packed_bytes.into());
    match entry.method {
        0 => Ok(Box::new(packed)),
        8 => Ok(Box::new(DeflateDecoder::new(packed))),
        other => Err(bad(&format!("`{name}` is packed by method {other}"))),
    }
}

/// The list of files.
fn directory(mut archive: &File) -> io::Result<Option<Vec<u8>>> {
    let length = archive.seek(SeekFrom::End(0))?;
    let from = length.saturating_sub((END_BYTES + MOST_COMMENT_BYTES) as u64);
    archive.seek(SeekFrom::Start(from))?;
    let mut end = Vec::new();
    archive.read_to_end(&mut end)?;
    let Some(at) = end.windows(END.len()).rposition(|window| window == END) else { return Ok(None) };
    let Some((bytes, start)) = u32_at(&end, at + 12).zip(u32_at(&end, at + 16)) else { return Ok(None) };
    if u64::from(start) + u64::from(bytes) > length {
        return Ok(None);
    }
    archive.seek(SeekFrom::Start(start.into()))?;
    let mut directory = Vec::new();
    archive.take(bytes.into()).read_to_end(&mut directory)?;
    Ok(Some(directory))
}

/// Where a file is.
struct Entry {
    method: u16,
    packed_bytes: u32,
    at: u32,
}

fn entry(mut directory: &[u8], name: &str) -> Option<Entry> {
    while directory.starts_with(ENTRY) {
        let length = |at| u16_at(directory, at).map(usize::from);
        let (name_length, extra, comment) = (length(28)?, length(30)?, length(32)?);
        let found = directory.get(ENTRY_BYTES..)?.get(..name_length)?;
        if found == name.as_bytes() {
            let (packed_bytes, at) = (u32_at(directory, 20)?, u32_at(directory, 42)?);
            return Some(Entry { method: u16_at(directory, 10)?, packed_bytes, at });
        }
        directory = directory.get(ENTRY_BYTES + name_length + extra + comment..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

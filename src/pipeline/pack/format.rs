//! The bytes of a pack: one Zstandard stream, with its checksum, of frames
//! as they were sent.
//!
//! There is no header and nothing of our own, so `zstd -dc` gives what every
//! source takes. Frames are written one by one by a single thread, so the same
//! frames at the same level give the same bytes, whoever writes them.

use std::io::{self, BufReader, Read, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use zstd::stream::{read::Decoder, write::Encoder};

use crate::frame::PREFIX_BYTES;

/// What a writer has written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Number of frames.
    pub documents: u64,
    /// Bytes of the frames, prefixes included.
    pub plain_bytes: u64,
    /// SHA-256 of the frames.
    pub content_digest: [u8; 32],
    /// Bytes of the pack.
    pub object_bytes: u64,
    /// SHA-256 of the pack.
    pub object_digest: [u8; 32],
}

/// Writes a pack.
pub struct Writer<W: Write> {
    plain: Hashing<Encoder<'static, Hashing<W>>>,
    documents: u64,
}

impl<W: Write> Writer<W> {
    /// A pack into `to`, compressed at `level`.
    ///
    /// # Errors
    /// If Zstandard refuses the level.
    pub fn new(to: W, level: i32) -> io::Result<Self> {
        let mut encoder = Encoder::new(Hashing::new(to), level)?;
        encoder.include_checksum(true)?;
        Ok(Self { plain: Hashing::new(encoder), documents: 0 })
    }

    /// Adds the frame of `payload`.
    ///
    /// # Errors
    /// What the writer below says.
    pub fn put(&mut self, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
        self.documents += 1;
        self.plain.write_all(&length.to_be_bytes())?;
        self.plain.write_all(payload)
    }

    /// Ends the pack.
    ///
    /// # Errors
    /// What the writer below says.
    pub fn finish(self) -> io::Result<(W, Written)> {
        let (encoder, plain_bytes, content_digest) = self.plain.finish();
        let (to, object_bytes, object_digest) = encoder.finish()?.finish();
        let documents = self.documents;
        Ok((to, Written { documents, plain_bytes, content_digest, object_bytes, object_digest }))
    }
}

/// The payloads of the pack in `from`, in order. Ends after the first error.
///
/// # Errors
/// If Zstandard cannot be set up; each item what `from` or Zstandard says, or
/// that the pack ends within a frame.
pub fn payloads(from: impl Read) -> io::Result<impl Iterator<Item = io::Result<Bytes>>> {
    let mut plain = BufReader::new(Decoder::new(from)?);
    let mut failed = false;
    Ok(std::iter::from_fn(move || {
        let next = if failed { None } else { next_payload(&mut plain).transpose() };
        failed = matches!(next, Some(Err(_)));
        next
    }))
}

fn next_payload(plain: &mut impl Read) -> io::Result<Option<Bytes>> {
    let mut prefix = Vec::with_capacity(PREFIX_BYTES);
    plain.by_ref().take(PREFIX_BYTES as u64).read_to_end(&mut prefix)?;
    if prefix.is_empty() {
        return Ok(None);
    }
    let cut = |_| io::Error::new(io::ErrorKind::UnexpectedEof, "the pack ends within a frame");
    let length = u32::from_be_bytes(prefix.as_slice().try_into().map_err(cut)?);
    // Grows with what comes, whatever the prefix claims.
    let mut payload = Vec::new();
    let read = plain.take(length.into()).read_to_end(&mut payload)?;
    if read as u64 == u64::from(length) {
        return Ok(Some(payload.into()));
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the pack ends within a frame"))
}

/// Writes the pack in `from` again into `to`, compressed at `level`, with the
/// frames whose payloads are to be kept. If that is all of them and the level
/// is the same, so are the bytes.
///
/// # Errors
/// As [`payloads`] and [`Writer::put`].
pub fn rewrite<W: Write>(
    from: impl Read,
    to: W,
    level: i32,
    mut keep: impl FnMut(&[u8]) -> bool,
) -> io::Result<(W, Written)> {
    let mut writer = Writer::new(to, level)?;
    for payload in payloads(from)? {
        let payload = payload?;
        if keep(&payload) {
            writer.put(&payload)?;
        }
    }
    writer.finish()
}

/// Counts and hashes what goes through.
struct Hashing<W> {
    to: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> Hashing<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), bytes: 0 }
    }

    fn finish(self) -> (W, u64, [u8; 32]) {
        (self.to, self.bytes, self.hash.finalize().into())
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hash.update(bytes.get(..n).unwrap_or(bytes));
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: i32 = 3;

    fn pack(payloads: &[Vec<u8>]) -> (Vec<u8>, Written) {
        let mut writer = Writer::new(Vec::new(), LEVEL).unwrap();
        payloads.iter().for_each(|payload| writer.put(payload).unwrap());
        writer.finish().unwrap()
    }

    fn some(count: u32) -> Vec<Vec<u8>> {
        (0..count).map(|n| format!("document {n} {}", "word ".repeat(n as usize % 97)).into_bytes()).collect()
    }

    #[test]
    fn a_pack_decompresses_to_its_frames_and_has_their_digest() {
        let sent = some(3_000);
        let (packed, written) = pack(&sent);
        let plain = zstd::decode_all(packed.as_slice()).unwrap();
        let frames: Vec<u8> = sent
            .iter()
            .flat_map(|payload| [&(payload.len() as u32).to_be_bytes(), payload.as_slice()].concat())
            .collect();
        assert!(plain == frames);
        assert_eq!(packed[4] & 4, 4, "the frame header's flag of a checksum");
        let digest = |bytes: &[u8]| <[u8; 32]>::from(Sha256::digest(bytes));
        let expected = Written {
            documents: 3_000,
            plain_bytes: frames.len() as u64,
            content_digest: digest(&frames),
            object_bytes: packed.len() as u64,
            object_digest: digest(&packed),
        };
        assert_eq!(written, expected);
    }

    #[test]
    fn a_pack_written_again_without_some_frames_is_the_pack_of_the_others() {
        let sent = some(500);
        let (packed, _) = pack(&sent);
        let (same, _) = rewrite(packed.as_slice(), Vec::new(), LEVEL, |_| true).unwrap();
        assert!(same == packed, "the same frames are the same bytes");
        let keep = |payload: &[u8]| !payload.len().is_multiple_of(3);
        let (fewer, written) = rewrite(packed.as_slice(), Vec::new(), LEVEL, keep).unwrap();
        let kept: Vec<Vec<u8>> = sent.into_iter().filter(|payload| keep(payload)).collect();
        assert!(!kept.is_empty() && (fewer, written) == pack(&kept));
    }

    #[test]
    fn a_pack_that_is_cut_off_or_altered_is_an_error_and_not_a_shorter_pack() {
        let (packed, _) = pack(&some(200));
        let all = |bytes: &[u8]| payloads(bytes).unwrap().collect::<io::Result<Vec<_>>>();
        assert_eq!(all(&packed).unwrap().len(), 200);
        assert!(all(&packed[..packed.len() - 5]).is_err());
        let mut altered = packed.clone();
        *altered.last_mut().unwrap() ^= 1;
        assert!(all(&altered).is_err(), "the checksum tells");
        let claims =
            zstd::encode_all([u32::MAX.to_be_bytes().as_slice(), b"few"].concat().as_slice(), 1).unwrap();
        assert!(all(&claims).is_err(), "a length is not believed");
    }
}

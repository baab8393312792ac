//! Compressed entries, inflated piece by piece.
//!
//! However far a message inflates, no more than one piece and the entry that
//! is not whole yet are in memory at a time.

use std::io::{self, Read};

use bytes::{Buf, Bytes, BytesMut};

use super::{
    message::Compression,
    value::{Extent, NoEnd},
};

/// Bytes that are inflated at a time.
const PIECE_BYTES: usize = 64 << 10;
/// The longest look back a zstd stream may ask memory for: 8 MiB, what level
/// 19 uses.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Bounds on what compressed bytes may become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Bytes of one entry.
    pub(super) entry: usize,
    /// Bytes of all entries of a message.
    pub(super) total: u64,
}

/// Why compressed entries cannot be read to their end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadCompression {
    #[error("the entries cannot be inflated: {0}")]
    Broken(io::Error),
    #[error("the entries inflate to more than {most} bytes; send smaller chunks")]
    Bomb { most: u64 },
    #[error("the inflated entries are not MessagePack: {0}")]
    NotMessagePack(NoEnd),
    #[error("the inflated entries end inside an entry, after {bytes} bytes of it")]
    CutOff { bytes: usize },
}

/// Inflates entries.
pub(super) struct Inflate {
    reader: Box<dyn Read + Send>,
    limits: Limits,
    inflated: u64,
    /// Inflated and not given out yet; `extent` is looking for the end of its
    /// first entry.
    buffer: BytesMut,
    extent: Extent,
}

impl Inflate {
    pub(super) fn new(
        compression: Compression,
        packed: Bytes,
        limits: Limits,
    ) -> Result<Self, BadCompression> {
        let packed = packed.reader();
        // Both read several streams, one after the other, as one.
        let reader: Box<dyn Read + Send> = match compression {
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(packed)),
            Compression::Zstd => {
                let mut decoder =
                    zstd::stream::read::Decoder::with_buffer(packed).map_err(BadCompression::Broken)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(BadCompression::Broken)?;
                Box::new(decoder)
            }
        };
        Ok(Self { reader, limits, inflated: 0, buffer: BytesMut::new(), extent: Extent::default() })
    }

    /// The next whole entries, end to end; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, BadCompression> {
        loop {
            let whole = self.whole_entries()?;
            if whole > 0 {
                return Ok(Some(self.buffer.split_to(whole).freeze()));
            }
            if self.read_piece()? == 0 {
                let bytes = self.buffer.len();
                return if bytes == 0 { Ok(None) } else { Err(BadCompression::CutOff { bytes }) };
            }
        }
    }

    fn whole_entries(&mut self) -> Result<usize, BadCompression> {
        let mut whole = 0;
        while let Some(rest) = self.buffer.get(whole..).filter(|rest| !rest.is_empty()) {
            match self.extent.find(rest, self.limits.entry) {
                Ok(Some(entry)) => whole += entry,
                Ok(None) => return Ok(whole),
                Err(error) if whole == 0 => return Err(BadCompression::NotMessagePack(error)),
                // What came before it first; then this again.
                Err(_) => break,
            }
            self.extent = Extent::default();
        }
        self.extent = Extent::default();
        Ok(whole)
    }

    fn read_piece(&mut self) -> Result<usize, BadCompression> {
        let had = self.buffer.len();
        self.buffer.resize(had + PIECE_BYTES, 0);
        let read = self.reader.read(self.buffer.get_mut(had..).unwrap_or_default());
        let read = read.map_err(BadCompression::Broken)?;
        self.buffer.truncate(had + read);
        self.inflated += read as u64;
        if self.inflated > self.limits.total {
            return Err(BadCompression::Bomb { most: self.limits.total });
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const LIMITS: Limits = Limits { entry: 1 << 20, total: 4 << 20 };

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(plain).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(plain: &[u8]) -> Vec<u8> {
        zstd::encode_all(plain, 1).unwrap()
    }

    fn entries(n: usize) -> Vec<u8> {
        (0..n).flat_map(|i| rmp_serde::to_vec(&(i, "x".repeat(i % 700))).unwrap()).collect()
    }

    fn inflate(compression: Compression, packed: Vec<u8>, limits: Limits) -> Result<Vec<u8>, String> {
        let mut inflate = Inflate::new(compression, packed.into(), limits).unwrap();
        let mut out = Vec::new();
        while let Some(piece) = inflate.next().map_err(|e| e.to_string())? {
            assert!(piece.len() <= limits.entry + PIECE_BYTES);
            out.extend_from_slice(&piece);
        }
        Ok(out)
    }

    #[test]
    fn one_stream_and_several_end_to_end_inflate_alike() {
        let plain = entries(2_000);
        let (one, two) = plain.split_at(plain.len() / 3);
        for (compression, pack) in
            [(Compression::Gzip, gzip as fn(&[u8]) -> Vec<u8>), (Compression::Zstd, zstd)]
        {
            assert!(inflate(compression, pack(&plain), LIMITS).unwrap() == plain);
            let several = [pack(one), pack(two)].concat();
            assert!(inflate(compression, several, LIMITS).unwrap() == plain);
            assert!(inflate(compression, pack(&[]), LIMITS).unwrap().is_empty());
        }
    }

    #[test]
    fn a_bomb_is_stopped_at_the_cap() {
        let bomb = vec![0x01; 64 << 20];
        for (compression, packed) in [(Compression::Gzip, gzip(&bomb)), (Compression::Zstd, zstd(&bomb))] {
            assert!(packed.len() < bomb.len() / 100);
            let error = inflate(compression, packed, LIMITS).unwrap_err();
            assert!(error.contains("more than 4194304 bytes"), "{error}");
        }
    }

    #[test]
    fn an_entry_that_never_ends_takes_no_more_than_its_cap() {
        let endless = [&[0x92, 0x01, 0xc6, 0x7f, 0, 0, 0][..], &vec![0; 64 << 20]].concat();
        let error = inflate(Compression::Gzip, gzip(&endless), LIMITS).unwrap_err();
        assert!(error.contains("longer than 1048576 bytes"), "{error}");
    }

    #[test]
    fn damage_is_told_and_what_came_before_it_is_kept() {
        let plain = entries(2_000);
        for (compression, packed) in [(Compression::Gzip, gzip(&plain)), (Compression::Zstd, zstd(&plain))] {
            let cut = packed[..packed.len() - 9].to_vec();
            assert!(inflate(compression, cut, LIMITS).unwrap_err().contains("cannot be inflated"));
            let mut flipped = packed.clone();
            let last = flipped.len() - 3;
            flipped[last] ^= 1;
            assert!(inflate(compression, flipped, LIMITS).is_err());
        }
        let error = inflate(Compression::Gzip, gzip(&plain[..plain.len() - 1]), LIMITS).unwrap_err();
        assert!(error.contains("end inside an entry"), "{error}");
        assert!(inflate(Compression::Gzip, b"no gzip".to_vec(), LIMITS).is_err());
    }
}

//! Zstandard dictionaries: their identity, where they lie, how they are
//! trained, and when one is worth having.
//!
//! A dictionary is what a block of a sealed segment may refer to without
//! holding it, so that a small block compresses nearly as well as a large one.
//! Its name is the SHA-256 of its bytes. zstd itself knows it by a 32-bit id
//! that stands in the dictionary and in every frame compressed with it.
//!
//! # Files
//!
//! In the folder `dictionaries` beside the segments ([`Library`]):
//!
//! | file | what |
//! |---|---|
//! | `DIGEST.dict` | a dictionary, as `zstd -D` takes it; DIGEST in lower-case hex |
//! | `adopted` | the digest of the one that new segments are sealed with, and a newline |
//!
//! A dictionary is complete before anything refers to it, and it stays: a
//! segment that names it cannot be read without it.

mod library;
mod samples;
mod verdict;

use std::{cell::RefCell, fmt, io};

use sha2::{Digest as _, Sha256};
use zstd::{
    dict::{DDict, EncoderDictionary},
    zstd_safe::{self, DCtx},
};

pub use library::{Library, LoadError};
pub use samples::{Sampler, Samples, TrainError};
pub use verdict::{Contest, Entrant, Loss, Verdict};

/// Largest dictionary that is read or trained.
pub const MAX_DICTIONARY_BYTES: usize = 2 << 20;

/// What a dictionary is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// SHA-256 of its bytes.
    pub digest: [u8; 32],
    /// The id that stands in it and in the zstd frames made with it; never 0.
    pub zstd_id: u32,
}

impl Identity {
    /// A digest from its hex; `None` if it is none.
    pub fn digest_of_hex(text: &str) -> Option<[u8; 32]> {
        library::unhex(text)
    }

    /// The digest in lower-case hex.
    pub fn hex(&self) -> String {
        hex(&self.digest)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (zstd id {})", self.hex(), self.zstd_id)
    }
}

fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that are no dictionary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Over [`MAX_DICTIONARY_BYTES`].
    #[error("{bytes} bytes are over the cap of {MAX_DICTIONARY_BYTES} for a dictionary")]
    TooLarge {
        /// How many there are.
        bytes: usize,
    },
    /// Without zstd's magic and id, or with tables that do not parse.
    #[error("they are no dictionary in zstd's format")]
    Format,
}

/// A dictionary, ready to decompress with on any number of threads.
pub struct Dictionary {
    identity: Identity,
    bytes: Vec<u8>,
    decoder: DDict<'static>,
}

impl fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Dictionary({}, {} bytes)", self.identity, self.bytes.len())
    }
}

impl Dictionary {
    /// Takes `bytes` in zstd's dictionary format (RFC 8878, section 5).
    ///
    /// # Errors
    /// If they are not in that format, or too many.
    pub fn new(bytes: Vec<u8>) -> Result<Self, Malformed> {
        if bytes.len() > MAX_DICTIONARY_BYTES {
            return Err(Malformed::TooLarge { bytes: bytes.len() });
        }
        let zstd_id = zstd_safe::get_dict_id_from_dict(&bytes).ok_or(Malformed::Format)?.get();
        let decoder = DDict::try_create(&bytes).ok_or(Malformed::Format)?;
        let digest = Sha256::digest(&bytes).into();
        Ok(Self { identity: Identity { digest, zstd_id }, bytes, decoder })
    }

    /// What it is called.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Its bytes, as `zstd -D` takes them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Prepares it for compression at `level`: some milliseconds, once for any
    /// number of compressors.
    ///
    /// # Errors
    /// If zstd cannot allocate.
    pub fn encoder(&self, level: i32) -> io::Result<EncoderDictionary<'static>> {
        EncoderDictionary::try_copy(&self.bytes, level)
    }
}

thread_local! {
    /// Making a context costs as much as decompressing some 30 KB with it.
    static DECOMPRESSOR: RefCell<Option<DCtx<'static>>> = const { RefCell::new(None) };
}

/// Decompresses the zstd frame `packed`, of at most `plain_len` plain bytes,
/// with this thread's context. The caller has held `plain_len` against a cap.
///
/// # Errors
/// What zstd says: damage, another dictionary, more bytes than that.
pub fn decompress(packed: &[u8], plain_len: usize, dictionary: Option<&Dictionary>) -> io::Result<Vec<u8>> {
    let mut plain = Vec::with_capacity(plain_len);
    DECOMPRESSOR.with_borrow_mut(|context| {
        let context = match context {
            Some(context) => context,
            None => context.insert(DCtx::try_create().ok_or(io::ErrorKind::OutOfMemory)?),
        };
        let done = match dictionary {
            Some(dictionary) => context.decompress_using_ddict(&mut plain, packed, &dictionary.decoder),
            None => context.decompress(&mut plain, packed),
        };
        done.map_err(|code| io::Error::other(zstd_safe::get_error_name(code)))
    })?;
    Ok(plain)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// A chat message, unlike any other with another `n`.
    pub(crate) fn message(n: usize) -> Vec<u8> {
        const WORDS: [&str; 12] = [
            "install", "kernel", "package", "driver", "screen", "reboot", "thanks", "update", "mirror",
            "network", "mount", "sudo",
        ];
        let word = |k: usize| WORDS[(n.wrapping_mul(7) + k * k + n / 5 * k) % WORDS.len()];
        format!(
            "{{\"channel\":\"#ubuntu\",\"user\":\"user-{}\",\"ts\":{},\"text\":\"please {} the {} then {} {} and {}\"}}",
            n % 97,
            1_700_000_000_000_u64 + n as u64 * 7_919,
            word(1),
            word(2),
            word(3),
            word(4),
            word(5),
        )
        .into_bytes()
    }

    /// A dictionary of messages `from..from + 2,000`.
    pub(crate) fn trained(from: usize, max_bytes: usize) -> Dictionary {
        let mut sampler = Sampler::new(7, 1 << 20, 1 << 20);
        (from..from + 2_000).for_each(|n| sampler.push(&message(n)));
        sampler.finish().train(max_bytes).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::{testing::*, *};

    #[test]
    fn a_dictionary_is_named_by_its_bytes_and_by_zstds_id() {
        let dictionary = trained(0, 8 << 10);
        let again = Dictionary::new(dictionary.bytes().to_vec()).unwrap();
        assert_eq!(again.identity(), dictionary.identity());
        assert_eq!(dictionary.identity().digest[..], Sha256::digest(dictionary.bytes())[..]);
        let id = u32::from_le_bytes(dictionary.bytes()[4..8].try_into().unwrap());
        assert_eq!(dictionary.identity().zstd_id, id);
        assert_ne!(trained(5_000, 8 << 10).identity(), dictionary.identity());
    }

    #[test]
    fn what_is_no_dictionary_is_refused() {
        assert_eq!(Dictionary::new(Vec::new()).unwrap_err(), Malformed::Format);
        assert_eq!(Dictionary::new(b"just some text".to_vec()).unwrap_err(), Malformed::Format);
        let mut broken = trained(0, 8 << 10).bytes().to_vec();
        broken.truncate(40);
        assert_eq!(Dictionary::new(broken).unwrap_err(), Malformed::Format);
        let huge = vec![0; MAX_DICTIONARY_BYTES + 1];
        assert!(matches!(Dictionary::new(huge), Err(Malformed::TooLarge { .. })));
    }

    #[test]
    fn one_thread_decompresses_with_and_without_dictionaries_in_turn() {
        let (a, b) = (trained(0, 8 << 10), trained(5_000, 8 << 10));
        let plain = message(77);
        let pack = |dictionary: Option<&Dictionary>| {
            let bytes = dictionary.map_or(&[][..], Dictionary::bytes);
            zstd::bulk::Compressor::with_dictionary(3, bytes).unwrap().compress(&plain).unwrap()
        };
        for dictionary in [Some(&a), None, Some(&b), Some(&a), None] {
            let packed = pack(dictionary);
            assert_eq!(decompress(&packed, plain.len(), dictionary).unwrap(), plain);
        }
        assert!(decompress(&pack(Some(&a)), plain.len(), None).is_err());
        assert!(decompress(&pack(Some(&a)), plain.len(), Some(&b)).is_err());
        assert!(decompress(&pack(None), plain.len() - 1, None).is_err());
        assert_eq!(decompress(&pack(None), plain.len(), None).unwrap(), plain);
    }
}

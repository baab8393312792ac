//! Drawing samples of frames, and training on them.

use zstd::zstd_safe;

use super::{Dictionary, MAX_DICTIONARY_BYTES, Malformed};

/// A sample is whole frames of about this many bytes, or one larger frame.
///
/// zstd's trainer takes from the samples both the content of a dictionary and
/// the statistics of its entropy tables; of single chat messages the latter
/// come out for messages, not for the blocks that they are compressed in.
const SAMPLE_BYTES: usize = 4 << 10;

/// The least a dictionary may have: its tables, and some content.
pub(crate) const MIN_DICTIONARY_BYTES: usize = 1 << 10;

/// Why there is no dictionary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrainError {
    /// zstd's trainer found nothing to make one of.
    #[error("{samples} samples of {bytes} bytes give no dictionary of {max_bytes}: {reason}")]
    Trainer {
        /// How many samples there were.
        samples: usize,
        /// Their bytes.
        bytes: usize,
        /// The size asked for.
        max_bytes: usize,
        /// What zstd says.
        reason: String,
    },
    /// There was no size to try.
    #[error("no size of dictionary was given")]
    NoSize,
    /// The trainer's result is no dictionary.
    #[error("the trained bytes cannot be used: {source}")]
    Malformed {
        /// Why.
        #[from]
        source: Malformed,
    },
}

/// Samples to train on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    bytes: Vec<u8>,
    sizes: Vec<usize>,
}

impl Samples {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.sizes.len()
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Trains a dictionary of at most `max_bytes` with zstd's trainer (fast
    /// cover, `k` chosen by trial). The same samples give the same dictionary.
    ///
    /// Computes for up to some seconds.
    ///
    /// # Errors
    /// If there are too few samples, or nothing in them repeats.
    pub fn train(&self, max_bytes: usize) -> Result<Dictionary, TrainError> {
        let max_bytes = max_bytes.clamp(MIN_DICTIONARY_BYTES, MAX_DICTIONARY_BYTES);
        let mut trained = Vec::with_capacity(max_bytes);
        zstd_safe::train_from_buffer(&mut trained, &self.bytes, &self.sizes).map_err(|code| {
            TrainError::Trainer {
                samples: self.count(),
                bytes: self.bytes(),
                max_bytes,
                reason: zstd_safe::get_error_name(code).to_owned(),
            }
        })?;
        Ok(Dictionary::new(trained)?)
    }
}

/// Draws samples from a stream of frames whose length is known beforehand.
#[derive(Debug)]
pub struct Sampler {
    random: SplitMix64,
    /// A sample is taken if its draw is below this.
    threshold: u64,
    most_bytes: usize,
    /// Frames of the sample that is not complete.
    open: Vec<u8>,
    taken: Samples,
}

impl Sampler {
    /// Takes of `available_bytes` about `most_bytes`, and no more: everything,
    /// or a share that is spread evenly. The same seed and frames give the
    /// same samples.
    pub fn new(seed: u64, available_bytes: u64, most_bytes: usize) -> Self {
        Self {
            random: SplitMix64(seed),
            threshold: share_of_u64(most_bytes as u64, available_bytes),
            most_bytes,
            open: Vec::with_capacity(2 * SAMPLE_BYTES),
            taken: Samples::default(),
        }
    }

    /// Adds the next frame, prefix included.
    pub fn push(&mut self, frame: &[u8]) {
        self.open.extend_from_slice(frame);
        if self.open.len() >= SAMPLE_BYTES {
            self.draw();
        }
    }

    /// The samples that were drawn.
    pub fn finish(mut self) -> Samples {
        self.draw();
        self.taken
    }

    fn draw(&mut self) {
        let size = self.open.len();
        let fits = self.taken.bytes() + size <= self.most_bytes;
        if size > 0 && self.random.next() <= self.threshold && fits {
            self.taken.bytes.append(&mut self.open);
            self.taken.sizes.push(size);
        }
        self.open.clear();
    }
}

/// `part` of `whole` as a share of 2^64; all of it if `part` is no less.
fn share_of_u64(part: u64, whole: u64) -> u64 {
    match (u128::from(part) << 64).checked_div(whole.into()) {
        Some(share) => u64::try_from(share).unwrap_or(u64::MAX),
        None => u64::MAX,
    }
}

/// Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014.
#[derive(Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::testing::message, *};

    fn drawn(seed: u64, frames: usize, most_bytes: usize) -> Samples {
        let frames: Vec<_> = (0..frames).map(message).collect();
        let available = frames.iter().map(Vec::len).sum::<usize>() as u64;
        let mut sampler = Sampler::new(seed, available, most_bytes);
        frames.iter().for_each(|frame| sampler.push(frame));
        sampler.finish()
    }

    #[test]
    fn everything_is_taken_where_it_fits() {
        let all: Vec<u8> = (0..500).flat_map(message).collect();
        let samples = drawn(1, 500, 1 << 20);
        assert_eq!(samples.bytes, all);
        assert_eq!(samples.sizes.iter().sum::<usize>(), all.len());
        assert!(samples.sizes.iter().all(|size| *size < SAMPLE_BYTES + 200), "{:?}", samples.sizes);
    }

    #[test]
    fn a_share_is_spread_over_everything_and_bounded() {
        let samples = drawn(1, 20_000, 200_000);
        assert!((150_000..=200_000).contains(&samples.bytes()), "{}", samples.bytes());
        let text = String::from_utf8(samples.bytes).unwrap();
        let times = text.split("\"ts\":").skip(1).map(|rest| rest[..13].parse::<u64>().unwrap());
        let middle = 1_700_000_000_000 + 10_000 * 7_919;
        let (early, late): (Vec<_>, Vec<_>) = times.partition(|time| *time < middle);
        let share = early.len() as f64 / (early.len() + late.len()) as f64;
        assert!((0.3..0.7).contains(&share), "{share}");
    }

    #[test]
    fn the_seed_decides_the_samples() {
        assert_eq!(drawn(1, 5_000, 100_000), drawn(1, 5_000, 100_000));
        assert_ne!(drawn(1, 5_000, 100_000), drawn(2, 5_000, 100_000));
    }

    #[test]
    fn the_same_samples_give_the_same_dictionary() {
        let samples = drawn(1, 2_000, 1 << 20);
        let (a, b) = (samples.train(8 << 10).unwrap(), samples.train(8 << 10).unwrap());
        assert_eq!(a.identity(), b.identity());
        assert!(a.bytes().len() <= 8 << 10);
    }

    #[test]
    fn too_little_to_train_on_is_said() {
        let error = drawn(1, 10, 1 << 20).train(16 << 10).unwrap_err();
        assert!(matches!(error, TrainError::Trainer { samples: 1, .. }), "{error}");
        assert!(Samples::default().train(16 << 10).is_err());
    }
}

//! One trial: samples drawn, dictionaries trained, everything weighed.
//!
//! Of the segments the newest quarter is held out: it is nearest to what a
//! dictionary will be used for, and whatever was learned from the older ones
//! must prove itself there. Everything is weighed as it would be stored, whole
//! segments with index and seek table.

use std::{num::NonZeroUsize, sync::Arc};

use rayon::prelude::*;
use serde::Serialize;

use super::DictionariesError;
use crate::{
    artifact::hex,
    dictionary::{Contest, Dictionary, Entrant, Sampler, Samples, TrainError, Verdict},
    frame::PREFIX_BYTES,
    segment::{ReadError, Reader, SealError, SegmentHeader, Settings, weigh},
    units::ByteSize,
};

/// Samples have at most this many times the bytes of the largest dictionary;
/// zstd's manual asks for about a hundred times.
const SAMPLE_FACTOR: u64 = 100;
/// And never more than this.
const MAX_SAMPLE_BYTES: u64 = 64 << 20;
/// Fewest segments that can be divided into a part to train on and a part to
/// judge on.
pub(super) const FEWEST_SEGMENTS: usize = 2;

/// What is trained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Training {
    /// How many of the latest sealed segments are looked at.
    pub segments: NonZeroUsize,
    /// Sizes of dictionary that are tried.
    pub sizes: Vec<ByteSize>,
    /// Decides which frames are samples.
    pub seed: u64,
}

impl Default for Training {
    fn default() -> Self {
        let segments = NonZeroUsize::MIN.saturating_add(7);
        Self { segments, sizes: [16, 64, 112].map(ByteSize::kib).to_vec(), seed: 0 }
    }
}

/// A segment of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Its first offset.
    pub base_offset: u64,
    /// SHA-256 of its frames, in hex.
    pub content_digest: String,
}

/// A dictionary of a trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tried {
    /// SHA-256 of its bytes, in hex.
    pub digest: String,
    /// The id zstd knows it by.
    pub zstd_id: u32,
    /// What it came to.
    #[serde(flatten)]
    pub entrant: Entrant,
}

/// What a training found and decided.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// The stream.
    pub stream: String,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: i64,
    /// Level of compression.
    pub level: i32,
    /// Plain bytes of a block with a dictionary, and of the same blocks without.
    pub dictionary_block_bytes: u64,
    /// Plain bytes of a block as they are without a dictionary.
    pub block_bytes: u64,
    /// By which share a dictionary must win.
    pub margin: f64,
    /// Decided which frames are samples.
    pub seed: u64,
    /// Segments that samples were drawn from.
    pub trained_on: Vec<Used>,
    /// Segments that were weighed.
    pub held_out: Vec<Used>,
    /// The offset after the newest of them.
    pub end_offset: u64,
    /// How many samples.
    pub samples: usize,
    /// Their bytes.
    pub sample_bytes: usize,
    /// Bytes of the frames of the held-out segments.
    pub plain_bytes: u64,
    /// Every dictionary that was tried, smallest first.
    pub tried: Vec<Tried>,
    /// Sizes that gave no dictionary, and why.
    pub failed: Vec<String>,
    /// The best of them.
    pub best: Tried,
    /// The dictionary that was adopted before, in hex.
    pub present: Option<String>,
    /// What the held-out segments came to.
    pub contest: Contest,
    /// What follows.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Trains on the older of `readers`, at least [`FEWEST_SEGMENTS`] in log order,
/// and decides on the newer. Returns the best dictionary too.
///
/// Computes for seconds.
pub(super) fn run(
    stream: String,
    settings: &Settings,
    present: Option<&Dictionary>,
    readers: &[Arc<Reader>],
    training: &Training,
    now_ms: i64,
) -> Result<(Trial, Dictionary), DictionariesError> {
    let (trained_on, held_out) = divided(readers);
    let samples = draw(trained_on, training)?;
    let (mut candidates, failed) = train(&samples, training, held_out, settings)?;
    candidates.sort_by_key(|(tried, _)| tried.entrant.dictionary_bytes);
    let tried = candidates.iter().map(|(tried, _)| tried.clone()).collect();
    let best = candidates.into_iter().min_by_key(|(tried, _)| tried.entrant.total());
    let Some((best, dictionary)) = best else {
        return Err(failed.into_iter().next().unwrap_or(TrainError::NoSize).into());
    };
    let contest = contest(best.entrant, held_out, settings, present)?;
    let trial = Trial {
        stream,
        at_ms: now_ms,
        level: settings.level,
        dictionary_block_bytes: settings.dictionary_block_bytes.0,
        block_bytes: settings.block_bytes.0,
        margin: settings.dictionary_margin,
        seed: training.seed,
        trained_on: trained_on.iter().map(|reader| used(reader)).collect(),
        held_out: held_out.iter().map(|reader| used(reader)).collect(),
        end_offset: held_out.last().map_or(0, |reader| reader.info().end_offset),
        samples: samples.count(),
        sample_bytes: samples.bytes(),
        plain_bytes: plain_bytes(held_out),
        tried,
        failed: failed.iter().map(ToString::to_string).collect(),
        best,
        present: present.map(|present| present.identity().hex()),
        verdict: contest.verdict(settings.dictionary_margin),
        contest,
    };
    Ok((trial, dictionary))
}

/// What is trained on, and the newest quarter, at least one, that is held out.
fn divided<T>(segments: &[T]) -> (&[T], &[T]) {
    let held_out = (segments.len() / 4).max(1);
    segments.split_at(segments.len().saturating_sub(held_out))
}

fn draw(readers: &[Arc<Reader>], training: &Training) -> Result<Samples, ReadError> {
    let largest = training.sizes.iter().map(|size| size.0).max().unwrap_or_default();
    let most = ByteSize(largest.saturating_mul(SAMPLE_FACTOR).min(MAX_SAMPLE_BYTES));
    let mut sampler = Sampler::new(training.seed, plain_bytes(readers), most.as_usize());
    for batch in readers.iter().flat_map(|reader| reader.batches_from(0)) {
        let mut batch = batch?;
        for (_, payload) in batch.clone().payloads() {
            sampler.push(&batch.bytes.split_to(PREFIX_BYTES + payload.len()));
        }
    }
    Ok(sampler.finish())
}

type Weighed = (Tried, Dictionary);

/// A dictionary of each size, weighed, and why there is none of some sizes.
fn train(
    samples: &Samples,
    training: &Training,
    held_out: &[Arc<Reader>],
    settings: &Settings,
) -> Result<(Vec<Weighed>, Vec<TrainError>), DictionariesError> {
    let trained: Vec<_> = training.sizes.par_iter().map(|size| samples.train(size.as_usize())).collect();
    let (mut candidates, mut failed) = (Vec::new(), Vec::new());
    for result in trained {
        match result {
            Ok(dictionary) => candidates.push(weighed(dictionary, held_out, settings)?),
            Err(error) => failed.push(error),
        }
    }
    Ok((candidates, failed))
}

fn weighed(
    dictionary: Dictionary,
    held_out: &[Arc<Reader>],
    settings: &Settings,
) -> Result<Weighed, SealError> {
    let identity = dictionary.identity();
    let entrant = Entrant {
        dictionary_bytes: dictionary.bytes().len() as u64,
        segment_bytes: weigh_all(held_out, settings, Some(&dictionary))?,
    };
    Ok((Tried { digest: identity.hex(), zstd_id: identity.zstd_id, entrant }, dictionary))
}

fn contest(
    entrant: Entrant,
    held_out: &[Arc<Reader>],
    settings: &Settings,
    present: Option<&Dictionary>,
) -> Result<Contest, SealError> {
    let same_blocks = Settings { block_bytes: settings.dictionary_block_bytes, ..settings.clone() };
    let with = |present| weigh_all(held_out, settings, Some(present));
    Ok(Contest {
        entrant,
        without: weigh_all(held_out, &same_blocks, None)?,
        undivided: weigh_all(held_out, settings, None)?,
        present: present.map(with).transpose()?,
    })
}

fn weigh_all(
    readers: &[Arc<Reader>],
    settings: &Settings,
    dictionary: Option<&Dictionary>,
) -> Result<u64, SealError> {
    let weights = readers.iter().map(|reader| {
        let info = reader.info();
        let header = SegmentHeader {
            stream: info.stream.clone(),
            segment_id: info.segment_id,
            sealed_at_ms: info.sealed_at_ms,
        };
        weigh(reader.batches_from(0), header, settings, dictionary)
    });
    weights.sum()
}

fn plain_bytes(readers: &[Arc<Reader>]) -> u64 {
    readers.iter().map(|reader| reader.info().plain_bytes).sum()
}

fn used(reader: &Reader) -> Used {
    let info = reader.info();
    Used { base_offset: info.base_offset, content_digest: hex(&info.content_digest) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_quarter_is_held_out() {
        let held_out = |n: usize| divided(&(0..n).collect::<Vec<_>>()).1.to_vec();
        assert_eq!(held_out(2), [1]);
        assert_eq!(held_out(7), [6]);
        assert_eq!(held_out(8), [6, 7]);
    }
}

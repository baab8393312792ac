//! What each stage can do alone: on chat messages, whose cost is per record,
//! and on documents, whose cost is per byte.
//!
//! What only computes is counted per second of processor time: that is what
//! one core does, however many there are and whoever else uses them.

mod bytes;
mod rows;
mod text;

use std::{hint::black_box, sync::Arc};

use anyhow::Result;

pub(super) use bytes::{header, time_of};

use super::{Better, Case, Options, data::Corpus, progress, sample_of, timed, usage::cpu_seconds};
use crate::embed::{self, Embedder, ModelError, OpenError};

/// Measures every stage.
///
/// # Errors
/// If the fixtures cannot be read or a stage fails.
pub fn stages(options: &Options) -> Result<Vec<Case>> {
    let chat = Corpus::load(&options.fixtures, "irc_ubuntu")?;
    let documents = Corpus::load_all(&options.fixtures, &["scifact_docs", "python311"])?;
    let model = local_model()?;
    let mut cases = Vec::new();
    for (name, corpus) in [("chat", &chat), ("documents", &documents)] {
        progress(format_args!("stages on {name}: {} records, {} bytes", corpus.count, corpus.frames.len()));
        cases.extend(text::stages(options, name, corpus, model.as_ref())?);
        cases.extend(bytes::stages(options, name, corpus)?);
        cases.extend(rows::stages(options, name, corpus, model.as_ref())?);
    }
    Ok(cases)
}

/// The model of the default settings; `None` if it is not there.
///
/// # Errors
/// If it is there and cannot be used.
pub(super) fn local_model() -> Result<Option<Arc<dyn Embedder>>> {
    match embed::open(&embed::Settings::default(), &[]) {
        Ok(model) => Ok(Some(model)),
        Err(OpenError::Model(ModelError::Missing { path })) => {
            progress(format_args!("without the local model: {} is missing", path.display()));
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Seconds that a measurement should last at least: enough to be told from
/// the noise of the clock and the scheduler.
const LEAST_SECONDS: f64 = 0.2;
/// Bytes of a megabyte.
const MB: f64 = 1e6;

/// How many megabytes `work`, which gets through `bytes` bytes, does in a
/// second of processor time.
#[expect(clippy::cast_precision_loss, reason = "megabytes")]
fn throughput<T>(
    options: &Options,
    case: String,
    bytes: usize,
    work: impl FnMut() -> Result<T>,
) -> Result<Case> {
    rate(options, case, "MB/CPU s", bytes as f64 / MB, work)
}

/// How often `work` does `amount` of something in a second of processor time.
fn rate<T>(
    options: &Options,
    case: String,
    unit: &str,
    amount: f64,
    mut work: impl FnMut() -> Result<T>,
) -> Result<Case> {
    let (first, once) = timed(&mut work);
    first?;
    let mut rounds = 1u32;
    while f64::from(rounds) * once < LEAST_SECONDS {
        rounds += 1;
    }
    let run = |_| {
        let (done, seconds) =
            cpu_seconds(|| (0..rounds).try_for_each(|_| work().map(|done| drop(black_box(done)))));
        done.map(|()| amount * f64::from(rounds) / seconds)
    };
    let runs: Vec<f64> = (0..options.runs).map(run).collect::<Result<_>>()?;
    Ok(Case::new(case, unit, Better::Higher, &sample_of(&runs, |run| *run)?))
}

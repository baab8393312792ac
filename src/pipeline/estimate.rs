//! What work would cost before it is done: tokens, money and time.
//!
//! What the records to come are like is taken from those that are stored;
//! how fast they are embedded, from a sample of them, embedded anew where that
//! costs nothing. An estimate says what it rests on, and leaves out what it
//! cannot know.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::serving::Served;
use crate::{
    embed::{Embedder, QuotaKind, Settings},
    store::{Missing, Store, StoreError},
};

/// Texts that are embedded to see how fast that is.
const SAMPLE: u32 = 32;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// No space has this key, so every chunk lacks a vector in it.
const NO_SPACE: i64 = -1;

/// Work that may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "work", rename_all = "snake_case", deny_unknown_fields)]
pub enum Plan {
    /// New records come in.
    Ingest {
        /// How many.
        #[schema(maximum = 1_000_000_000_000_u64)]
        records: u64,
    },
    /// Offsets are derived again.
    Replay {
        /// The first; the stream's start if left out.
        #[serde(default)]
        from: Option<u64>,
        /// The one after the last; the stream's end if left out.
        #[serde(default)]
        to: Option<u64>,
    },
    /// Every stored chunk gets a vector of another model.
    ReEmbed,
}

/// What it would cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Estimate {
    /// Records that it is about.
    pub records: u64,
    /// Chunks to be embedded; null where nothing stored says how many a
    /// record has.
    pub chunks: Option<u64>,
    /// Tokens to be embedded.
    pub tokens: Option<u64>,
    /// Money, in the currency of the prices; 0 where vectors are computed
    /// here.
    pub cost: Option<f64>,
    /// Seconds of embedding; null where it is not known how fast that is.
    pub seconds: Option<f64>,
    /// Days that the tokens take under the daily quota, if there is one.
    pub days_of_quota: Option<f64>,
    /// What all that rests on.
    pub basis: Vec<String>,
}

/// Where the stream stands.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Its first offset.
    pub start: u64,
    /// The offset after its last.
    pub end: u64,
    /// Records that are stored.
    pub stored: u64,
}

/// What `plan` would cost with the model that `settings` name.
pub async fn estimate(
    plan: Plan,
    store: &Store,
    served: &Served,
    settings: &Settings,
    extent: Extent,
) -> Result<Estimate, StoreError> {
    let all = store.missing_in(NO_SPACE).await?;
    let mut basis = Vec::new();
    let (records, need) = match plan {
        Plan::Ingest { records } => (records, scaled(all, records, extent.stored)),
        Plan::Replay { from, to } => {
            let (from, to) =
                (from.unwrap_or(extent.start).max(extent.start), to.unwrap_or(extent.end).min(extent.end));
            let (records, of) = (to.saturating_sub(from), extent.end.saturating_sub(extent.start));
            basis.push("vectors of texts that are stored are not computed again".to_owned());
            if records < of {
                basis
                    .push(format!("what lacks vectors is spread evenly over the {of} records of the stream"));
            }
            let need = match records {
                0 => Some(Missing::default()),
                _ => scaled(store.missing_in(served.space_key).await?, records, of),
            };
            (records, need)
        }
        Plan::ReEmbed => (extent.stored, Some(all)),
    };
    if let Plan::Ingest { .. } = plan {
        basis.push(match extent.stored {
            0 => "nothing is stored yet, so it is not known what a record is like".to_owned(),
            stored => format!("records are like the {stored} that are stored"),
        });
    }
    let price = settings.endpoint.first().map_or(0.0, |endpoint| endpoint.price_per_million_tokens);
    if price > 0.0 {
        basis.push(format!("all tokens at the first endpoint's price, {price} a million"));
    }
    let seconds = match need {
        Some(Missing { chunks: 0, .. }) => Some(0.0),
        Some(need) => seconds(need, store, served, &mut basis).await?,
        None => None,
    };
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let tokens = need.map(|need| need.tokens as f64);
    Ok(Estimate {
        records,
        chunks: need.map(|need| need.chunks),
        tokens: need.map(|need| need.tokens),
        cost: tokens.map(|tokens| tokens / 1e6 * price),
        seconds,
        days_of_quota: tokens.and_then(|tokens| days(tokens, served)),
        basis,
    })
}

/// What `records` need if they are like the `stored` ones, which need `all`.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate"
)]
fn scaled(all: Missing, records: u64, stored: u64) -> Option<Missing> {
    let share = records as f64 / (stored > 0).then_some(stored as f64)?;
    let of = |n: u64| (n as f64 * share).ceil() as u64;
    Some(Missing { chunks: of(all.chunks), tokens: of(all.tokens) })
}

/// Days of quota that so many tokens are.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn days(tokens: f64, served: &Served) -> Option<f64> {
    let states = served.model.budget()?.states();
    let (_, state) = states.iter().find(|(kind, _)| *kind == QuotaKind::Tokens)?;
    Some(tokens / state.daily_quota? as f64)
}

/// Seconds that embedding takes, going by a sample.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
async fn seconds(
    need: Missing,
    store: &Store,
    served: &Served,
    basis: &mut Vec<String>,
) -> Result<Option<f64>, StoreError> {
    if !served.model.endpoints().is_empty() {
        basis.push("how fast a provider is cannot be tried without paying for it".to_owned());
        return Ok(None);
    }
    let texts: Vec<String> =
        store.sample_chunks(SAMPLE, 0).await?.into_iter().map(|chunk| chunk.text).collect();
    let (tried, started) = (texts.len(), Instant::now());
    match tokio::time::timeout(PATIENCE, served.model.embed(texts)).await {
        Ok(Ok(_)) if tried > 0 => {
            basis.push(format!("a sample of {tried} stored chunks, embedded just now beside other work"));
            Ok(Some(started.elapsed().as_secs_f64() / tried as f64 * need.chunks as f64))
        }
        _ => {
            basis.push("no sample could be embedded, so the time is not known".to_owned());
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_to_come_are_like_those_stored_and_unknown_without_any() {
        let all = Missing { chunks: 30, tokens: 1_000 };
        assert_eq!(scaled(all, 5, 10), Some(Missing { chunks: 15, tokens: 500 }));
        assert_eq!(scaled(all, 5, 0), None);
    }
}

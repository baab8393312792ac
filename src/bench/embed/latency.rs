//! How long one short live text waits for its vector: with nothing else to do,
//! and while a back-fill uses the same model.

use std::thread;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

use super::SPECIAL_TOKENS;
use crate::{
    bench::{
        Better, Case, Options,
        data::Corpus,
        sample::{in_turn, quantile, sample_of},
        timed,
    },
    embed::{Element, Embedder, LocalModel, TokenSpans, Work},
};

/// Tokens of the text, special tokens included.
const TOKENS: usize = 30;
/// What it may take, in milliseconds.
const GOAL_MS: f64 = 5.0;
/// Calls of a run.
const CALLS: usize = 200;
/// Texts of one call of the back-fill.
const BACKFILL_TEXTS: usize = 4;
/// Its calls under way at once: there is always more of it waiting.
const BACKFILL_CALLS: usize = 8;

/// What one run of [`CALLS`] calls gave.
struct Run {
    p50_ms: f64,
    p99_ms: f64,
    /// Documents that the back-fill got done in a second meanwhile.
    backfilled_per_s: f64,
}

impl Run {
    /// Of calls that took so long, with nothing beside them.
    fn of(mut ms: Vec<f64>) -> Self {
        Self { p50_ms: quantile(&mut ms, 0.5), p99_ms: quantile(&mut ms, 0.99), backfilled_per_s: 0.0 }
    }
}

/// Measures one short text with each of `models`; the back-fill is of
/// documents.
pub fn latency(options: &Options, models: &[(Element, LocalModel)]) -> Result<Vec<Case>> {
    let documents = Corpus::load(&options.fixtures, "scifact_docs")?.texts()?;
    let (_, model) = models.first().context("no model")?;
    let short = shortened(&documents, &*model.tokens());
    ensure!(short.len() == CALLS, "only {} documents have a beginning of {TOKENS} tokens", short.len());
    let mut sides: Vec<Box<dyn FnMut() -> Result<Run> + '_>> = Vec::new();
    for (_, model) in models {
        sides.push(Box::new(|| idle(model, &short)));
        sides.push(Box::new(|| beside_backfill(model, &short, &documents)));
    }
    let all = in_turn("embed, one text", options.runs, &mut sides)?;
    drop(sides);
    let mut cases = Vec::new();
    for ((element, _), runs) in models.iter().zip(all.chunks(2)) {
        let [idle, beside] = runs else { continue };
        for (when, runs) in [("idle", idle), ("beside a back-fill", beside)] {
            let name = |what: &str| format!("{TOKENS} tokens, {element}, {when}: {what}");
            for (what, sample) in
                [("p50", sample_of(runs, |run| run.p50_ms)?), ("p99", sample_of(runs, |run| run.p99_ms)?)]
            {
                cases.push(Case::new(name(what), "ms", Better::Lower, &sample).with_goal(GOAL_MS));
            }
        }
        let done = sample_of(beside, |run| run.backfilled_per_s)?;
        cases.push(Case::new(
            format!("documents back-filled meanwhile, {element}"),
            "1/s",
            Better::Higher,
            &done,
        ));
    }
    Ok(cases)
}

/// The beginnings of some of `texts` that have [`TOKENS`] tokens, one a call.
fn shortened(texts: &[String], tokens: &dyn TokenSpans) -> Vec<String> {
    let wanted = TOKENS - SPECIAL_TOKENS;
    let beginning = |text: &String| {
        let (_, end) = *tokens.spans(text).get(wanted - 1)?;
        let start = text.get(..end)?;
        // A word that is cut has other tokens.
        (tokens.spans(start).len() == wanted).then(|| start.to_owned())
    };
    texts.iter().filter_map(beginning).take(CALLS).collect()
}

fn idle(model: &LocalModel, short: &[String]) -> Result<Run> {
    Ok(Run::of(one_by_one(model, short)?))
}

fn beside_backfill(model: &LocalModel, short: &[String], documents: &[String]) -> Result<Run> {
    let stop = CancellationToken::new();
    thread::scope(|scope| {
        let backfill = scope.spawn(|| backfill(model, documents, &stop));
        let (ms, seconds) = timed(|| one_by_one(model, short));
        stop.cancel();
        let done = backfill.join().map_err(|_| anyhow::anyhow!("the back-fill panicked"))??;
        Ok(Run { backfilled_per_s: done / seconds, ..Run::of(ms?) })
    })
}

/// Milliseconds that each of `texts` takes, asked for alone.
fn one_by_one(model: &LocalModel, texts: &[String]) -> Result<Vec<f64>> {
    let runtime = runtime()?;
    let call = |text: &String| {
        let texts = vec![text.clone()];
        let (partial, seconds) = timed(|| runtime.block_on(model.embed_each(texts, Work::Live)));
        partial.all()?;
        Ok(seconds * 1e3)
    };
    texts.iter().map(call).collect()
}

/// Embeds `documents` over and over until `stop`; returns how many were done.
fn backfill(model: &LocalModel, documents: &[String], stop: &CancellationToken) -> Result<f64> {
    let pages = documents.chunks(BACKFILL_TEXTS).cycle();
    let calls = stream::iter(pages).map(|page| model.embed_each(page.to_vec(), Work::Backfill));
    let mut done = calls.buffer_unordered(BACKFILL_CALLS).take_until(stop.cancelled()).boxed();
    runtime()?.block_on(async {
        let mut texts = 0;
        while let Some(partial) = done.next().await {
            texts += u32::try_from(partial.all()?.len())?;
        }
        Ok(f64::from(texts))
    })
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::Words;

    #[test]
    fn a_text_is_cut_to_the_wanted_tokens_and_shorter_ones_are_left_out() {
        let wanted = TOKENS - SPECIAL_TOKENS;
        let texts = ["word ".repeat(wanted - 1), "word ".repeat(wanted), "and more ".repeat(wanted)];
        let short = shortened(&texts, &Words);
        assert_eq!(short.len(), 2);
        assert!(short.iter().all(|text| Words.spans(text).len() == wanted));
    }
}

//! The local model, beside what the processor's multipliers could do.
//!
//! Floating-point operations are those of the encoder's matrix products, two
//! for each multiplication and addition; what else it computes (softmax,
//! layer norm, gelu, tokenising) counts as time but not as work. The ceiling
//! is the same matrix product alone, at the shape that takes most of the
//! time, with all operands at hand.

use anyhow::{Context, Result};
use gemm::{Parallelism, gemm};

use super::{
    Better, Case, Options, Sample,
    data::Corpus,
    progress,
    sample::{interleaved, sample_of},
    stages::local_model,
    timed,
    usage::cpu_seconds,
};
use crate::embed::{Settings, TokenSpans};

/// Texts of one run: some seconds of work.
const CHAT_TEXTS: usize = 2_000;
const DOCUMENT_TEXTS: usize = 200;

/// Shape of all-MiniLM-L6-v2, the one local model there is.
const LAYERS: f64 = 6.0;
const HIDDEN: usize = 384;
const INNER: usize = 1_536;
/// `[CLS]` and `[SEP]`.
const SPECIAL_TOKENS: usize = 2;

struct Run {
    seconds: f64,
    cpu_seconds: f64,
}

/// Measures the local model; says so and gives nothing if it is not there.
///
/// # Errors
/// If the fixtures are missing or the model fails.
pub fn embed(options: &Options) -> Result<Vec<Case>> {
    let model = local_model()?.context(
        "there is no local model to measure: run `scripts/fetch-model`, or set THALWEG_MODELS to its folder",
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut product = Product::new(Settings::default().batch_tokens);
    let mut cases = Vec::new();
    for (name, fixture, most) in
        [("chat", "irc_ubuntu", CHAT_TEXTS), ("documents", "scifact_docs", DOCUMENT_TEXTS)]
    {
        let mut texts = Corpus::load(&options.fixtures, fixture)?.texts()?;
        texts.truncate(most);
        let work = Work::of(&texts, &*model.tokens(), model.space().max_tokens);
        progress(format_args!("embed, {name}: {} texts, {} tokens", texts.len(), work.tokens));
        let ours = || {
            let ((vectors, seconds), cpu_seconds) =
                cpu_seconds(|| timed(|| runtime.block_on(model.embed(texts.clone()))));
            vectors?;
            Ok(Run { seconds, cpu_seconds })
        };
        let (ours, peak) =
            interleaved(&format!("embed, {name}"), options.runs, ours, || Ok(product.flops()))?;
        cases.extend(work.cases(name, &ours, &Sample::new(peak).context("no peak")?)?);
    }
    Ok(cases)
}

/// What the texts ask of the model.
struct Work {
    texts: f64,
    tokens: f64,
    flop: f64,
}

impl Work {
    #[expect(clippy::cast_precision_loss, reason = "counts of some millions")]
    fn of(texts: &[String], tokens: &dyn TokenSpans, max_tokens: usize) -> Self {
        let lengths = texts.iter().map(|text| (tokens.spans(text).len() + SPECIAL_TOKENS).min(max_tokens));
        let lengths: Vec<f64> = lengths.map(|length| length as f64).collect();
        Self {
            texts: texts.len() as f64,
            tokens: lengths.iter().sum(),
            flop: lengths.iter().map(|length| flop_of_text(*length)).sum(),
        }
    }

    fn cases(&self, on: &str, runs: &[Run], peak: &Sample) -> Result<Vec<Case>> {
        let per_cpu = sample_of(runs, |run| self.texts / run.cpu_seconds)?;
        let per_wall = sample_of(runs, |run| self.texts / run.seconds)?;
        let tokens = sample_of(runs, |run| self.tokens / run.cpu_seconds)?;
        let gflops = sample_of(runs, |run| self.flop / 1e9 / run.cpu_seconds)?;
        let case = |what: &str, unit: &str, sample: &Sample| {
            Case::new(format!("{what}, {on}"), unit, Better::Higher, sample)
        };
        Ok(vec![
            case("passages", "1/CPU s", &per_cpu),
            case("passages, all cores", "1/s", &per_wall),
            case("tokens", "1/CPU s", &tokens),
            case("matrix products", "GFLOP/CPU s", &gflops).under_ceiling(
                "bare product",
                &gflops,
                &peak.map(|flops| flops / 1e9),
            ),
        ])
    }
}

/// Of the matrix products for one text of `length` tokens.
#[expect(clippy::cast_precision_loss, reason = "shapes of some hundreds")]
fn flop_of_text(length: f64) -> f64 {
    let (hidden, inner) = (HIDDEN as f64, INNER as f64);
    // Query, key, value and output; in and out of the inner layer.
    let linear = 4.0 * hidden * hidden + 2.0 * hidden * inner;
    // Scores and weighted sums over all heads.
    let attention = 2.0 * length * hidden;
    LAYERS * length * 2.0 * (linear + attention)
}

/// `rows` × 384 times 384 × 1,536, on one thread.
struct Product {
    rows: usize,
    left: Vec<f32>,
    right: Vec<f32>,
    out: Vec<f32>,
}

/// Products of one measurement.
const ROUNDS: u32 = 20;

impl Product {
    fn new(rows: usize) -> Self {
        Self {
            rows,
            left: vec![0.5; rows * HIDDEN],
            right: vec![0.25; HIDDEN * INNER],
            out: vec![0.0; rows * INNER],
        }
    }

    /// Floating-point operations per second of processor time.
    #[expect(clippy::cast_precision_loss, reason = "shapes of some thousands")]
    fn flops(&mut self) -> f64 {
        let ((), seconds) = cpu_seconds(|| (0..ROUNDS).for_each(|_| self.multiply()));
        2.0 * (self.rows * HIDDEN * INNER) as f64 * f64::from(ROUNDS) / seconds.max(1e-9)
    }

    fn multiply(&mut self) {
        let (m, n, k) = (self.rows, INNER, HIDDEN);
        assert!(self.left.len() == m * k && self.right.len() == k * n && self.out.len() == m * n);
        let (inner, hidden) = (INNER.cast_signed(), HIDDEN.cast_signed());
        // SAFETY: the lengths just checked are those of row-major matrices of
        // these shapes and strides, and `out` is borrowed mutably, so it
        // overlaps neither operand.
        unsafe {
            gemm(
                m,
                n,
                k,
                self.out.as_mut_ptr(),
                1,
                inner,
                false,
                self.left.as_ptr(),
                1,
                hidden,
                self.right.as_ptr(),
                1,
                inner,
                0.0,
                1.0,
                false,
                false,
                false,
                Parallelism::None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::Words;

    #[test]
    fn the_ceiling_multiplies_what_it_says() {
        let mut product = Product::new(3);
        product.multiply();
        // 384 products of 1/2 and 1/4 in each cell.
        assert!(product.out.iter().all(|x| *x == 48.0));
    }

    #[test]
    fn work_counts_special_tokens_and_ends_at_the_longest_text() {
        let texts = ["one two three".to_owned(), "word ".repeat(50)];
        let work = Work::of(&texts, &Words, 20);
        assert_eq!((work.texts, work.tokens), (2.0, 25.0));
        assert_eq!(work.flop, flop_of_text(5.0) + flop_of_text(20.0));
        // One token, counted by hand: 6 layers of 2 x (4 x 384² + 2 x 384 x 1536 + 2 x 384).
        assert_eq!(flop_of_text(1.0), 6.0 * 2.0 * (589_824.0 + 1_179_648.0 + 768.0));
    }
}

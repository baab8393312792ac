//! The local model with each element, beside what others use and beside what
//! the processor's multipliers could do.
//!
//! Operations are those of the encoder's matrix products, two for each
//! multiplication and addition; what else it computes (softmax, layer norm,
//! gelu, tokenising) counts as time but not as work. The ceiling is a loop of
//! nothing but the instruction that the element's products consist of.
//!
//! Apart from that: how long one live text waits ([`latency`]).

mod latency;
mod python;
mod texts;

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use self::{
    python::{Python, Who},
    texts::Texts,
};
use super::{
    Better, Case, Options, Sample, progress,
    sample::{in_turn, sample_of},
    timed,
    usage::cpu_seconds,
};
use crate::embed::{Element, Embedder, LocalModel, Settings, TokenSpans, cosine};

/// Parts of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// What a second of processor time gives
    Throughput,
    /// How long one live text waits, also beside a back-fill
    Latency,
}

/// What to measure the model against, and on what.
#[derive(Clone, Debug)]
pub struct Against {
    /// Folder of data that may be used but not handed on.
    pub data: PathBuf,
    /// The Python that has the peers; `None`: no peer.
    pub python: Option<PathBuf>,
    /// Only these parts; all if empty.
    pub only: Vec<Part>,
}

/// Shape of all-MiniLM-L6-v2, the one local model there is.
const LAYERS: f64 = 6.0;
const HIDDEN: f64 = 384.0;
const INNER: f64 = 1_536.0;
/// `[CLS]` and `[SEP]`.
const SPECIAL_TOKENS: usize = 2;
/// Rounds of the bare loop: some tens of milliseconds.
const PEAK_ROUNDS: u32 = 10_000_000;
/// The peer's usual batch, to which the goals refer, and its best.
const USUAL_BATCH: usize = 32;
const BEST_BATCH: usize = 4;

/// Times the speed of sentence-transformers that is to be reached.
fn goal(element: Element) -> f64 {
    match element {
        Element::Fp32 => 1.8,
        Element::Bf16 => 3.3,
        Element::Int8 => 5.0,
    }
}

struct Run {
    seconds: f64,
    cpu_seconds: f64,
}

/// Measures the local model with each element.
///
/// # Errors
/// If there is no model or no fixtures, or a peer that was asked for fails.
pub fn embed(options: &Options, against: &Against) -> Result<Vec<Case>> {
    let folder = Settings::default().model_folder(std::env::var_os("THALWEG_MODELS").as_deref());
    let open = |element| {
        LocalModel::load(&folder, &Settings::default(), element)
            .context("there is no local model to measure: run `thalweg models pull`, or set THALWEG_MODELS to its folder")
    };
    let models = Element::ALL.into_iter().map(|e| Ok((e, open(e)?))).collect::<Result<Vec<_>>>()?;
    for (element, _) in &models {
        progress(format_args!("{element} is computed by {}", element.kernel()));
    }
    let asked = |part| against.only.is_empty() || against.only.contains(&part);
    let mut cases = Vec::new();
    if asked(Part::Latency) {
        cases.extend(latency::latency(options, &models)?);
    }
    if asked(Part::Throughput) {
        cases.extend(throughput(options, against, &folder, &models)?);
    }
    Ok(cases)
}

fn throughput(
    options: &Options,
    against: &Against,
    folder: &Path,
    models: &[(Element, LocalModel)],
) -> Result<Vec<Case>> {
    let python = against.python.as_ref().map(|python| Python::start(python, folder)).transpose()?;
    let python = python.map(RefCell::new);
    let scratch = options.scratch_dir()?;
    let mut cases = Vec::new();
    for texts in texts::all(&options.fixtures, &against.data)? {
        let corpus = Measured::new(texts, models, python.as_ref(), scratch.path())?;
        cases.extend(corpus.cases(options.runs)?);
    }
    Ok(cases)
}

/// One corpus, and everything that embeds it.
struct Measured<'a> {
    texts: Texts,
    work: Work,
    /// The texts, for the peer to read.
    file: PathBuf,
    vectors: PathBuf,
    models: &'a [(Element, LocalModel)],
    python: Option<&'a RefCell<Python>>,
    runtime: tokio::runtime::Runtime,
}

impl<'a> Measured<'a> {
    fn new(
        texts: Texts,
        models: &'a [(Element, LocalModel)],
        python: Option<&'a RefCell<Python>>,
        scratch: &Path,
    ) -> Result<Self> {
        let (_, model) = models.first().context("no model")?;
        let work = Work::of(&texts.texts, &*model.tokens(), model.space().max_tokens);
        let file = scratch.join("texts.json");
        std::fs::write(&file, serde_json::to_vec(&texts.texts)?)?;
        let runtime = tokio::runtime::Builder::new_current_thread().build()?;
        progress(format_args!("embed, {}: {} texts, {} tokens", texts.name, texts.texts.len(), work.tokens));
        let vectors = scratch.join("vectors");
        Ok(Self { texts, work, file, vectors, models, python, runtime })
    }

    fn cases(&self, runs: usize) -> Result<Vec<Case>> {
        let mut cases = self.fidelity()?;
        let mut sides: Vec<Box<dyn FnMut() -> Result<Run> + '_>> = Vec::new();
        for (_, model) in self.models {
            sides.push(Box::new(|| self.ours(model).map(|(run, _)| run)));
        }
        for (element, _) in self.models {
            sides.push(Box::new(|| Ok(bare_loop(*element))));
        }
        if self.python.is_some() {
            for (who, batch) in PEERS {
                sides.push(Box::new(move || self.theirs(who, batch, None).map(|(run, _)| run)));
            }
        }
        let all = in_turn(&format!("embed, {}", self.texts.name), runs, &mut sides)?;
        drop(sides);
        let (ours, others) = all.split_at(self.models.len());
        let (peaks, theirs) = others.split_at(self.models.len());
        for (((element, _), ours), peak) in self.models.iter().zip(ours).zip(peaks) {
            cases.extend(self.of_element(*element, ours, peak, theirs)?);
        }
        for ((who, batch), runs) in PEERS.into_iter().zip(theirs) {
            let name = format!("passages, {}, {}", self.named(who, batch)?, self.texts.name);
            let sample = sample_of(runs, |run| self.work.texts / run.cpu_seconds)?;
            cases.push(Case::new(name, "1/CPU s", Better::Higher, &sample));
        }
        Ok(cases)
    }

    fn of_element(
        &self,
        element: Element,
        ours: &[Run],
        peak: &[Run],
        theirs: &[Vec<Run>],
    ) -> Result<Vec<Case>> {
        let Work { texts, tokens, flop } = self.work;
        let per_cpu = sample_of(ours, |run| texts / run.cpu_seconds)?;
        let per_wall = sample_of(ours, |run| texts / run.seconds)?;
        let tokens = sample_of(ours, |run| tokens / run.cpu_seconds)?;
        let products = sample_of(ours, |run| flop / 1e9 / run.cpu_seconds)?;
        let case = |what: &str, unit: &str, sample: &Sample| {
            Case::new(format!("{what}, {element}, {}", self.texts.name), unit, Better::Higher, sample)
        };
        let mut passages = case("passages", "1/CPU s", &per_cpu);
        if let [usual, ..] = theirs {
            let usual = sample_of(usual, |run| texts / run.cpu_seconds)?;
            let name = format!("sentence-transformers fp32, batch {USUAL_BATCH}");
            passages = passages.against_peer(name, &per_cpu, &usual).with_goal(goal(element));
        }
        let mut products_case = case("matrix products", "GOP/CPU s", &products);
        if let Some(of_round) = element.multiply_and_add(1) {
            let operations = of_round * f64::from(PEAK_ROUNDS);
            let peak = sample_of(peak, |run| operations / 1e9 / run.cpu_seconds)?;
            products_case = products_case.under_ceiling("bare multiply-add", &products, &peak);
        }
        Ok(vec![
            passages,
            case("passages, all cores", "1/s", &per_wall),
            case("tokens", "1/CPU s", &tokens),
            products_case,
        ])
    }

    /// How near each one's vectors are to those of sentence-transformers.
    fn fidelity(&self) -> Result<Vec<Case>> {
        if self.python.is_none() {
            return Ok(Vec::new());
        }
        let (_, reference) = self.theirs(Who::SentenceTransformers, USUAL_BATCH, Some(&self.vectors))?;
        let case = |name: &str, vectors: &[Vec<f32>]| -> Result<[Case; 2]> {
            ensure!(vectors.len() == reference.len(), "{name} gave {} vectors", vectors.len());
            let cosines: Vec<f64> = vectors.iter().zip(&reference).map(|(a, b)| cosine(a, b)).collect();
            let smallest = cosines.iter().copied().fold(f64::INFINITY, f64::min);
            #[expect(clippy::cast_precision_loss, reason = "some thousands")]
            let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
            let on = |what: &str| format!("{what} cosine, {name}, {}", self.texts.name);
            Ok([
                Case::single(on("smallest"), "to the peer", Better::Higher, smallest),
                Case::single(on("mean"), "to the peer", Better::Higher, mean),
            ])
        };
        let mut cases = Vec::new();
        for (element, model) in self.models {
            cases.extend(case(element.name(), &self.ours(model)?.1)?);
        }
        let (_, quantised) = self.theirs(Who::OnnxRuntimeInt8, USUAL_BATCH, Some(&self.vectors))?;
        cases.extend(case("ONNX Runtime int8", &quantised)?);
        Ok(cases)
    }

    fn ours(&self, model: &LocalModel) -> Result<(Run, Vec<Vec<f32>>)> {
        let texts = self.texts.texts.clone();
        let ((vectors, seconds), cpu_seconds) =
            cpu_seconds(|| timed(|| self.runtime.block_on(model.embed(texts))));
        Ok((Run { seconds, cpu_seconds }, vectors?))
    }

    fn theirs(&self, who: Who, batch: usize, vectors: Option<&PathBuf>) -> Result<(Run, Vec<Vec<f32>>)> {
        let mut python = self.python.context("no peer")?.borrow_mut();
        let (run, _) = python.embed(who, batch, &self.file, vectors)?;
        let Some(path) = vectors else { return Ok((run, Vec::new())) };
        let (_, model) = self.models.first().context("no model")?;
        let bytes = std::fs::read(path)?;
        let numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let numbers: Vec<f32> = numbers.collect();
        Ok((run, numbers.chunks(model.space().dimensions).map(<[f32]>::to_vec).collect()))
    }

    fn named(&self, who: Who, batch: usize) -> Result<String> {
        let mut python = self.python.context("no peer")?.borrow_mut();
        let nothing = self.file.with_file_name("nothing.json");
        std::fs::write(&nothing, r#"["a"]"#)?;
        let (_, by) = python.embed(who, batch, &nothing, None)?;
        Ok(format!("{by}, batch {batch}"))
    }
}

/// The one that the goals refer to first.
const PEERS: [(Who, usize); 3] = [
    (Who::SentenceTransformers, USUAL_BATCH),
    (Who::SentenceTransformers, BEST_BATCH),
    (Who::OnnxRuntimeInt8, USUAL_BATCH),
];

/// One run of the bare loop.
fn bare_loop(element: Element) -> Run {
    let ((_, seconds), cpu_seconds) = cpu_seconds(|| timed(|| element.multiply_and_add(PEAK_ROUNDS)));
    Run { seconds, cpu_seconds }
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
}

/// Of the matrix products for one text of `length` tokens.
fn flop_of_text(length: f64) -> f64 {
    // Query, key, value and output; in and out of the inner layer.
    let linear = 4.0 * HIDDEN * HIDDEN + 2.0 * HIDDEN * INNER;
    // Scores and weighted sums over all heads.
    let attention = 2.0 * length * HIDDEN;
    LAYERS * length * 2.0 * (linear + attention)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::Words;

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

//! How well the engine finds things, on real labelled data.
//!
//! - [`scifact`] and [`locomo`]: records sent to a daemon and questions asked
//!   over HTTP ([`retrieval`]), scored by what answers them ([`ranking`]).
//! - [`chunking`]: how much of an answer lies in the chunks nearest to its
//!   question.
//! - [`pii`]: precision and recall of each kind of personal data.
//!
//! Nothing is fitted to one dataset: a daemon runs with the defaults that
//! users get. [`sweep`] measures other settings on the same store, and
//! `docs/retrieval.md` holds what they gave.

mod asked;
mod chunking;
mod dataset;
mod index;
mod locomo;
mod pii;
mod ranking;
mod reference;
mod retrieval;
mod scifact;
mod sweep;

pub(super) use self::{dataset::lines, locomo::turns as locomo_turns};
use std::path::PathBuf;

use anyhow::{Context, Result};

use self::{
    dataset::{Dataset, Figures},
    reference::{Rankings, Reference},
    retrieval::{List, Measured},
};
use super::{Better, Case, Options, Sample, progress};
use crate::{
    embed::{self, Element, Provider},
    workbench::Workbench,
};

/// Parts of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Scientific claims and abstracts
    Scifact,
    /// Conversations
    Locomo,
    /// Chunks of long documents
    Chunking,
    /// Personal data
    Pii,
    /// What shorter numbers cost the local model's vectors; only if asked for
    Elements,
}

/// What this benchmark is told besides [`Options`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Folder of data that cannot be handed on with the program.
    pub data: PathBuf,
    /// The Python that has sentence-transformers.
    pub python: PathBuf,
    /// Whether other settings are measured beside the defaults.
    pub sweep: bool,
    /// Only these; all if empty.
    pub only: Vec<Part>,
}

/// How far the engine's vectors may be from the same model in Python, in
/// nDCG@10.
const PARITY: f64 = 0.005;

/// How far the vectors of an element may be below those of fp32, in nDCG@10.
const ELEMENTS: [(Element, f64); 2] = [(Element::Bf16, 0.002), (Element::Int8, 0.01)];

/// By how much a union of LoCoMo's lists should be above the better one, in
/// recall@10.
const UNION_GAIN: f64 = 0.04;

/// Measures everything that `settings` ask for.
///
/// # Errors
/// If a fixture is missing, a daemon fails, or a record is not indexed. What
/// can only be compared elsewhere, a reference or a dataset that is not here,
/// is left out with a warning.
pub fn quality(options: &Options, settings: &Settings) -> Result<Vec<Case>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let asked = |part| settings.only.is_empty() || settings.only.contains(&part);
    let mut cases = Vec::new();
    if asked(Part::Pii) {
        cases.extend(pii::cases(&options.fixtures)?);
    }
    if asked(Part::Chunking) {
        cases.extend(runtime.block_on(chunking_cases(options, settings))?);
    }
    if asked(Part::Locomo) {
        cases.extend(runtime.block_on(locomo_cases(options, settings))?);
    }
    if asked(Part::Scifact) {
        cases.extend(runtime.block_on(scifact_cases(options, settings))?);
    }
    if settings.only.contains(&Part::Elements) {
        cases.extend(runtime.block_on(element_cases(options, settings))?);
    }
    Ok(cases)
}

/// The vectors of every element, on both data sets.
async fn element_cases(options: &Options, settings: &Settings) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut datasets = vec![scifact::load(&options.fixtures)?];
    datasets.extend(locomo_dataset(settings)?);
    for dataset in datasets {
        let vectors = async |element: Element| -> Result<f64> {
            let measured = measure(options, &dataset, &format!("[embed]\nelement = \"{element}\"")).await?;
            Ok(measured.of(List::Vectors).ndcg)
        };
        let fp32 = vectors(Element::Fp32).await?;
        for (element, allowed) in ELEMENTS {
            let ours = Sample::of(vectors(element).await?);
            let case = format!("{}: vectors alone, {element}", dataset.name);
            cases.push(
                Case::new(case, "nDCG@10", Better::Higher, &ours)
                    .against_peer("fp32", &ours, &Sample::of(fp32))
                    .with_goal((fp32 - allowed) / fp32),
            );
        }
    }
    Ok(cases)
}

async fn measure(options: &Options, dataset: &Dataset, settings: &str) -> Result<Measured> {
    let (records, questions) = (dataset.records.len(), dataset.questions.len());
    progress(format_args!("{}: sending {records} records, asking {questions} questions", dataset.name));
    let measured = retrieval::measure(&options.scratch, dataset, settings).await?;
    let derived = &measured.status.derived;
    progress(format_args!(
        "{}: {} indexed as {} chunks, {} known already, {} rejected {:?}",
        dataset.name,
        derived.indexed,
        derived.chunks,
        derived.deduplicated,
        derived.rejected,
        derived.reasons
    ));
    for (list, figures) in &measured.figures {
        let Figures { ndcg, recall } = figures;
        progress(format_args!("{}, {}: nDCG@10 {ndcg:.4}, recall@10 {recall:.4}", dataset.name, list.name()));
    }
    Ok(measured)
}

async fn scifact_cases(options: &Options, settings: &Settings) -> Result<Vec<Case>> {
    let dataset = scifact::load(&options.fixtures)?;
    let measured = measure(options, &dataset, "").await?;
    let value = |figures: Figures| figures.ndcg;
    let mut cases = list_cases(&dataset, &measured, "nDCG@10", value, 0.0);
    cases.extend(list_cases(&dataset, &measured, "recall@10", |figures| figures.recall, 0.0));
    cases.extend(parity_cases(&dataset, &measured, settings).await?);
    cases.push(foreign_case(&dataset, &measured));
    if settings.sweep {
        cases.extend(sweep_cases(&dataset, &measured).await?);
        for chunks in ["max_tokens = 128\nmin_tokens = 32", "max_tokens = 64\nmin_tokens = 16"] {
            let cut = measure(options, &dataset, &format!("[derive.chunk]\n{chunks}")).await?;
            let name = chunks.replace('\n', ", ");
            cases.extend(cut.figures.iter().map(|(list, figures)| {
                let case = format!("SciFact, {name}: {}", list.name());
                Case::single(case, "nDCG@10", Better::Higher, figures.ndcg)
            }));
        }
    }
    Ok(cases)
}

/// LoCoMo, or loud words that it is not there.
fn locomo_dataset(settings: &Settings) -> Result<Option<Dataset>> {
    let path = settings.data.join(locomo::FILE);
    if path.exists() {
        return locomo::load(&settings.data).map(Some);
    }
    progress(format_args!(
        "warning: LoCoMo is NOT MEASURED: {} is not there, and its licence does not let it be \
         handed on; say where it is with --data",
        path.display()
    ));
    Ok(None)
}

async fn locomo_cases(options: &Options, settings: &Settings) -> Result<Vec<Case>> {
    let Some(dataset) = locomo_dataset(settings)? else { return Ok(Vec::new()) };
    let measured = measure(options, &dataset, "").await?;
    let mut cases = list_cases(&dataset, &measured, "recall@10", |figures| figures.recall, UNION_GAIN);
    cases.extend(list_cases(&dataset, &measured, "nDCG@10", |figures| figures.ndcg, 0.0));
    cases.push(foreign_case(&dataset, &measured));
    if settings.sweep {
        cases.extend(sweep_cases(&dataset, &measured).await?);
    }
    Ok(cases)
}

/// The figure of each list. The default union should be `gain` above the
/// better list alone.
fn list_cases(
    dataset: &Dataset,
    measured: &Measured,
    unit: &str,
    value: fn(Figures) -> f64,
    gain: f64,
) -> Vec<Case> {
    let alone = |list| value(measured.of(list));
    let better = alone(List::Vectors).max(alone(List::Keywords));
    let case = |list: List| {
        let ours = Sample::of(alone(list));
        let case = Case::new(format!("{}: {}", dataset.name, list.name()), unit, Better::Higher, &ours);
        let beside = || case.clone().against_peer("better list alone", &ours, &Sample::of(better));
        match list {
            List::Vectors | List::Keywords => case,
            List::Rank => beside(),
            List::MinMax => beside().with_goal((better + gain) / better.max(f64::MIN_POSITIVE)),
        }
    };
    List::ALL.into_iter().map(case).collect()
}

fn foreign_case(dataset: &Dataset, measured: &Measured) -> Case {
    #[expect(clippy::cast_precision_loss, reason = "a count of hits")]
    let foreign = measured.foreign as f64;
    let name = format!("{}: hits of another tenant, of {}", dataset.name, measured.hits);
    Case::single(name, "hits", Better::Lower, foreign).with_goal(0.0)
}

/// Vectors alone beside the same model in Python; without Python, ours alone.
async fn parity_cases(dataset: &Dataset, measured: &Measured, settings: &Settings) -> Result<Vec<Case>> {
    let ours = Sample::of(measured.of(List::Vectors).ndcg);
    let case = |name: &str| {
        Case::new(format!("{}: vectors alone, {name}", dataset.name), "nDCG@10", Better::Higher, &ours)
    };
    let rankings = match python_rankings(dataset, measured, settings).await {
        Ok(rankings) => rankings,
        Err(error) => {
            progress(format_args!("warning: vectors are NOT COMPARED with Python: {error:#}"));
            return Ok(vec![case("against Python (NOT COMPARED)")]);
        }
    };
    let ids = dataset.ids();
    let score = |rankings: &[Vec<usize>]| {
        let named = |ranked: &Vec<usize>| ranked.iter().filter_map(|n| ids.get(*n).copied()).collect();
        dataset.score(&rankings.iter().map(named).collect::<Vec<Vec<&str>>>()).ndcg
    };
    let (same, whole) = (score(&rankings.chunks), score(&rankings.whole));
    progress(format_args!("{}: {same:.4} on the same chunks, {whole:.4} on whole texts", rankings.by));
    let parity = case("against Python on the same chunks")
        .against_peer(rankings.by.clone(), &ours, &Sample::of(same))
        .with_goal((same - PARITY) / same);
    let cut_off = case("against Python on whole texts cut off at 256 tokens");
    Ok(vec![parity, cut_off.against_peer(rankings.by, &ours, &Sample::of(whole))])
}

async fn python_rankings(dataset: &Dataset, measured: &Measured, settings: &Settings) -> Result<Rankings> {
    let bench = Workbench::open(measured.folder.pipeline()?).await?;
    let stream = &bench.pipeline.stream;
    let stored = bench
        .store
        .stored(stream, 0, measured.status.end_offset, bench.serving.now().await?.space_key)
        .await?;
    bench.store.close().await;
    let chunks: std::collections::HashMap<_, Vec<String>> = stored
        .into_iter()
        .map(|record| {
            (record.record_id.unwrap_or_default(), record.chunks.into_iter().map(|c| c.text).collect())
        })
        .collect();
    let chunks: Vec<Vec<String>> =
        dataset.ids().iter().map(|id| chunks.get(*id).cloned().unwrap_or_default()).collect();
    let embedding = &bench.pipeline.embed;
    anyhow::ensure!(embedding.provider == Provider::Local, "the pipeline has no model");
    let reference = Reference {
        python: settings.python.clone(),
        script: "scripts/quality-reference.py".into(),
        model: embedding.model_folder(std::env::var_os("THALWEG_MODELS").as_deref()),
        kept: "target/quality-reference".into(),
    };
    let questions: Vec<String> = dataset.questions.iter().map(|question| question.text.clone()).collect();
    let whole = dataset.texts();
    tokio::task::spawn_blocking(move || reference.rank(&questions, &chunks, &whole)).await?
}

async fn sweep_cases(dataset: &Dataset, measured: &Measured) -> Result<Vec<Case>> {
    progress(format_args!("{}: other settings", dataset.name));
    let figures = sweep::sweep(dataset, &measured.folder).await?;
    Ok(figures
        .into_iter()
        .flat_map(|(name, figures)| {
            let case = |unit: &str, value| {
                Case::single(format!("{} sweep: {name}", dataset.name), unit, Better::Higher, value)
            };
            [case("nDCG@10", figures.ndcg), case("recall@10", figures.recall)]
        })
        .collect())
}

async fn chunking_cases(options: &Options, settings: &Settings) -> Result<Vec<Case>> {
    let embedder = tokio::task::spawn_blocking(|| embed::open(&embed::Settings::default(), &[]))
        .await?
        .context("chunks cannot be embedded")?;
    let cuts = chunking::measure(&options.fixtures, &*embedder, settings.sweep).await?;
    Ok(cuts
        .into_iter()
        .flat_map(|cut| {
            let s = cut.settings;
            let case = |unit: &str, value| {
                let name = format!(
                    "chunks of {} tokens, {} at least, overlap {} ({} chunks)",
                    s.max_tokens, s.min_tokens, s.overlap_tokens, cut.chunks
                );
                Case::single(name, unit, Better::Higher, value)
            };
            let score = cut.nearest;
            [case("recall@5", score.recall), case("precision@5", score.precision), case("IoU@5", score.iou)]
        })
        .collect())
}

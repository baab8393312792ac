//! From chunks to vectors, rows and answers.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;

use super::{Better, Case, Corpus, Options, progress, rate};
use crate::{
    bench::{Sample, sample::quantile, sample_of, timed},
    dataflow::Cpu,
    embed::{Embedder, Hashing},
    pipeline::deriver::{Deriver, Frame, Judged},
    record::Defaults,
    store::{Batch, Query, RecordRow, Store},
    transform,
};

/// Texts that are embedded in one call, as deriving does.
const CALL_TEXTS: usize = 256;
/// Texts on which the local model is measured.
const MODEL_TEXTS: usize = 128;
/// Records of a commit: as deriving commits, and as a back-fill could.
const COMMITS: [usize; 2] = [256, 1_000];
/// Searches of one run.
const SEARCHES: usize = 200;

pub(super) fn stages(
    options: &Options,
    on: &str,
    corpus: &Corpus,
    model: Option<&Arc<dyn Embedder>>,
) -> Result<Vec<Case>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let hashing: Arc<dyn Embedder> = Arc::new(Hashing::default());
    let rows = runtime.block_on(derived(corpus, &hashing))?;
    let mut cases = vec![embedding(options, format!("embed (hashing), {on}"), &runtime, &hashing, &rows)?];
    if let Some(model) = model {
        let case = format!("embed (local model), {on}");
        let some = rows.get(..MODEL_TEXTS.min(rows.len())).unwrap_or_default();
        cases.push(embedding(options, case, &runtime, model, some)?);
    }
    for per_commit in COMMITS {
        cases.push(committing(options, on, &runtime, &hashing, &rows, per_commit)?);
    }
    cases.extend(searching(options, on, &runtime, &hashing, &rows)?);
    Ok(cases)
}

/// The rows that deriving makes of `corpus`, without vectors; offsets from 0
/// without gaps.
async fn derived(corpus: &Corpus, embedder: &Arc<dyn Embedder>) -> Result<Vec<RecordRow>> {
    let deriver =
        Deriver::new(transform::Settings::default(), Defaults::default(), embedder.tokens(), Cpu::new(0)?);
    let frames = corpus.payloads().into_iter().zip(0..);
    let frames = frames.map(|(payload, offset)| Frame { offset, appended_ms: 0, payload }).collect();
    let (judged, _) = deriver.judge(frames, 0).await;
    let mut seen = std::collections::HashSet::new();
    let kept = judged.into_iter().filter_map(|one| match one {
        Judged::Keep { row, .. } => Some(row),
        _ => None,
    });
    let fresh = kept.filter(|row| row.dedupe_key.is_none_or(|key| seen.insert(key)));
    let mut rows: Vec<RecordRow> = fresh.zip(0..).map(|(row, offset)| RecordRow { offset, ..row }).collect();
    let mut refused = Vec::new();
    deriver.embed(&**embedder, &mut rows, &mut refused).await?;
    ensure!(refused.is_empty() && !rows.is_empty(), "the hashing embedder refused {} texts", refused.len());
    Ok(rows)
}

#[expect(clippy::cast_precision_loss, reason = "thousands of texts")]
fn embedding(
    options: &Options,
    case: String,
    runtime: &Runtime,
    embedder: &Arc<dyn Embedder>,
    rows: &[RecordRow],
) -> Result<Case> {
    let texts: Vec<String> =
        rows.iter().flat_map(|row| &row.chunks).map(|chunk| chunk.text.clone()).collect();
    progress(format_args!("{case}: {} chunks", texts.len()));
    rate(options, case, "chunks/CPU s", texts.len() as f64, || {
        for some in texts.chunks(CALL_TEXTS) {
            runtime.block_on(embedder.embed(some.to_vec()))?;
        }
        Ok(())
    })
}

/// Fills a new store each run; what is timed are the commits alone.
#[expect(clippy::cast_precision_loss, reason = "thousands of records")]
fn committing(
    options: &Options,
    on: &str,
    runtime: &Runtime,
    embedder: &Arc<dyn Embedder>,
    rows: &[RecordRow],
    per_commit: usize,
) -> Result<Case> {
    let case = format!("store commits of {per_commit} records, {on}");
    progress(&case);
    let mut runs = Vec::new();
    for _ in 0..options.runs {
        let dir = options.scratch_dir()?;
        let (filled, seconds) = runtime.block_on(fill(dir.path(), embedder, rows, per_commit))?;
        runtime.block_on(filled.store.close());
        runs.push(rows.len() as f64 / seconds);
    }
    Ok(Case::new(case, "records/s", Better::Higher, &sample_of(&runs, |run| *run)?))
}

struct Filled {
    store: Store,
    space_key: i64,
}

async fn fill(
    dir: &std::path::Path,
    embedder: &Arc<dyn Embedder>,
    rows: &[RecordRow],
    per_commit: usize,
) -> Result<(Filled, f64)> {
    let store = Store::open(&dir.join("store.sqlite")).await?;
    let space_key = store.register_space(embedder.space(), 0).await?;
    let mut lease = store.acquire("bench", "bench", 0, 0).await?;
    let mut seconds = 0.0;
    for some in rows.chunks(per_commit) {
        let from = some.first().map_or(0, |row| row.offset);
        let batch = Batch {
            from,
            to: from + some.len() as u64,
            batch_tag: "bench".into(),
            space_key,
            config_digest: "bench".into(),
            records: some.to_vec(),
            ..Batch::default()
        };
        let started = std::time::Instant::now();
        store.commit(&mut lease, batch).await?;
        seconds += started.elapsed().as_secs_f64();
    }
    Ok((Filled { store, space_key }, seconds))
}

/// Asks the loaded store for things that are in it.
fn searching(
    options: &Options,
    on: &str,
    runtime: &Runtime,
    embedder: &Arc<dyn Embedder>,
    rows: &[RecordRow],
) -> Result<Vec<Case>> {
    let dir = options.scratch_dir()?;
    let (Filled { store, space_key }, _) = runtime.block_on(fill(dir.path(), embedder, rows, 1_000))?;
    let queries = questions(runtime, embedder, rows, space_key)?;
    let chunks: usize = rows.iter().map(|row| row.chunks.len()).sum();
    progress(format_args!("search, {on}: {} questions to {chunks} chunks", queries.len()));
    let (mut p50, mut p95) = (Vec::new(), Vec::new());
    for run in 0..=options.runs {
        let mut took = Vec::with_capacity(queries.len());
        for query in &queries {
            let (answer, seconds) = timed(|| runtime.block_on(store.search(query)));
            ensure!(!answer?.hits.is_empty(), "a search for stored words found nothing");
            took.push(seconds * 1e3);
        }
        // The first fills the caches.
        if run > 0 {
            p50.push(quantile(&mut took, 0.5));
            p95.push(quantile(&mut took, 0.95));
        }
    }
    runtime.block_on(store.close());
    let case = |name: &str, runs: Vec<f64>| -> Result<Case> {
        let sample = Sample::new(runs).context("no searches")?;
        Ok(Case::new(format!("search of {chunks} chunks, {name}, {on}"), "ms", Better::Lower, &sample))
    };
    Ok(vec![case("p50", p50)?, case("p95", p95)?])
}

/// The first words of chunks spread evenly over all, each asked of its tenant.
fn questions(
    runtime: &Runtime,
    embedder: &Arc<dyn Embedder>,
    rows: &[RecordRow],
    space_key: i64,
) -> Result<Vec<Query>> {
    let asked: Vec<(String, String)> = rows
        .iter()
        .step_by(rows.len().div_ceil(SEARCHES).max(1))
        .filter_map(|row| Some((row.tenant.clone(), row.chunks.first()?)))
        .map(|(tenant, chunk)| (tenant, chunk.text.split_whitespace().take(8).collect::<Vec<_>>().join(" ")))
        .collect();
    let vectors = runtime.block_on(embedder.embed(asked.iter().map(|(_, text)| text.clone()).collect()))?;
    let query = |((tenant, text), vector)| Query {
        tenant,
        text,
        vector: Some(vector),
        space_key,
        ..Query::default()
    };
    Ok(asked.into_iter().zip(vectors).map(query).collect())
}

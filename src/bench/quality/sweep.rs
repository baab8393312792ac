//! What other settings of a search would give, on the same store.

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};

use super::{
    dataset::{Dataset, Figures, TOP},
    index::Index,
};
use crate::{
    bench::daemon::Folder,
    store::{
        Mode, Query,
        fusion::{Fusion, Weights},
        keywords::Bm25Parameters,
    },
    workbench::Workbench,
};

/// A search with other settings; `base` is the default one.
struct Variant {
    name: String,
    query: Query,
}

/// Searches run at once.
const AT_ONCE: usize = 2;

/// The figures of each variant of a search on what a daemon stored in
/// `folder`, by name.
pub async fn sweep(dataset: &Dataset, folder: &Folder) -> Result<Vec<(String, Figures)>> {
    let bench = Workbench::open(folder.pipeline()?).await?;
    let texts = dataset.questions.iter().map(|question| question.text.clone()).collect();
    let served = bench.serving.now().await?;
    let vectors = served.embedder.embed(texts).await?;
    let mut figures = Vec::new();
    for variant in variants() {
        let rankings = stream::iter(dataset.questions.iter().zip(&vectors))
            .map(|(question, vector)| {
                let query = Query {
                    tenant: question.tenant.clone(),
                    text: question.text.clone(),
                    vector: Some(vector.clone()),
                    space_key: served.space_key,
                    ..variant.query.clone()
                };
                let store = bench.store.clone();
                async move {
                    let answer = store.search(&query).await.context("searching")?;
                    anyhow::Ok(answer.hits.into_iter().filter_map(|hit| hit.record_id).collect::<Vec<_>>())
                }
            })
            .buffered(AT_ONCE)
            .try_collect::<Vec<_>>()
            .await?;
        figures.push((variant.name, dataset.score(&rankings)));
    }
    let index = Index::open(folder).await?;
    figures.push(("keywords, FTS5's own score".to_owned(), dataset.score(&index.rank(dataset).await?)));
    bench.store.close().await;
    Ok(figures)
}

fn variants() -> Vec<Variant> {
    let base = Query { limit: TOP, per_record: true, ..Query::default() };
    let mut variants = Vec::new();
    let mut add = |name: String, query: Query| variants.push(Variant { name, query });
    add("vectors".into(), Query { mode: Mode::Vector, ..base.clone() });
    for (k1, b) in [(0.9, 0.4), (1.2, 0.75), (1.2, 0.4), (0.9, 0.75), (0.6, 0.3)] {
        let bm25 = Bm25Parameters { k1, b };
        let keywords = Query { mode: Mode::Keyword, bm25, ..base.clone() };
        add(format!("keywords, k1 {k1}, b {b}"), keywords);
        add(format!("union, min-max, k1 {k1}, b {b}"), Query { bm25, ..base.clone() });
    }
    for fusion in [Fusion::MinMax, Fusion::Rank] {
        for depth in [50, 100, 200] {
            for complete in [true, false] {
                let how = if complete { "completed" } else { "as found" };
                let query = Query { fusion, depth, complete, ..base.clone() };
                add(format!("union, {}, depth {depth}, {how}", name_of(fusion)), query);
            }
        }
        for vector in [0.3, 0.4, 0.6, 0.7] {
            let weights = Weights { vector, keyword: 1.0 - vector, ..Weights::default() };
            let query = Query { fusion, weights, ..base.clone() };
            add(format!("union, {}, vector weight {vector}", name_of(fusion)), query);
        }
    }
    variants
}

fn name_of(fusion: Fusion) -> &'static str {
    match fusion {
        Fusion::MinMax => "min-max",
        Fusion::Rank => "rank",
    }
}

//! Searching a SQLite store through a daemon.

use std::time::Instant;

use anyhow::Result;
use tokio::runtime::Runtime;

use super::{
    Better, Case, Options,
    load::sample,
    progress, quantile,
    search::{QUESTIONS, RECALL, Texts, ask},
};
use crate::{
    bench::daemon::{Daemon, Folder},
    embed::Embedder,
    store::Store,
};

/// Vectors of the one tenant.
const ROWS: u64 = 100_000;
/// p95, in milliseconds.
const P95_MS: f64 = 25.0;

pub(super) fn search(options: &Options, runtime: &Runtime) -> Result<Vec<Case>> {
    let texts = Texts::new(options)?;
    runtime.block_on(async {
        progress(format_args!("store search, {ROWS} vectors in SQLite: loading"));
        let folder = Folder::new(&options.scratch, "[embed]\nprovider = \"hashing\"\n")?;
        let data = folder.pipeline()?.data_dir;
        std::fs::create_dir_all(&data)?;
        let store = Store::open(&data.join("store.sqlite")).await?;
        texts.fill(&store, ROWS, 1).await?;
        store.close().await;
        let daemon = Daemon::start(folder)?;
        let (mut found, mut p50, mut p95) = (0, Vec::new(), Vec::new());
        let exact = Exact::of(&texts).await?;
        for run in 0..=options.runs {
            progress(format_args!("store search, {ROWS} vectors in SQLite, run {run} of {}", options.runs));
            let mut took = Vec::new();
            for n in 0..QUESTIONS as u64 {
                let question = texts.question(n);
                let started = Instant::now();
                let reply = ask(&daemon, "tenant-0", &question).await?;
                took.push(started.elapsed().as_secs_f64() * 1e3);
                if run == 0 {
                    let least = exact.tenth(&texts.embedder.embed_query(question).await?);
                    let good = |score: f32| score >= least - 1e-5;
                    found += reply.hits.iter().filter(|hit| hit.vector_score.is_some_and(good)).count();
                }
            }
            if run > 0 {
                p50.push(quantile(&mut took.clone(), 0.5));
                p95.push(quantile(&mut took, 0.95));
            }
        }
        daemon.stop()?;
        let name = format!("search of {ROWS} vectors in SQLite");
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let recall = found as f64 / (10 * QUESTIONS) as f64;
        Ok(vec![
            Case::new(format!("{name}, p50"), "ms", Better::Lower, &sample(p50)?),
            Case::new(format!("{name}, p95"), "ms", Better::Lower, &sample(p95)?).with_goal(P95_MS),
            Case::single(format!("{name}, recall@10"), "share", Better::Higher, recall).with_goal(RECALL),
        ])
    })
}

/// All vectors, compared one by one.
struct Exact(Vec<Vec<f32>>);

impl Exact {
    async fn of(texts: &Texts) -> Result<Self> {
        let all: Vec<String> = (0..ROWS).map(|n| texts.text(n)).collect();
        Ok(Self(texts.embedder.embed(all).await?))
    }

    /// The tenth best similarity to `query`.
    fn tenth(&self, query: &[f32]) -> f32 {
        let dot = |vector: &Vec<f32>| vector.iter().zip(query).map(|(a, b)| a * b).sum::<f32>();
        let mut all: Vec<f32> = self.0.iter().map(dot).collect();
        let (_, tenth, _) = all.select_nth_unstable_by(9, |a, b| b.total_cmp(a));
        *tenth
    }
}

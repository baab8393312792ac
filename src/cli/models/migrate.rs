//! `thalweg models compare | switch | retire`: from one embedding space to
//! another.

use std::{collections::BTreeSet, path::Path, process::ExitCode, sync::Arc};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::super::{
    Output,
    meter::Meter,
    output::{count, facts, table},
};
use crate::{
    config::Pipeline,
    embed::{Embedder, Settings},
    pipeline::{
        search::{SearchHit, SearchRequest, Searcher},
        serving::{Served, Serving},
    },
    store::{Mode, SpaceRow, SpaceState, Store},
    workbench::Workbench,
};

/// Hits that are looked at.
const TOP: usize = 10;
/// Words of a stored text that are asked for.
const WORDS: usize = 12;

/// A question with the records that answer it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Gold {
    tenant: String,
    query: String,
    /// The producer's ids of the records.
    ids: BTreeSet<String>,
}

/// How one space finds things.
#[derive(Debug, Default, Serialize)]
struct Found {
    space: String,
    model: String,
    state: &'static str,
    /// Share of sampled texts that are found by some of their words.
    sampled_recall_at_10: f64,
    /// Share of the gold records that are found, where questions were given.
    gold_recall_at_10: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Comparison {
    sampled: usize,
    gold: usize,
    spaces: Vec<Found>,
    /// Mean share of the live space's ten nearest that the other has, too.
    overlap_at_10: f64,
    /// Chunks of the live space that the other lacks.
    behind: u64,
    /// Chunks that the other lacks of all, and their tokens.
    missing_chunks: u64,
    missing_tokens: u64,
    /// What embedding those costs at the dearest of its endpoints, in the
    /// currency of the prices.
    missing_cost: f64,
}

/// Asks both spaces the same, by vectors alone.
pub(super) async fn compare(
    pipeline: Pipeline,
    sample: u32,
    gold: Option<&Path>,
    output: Output,
) -> Result<ExitCode> {
    let dearest = |settings: &Settings| {
        settings.endpoint.iter().map(|endpoint| endpoint.price_per_million_tokens).fold(0.0, f64::max)
    };
    let prices =
        [Some(&pipeline.embed), pipeline.migrate.as_ref()].map(|settings| settings.map_or(0.0, dearest));
    let bench = Workbench::open(pipeline).await?;
    let live = bench.serving.now().await?;
    let mut others = bench.serving.members().iter().zip(prices);
    let other = others.find(|(served, _)| served.space_key != live.space_key);
    let (other, price) = other.map(|(served, price)| (served.clone(), price)).context(
        "there is one embedding space; name the model to migrate to in the section [migrate] of the pipeline file",
    )?;
    let gold: Vec<Gold> = match gold {
        Some(path) => read_gold(path)?,
        None => Vec::new(),
    };
    let samples = bench.store.sample_chunks(sample, rand::random_range(0..1 << 20)).await?;
    ensure!(!samples.is_empty() || !gold.is_empty(), "nothing is stored yet, so there is nothing to compare");
    let states = bench.store.spaces().await?;
    let sides = [live, other];
    let searchers = sides.each_ref().map(|served| searcher(&bench, served));
    let mut found = sides.each_ref().map(|served| describe(served, &states));
    let (mut own_found, mut overlap) = ([0_usize; 2], 0.0);
    let (mut hits_of_gold, mut gold_records) = ([0_usize; 2], 0_usize);
    let mut meter = Meter::new(Some((samples.len() + gold.len()) as u64));
    for (n, sample) in samples.iter().enumerate() {
        let query = words(&sample.text);
        let mut lists = Vec::new();
        for (searcher, own_found) in searchers.iter().zip(&mut own_found) {
            let hits = ask(searcher, &sample.tenant, &query).await?;
            let own = |hit: &SearchHit| {
                hit.lineage.stream == sample.stream && hit.lineage.offset == sample.offset.cast_unsigned()
            };
            *own_found += usize::from(hits.iter().any(own));
            lists.push(places(&hits));
        }
        if let [live, other] = lists.as_slice() {
            overlap += share(live.intersection(other).count(), live.len().max(1)) / as_f64(samples.len());
        }
        meter.at(n as u64 + 1, "");
    }
    for (n, question) in gold.iter().enumerate() {
        gold_records += question.ids.len().min(TOP);
        for (searcher, hits_of_gold) in searchers.iter().zip(&mut hits_of_gold) {
            let hits = ask(searcher, &question.tenant, &question.query).await?;
            let ids: BTreeSet<&String> = hits.iter().filter_map(|hit| hit.id.as_ref()).collect();
            *hits_of_gold += ids.into_iter().filter(|id| question.ids.contains(*id)).count();
        }
        meter.at((samples.len() + n) as u64 + 1, "");
    }
    drop(meter);
    for ((found, own), hits) in found.iter_mut().zip(own_found).zip(hits_of_gold) {
        found.sampled_recall_at_10 = share(own, samples.len());
        found.gold_recall_at_10 = (gold_records > 0).then(|| share(hits, gold_records));
    }
    let [_, other] = &sides;
    let missing = bench.store.missing_in(other.space_key).await?;
    let comparison = Comparison {
        sampled: samples.len(),
        gold: gold.len(),
        spaces: found.into(),
        overlap_at_10: overlap,
        behind: bench.store.behind_live(other.space_key).await?,
        missing_chunks: missing.chunks,
        missing_tokens: missing.tokens,
        missing_cost: price * as_f64(usize::try_from(missing.tokens)?) / 1e6,
    };
    output.print(&comparison, Comparison::text)?;
    bench.close().await?;
    Ok(ExitCode::SUCCESS)
}

/// Makes the space with this id live.
pub(super) async fn switch(store: &Store, id: &str, allow_missing: u64) -> Result<String> {
    let space = by_id(store, id).await?;
    store.switch_space(space.space_key, allow_missing).await?;
    Ok(format!("{} is live; the one before is kept up to date beside it", space.space))
}

/// Deletes the vectors of the space with this id.
pub(super) async fn retire(store: &Store, id: &str) -> Result<String> {
    let space = by_id(store, id).await?;
    let deleted = store.retire_space(space.space_key).await?;
    Ok(format!("{} is retired, {} vectors deleted", space.space, count(deleted)))
}

async fn by_id(store: &Store, id: &str) -> Result<SpaceRow> {
    let spaces = store.spaces().await?;
    let mut like = spaces.iter().filter(|space| !id.is_empty() && space.space_id.starts_with(id));
    match (like.next(), like.next()) {
        (Some(space), None) => Ok(space.clone()),
        (None, _) => bail!("no embedding space has the id `{id}`; `thalweg models list` shows them"),
        (Some(_), Some(_)) => {
            bail!("several embedding spaces have ids that begin with `{id}`; write more of it")
        }
    }
}

fn searcher(bench: &Workbench, served: &Served) -> Searcher {
    let serving = Serving::only(served.clone());
    Searcher { serving: Arc::new(serving), ..bench.searcher() }
}

fn describe(served: &Served, states: &[SpaceRow]) -> Found {
    let row = states.iter().find(|row| row.space_key == served.space_key);
    Found {
        space: served.model.space().id(),
        model: served.model.space().model.clone(),
        state: row.map_or(SpaceState::Building, |row| row.state).as_str(),
        ..Found::default()
    }
}

async fn ask(searcher: &Searcher, tenant: &str, query: &str) -> Result<Vec<SearchHit>> {
    let request = SearchRequest {
        tenant: None,
        query: query.to_owned(),
        limit: TOP,
        tiers: Vec::new(),
        session: None,
        mode: Mode::Vector,
        fusion: None,
        per_record: true,
        explain: false,
    };
    Ok(searcher.search(tenant, request).await?.hits)
}

/// Some words from the middle of a text: what someone may remember of it.
fn words(text: &str) -> String {
    let all: Vec<&str> = text.split_whitespace().collect();
    let first = all.len().saturating_sub(WORDS) / 2;
    all.iter().skip(first).take(WORDS).copied().collect::<Vec<_>>().join(" ")
}

fn places(hits: &[SearchHit]) -> BTreeSet<(String, u64)> {
    hits.iter().map(|hit| (hit.lineage.stream.clone(), hit.lineage.offset)).collect()
}

fn read_gold(path: &Path) -> Result<Vec<Gold>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = |(number, line): (usize, &str)| {
        let what = "is not {\"tenant\": .., \"query\": .., \"ids\": [..]}";
        serde_json::from_str(line)
            .with_context(|| format!("line {} of {} {what}", number + 1, path.display()))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(line).collect()
}

fn share(part: usize, whole: usize) -> f64 {
    as_f64(part) / as_f64(whole.max(1))
}

#[expect(clippy::cast_precision_loss, reason = "counts of texts and tokens")]
fn as_f64(n: usize) -> f64 {
    n as f64
}

impl Comparison {
    fn text(&self) -> String {
        let gold =
            |found: &Found| found.gold_recall_at_10.map_or("-".into(), |recall| format!("{recall:.3}"));
        let rows = self.spaces.iter().map(|found| {
            let sampled = format!("{:.3}", found.sampled_recall_at_10);
            vec![found.space.clone(), found.model.clone(), found.state.to_owned(), sampled, gold(found)]
        });
        let heading = ["space", "model", "state", "recall@10, sampled", "recall@10, gold"];
        let cells: Vec<_> = std::iter::once(heading.map(str::to_owned).to_vec()).chain(rows).collect();
        let spaces = table(&cells);
        let facts = facts(&[
            ("texts sampled", count(self.sampled as u64)),
            ("gold questions", count(self.gold as u64)),
            ("overlap of the first ten", format!("{:.3}", self.overlap_at_10)),
            ("missing beside the live one", count(self.behind)),
            ("missing of all chunks", count(self.missing_chunks)),
            ("their tokens", count(self.missing_tokens)),
            ("their cost", format!("{:.4}", self.missing_cost)),
        ]);
        format!("{spaces}\n{facts}")
    }
}

//! `thalweg search`.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::{
    Output,
    daemon::Daemon,
    load, offline,
    output::{short, time},
};
use crate::{
    pipeline::search::{SearchHit, SearchReply, SearchRequest},
    record::Tier,
    store::{self, Scan, TierScan},
    workbench::Workbench,
};

/// Search what a pipeline has indexed.
///
/// Asks the running daemon, or, with --pipeline, the pipeline's store itself;
/// that works beside a daemon too.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  thalweg search --tenant docs 'how do I open a file'
  thalweg search --tenant team-0 --mode keyword --limit 3 'EADDRINUSE'
  thalweg search -p pipelines/quickstart.toml --tenant docs --tier doc 'lazy evaluation' --json")]
pub struct Search {
    /// What to look for
    query: String,
    /// Whose records
    #[arg(long, value_name = "NAME")]
    tenant: String,
    /// Hits at most
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: usize,
    /// Only this tier; may be given several times
    #[arg(long = "tier", value_name = "TIER", value_parser = tier)]
    tiers: Vec<Tier>,
    /// Only this session
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
    /// Which lists to ask
    #[arg(long, value_enum, default_value = "union")]
    mode: Mode,
    /// How lists are united; as the pipeline says if left out
    #[arg(long, value_enum)]
    fusion: Option<Fusion>,
    /// Show of each record only its best chunk
    #[arg(long)]
    per_record: bool,
    /// Say how the vectors of each tier were compared
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    daemon: Daemon,
    /// Open the store of this pipeline file instead of asking a daemon
    #[arg(short, long, value_name = "FILE")]
    pipeline: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// By meaning and by words
    Union,
    /// By meaning
    Vector,
    /// By words
    Keyword,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Fusion {
    /// Weighted sum of normalised scores
    Minmax,
    /// Reciprocal ranks
    Rank,
}

/// A tier by its name.
pub fn tier(name: &str) -> Result<Tier, String> {
    Tier::named(name)
        .ok_or_else(|| format!("`{name}` is no tier; write one of {}", Tier::ALL.map(Tier::name).join(", ")))
}

impl Search {
    pub(super) fn run(self) -> Result<ExitCode> {
        let request = SearchRequest {
            tenant: Some(self.tenant.clone()),
            query: self.query,
            limit: self.limit,
            tiers: self.tiers,
            session: self.session,
            mode: match self.mode {
                Mode::Union => store::Mode::Union,
                Mode::Vector => store::Mode::Vector,
                Mode::Keyword => store::Mode::Keyword,
            },
            fusion: self.fusion.map(|fusion| match fusion {
                Fusion::Minmax => store::fusion::Fusion::MinMax,
                Fusion::Rank => store::fusion::Fusion::Rank,
            }),
            per_record: self.per_record,
            explain: self.explain,
        };
        let pipeline = self.pipeline.as_deref().map(load).transpose()?;
        let reply: SearchReply = super::block_on(async {
            let Some(pipeline) = pipeline else { return self.daemon.post("/api/v1/search", &request).await };
            offline::store(&pipeline).await?.close().await;
            let bench = Workbench::open(pipeline).await?;
            let reply = bench.searcher().search(&self.tenant, request).await;
            bench.close().await?;
            Ok(reply?)
        })?;
        self.output.print(&reply, text)?;
        Ok(ExitCode::SUCCESS)
    }
}

fn text(reply: &SearchReply) -> String {
    let mode = match reply.mode {
        store::Mode::Union => "by meaning and by words",
        store::Mode::Vector => "by meaning",
        store::Mode::Keyword => "by words",
    };
    let mode = match &reply.without_vectors {
        Some(reason) => format!("{mode} only ({reason})"),
        None => mode.to_owned(),
    };
    let hits: String = reply.hits.iter().enumerate().map(|(rank, hit)| hit_text(rank + 1, hit)).collect();
    let scans: String = reply.scans.iter().flatten().map(scan_text).collect();
    format!("{hits}{} hits {mode}, {:.1} ms\n{scans}", reply.hits.len(), reply.took_ms)
}

fn scan_text(scan: &TierScan) -> String {
    let how = match scan.scan {
        Scan::Memory => "every vector compared, in this process's memory",
        Scan::Exact => "every vector compared in the database",
        Scan::Filtered => "the vectors of the records that pass the filter compared",
        Scan::Index => "approximate index; what is newer compared exactly",
        Scan::IndexThenExact => "the approximate index came short, so every vector was compared",
    };
    format!("  {:<9} {:>9} chunks: {how}\n", scan.tier.name(), scan.chunks)
}

fn hit_text(rank: usize, hit: &SearchHit) -> String {
    let part = |score: Option<f32>| score.map_or_else(|| "-".to_owned(), |score| format!("{score:.3}"));
    let session = hit.session.as_ref().map_or_else(String::new, |session| format!("  session {session}"));
    let id = hit.id.as_ref().map_or_else(String::new, |id| format!("  id {id}"));
    let lineage = &hit.lineage;
    let segment = lineage.segment_digest.as_deref().map_or("not sealed yet", short);
    let model = match (&lineage.model, &lineage.model_revision) {
        (Some(model), Some(revision)) => format!("  model {model} {}", short(revision)),
        _ => String::new(),
    };
    format!(
        "{rank:>2}  {:.3}  meaning {}  words {}  {}  {}  {}{session}{id}\n    {}\n    from {}@{} chunk {}  \
         segment {segment}{model}  config {}  batch {}\n\n",
        hit.score,
        part(hit.vector_score),
        part(hit.keyword_score),
        hit.tier.name(),
        hit.source,
        time(hit.ts),
        snippet(&hit.text),
        lineage.stream,
        lineage.offset,
        lineage.chunk,
        short(&lineage.config_digest),
        lineage.batch_tag,
    )
}

/// Most characters that are shown of a text.
const SNIPPET_CHARS: usize = 240;

/// The text's beginning on one line, without what would move a terminal's
/// cursor.
fn snippet(text: &str) -> String {
    let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut shown: String = words.chars().filter(|c| !c.is_control()).take(SNIPPET_CHARS).collect();
    if shown.len() < words.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snippet_is_one_short_line_that_cannot_drive_a_terminal() {
        assert_eq!(snippet("a\n\tb  c"), "a b c");
        assert_eq!(snippet("\u{1b}[2Jred"), "[2Jred…");
        let long = snippet(&"x".repeat(1_000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (SNIPPET_CHARS + 1, true));
    }

    #[test]
    fn an_unknown_tier_is_answered_with_the_known_ones() {
        assert_eq!(tier("doc"), Ok(Tier::Doc));
        assert!(tier("docs").unwrap_err().contains("event, summary, doc, profile, artifact"));
    }
}

//! The same files through this engine and through CocoIndex into the same
//! PostgreSQL, with embedders that cost nothing or little: what is left is
//! the pipeline.
//!
//! Ours is `thalweg run --once` on a folder, as users run it: log, judging,
//! keywords, deduplication and the hashing embedder included. CocoIndex runs
//! as its documentation shows it (`scripts/pipeline-peer.py`), with a stub for
//! an embedder and without a keyword index. Both start as new processes on a
//! new, empty database, and start-up counts.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;

use super::progress;
use crate::bench::{
    Better, Case, Options,
    daemon::{Folder, Process},
    data::Corpus,
    postgres::{self, Database},
    sample::{interleaved, sample_of},
    usage::Usage,
};

/// Files of each run.
const FILES: usize = 200;
/// Paragraphs of a file. Each is to become one chunk.
const PARAGRAPHS: usize = 50;
/// Words of a paragraph, about 335 bytes.
const WORDS: usize = 48;
/// Two paragraphs are more than this, and one is not.
const CHUNK_TOKENS: usize = 80;
/// The same for who counts bytes.
const CHUNK_BYTES: usize = 500;
/// As many as the hashing embedder's.
const DIMENSIONS: usize = 256;
/// Rows that either side may make more or less than there are paragraphs.
const TOLERANCE: f64 = 0.01;
/// Times the peer's rows per second of processor time.
const GOAL_RATIO: f64 = 10.0;
/// Most memory of ours, in megabytes.
const GOAL_MB: f64 = 100.0;

const SCRIPT: &str = "scripts/pipeline-peer.py";

/// CocoIndex, and where both write.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A database on the server; not touched itself.
    pub url: String,
    /// The Python that has CocoIndex.
    pub python: PathBuf,
}

/// What one run of either side gave.
struct Run {
    rows_per_cpu_s: f64,
    server_cpu_s: f64,
    peak_mb: f64,
}

/// Runs both in turn.
///
/// # Errors
/// If the fixtures, the server or CocoIndex is missing, or either makes other
/// rows than there are paragraphs.
pub fn beside_cocoindex(options: &Options, settings: &Settings) -> Result<Vec<Case>> {
    let runtime = Runtime::new()?;
    let files = Files::write(options)?;
    progress(format_args!("pipeline: {FILES} files to {} rows, beside CocoIndex", FILES * PARAGRAPHS));
    let (ours, theirs) = interleaved(
        "pipeline beside CocoIndex",
        options.runs,
        || ours(options, settings, &runtime, &files.records),
        || theirs(options, settings, &runtime, &files.texts),
    )?;
    let peer = "CocoIndex";
    let sampled = |runs: &[Run], value: fn(&Run) -> f64| sample_of(runs, value);
    let name = format!("{FILES} files to {} rows", FILES * PARAGRAPHS);
    let (rows, their_rows) =
        (sampled(&ours, |run| run.rows_per_cpu_s)?, sampled(&theirs, |run| run.rows_per_cpu_s)?);
    let (server, their_server) =
        (sampled(&ours, |run| run.server_cpu_s)?, sampled(&theirs, |run| run.server_cpu_s)?);
    let (memory, their_memory) = (sampled(&ours, |run| run.peak_mb)?, sampled(&theirs, |run| run.peak_mb)?);
    Ok(vec![
        Case::new(format!("{name}: client"), "rows/CPU s", Better::Higher, &rows)
            .against_peer(peer, &rows, &their_rows)
            .with_goal(GOAL_RATIO),
        Case::new(format!("{name}: server"), "CPU s", Better::Lower, &server).against_peer(
            peer,
            &server,
            &their_server,
        ),
        Case::new(format!("{name}: peak memory"), "MB", Better::Lower, &memory).with_goal(GOAL_MB),
        Case::new(format!("{name}: peak memory of {peer}"), "MB", Better::Lower, &their_memory),
    ])
}

/// The same texts in the form that each side reads.
struct Files {
    records: PathBuf,
    texts: PathBuf,
    _dir: tempfile::TempDir,
}

impl Files {
    fn write(options: &Options) -> Result<Self> {
        let corpus = Corpus::load(&options.fixtures, "scifact_docs")?.texts()?.join(" ");
        let words: Vec<&str> = corpus.split_whitespace().collect();
        let dir = options.scratch_dir()?;
        let (records, texts) = (dir.path().join("records"), dir.path().join("texts"));
        fs::create_dir(&records)?;
        fs::create_dir(&texts)?;
        let mut files = 0;
        for (file, words) in words.chunks_exact(PARAGRAPHS * WORDS).take(FILES).enumerate() {
            let paragraphs: Vec<String> = words.chunks(WORDS).map(|words| words.join(" ")).collect();
            let text = paragraphs.join("\n\n");
            let record = serde_json::json!({"id": format!("{file:03}.txt"), "tier": "doc", "text": text});
            fs::write(records.join(format!("{file:03}.jsonl")), format!("{record}\n"))?;
            fs::write(texts.join(format!("{file:03}.txt")), text)?;
            files = file + 1;
        }
        ensure!(files == FILES, "the fixtures hold words for {files} files only");
        Ok(Self { records, texts, _dir: dir })
    }
}

fn ours(options: &Options, settings: &Settings, runtime: &Runtime, records: &Path) -> Result<Run> {
    let database = runtime.block_on(Database::new(&settings.url))?;
    let pipeline = format!(
        "[embed]\nprovider = \"hashing\"\n\n\
         [derive.chunk]\nmax_tokens = {CHUNK_TOKENS}\nmin_tokens = {}\n\n\
         [store]\nurl = {:?}\n\n\
         [[source]]\ntype = \"file\"\npath = {records:?}\n",
        CHUNK_TOKENS / 2,
        database.url,
    );
    let folder = Folder::new(&options.scratch, &pipeline)?;
    let server = postgres::cpu();
    let usage = folder.run_once()?;
    measured(runtime, database, server, usage, "SELECT count(*) FROM thalweg.vectors_1")
}

fn theirs(options: &Options, settings: &Settings, runtime: &Runtime, texts: &Path) -> Result<Run> {
    let database = runtime.block_on(async {
        let database = Database::new(&settings.url).await?;
        let connection = &mut database.connect().await?;
        sqlx::query("CREATE EXTENSION IF NOT EXISTS vector").execute(connection).await?;
        anyhow::Ok(database)
    })?;
    let state = options.scratch_dir()?;
    let server = postgres::cpu();
    let mut peer = Command::new(&settings.python);
    peer.args([SCRIPT, &database.url]).arg(texts).arg(state.path().join("state"));
    peer.args([CHUNK_BYTES, DIMENSIONS].map(|n| n.to_string()));
    let (status, usage) = Process::start(peer.stdin(Stdio::null()).stdout(Stdio::null()))?.wait()?;
    ensure!(
        status.success(),
        "{SCRIPT} ended with {status}; what it said is above. It runs in the repository and needs a Python \
         with CocoIndex: `python3 -m venv target/cocoindex && target/cocoindex/bin/pip install -r \
         scripts/pipeline-peer.txt`, then `--python target/cocoindex/bin/python`"
    );
    measured(runtime, database, server, usage, "SELECT count(*) FROM docs")
}

/// What was used for as many rows as there are now, before the database goes.
#[expect(clippy::cast_precision_loss, reason = "thousands of rows, megabytes")]
fn measured(
    runtime: &Runtime,
    database: Database,
    server_before: std::time::Duration,
    usage: Usage,
    count: &'static str,
) -> Result<Run> {
    let server = postgres::cpu().saturating_sub(server_before);
    let rows: i64 = runtime.block_on(async {
        let mut connection = database.connect().await?;
        let rows = sqlx::query_scalar(count).fetch_one(&mut connection).await.context("counting rows")?;
        drop(connection);
        database.remove().await?;
        anyhow::Ok(rows)
    })?;
    let (rows, expected) = (rows as f64, (FILES * PARAGRAPHS) as f64);
    ensure!((rows / expected - 1.0).abs() <= TOLERANCE, "{rows} rows were made, and not {expected}");
    Ok(Run {
        rows_per_cpu_s: rows / usage.cpu.as_secs_f64(),
        server_cpu_s: server.as_secs_f64(),
        peak_mb: usage.peak_rss_bytes as f64 / 1e6,
    })
}

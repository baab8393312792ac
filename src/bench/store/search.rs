//! Searching through a daemon, beside the bare SQL.
//!
//! The daemon embeds questions with the hashing embedder, so that what is
//! measured is the store and the path to it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::runtime::Runtime;

use super::{Better, Case, Options, Settings, load::sample, progress, quantile, rows::Rows};
use crate::{
    bench::{
        daemon::{Daemon, Folder},
        postgres::Database,
    },
    embed::{Embedder, Hashing},
    pipeline::search::SearchReply,
    store::{RecordRow, Store},
};

/// Questions of one run.
pub(super) const QUESTIONS: usize = 200;
/// What the bare SQL should not be faster than by more.
const TIMES_SQL: f64 = 1.3;
/// Of the ten nearest, this share must be found.
pub(super) const RECALL: f64 = 0.99;
/// p95 at 10,000 vectors of one tenant, in milliseconds.
const P95_MS: f64 = 10.0;
/// Who search at once while rows are loaded.
const SEARCHERS: usize = 32;

/// How many rows, and of how many tenants.
const SHAPES: [(usize, u64); 3] = [(10_000, 1), (100_000, 100), (100_000, 1)];

pub(super) fn search(options: &Options, settings: &Settings, runtime: &Runtime) -> Result<Vec<Case>> {
    let texts = Texts::new(options)?;
    let mut cases = Vec::new();
    for (rows, tenants) in SHAPES {
        cases.extend(runtime.block_on(of_shape(options, settings, &texts, rows, tenants))?);
    }
    Ok(cases)
}

async fn of_shape(
    options: &Options,
    settings: &Settings,
    texts: &Texts,
    rows: usize,
    tenants: u64,
) -> Result<Vec<Case>> {
    let on = format!("{rows} vectors, {} of the tenant", rows as u64 / tenants);
    progress(format_args!("store search, {on}: loading"));
    let database = Database::new(&settings.url).await?;
    let store = database.store().await?;
    texts.fill(&store, rows as u64, tenants).await?;
    store.close().await;
    let mut bare = database.connect().await?;
    sqlx::query("ANALYZE").execute(&mut bare).await?;
    let daemon = daemon_on(options, &database)?;
    let mut asked = Vec::new();
    for n in 0..QUESTIONS as u64 {
        let text = texts.question(n);
        let vector = texts.embedder.embed_query(text.clone()).await?;
        asked.push((format!("tenant-{}", n % tenants), text, vector));
    }
    let (mut ours, mut theirs, mut found) = (Vec::new(), Vec::new(), 0);
    let mut explained = String::new();
    for run in 0..=options.runs {
        progress(format_args!("store search, {on}, run {run} of {}", options.runs));
        let (mut our_ms, mut their_ms) = (Vec::new(), Vec::new());
        for (n, (tenant, text, vector)) in asked.iter().enumerate() {
            let started = Instant::now();
            let reply = ask(&daemon, tenant, text).await?;
            our_ms.push(started.elapsed().as_secs_f64() * 1e3);
            let started = Instant::now();
            bare_sql(&mut bare, tenant, vector).await?;
            their_ms.push(started.elapsed().as_secs_f64() * 1e3);
            if run == 0 {
                found += agreeing(&mut bare, &reply, tenant, vector).await?;
                if n == 0 {
                    explained = reply
                        .scans
                        .iter()
                        .flatten()
                        .map(|scan| scan.scan.as_str())
                        .collect::<Vec<_>>()
                        .join("+");
                }
            }
        }
        if run > 0 {
            ours.push([quantile(&mut our_ms.clone(), 0.5), quantile(&mut our_ms, 0.95)]);
            theirs.push([quantile(&mut their_ms.clone(), 0.5), quantile(&mut their_ms, 0.95)]);
        }
    }
    bare.close().await?;
    daemon.stop()?;
    database.remove().await?;
    let name = format!("search of {on} ({explained})");
    let mut cases = Vec::new();
    for (at, which) in [(0, "p50"), (1, "p95")] {
        let pick = |runs: &[[f64; 2]]| sample(runs.iter().filter_map(|run| run.get(at).copied()).collect());
        let (ours, theirs) = (pick(&ours)?, pick(&theirs)?);
        let case = Case::new(format!("{name}, {which}"), "ms", Better::Lower, &ours)
            .against_peer("bare SQL", &ours, &theirs);
        cases.push(if at == 1 { case.with_goal(TIMES_SQL) } else { case });
        if at == 1 && rows == 10_000 {
            let absolute = format!("{name}, {which} alone");
            cases.push(Case::new(absolute, "ms", Better::Lower, &ours).with_goal(P95_MS));
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let recall = found as f64 / (10 * QUESTIONS) as f64;
    cases.push(Case::single(format!("{name}, recall@10"), "share", Better::Higher, recall).with_goal(RECALL));
    Ok(cases)
}

fn daemon_on(options: &Options, database: &Database) -> Result<Daemon> {
    let settings = format!("[embed]\nprovider = \"hashing\"\n\n[store]\nurl = {:?}\n", database.url);
    Daemon::start(Folder::new(&options.scratch, &settings)?)
}

pub(super) async fn ask(daemon: &Daemon, tenant: &str, text: &str) -> Result<SearchReply> {
    let request = json!({ "tenant": tenant, "query": text, "mode": "vector", "explain": true });
    let reply = daemon.http().post(daemon.url("/api/v1/search")).json(&request).send().await?;
    Ok(reply.error_for_status()?.json().await?)
}

/// What somebody who knows the tables would write: ten chunks with their
/// texts, by the index if there is one.
async fn bare_sql(connection: &mut PgConnection, tenant: &str, vector: &[f32]) -> Result<()> {
    // Tenants get their keys in the order of their names' first rows, which
    // are the numbers in them.
    let statement = format!(
        "SELECT c.text, r.record_id, r.stream, r.\"offset\", n.distance FROM (
             SELECT chunk_key, vector <=> $1::real[]::vector(256) AS distance FROM thalweg.vectors_1
             WHERE tenant_key = {} AND tier = 2 AND chunk_key >= 0 ORDER BY distance LIMIT 10) n
         JOIN thalweg.chunks c USING (chunk_key) JOIN thalweg.records r USING (record_key)
         ORDER BY n.distance",
        tenant_key(connection, tenant).await?
    );
    let rows = sqlx::query(AssertSqlSafe(statement)).bind(vector.to_vec()).fetch_all(connection).await?;
    ensure!(rows.len() == 10, "the bare SQL found {} rows", rows.len());
    Ok(())
}

async fn tenant_key(connection: &mut PgConnection, tenant: &str) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT tenant_key FROM thalweg.tenants WHERE name = $1")
        .bind(tenant.to_owned())
        .fetch_one(connection)
        .await?)
}

/// How many of the answer's ten are among the ten nearest. Equally near ones
/// count, whichever was given.
async fn agreeing(
    connection: &mut PgConnection,
    reply: &SearchReply,
    tenant: &str,
    vector: &[f32],
) -> Result<usize> {
    let key = tenant_key(connection, tenant).await?;
    let tenth: f64 = sqlx::query(
        "SELECT vector <=> $1::real[]::vector(256) AS distance FROM thalweg.vectors_1
         WHERE tenant_key = $2 ORDER BY (vector <=> $1::real[]::vector(256)) + 0 LIMIT 1 OFFSET 9",
    )
    .bind(vector.to_vec())
    .bind(key)
    .fetch_one(connection)
    .await?
    .try_get(0)?;
    #[expect(clippy::cast_possible_truncation, reason = "as the score is rounded")]
    let least = 1.0 - tenth as f32 - 1e-5;
    Ok(reply.hits.iter().filter(|hit| hit.vector_score.is_some_and(|score| score >= least)).count())
}

/// Texts that are all different, each half of one and half of another of the
/// fixtures', and their vectors.
pub(super) struct Texts {
    rows: Rows,
    pub(super) embedder: Hashing,
}

impl Texts {
    pub(super) fn new(options: &Options) -> Result<Self> {
        Ok(Self { rows: Rows::new(options)?, embedder: Hashing::default() })
    }

    pub(super) fn text(&self, n: u64) -> String {
        let words = |n: u64| -> Vec<String> {
            let record = self.rows.record(n, 1);
            let text = record.chunks.first().map(|chunk| chunk.text.clone()).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect()
        };
        let (a, b) = (words(n), words(n.wrapping_mul(7_919) / 3 + 1));
        let half = |words: &[String]| words.iter().take(20).cloned().collect::<Vec<_>>().join(" ");
        format!("{} {} {n}", half(&a), half(&b))
    }

    /// Words of one text, and a few of another.
    pub(super) fn question(&self, n: u64) -> String {
        let at = n.wrapping_mul(104_729) % 9_973;
        let text = self.text(at);
        let words: Vec<&str> = text.split_whitespace().collect();
        // A text may be shorter than what is left out of the others.
        let from = if words.len() > 3 { 3 } else { 0 };
        words.into_iter().skip(from).take(12).collect::<Vec<_>>().join(" ")
    }

    pub(super) async fn fill(&self, store: &Store, count: u64, tenants: u64) -> Result<()> {
        let space_key = store.register_space(self.embedder.space(), 0).await?;
        let mut lease = store.acquire("bench", "bench", 0, 0).await?;
        let mut from = 0;
        while from < count {
            let to = (from + 1_000).min(count);
            let batch = self.batch(from, to, tenants, space_key).await?;
            store.commit(&mut lease, batch).await?;
            from = to;
        }
        store.maintain(crate::clock::system_ms()).await?;
        Ok(())
    }

    async fn batch(&self, from: u64, to: u64, tenants: u64, space_key: i64) -> Result<crate::store::Batch> {
        let texts: Vec<String> = (from..to).map(|offset| self.text(offset)).collect();
        let vectors = self.embedder.embed(texts.clone()).await?;
        let mut batch = self.rows.batch(from, to, tenants, space_key);
        for (record, (text, vector)) in batch.records.iter_mut().zip(texts.into_iter().zip(vectors)) {
            set_text(record, text, vector);
        }
        Ok(batch)
    }
}

fn set_text(record: &mut RecordRow, text: String, vector: Vec<f32>) {
    if let Some(chunk) = record.chunks.first_mut() {
        chunk.end = text.len();
        chunk.text = text;
        chunk.vector = Some(vector);
    }
}

/// Searches through a daemon while another process's worth of rows comes in.
pub(super) fn while_loading(options: &Options, settings: &Settings, runtime: &Runtime) -> Result<Vec<Case>> {
    let texts = Arc::new(Texts::new(options)?);
    runtime.block_on(async {
        let database = Database::new(&settings.url).await?;
        let store = database.store().await?;
        texts.fill(&store, 10_000, 10).await?;
        let daemon = Arc::new(daemon_on(options, &database)?);
        progress(format_args!("store: {SEARCHERS} searchers beside a load"));
        let (stop, errors) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let searchers: Vec<_> = (0..SEARCHERS as u64)
            .map(|n| tokio::spawn(searcher(n, daemon.clone(), texts.clone(), stop.clone(), errors.clone())))
            .collect();
        let loaded = load_beside(&texts, &store, &database).await;
        stop.store(true, Ordering::Relaxed);
        let mut took = Vec::new();
        for searcher in searchers {
            took.extend(searcher.await?);
        }
        let (rate, connections) = loaded?;
        store.close().await;
        if let Ok(daemon) = Arc::try_unwrap(daemon) {
            daemon.stop()?;
        }
        database.remove().await?;
        let name = format!("{SEARCHERS} searchers beside a load");
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        Ok(vec![
            Case::single(format!("{name}: errors"), "", Better::Lower, errors.load(Ordering::Relaxed) as f64)
                .with_goal(0.0),
            Case::single(format!("{name}: p95"), "ms", Better::Lower, quantile(&mut took, 0.95)),
            Case::single(format!("{name}: searches"), "", Better::Higher, took.len() as f64),
            Case::single(format!("{name}: rows loaded"), "rows/s", Better::Higher, rate),
            Case::single(format!("{name}: most connections"), "", Better::Lower, connections as f64)
                .with_goal(2.0 * f64::from(crate::store::Settings::default().connections)),
        ])
    })
}

async fn searcher(
    n: u64,
    daemon: Arc<Daemon>,
    texts: Arc<Texts>,
    stop: Arc<AtomicBool>,
    errors: Arc<AtomicUsize>,
) -> Vec<f64> {
    let (tenant, mut took) = (format!("tenant-{}", n % 10), Vec::new());
    let mut question = n;
    while !stop.load(Ordering::Relaxed) {
        question += 1;
        let started = Instant::now();
        match ask(&daemon, &tenant, &texts.question(question)).await {
            Ok(_) => took.push(started.elapsed().as_secs_f64() * 1e3),
            Err(error) => {
                errors.fetch_add(1, Ordering::Relaxed);
                progress(format_args!("a search failed: {error:#}"));
            }
        }
    }
    took
}

/// Loads for a while at full rate; rows a second, and the most connections to
/// the database seen.
async fn load_beside(texts: &Texts, store: &Store, database: &Database) -> Result<(f64, i64)> {
    let space_key = store.live_space().await?.context("no live space")?;
    let mut lease = store.acquire("bench", "beside", 0, 0).await?;
    let mut watching = database.connect().await?;
    let (started, mut from, mut most) = (Instant::now(), 0, 0);
    while started.elapsed() < Duration::from_secs(20) {
        store.commit(&mut lease, texts.batch(from, from + 256, 10, space_key).await?).await?;
        from += 256;
        let now: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
                .fetch_one(&mut watching)
                .await?;
        most = most.max(now - 1);
    }
    watching.close().await?;
    #[expect(clippy::cast_precision_loss, reason = "thousands of rows")]
    Ok((from as f64 / started.elapsed().as_secs_f64(), most))
}

//! Loading: ours, `psql` with bare `COPY`, and a Python loop, in turn.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;

use super::{
    Better, Case, Options, Sample, Settings, progress,
    rows::{COMMIT, DIMENSIONS, Rows, space},
    sample_of,
};
use crate::{
    bench::{
        postgres::{self, Database},
        usage,
    },
    store::{Analysed, Batch},
};

/// Tenants that the rows belong to.
const TENANTS: u64 = 100;
/// What bare `COPY` should not be faster than by more.
const OF_COPY: f64 = 0.85;
/// How many times faster than the Python loop it should be.
const TIMES_PYTHON: f64 = 5.0;

/// What one load took.
struct Load {
    rows_per_s: f64,
    rows_per_server_cpu_s: f64,
    client_cpu_s: f64,
}

pub(super) fn load(options: &Options, settings: &Settings, runtime: &Runtime) -> Result<Vec<Case>> {
    let rows = Rows::new(options)?;
    let dir = options.scratch_dir()?;
    let (mut ours, mut copy, mut python) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..=options.runs {
        progress(format_args!("store load of {} rows, run {run} of {}", settings.rows, options.runs));
        let (loaded, database) = runtime.block_on(ours_into_new(settings, &rows))?;
        if run == 0 {
            dump(&database, dir.path())?;
        }
        runtime.block_on(database.remove())?;
        let copied = copied(settings, runtime, dir.path())?;
        let looped = match &settings.python {
            Some(python) => Some(looped(settings, runtime, python, dir.path(), run == 0, &rows)?),
            None => None,
        };
        // The first fills caches and grows files.
        if run > 0 {
            ours.push(loaded);
            copy.push(copied);
            python.extend(looped);
        }
    }
    let rate = |loads: &[Load]| sample_of(loads, |load| load.rows_per_s);
    let name = format!("load of {} rows", settings.rows);
    let (our_rate, copy_rate) = (rate(&ours)?, rate(&copy)?);
    let mut cases = vec![
        Case::new(format!("{name}, commits of {COMMIT}"), "rows/s", Better::Higher, &our_rate)
            .under_ceiling("psql COPY BINARY", &our_rate, &copy_rate)
            .with_goal(OF_COPY),
    ];
    let (our_cpu, copy_cpu) =
        (sample_of(&ours, |l| l.rows_per_server_cpu_s)?, sample_of(&copy, |l| l.rows_per_server_cpu_s)?);
    cases.push(Case::new(format!("{name}: server"), "rows/CPU s", Better::Higher, &our_cpu).under_ceiling(
        "psql COPY BINARY",
        &our_cpu,
        &copy_cpu,
    ));
    let client = sample_of(&ours, |l| l.client_cpu_s)?;
    cases.push(Case::new(format!("{name}: client"), "CPU s", Better::Lower, &client));
    if !python.is_empty() {
        let python_rate = rate(&python)?;
        cases.push(
            Case::new(format!("{name}, beside Python"), "rows/s", Better::Higher, &our_rate)
                .against_peer("psycopg executemany", &our_rate, &python_rate)
                .with_goal(TIMES_PYTHON),
        );
    }
    Ok(cases)
}

/// Loads a new database as deriving does when the log is far ahead: one batch
/// is made ready while the one before it is written. Making the rows is not
/// counted.
async fn ours_into_new(settings: &Settings, rows: &Rows) -> Result<(Load, Database)> {
    let database = Database::new(&settings.url).await?;
    let store = database.store().await?;
    let space_key = store.register_space(&space(), 0).await?;
    let mut lease = store.acquire("bench", "bench", 0, 0).await?;
    let total = settings.rows as u64;
    let starts = (0..total).step_by(COMMIT);
    let batches: Vec<Batch> =
        starts.map(|from| rows.batch(from, (from + COMMIT as u64).min(total), TENANTS, space_key)).collect();
    let (server, started, before) = (postgres::cpu(), Instant::now(), usage::own().cpu);
    let mut ready: Option<Analysed> = None;
    for batch in batches {
        let next = Analysed::of(batch, Some(DIMENSIONS));
        let written = async {
            match &ready {
                Some(ready) => store.commit_analysed(&mut lease, ready).await,
                None => Ok(()),
            }
        };
        let ((), next) = tokio::try_join!(written, next)?;
        ready = Some(next);
    }
    if let Some(last) = ready {
        store.commit_analysed(&mut lease, &last).await?;
    }
    let (seconds, client) = (started.elapsed().as_secs_f64(), (usage::own().cpu - before).as_secs_f64());
    store.close().await;
    Ok((of(settings.rows, seconds, (postgres::cpu() - server).as_secs_f64(), client), database))
}

#[expect(clippy::cast_precision_loss, reason = "thousands of rows")]
fn of(rows: usize, seconds: f64, server_cpu_s: f64, client_cpu_s: f64) -> Load {
    let rows = rows as f64;
    Load { rows_per_s: rows / seconds, rows_per_server_cpu_s: rows / server_cpu_s.max(1e-3), client_cpu_s }
}

/// The tables that a load fills, in that order.
fn tables() -> [&'static str; 3] {
    ["records", "chunks", "vectors_1"]
}

/// Writes what was loaded as files that `COPY` reads.
fn dump(database: &Database, dir: &Path) -> Result<()> {
    let commands = tables()
        .map(|table| format!("\\copy thalweg.{table} to '{}' (format binary)", dir.join(table).display()));
    psql(&database.url, &commands)
}

/// The same rows into the same tables with the same indexes, by `COPY` alone.
fn copied(settings: &Settings, runtime: &Runtime, dir: &Path) -> Result<Load> {
    let database = runtime.block_on(async {
        let database = Database::new(&settings.url).await?;
        let store = database.store().await?;
        store.register_space(&space(), 0).await?;
        store.close().await;
        anyhow::Ok(database)
    })?;
    let commands = tables()
        .map(|table| format!("\\copy thalweg.{table} from '{}' (format binary)", dir.join(table).display()));
    let (server, started) = (postgres::cpu(), Instant::now());
    let (copied, client) = usage::cpu_seconds(|| psql(&database.url, &commands));
    copied?;
    let load =
        of(settings.rows, started.elapsed().as_secs_f64(), (postgres::cpu() - server).as_secs_f64(), client);
    runtime.block_on(database.remove())?;
    Ok(load)
}

fn psql(url: &str, commands: &[String]) -> Result<()> {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url]);
    for command in commands {
        psql.args(["-c", command]);
    }
    let status = psql
        .stdout(Stdio::null())
        .status()
        .context("psql cannot be run (Debian: apt-get install postgresql-client)")?;
    ensure!(status.success(), "psql ended with {status}");
    Ok(())
}

/// The same texts and vectors by the loop that people write.
fn looped(
    settings: &Settings,
    runtime: &Runtime,
    python: &Path,
    dir: &Path,
    write: bool,
    rows: &Rows,
) -> Result<Load> {
    let file = dir.join("python.jsonl");
    if write {
        let mut lines = String::new();
        for offset in 0..settings.rows as u64 {
            let record = rows.record(offset, TENANTS);
            let chunk = record.chunks.first().context("a record without a chunk")?;
            let row = serde_json::json!([record.tenant, chunk.text, chunk.vector]);
            lines.push_str(&row.to_string());
            lines.push('\n');
        }
        std::fs::write(&file, lines)?;
    }
    let database = runtime.block_on(Database::new(&settings.url))?;
    let (server, output) = (
        postgres::cpu(),
        Command::new(python)
            .args(["scripts/load-peer.py", &database.url])
            .arg(&file)
            .arg(DIMENSIONS.to_string())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("{} cannot be run", python.display()))?,
    );
    ensure!(output.status.success(), "scripts/load-peer.py ended with {}", output.status);
    let seconds: f64 = String::from_utf8_lossy(&output.stdout)
        .trim()
        .parse()
        .context("scripts/load-peer.py printed no seconds")?;
    let load = of(settings.rows, seconds, (postgres::cpu() - server).as_secs_f64(), 0.0);
    runtime.block_on(database.remove())?;
    Ok(load)
}

/// Streams rows through and looks at the memory on the way.
pub(super) fn memory(options: &Options, settings: &Settings, runtime: &Runtime) -> Result<Vec<Case>> {
    let rows = Rows::new(options)?;
    let total = settings.rows.max(1_000_000) as u64;
    let marks = [(total / 100, "1 %"), (total / 2, "50 %"), (total, "100 %")];
    let (mut cases, mut first) = (Vec::new(), None);
    let database = runtime.block_on(Database::new(&settings.url))?;
    let store = runtime.block_on(database.store())?;
    let space_key = runtime.block_on(store.register_space(&space(), 0))?;
    let mut lease = runtime.block_on(store.acquire("bench", "bench", 0, 0))?;
    let mut from = 0;
    for (mark, name) in marks {
        while from < mark {
            let to = (from + COMMIT as u64).min(mark);
            runtime.block_on(store.commit(&mut lease, rows.batch(from, to, TENANTS, space_key)))?;
            from = to;
        }
        progress(format_args!("store memory: {from} of {total} rows"));
        let mib = resident_mib()?;
        let case =
            Case::single(format!("resident memory at {name} of {total} rows"), "MiB", Better::Lower, mib);
        let start = *first.get_or_insert(mib);
        cases.push(if from == total { case.with_goal(start * 1.2) } else { case });
    }
    runtime.block_on(async {
        store.close().await;
        database.remove().await
    })?;
    Ok(cases)
}

/// What this process holds now.
#[expect(clippy::cast_precision_loss, reason = "megabytes")]
fn resident_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = status.split(' ').nth(1).and_then(|n| n.parse().ok()).context("/proc/self/statm")?;
    Ok(pages as f64 * 4.0 / 1024.0)
}

/// A sample that must not be empty.
pub(super) fn sample(values: Vec<f64>) -> Result<Sample> {
    Sample::new(values).context("nothing was measured")
}

//! What it costs to know who sends, and to count how much.
//!
//! The daemons only keep a log: deriving would hide the difference.

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use serde::Deserialize;

use super::{Bench, Client, number, texts::MANY};
use crate::bench::{
    Better, Case,
    daemon::{Daemon, Folder, program},
    sample::in_turn,
    sample_of,
};

const LOG_ONLY: &str = "[derive]\nenabled = false\n\n[embed]\nprovider = \"hashing\"\n";
/// Keys are asked for, and requests counted, with more allowed than come.
const WITH_KEYS: &str =
    "\n[auth]\nkeys = true\n\n[limits.endpoints]\n\"/api/v1/ingest\" = { unlimited = 1000000 }\n";

/// Requests of a run, and how many are under way at once.
const REQUESTS: usize = 500;
const REQUESTS_QUICK: usize = 10;
const AT_ONCE: usize = 4;
/// Runs for each that is asked for: they are short, and the difference is small.
const TIMES: usize = 4;
/// Of the processor time without.
const MOST: f64 = 1.05;

/// A daemon and a client that it lets in.
struct Side {
    daemon: Daemon,
    client: Client,
}

/// Measures a request of [`MANY`] records with a key beside one without.
pub fn identity(bench: &Bench<'_>) -> Result<Vec<Case>> {
    let open = bench.daemon(LOG_ONLY)?;
    let open = Side { client: Client::new(&open, None)?, daemon: open };
    let of_all = with_key(bench, &[])?;
    let of_one = with_key(bench, &["--tenant", "acme"])?;
    let all = [&open, &of_all, &of_one];
    let mut sides: Vec<Box<dyn FnMut() -> Result<f64> + '_>> = Vec::new();
    for side in all {
        sides.push(Box::new(|| cpu_ms(bench, side)));
    }
    let times = if bench.settings.quick { 1 } else { TIMES };
    let runs = in_turn("slo, identity", bench.options.runs * times, &mut sides)?;
    drop(sides);
    let [without, of_all_ms, of_one_ms] = runs.as_slice() else { anyhow::bail!("a side gave nothing") };
    for side in [open, of_all, of_one] {
        side.daemon.stop()?;
    }
    let without = sample_of(without, |ms| *ms)?;
    let case = |whose: &str, with: &[f64]| {
        let with = sample_of(with, |ms| *ms)?;
        let title = format!("identity, a request of {MANY} records, key of {whose}: processor time");
        Ok(Case::new(title, "ms", Better::Lower, &with)
            .against_peer("without keys and limits", &with, &without)
            .with_goal(MOST))
    };
    [("all tenants", of_all_ms), ("one tenant", of_one_ms)]
        .into_iter()
        .map(|(whose, with)| case(whose, with))
        .collect()
}

#[derive(Deserialize)]
struct Made {
    key: String,
}

/// A daemon that asks for keys, and a client with one, made with `more`.
fn with_key(bench: &Bench<'_>, more: &[&str]) -> Result<Side> {
    let folder = Folder::new(&bench.options.scratch, &format!("{LOG_ONLY}{WITH_KEYS}"))?;
    let create =
        ["keys", "create", "--name", "bench", "--role", "ingester", "--tier", "unlimited", "--json", "-p"];
    let made = program()?.args(create).arg(folder.file()).args(more).output()?;
    ensure!(made.status.success(), "no key was made: {}", String::from_utf8_lossy(&made.stderr));
    let made: Made = serde_json::from_slice(&made.stdout).context("the new key is not shown")?;
    let daemon = Daemon::start(folder)?;
    Ok(Side { client: Client::new(&daemon, Some(made.key))?, daemon })
}

/// Milliseconds of the daemon's processor time that a request takes.
fn cpu_ms(bench: &Bench<'_>, side: &Side) -> Result<f64> {
    let requests = if bench.settings.quick { REQUESTS_QUICK } else { REQUESTS };
    let before = side.daemon.process().usage()?.cpu;
    let sending = stream::iter(0..requests)
        .map(|_| side.client.done(bench.texts.ingest(None, MANY)))
        .buffer_unordered(AT_ONCE);
    bench.runtime.block_on(sending.try_collect::<()>())?;
    let after = side.daemon.process().rest()?.cpu;
    Ok(after.saturating_sub(before).as_secs_f64() * 1e3 / number(requests))
}

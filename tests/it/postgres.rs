//! A daemon on PostgreSQL (`scripts/services up postgres`), each test in a
//! database of its own; those that kill the server have a server of their own.

use std::{
    path::{Path, PathBuf},
    process::Command,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, Row, postgres::PgConnectOptions,
};

use crate::{
    daemon::{Site, TCP, eventually},
    ledger::{Ledger, ids_in_log, produce_all},
    tools,
};

const PRODUCERS: usize = 3;
/// New records of each producer between two crashes.
const EACH: u64 = 700;
/// Small segments, so that crashes also hit rotation, sealing and archiving.
const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n";

/// A database of one test, dropped with it.
pub struct Database {
    server: PgConnectOptions,
    name: String,
    pub url: String,
}

impl Database {
    pub async fn new(server: &str) -> Self {
        let server = PgConnectOptions::from_str(server).unwrap();
        let name = format!("thalweg_it_{:016x}", rand::random::<u64>());
        let mut connection = server.connect().await.unwrap();
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
        connection.close().await.unwrap();
        let url = plain_url(server.clone().database(&name));
        Self { server, name, url }
    }

    pub fn settings(&self) -> String {
        format!("[store]\nurl = {:?}\n", self.url)
    }

    pub async fn connect(&self) -> PgConnection {
        self.server.clone().database(&self.name).connect().await.unwrap()
    }

    /// How often each id is in the index.
    async fn ids(&self) -> std::collections::BTreeMap<String, i64> {
        let mut connection = self.connect().await;
        let rows = sqlx::query("SELECT record_id, count(*) FROM thalweg.records GROUP BY record_id")
            .fetch_all(&mut connection)
            .await
            .unwrap();
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    /// Holds the log and the index to every ack.
    async fn nothing_acked_is_lost(&self, site: &Site, ledgers: &[Ledger]) {
        let (log, index) = (ids_in_log(site), self.ids().await);
        let twice: Vec<_> = index.iter().filter(|(_, count)| **count != 1).collect();
        assert!(twice.is_empty(), "indexed more than once: {twice:?}");
        for ledger in ledgers {
            for (n, offset) in &ledger.acked {
                let id = ledger.id(*n);
                assert_eq!(log.get(offset), Some(&id), "acknowledged at offset {offset}");
                assert!(index.contains_key(&id), "{id} was acknowledged and is not indexed");
            }
        }
        let acked: usize = ledgers.iter().map(|ledger| ledger.acked.len()).sum();
        assert_eq!(index.len(), acked, "the index holds what was acknowledged and nothing else");
        let mut connection = self.connect().await;
        let (rows, vectors): (i64, i64) = sqlx::query_as(
            "SELECT (SELECT count(*) FROM thalweg.chunks), (SELECT count(*) FROM thalweg.vectors_1)",
        )
        .fetch_one(&mut connection)
        .await
        .unwrap();
        assert_eq!(rows, vectors, "every chunk has its vector");
    }

    pub async fn remove(self) {
        let mut connection = self.server.connect().await.unwrap();
        connection.execute(AssertSqlSafe(format!("DROP DATABASE {} WITH (FORCE)", self.name))).await.unwrap();
    }
}

/// The shared server; none, said loudly, where there is none.
pub fn server() -> Option<String> {
    let url = std::env::var("THALWEG_TEST_POSTGRES").ok().filter(|url| !url.is_empty());
    if url.is_none() {
        eprintln!("SKIPPED: there is no PostgreSQL server, so nothing was tested (scripts/services up)");
    }
    url
}

/// A server of one test's own, which may be killed.
pub struct OwnServer {
    name: &'static str,
    pub url: String,
}

impl OwnServer {
    pub fn start(name: &'static str) -> Self {
        services(name, &["up", "postgres"]);
        let env = std::fs::read_to_string(root().join("target/services").join(name).join("env")).unwrap();
        let url = env.lines().find_map(|line| line.strip_prefix("THALWEG_TEST_POSTGRES=")).unwrap();
        Self { name, url: url.trim_matches(['\'', '"']).to_owned() }
    }

    fn kill(&self) {
        services(self.name, &["kill", "postgres"]);
    }

    fn start_again(&self) {
        services(self.name, &["start", "postgres"]);
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        services(self.name, &["down", "--purge"]);
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn services(name: &str, arguments: &[&str]) {
    let output = Command::new(root().join("scripts/services"))
        .args(arguments)
        .env("THALWEG_SERVICES", name)
        .env_remove("THALWEG_SERVICES_PORT")
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "scripts/services {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Crashes of one run; `THALWEG_TEST_CRASHES=10` makes a soak of it.
fn crashes() -> u32 {
    std::env::var("THALWEG_TEST_CRASHES").map_or(3, |n| n.parse().unwrap())
}

/// How long a killed server is away; `THALWEG_TEST_AWAY_MS=60000` for a minute
/// each time.
fn away(random: &mut StdRng) -> Duration {
    let away = std::env::var("THALWEG_TEST_AWAY_MS").ok().map(|n| n.parse().unwrap());
    Duration::from_millis(away.unwrap_or_else(|| random.random_range(0..3_000)))
}

fn random() -> StdRng {
    let seed =
        std::env::var("THALWEG_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("THALWEG_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn ledgers() -> (Vec<Ledger>, Arc<AtomicU64>) {
    let sent = Arc::new(AtomicU64::new(0));
    let mut ledgers: Vec<Ledger> = (0..PRODUCERS).map(Ledger::new).collect();
    ledgers.iter_mut().for_each(|ledger| ledger.sent = sent.clone());
    (ledgers, sent)
}

async fn until(sent: &AtomicU64, fatal: u64) {
    while sent.load(Ordering::Relaxed) < fatal {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_killed_under_load_loses_nothing_and_stores_nothing_twice() {
    let Some(server) = server() else { return };
    let mut random = random();
    let database = Database::new(&server).await;
    let site = Site::new(&format!("{TCP}{SMALL}{}", database.settings()));
    let (mut ledgers, sent) = ledgers();
    let mut broken = 0;
    for _ in 0..crashes() {
        let daemon = site.start();
        let address = daemon.tcp().to_owned();
        let fatal = sent.load(Ordering::Relaxed) + random.random_range(1..PRODUCERS as u64 * EACH * 9 / 10);
        let killing = async {
            until(&sent, fatal).await;
            daemon.kill();
        };
        tokio::join!(killing, produce_all(&mut ledgers, &address, EACH));
        broken += ledgers.iter().filter(|ledger| !ledger.unanswered.is_empty()).count();
    }
    assert!(broken > 0, "no crash hit a producer at work; the test proves nothing");
    let daemon = site.start();
    produce_all(&mut ledgers, daemon.tcp(), 0).await;
    let acked: usize = ledgers.iter().map(|ledger| ledger.acked.len()).sum();
    assert_eq!(daemon.derived(acked as u64).await["derived"]["lost"], 0);
    daemon.stop_drained();
    database.nothing_acked_is_lost(&site, &ledgers).await;
    database.remove().await;
}

/// Records go on being acknowledged while the database is gone: they are in
/// the log. Searches say so, and everything is there once it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_killed_and_away_delays_and_costs_nothing_else() {
    if server().is_none() {
        return;
    }
    let (mut random, server) = (random(), OwnServer::start("it-postgres"));
    let database = Database::new(&server.url).await;
    let site = Site::new(&format!("{TCP}{SMALL}{}", database.settings()));
    let (mut ledgers, sent) = ledgers();
    let daemon = site.start();
    for _ in 0..crashes() {
        let fatal = sent.load(Ordering::Relaxed) + random.random_range(1..PRODUCERS as u64 * EACH * 9 / 10);
        let killing = async {
            until(&sent, fatal).await;
            tokio::task::block_in_place(|| server.kill());
        };
        let address = daemon.tcp().to_owned();
        tokio::join!(killing, produce_all(&mut ledgers, &address, EACH));
        assert!(
            ledgers.iter().all(|ledger| ledger.unanswered.is_empty()),
            "what is durable in the log is acknowledged"
        );
        tokio::time::sleep(away(&mut random)).await;
        let request = json!({"tenant": "default", "query": "line1"}).to_string();
        let (status, answer) = daemon.post("/api/v1/search", "application/json", request).await;
        assert_eq!(status, 503, "{answer}");
        tokio::task::block_in_place(|| server.start_again());
    }
    let acked: usize = ledgers.iter().map(|ledger| ledger.acked.len()).sum();
    assert_eq!(acked as u64, u64::from(crashes()) * PRODUCERS as u64 * EACH);
    assert_eq!(daemon.derived(acked as u64).await["derived"]["lost"], 0);
    eventually("the daemon is well again", async || daemon.get("/health/ready").await.0 == 200).await;
    daemon.stop_drained();
    database.nothing_acked_is_lost(&site, &ledgers).await;
    database.remove().await;
}

/// By mistake a second daemon is started on the stream: from another data
/// directory it is refused; from a copy of the first one's, it takes over, and
/// the first one, paused and resumed, cannot write any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_daemons_on_one_stream_only_one_writes() {
    let Some(server) = server() else { return };
    let database = Database::new(&server).await;
    let sections = format!("{TCP}{SMALL}{}", database.settings());
    let site = Site::new(&sections);
    let (mut ledgers, _) = ledgers();
    let mut first = site.start();
    produce_all(&mut ledgers, first.tcp(), 50).await;
    first.derived(150).await;

    let stranger = Site::new(&sections).run(&[], b"");
    assert_eq!(stranger.code, Some(1), "{}", stranger.log);
    assert!(stranger.log.contains("belongs to another data directory"), "{}", stranger.log);
    assert!(stranger.log.contains("--take-over"), "{}", stranger.log);

    first.signal(libc::SIGSTOP);
    let copy = Site::new(&sections);
    let copied = Command::new("cp").arg("-a").arg(site.path("data")).arg(copy.path("data")).status().unwrap();
    assert!(copied.success());
    let second = copy.start();
    let (mut others, _) = (vec![Ledger::new(7)], ());
    produce_all(&mut others, second.tcp(), 40).await;
    second.derived(190).await;
    first.signal(libc::SIGCONT);
    // What it takes is in its own log, and its store is not this one any more.
    let address = first.tcp().to_owned();
    produce_all(&mut ledgers, &address, 10).await;
    let exit = first.wait(Duration::from_secs(30));
    assert_eq!(exit.code, Some(1), "{}", exit.log);
    assert!(exit.log.contains("another writer has taken over"), "{}", exit.log);
    second.stop_drained();
    assert_eq!(database.ids().await.len(), 190, "only the second one's came after the first 150");
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn people_who_come_with_sql_find_every_chunk_with_its_vector() {
    let Some(server) = server() else { return };
    let database = Database::new(&server).await;
    let site = Site::new(&format!("{TCP}{}", database.settings()));
    let daemon = site.start();
    let (mut ledgers, _) = ledgers();
    produce_all(&mut ledgers, daemon.tcp(), 20).await;
    daemon.derived(60).await;
    daemon.stop_drained();
    let program = r#"
import sys, psycopg
from pgvector.psycopg import register_vector
with psycopg.connect(sys.argv[1]) as connection:
    register_vector(connection)
    rows = connection.execute(
        "SELECT tenant, record_id, text, embedding, model FROM thalweg.doc_embeddings ORDER BY record_id").fetchall()
    query = rows[0][3]
    near = connection.execute(
        "SELECT record_id FROM thalweg.doc_embeddings WHERE tenant = %s ORDER BY embedding <=> %s LIMIT 1",
        (rows[0][0], query)).fetchone()
    print(len(rows), rows[0][1], near[0], rows[0][3].dimensions(), rows[0][4])
"#;
    let output =
        Command::new(tools::python_of_pgvector()).args(["-c", program, &database.url]).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let words: Vec<&str> = printed.split_whitespace().collect();
    assert_eq!((words[0], words[3]), ("60", "256"), "{printed}");
    assert_eq!(words[1], words[2], "the nearest to a vector is its own chunk");
    database.remove().await;
}

/// A URL without the parameters that only this driver knows.
fn plain_url(options: PgConnectOptions) -> String {
    let mut url = options.to_url_lossy();
    url.set_query(None);
    url.to_string()
}

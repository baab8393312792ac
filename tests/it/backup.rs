//! `thalweg backup` and `thalweg restore`: what comes back is what was there.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, postgres::PgConnectOptions};

use crate::{
    cli::{fails, json_of, pipeline, thalweg},
    daemon::{Daemon, Site, TCP},
    damage::{lost, thirty_records},
    postgres::{Database, OwnServer, server},
    producer::Producer,
};

const RECORDS: u64 = 120;
const TENANTS: [&str; 2] = ["a", "b"];

fn backup(site: &Site, to: &Path, more: &[&str]) -> Value {
    json_of(0, &[&["backup", "-p", &pipeline(site), "--to", to.to_str().unwrap()], more].concat())
}

fn restore(site: &Site, from: &Path, more: &[&str]) -> Value {
    let restored =
        json_of(0, &[&["restore", "-p", &pipeline(site), "--from", from.to_str().unwrap()], more].concat());
    assert_eq!(restored["proved"], true, "{restored}");
    restored
}

fn rows(report: &Value, table: &str) -> u64 {
    let tables = report["tables"].as_array().unwrap();
    tables.iter().find(|one| one["table"] == table).unwrap()["rows"].as_u64().unwrap()
}

/// Sends records of two tenants, and calls `meanwhile` when half are there.
async fn load(daemon: &Daemon, meanwhile: impl FnOnce()) {
    let address = daemon.tcp().to_owned();
    let producing = tokio::spawn(async move {
        let mut producer = Producer::tcp(&address).await;
        for n in 0..RECORDS {
            let tenant = TENANTS[n as usize % 2];
            let text = format!("record {n} of the river, \u{0} and its delta");
            producer.put(&json!({"id": format!("id-{n}"), "ts": n, "tenant": tenant, "text": text})).await;
        }
    });
    daemon.derived(RECORDS / 2).await;
    tokio::task::block_in_place(meanwhile);
    producing.await.unwrap();
    daemon.derived(RECORDS).await;
}

async fn answers(daemon: &Daemon) -> Vec<Value> {
    let mut answers = Vec::new();
    for (tenant, mode) in [("a", "union"), ("b", "union"), ("a", "keyword"), ("b", "vector")] {
        let request = json!({"tenant": tenant, "query": "record 7 of the delta", "limit": 40, "mode": mode});
        let hits = daemon.search(request).await;
        assert!(hits.len() >= 10, "{tenant} {mode}");
        answers.extend(hits);
    }
    answers
}

fn audited(site: &Site) {
    json_of(0, &["audit", "-p", &pipeline(site)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_made_under_load_is_restored_proved_and_answers_the_same() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let (early, late) = (site.path("backups/early"), site.path("backups/late"));
    let (mut reached, mut given) = (0, 0);
    load(&daemon, || {
        let manifest = backup(&site, &early, &[]);
        reached = manifest["next_offset"].as_u64().unwrap();
        assert_eq!(rows(&manifest, "records"), reached);
        given = manifest["log"]["end"].as_u64().unwrap();
        assert!(given >= reached, "{manifest}");
    })
    .await;
    let before = answers(&daemon).await;
    backup(&site, &late, &[]);
    daemon.stop_drained();

    let then = Site::new(TCP);
    assert_eq!(restore(&then, &early, &[])["next_offset"], reached);
    audited(&then);
    let daemon = then.start();
    let offset = Producer::tcp(daemon.tcp()).await.put(&json!({"text": "after the restore"})).await;
    assert_eq!(offset, given, "what was in flight is lost, and its offsets are not given again");
    assert_eq!(daemon.derived(given + 1).await["derived"]["lost"], given - reached);
    daemon.stop_drained();
    audited(&then);

    let now = Site::new(TCP);
    let told = restore(&now, &late, &[]);
    assert_eq!((&told["next_offset"], &told["objects"]), (&json!(RECORDS), &json!(0)));
    let daemon = now.start();
    assert_eq!(answers(&daemon).await, before);
    // Its log is a new one, and goes on where the old one was.
    let offset = Producer::tcp(daemon.tcp()).await.put(&json!({"text": "after the restore"})).await;
    assert_eq!(offset, RECORDS);
    daemon.derived(RECORDS + 1).await;
    daemon.stop_drained();
    audited(&now);
}

#[tokio::test]
async fn sealed_segments_come_back_out_of_the_backup() {
    let site = thirty_records().await;
    let to = site.path("backup");
    let manifest = backup(&site, &to, &["--objects"]);
    assert_eq!((&manifest["objects"], &manifest["next_offset"]), (&json!(true), &json!(30)));

    let new = Site::new(TCP);
    let told = restore(&new, &to, &[]);
    assert_eq!(told["objects"], manifest["artifacts"].as_array().unwrap().len(), "{told}");
    json_of(0, &["artifacts", "verify", "-p", &pipeline(&new)]);
    json_of(0, &["artifacts", "check", "-p", &pipeline(&new)]);
    // The frames of the last ten were of the log alone; their rows are there.
    let repaired = json_of(3, &["segments", "repair", "-p", &pipeline(&new)]);
    assert_eq!(repaired["restored"].as_array().unwrap().len(), 2, "{repaired}");
    assert_eq!(lost(&repaired), [(20, 30)]);
    let daemon = new.start();
    let offset = Producer::tcp(daemon.tcp()).await.put(&json!({"text": "after the restore"})).await;
    assert_eq!(offset, 30, "no offset is given twice");
    daemon.derived(31).await;
    daemon.stop_drained();
    audited(&new);
    let frames = |site: &Site| thalweg(&["segments", "cat", "10", "-p", &pipeline(site)]).stdout;
    assert!(!frames(&new).is_empty() && frames(&new) == frames(&site));
}

#[tokio::test]
async fn segments_sealed_after_the_backup_come_back_out_of_the_object_store() {
    let site = thirty_records().await;
    let to = site.path("backup");
    backup(&site, &to, &[]);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    for n in 30..36 {
        assert_eq!(producer.put(&json!({"text": format!("record{n} of the survey")})).await, n);
    }
    daemon.derived(36).await;
    drop(producer);
    daemon.stop_drained();
    json_of(0, &["segments", "seal", "-p", &pipeline(&site)]);

    // The machine is gone: what is left is the backup and the object store.
    let new = Site::new(TCP);
    fs::create_dir_all(new.path("data")).unwrap();
    let copied = Command::new("cp").arg("-a").args([site.artifacts(), new.path("data")]).status().unwrap();
    assert!(copied.success());
    assert_eq!(restore(&new, &to, &[])["next_offset"], 30);
    let repaired = json_of(0, &["segments", "repair", "-p", &pipeline(&new)]);
    assert_eq!(repaired["restored"].as_array().unwrap().len(), 3, "{repaired}");
    let daemon = new.start();
    daemon.derived(36).await;
    assert_eq!(daemon.find("record33").await.first(), Some(&33));
    daemon.stop_drained();
    audited(&new);
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files = Vec::new();
    for path in entries {
        if path.is_dir() { files.extend(self::files(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test]
async fn a_flipped_byte_is_found_before_anything_is_touched() {
    let site = thirty_records().await;
    let to = site.path("backup");
    backup(&site, &to, &["--objects"]);
    assert!(files(&to).len() >= 5, "{:?}", files(&to));
    let new = Site::new(TCP);
    let from = to.to_str().unwrap();
    for file in files(&to) {
        let whole = fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 3] ^= 4;
        fs::write(&file, flipped).unwrap();
        fails(1, &["restore", "-p", &pipeline(&new), "--from", from], "is damaged");
        fails(1, &["restore", "-p", &pipeline(&new), "--from", from, "--verify-only"], "is damaged");
        assert!(!new.path("data").exists(), "{}", file.display());
        fs::write(&file, whole).unwrap();
    }
    let verified = restore(&new, &to, &["--verify-only"]);
    assert_eq!(verified["restored"], false);
    assert!(!new.path("data").exists());
}

#[tokio::test]
async fn nothing_is_written_over_and_nothing_is_left_by_halves() {
    let site = thirty_records().await;
    let to = site.path("backup");
    backup(&site, &to, &[]);
    let (file, from) = (pipeline(&site), to.to_str().unwrap());
    fails(1, &["backup", "-p", &file, "--to", from], "is there already");
    let before = fs::read(site.database()).unwrap();
    fails(1, &["restore", "-p", &file, "--from", from], "only where nothing is");
    assert!(fs::read(site.database()).unwrap() == before);

    fs::remove_dir_all(site.artifacts().join("segment")).unwrap();
    let broken = site.path("broken");
    fails(1, &["backup", "-p", &file, "--to", broken.to_str().unwrap(), "--objects"], "segment");
    assert!(!broken.exists() && !site.path("broken.partial").exists());

    let other = Site::new(TCP);
    let text = fs::read_to_string(other.pipeline()).unwrap().replace("\"main\"", "\"other\"");
    fs::write(other.pipeline(), text).unwrap();
    fails(1, &["restore", "-p", &pipeline(&other), "--from", from], "stream");
}

/// The folder of the servers' own programs; none, said loudly, where it is not
/// told.
fn pg_bin() -> Option<String> {
    let bin = std::env::var("THALWEG_TEST_PG_BIN").ok().filter(|bin| !bin.is_empty());
    if bin.is_none() {
        eprintln!("SKIPPED: THALWEG_TEST_PG_BIN is not set (scripts/services up)");
    }
    bin
}

/// To another server, which has never heard of the role that searches run as.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_comes_back_with_its_answers_and_its_walls() {
    let (Some(server), Some(bin)) = (server(), pg_bin()) else { return };
    let another = tokio::task::block_in_place(|| OwnServer::start("it-restore"));
    let (old, new) = (Database::new(&server).await, Database::new(&another.url).await);
    let site = Site::new(&format!("{TCP}{}", old.settings()));
    let daemon = site.start();
    let programs = ["--pg-bin", &bin];
    let (early, late) = (site.path("early"), site.path("late"));
    load(&daemon, || {
        let manifest = backup(&site, &early, &programs);
        assert_eq!(rows(&manifest, "records"), manifest["next_offset"].as_u64().unwrap(), "of one moment");
    })
    .await;
    let before = answers(&daemon).await;
    backup(&site, &late, &programs);
    daemon.stop_drained();

    let after = Site::new(&format!("{TCP}{}", new.settings()));
    assert_eq!(restore(&after, &early, &["--verify-only", "--pg-bin", &bin])["tables"], json!([]));
    let told = restore(&after, &late, &programs);
    assert!(told["tables"].as_array().unwrap().iter().any(|table| table["table"] == "vectors_1"), "{told}");
    let from = late.to_str().unwrap();
    fails(
        1,
        &["restore", "-p", &pipeline(&after), "--from", from, "--pg-bin", &bin],
        "only where nothing is",
    );

    let stranger = after.run(&[], b"");
    assert!(stranger.log.contains("--take-over"), "{}", stranger.log);
    let daemon = after.start_with(&["--take-over"]);
    assert_eq!(answers(&daemon).await, before);
    let offset = Producer::tcp(daemon.tcp()).await.put(&json!({"tenant": "a", "text": "later"})).await;
    assert_eq!(offset, RECORDS);
    daemon.derived(RECORDS + 1).await;
    daemon.stop_drained();
    audited(&after);
    walls_stand(&new).await;
    old.remove().await;
    new.remove().await;
}

/// The role that searches run as sees nothing without a tenant, and his alone
/// with one.
async fn walls_stand(database: &Database) {
    let mut owner = database.connect().await;
    let role = format!("reader_{:016x}", rand::random::<u64>());
    owner.execute(AssertSqlSafe(format!("CREATE ROLE {role} LOGIN IN ROLE thalweg_reader"))).await.unwrap();
    let options: PgConnectOptions = database.url.parse().unwrap();
    let mut reader = options.username(&role).connect().await.unwrap();
    for table in ["records", "chunks", "vectors_1", "tenants"] {
        let count = format!("SELECT count(*) FROM thalweg.{table}");
        for (tenant, most) in [("''", 0), ("'1'", RECORDS / 2 + 1)] {
            let set = format!("SELECT set_config('thalweg.tenant', {tenant}, false)");
            reader.execute(AssertSqlSafe(set)).await.unwrap();
            let seen: i64 =
                sqlx::query_scalar(AssertSqlSafe(count.clone())).fetch_one(&mut reader).await.unwrap();
            assert!(seen.cast_unsigned() <= most && (most == 0 || seen > 0), "{table}: {seen} for {tenant}");
        }
    }
    let refused = reader.execute("SELECT payload FROM thalweg.dead_letters").await.unwrap_err();
    assert!(refused.to_string().contains("permission denied"), "{refused}");
    drop(reader);
    owner.execute(AssertSqlSafe(format!("DROP ROLE {role}"))).await.unwrap();
}

#[tokio::test]
async fn what_pg_dump_lacks_is_said_with_what_to_install() {
    let Some(server) = server() else { return };
    let database = Database::new(&server).await;
    let site = Site::new(&format!("{TCP}{}", database.settings()));
    site.start().stop_drained();
    let (bin, to) = (site.path("bin"), site.path("backup"));
    fs::create_dir(&bin).unwrap();
    let file = pipeline(&site);
    let arguments = ["backup", "-p", &file, "--to", to.to_str().unwrap(), "--pg-bin", bin.to_str().unwrap()];
    fails(1, &arguments, "install the client programs");
    let program = bin.join("pg_dump");
    fs::write(&program, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fails(1, &arguments, "too old");
    assert!(!to.exists() && !site.path("backup.partial").exists());
    database.remove().await;
}

//! Who is erased is found nowhere in what is left, and nobody else loses
//! anything.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use thalweg::{segment::Reader, store::Subject};

use crate::{
    daemon::{Daemon, SOON, Site, TCP, eventually},
    producer::{Producer, frame},
};

const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n\
    [segment]\nblock_bytes = \"64KiB\"\n";

/// The tenant that is erased, and a word that only its texts have.
const GONE: &str = "tenant-that-goes";
const WORD: &str = "quetzalcoatlus";
const STAYS: &str = "tenant-that-stays";

/// Runs `thalweg` on the site's pipeline: exit code and JSON.
fn thalweg(site: &Site, args: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.args(args).args(["--json", "-p"]).arg(site.pipeline()).stdin(Stdio::null());
    let output = command.env_remove("THALWEG_LOG").output().unwrap();
    let shown = serde_json::from_slice(&output.stdout);
    (output.status.code(), shown.unwrap_or_else(|_| String::from_utf8_lossy(&output.stderr).into()))
}

fn fine(site: &Site, args: &[&str]) -> Value {
    match thalweg(site, args) {
        (Some(0), shown) => shown,
        other => panic!("{args:?}: {other:?}"),
    }
}

/// SplitMix64.
fn noise(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z ^ (z >> 31)
}

/// A text of about 2 KB made of a few hundred sentences, as dictionaries like
/// them, with `more` in each of them.
fn text(n: u64, more: &str) -> String {
    (0..48).map(|k| format!("{:016x} {:016x} {more} ", noise(noise(n * 30 + k) % 300), noise(k))).collect()
}

fn record(n: u64, tenant: &str) -> Vec<u8> {
    let more = if tenant == GONE { WORD } else { "megalodon" };
    let session = format!("session-{}", n % 3);
    frame(&json!({"id": format!("id-{n}"), "ts": n, "tenant": tenant, "session": session, "tier": "doc",
                  "text": format!("{n} {}", text(n, more))}))
}

fn records(range: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    range.map(|n| record(n, if n % 4 == 1 { GONE } else { STAYS })).collect()
}

async fn sealed(site: &Site, daemon: &Daemon, segments: u64) {
    eventually("segments are sealed", async || {
        let sealed = daemon.status().await["segments"]["sealed"].as_u64().unwrap();
        sealed >= segments && site.log_files(".log").len() == 1
    })
    .await;
}

/// Every file below `folder`.
fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Files that hold one of `needles`, as they are or unpacked.
fn holding(site: &Site, needles: &[&str]) -> Vec<String> {
    let data = site.path("data");
    let has =
        |bytes: &[u8]| needles.iter().any(|needle| memchr::memmem::find(bytes, needle.as_bytes()).is_some());
    let mut found = Vec::new();
    for path in files(&data) {
        let bytes = fs::read(&path).unwrap();
        let name = path.strip_prefix(&data).unwrap().display().to_string();
        if has(&bytes) {
            found.push(name.clone());
        }
        if name.ends_with(".seg.zst") {
            // An object lies apart from its dictionary.
            let copy = site.log_folder().join("looked-at.seg.zst");
            fs::copy(&path, &copy).unwrap();
            let reader = Reader::open(&copy).unwrap();
            if (0..reader.blocks().len()).any(|block| has(&reader.read_block(block).unwrap())) {
                found.push(format!("{name}, unpacked"));
            }
            fs::remove_file(&copy).unwrap();
        }
    }
    found
}

/// Records of a tenant that are stored; a search must find some if there are.
async fn count(site: &Site, daemon: &Daemon, tenant: &str) -> usize {
    let store = site.store().await;
    let subject = Subject { tenant: tenant.into(), session: None };
    let stored = store.holdings(&subject, "main", u64::MAX >> 1, 100_000).await.unwrap().len();
    store.close().await;
    let found = daemon.search(json!({"tenant": tenant, "query": "megalodon quetzalcoatlus"})).await;
    assert_eq!(found.is_empty(), stored == 0, "{tenant}: {stored} stored, found {found:?}");
    stored
}

/// What must hold of any store: files, objects, rows and counters agree.
fn sound(site: &Site) {
    fine(site, &["segments", "verify"]);
    fine(site, &["artifacts", "verify"]);
    fine(site, &["replay"]);
    fine(site, &["audit"]);
}

#[tokio::test]
async fn an_erased_tenant_is_in_no_byte_that_is_left_and_nobody_else_loses_a_record() {
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.put_all(&records(0..1_700)).await;
    sealed(&site, &daemon, 2).await;
    let sizes = ["--sizes", "16KiB,64KiB"];
    let trial = fine(&site, &[&["dictionaries", "train"], &sizes[..]].concat());
    assert_eq!(trial["verdict"], "adopted", "{trial}");
    let dictionary = trial["best"]["digest"].as_str().unwrap().to_owned();
    producer.put_all(&records(1_700..2_600)).await;
    sealed(&site, &daemon, 4).await;
    // A dead letter, a duplicate, and one that no filter lets pass.
    producer.send(&frame(&json!({"tenant": GONE, "note": WORD}))).await;
    assert_eq!(producer.replies.expect().await.kind, "error");
    producer.put_all(&[record(1, GONE), record(0, STAYS)]).await;
    let before = daemon.derived(2_602).await;
    let (gone, stays) = (count(&site, &daemon, GONE).await, count(&site, &daemon, STAYS).await);
    assert_eq!((gone, stays), (650, 1_950));
    assert!(!holding(&site, &[WORD]).is_empty() && !holding(&site, &[GONE]).is_empty());
    let letters = |state: &Value| state.as_array().unwrap().len();
    let dead = letters(&fine(&site, &["dead-letters", "list"]));

    let plan = fine(&site, &["erase", "--tenant", GONE, "--dry-run"]);
    assert_eq!(plan["records"], 650, "{plan}");
    assert_eq!(count(&site, &daemon, GONE).await, 650, "a dry run erases nothing");

    let done = fine(&site, &["erase", "--tenant", GONE]);
    let report = &done[0]["streams"][0]["report"];
    assert_eq!((&report["frames"], &report["records"]), (&json!(651), &json!(650)), "{report}");
    assert_eq!(report["dictionaries"], json!([dictionary]), "{report}");
    assert!(report["objects"].as_array().unwrap().len() >= 5, "{report}");
    assert_eq!(letters(&fine(&site, &["dead-letters", "list"])), dead - 1);

    let after = daemon.derived(2_602).await;
    assert_eq!(after["derived"]["rejected"], json!(before["derived"]["rejected"].as_u64().unwrap() + 651));
    assert_eq!((count(&site, &daemon, GONE).await, count(&site, &daemon, STAYS).await), (0, stays));
    assert_eq!(holding(&site, &[GONE, WORD]), [""; 0]);
    let left = files(&site.path("data"));
    assert!(!left.iter().any(|path| path.display().to_string().contains(&dictionary)), "{left:?}");
    sound(&site);

    // Whoever comes back is new.
    producer.put_all(&records(2_600..2_700)).await;
    daemon.derived(2_702).await;
    assert_eq!((count(&site, &daemon, GONE).await, count(&site, &daemon, STAYS).await), (25, stays + 75));
    daemon.stop_drained();
    let daemon = site.start();
    assert_eq!((count(&site, &daemon, GONE).await, count(&site, &daemon, STAYS).await), (25, stays + 75));
    daemon.stop_drained();
    sound(&site);
}

#[tokio::test]
async fn a_session_is_erased_without_a_daemon_and_its_duplicates_can_be_had_back() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let said = |session: &str, text: &str| {
        frame(
            &json!({"session": session, "tier": "doc", "text": format!("the river {text} ran on and on to the sea")}),
        )
    };
    // The document is the default tenant's, and said twice: kept once.
    producer.put_all(&[said("a", "otter"), said("b", "otter"), said("b", "heron"), said("a", "swift")]).await;
    daemon.derived(4).await;
    assert_eq!(daemon.find("river").await.len(), 3);
    daemon.stop_drained();

    let done = fine(&site, &["erase", "--tenant", "default", "--session", "a"]);
    let report = &done[0]["streams"][0]["report"];
    assert_eq!((&report["frames"], &report["records"]), (&json!(2), &json!(2)), "{report}");
    assert_eq!(holding(&site, &["swift"]), [""; 0]);
    // Said in the other session too, which the log still has.
    fine(&site, &["replay", "--restore"]);
    let daemon = site.start();
    let mut found = daemon.find("river").await;
    found.sort_unstable();
    assert_eq!(found, [1, 2]);
    daemon.stop_drained();
    sound(&site);
    let listed = fine(&site, &["erase", "--list"]);
    assert!(listed[0]["done_ms"].is_i64(), "{listed}");
}

#[tokio::test]
async fn an_erasure_that_is_killed_again_and_again_ends_as_one_that_was_not() {
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.put_all(&records(0..1_700)).await;
    sealed(&site, &daemon, 2).await;
    daemon.derived(1_700).await;
    daemon.stop_drained();
    let seed = std::env::var("THALWEG_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    println!("THALWEG_TEST_SEED={seed}");
    for kill in 0..6 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        let what: &[&str] = if kill == 0 { &["--tenant", GONE] } else { &["--resume"] };
        command.arg("erase").args(what).arg("-p").arg(site.pipeline());
        let mut erasing =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100 + noise(seed + kill) % 900));
        let _ = erasing.kill();
        erasing.wait().unwrap();
    }
    let asked = fine(&site, &["erase", "--list"]);
    if asked.as_array().unwrap().is_empty() {
        fine(&site, &["erase", "--tenant", GONE]);
    }
    // The daemon goes on with it by itself.
    let daemon = site.start();
    let started = std::time::Instant::now();
    while fine(&site, &["erase", "--list"])[0]["done_ms"].is_null() {
        assert!(started.elapsed() < SOON);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    daemon.derived(1_700).await;
    assert_eq!((count(&site, &daemon, GONE).await, count(&site, &daemon, STAYS).await), (0, 1_275));
    daemon.stop_drained();
    assert_eq!(holding(&site, &[GONE, WORD]), [""; 0]);
    sound(&site);
}

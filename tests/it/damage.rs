//! Damage of every kind: the daemon starts, works on, and says what it found,
//! as often as it is started, until it is repaired.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use thalweg::segment::Reader;

use crate::{
    cli::{json_of, pipeline, thalweg},
    daemon::{Daemon, HTTP, Site, TCP, eventually},
    producer::Producer,
};

/// Blocks of three records, and segments that cost little to make.
const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n";
const BLOCKS: &str = "[segment]\nblock_bytes = \"1KiB\"\n";

fn sections(segment_age: &str) -> String {
    format!("{TCP}{HTTP}{SMALL}segment_age = \"{segment_age}\"\n{BLOCKS}")
}

/// The text of record `n`, which the word `record{n}` finds.
fn text(n: u64) -> String {
    let words: String = (0..40).map(|word| format!(" w{}", (n * 7_919 + word * 104_729) % 65_536)).collect();
    format!("record{n} of the survey{words}")
}

async fn put(daemon: &Daemon, offsets: std::ops::Range<u64>) {
    let mut producer = Producer::tcp(daemon.tcp()).await;
    for n in offsets {
        assert_eq!(producer.put(&json!({"text": text(n)})).await, n);
    }
}

/// What a daemon left that took thirty records one by one: sealed segments of
/// the offsets 0 to 10 and 10 to 20, and 20 to 30 in the active one.
pub async fn thirty_records() -> Site {
    let site = Site::new(&sections("10m"));
    for from in [0, 10, 20] {
        let daemon = site.start();
        put(&daemon, from..from + 10).await;
        daemon.derived(from + 10).await;
        daemon.stop_drained();
        if from < 20 {
            json_of(0, &["segments", "seal", "-p", &pipeline(&site)]);
        }
    }
    site
}

pub fn sealed(site: &Site, base: u64) -> PathBuf {
    site.log_folder().join(format!("{base:020}.seg.zst"))
}

pub fn raw(site: &Site, base: u64) -> PathBuf {
    site.log_folder().join(format!("{base:020}.log"))
}

pub fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// Ruins the batch of the `nth` record of a raw segment.
pub fn ruin_batch(path: &Path, nth: usize) {
    let bytes = fs::read(path).unwrap();
    let mut batches = bytes.windows(4).enumerate().filter(|(_, window)| window == b"TwB1");
    let (at, _) = batches.nth(nth).unwrap();
    overwrite(path, at as u64 + 60, &[0xee; 8]);
}

/// Ruins a block of a sealed segment; the offsets it holds.
pub fn ruin_block(path: &Path, block: usize) -> (u64, u64) {
    let info = Reader::open(path).unwrap().blocks()[block];
    overwrite(path, info.position + 20, &[0xee; 8]);
    (info.first_offset, info.end_offset)
}

/// Ruins the index of a sealed segment.
pub fn ruin_index(path: &Path) {
    let last = *Reader::open(path).unwrap().blocks().last().unwrap();
    overwrite(path, last.position + u64::from(last.compressed_len) + 30, &[0xee; 8]);
}

/// As if the database had been lost with the log's health.
pub fn forget_store(site: &Site) {
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(site.database().with_extension(format!("sqlite{suffix}")));
    }
}

/// What health says is damaged: file, kind, first and next offset.
pub type Seen = (String, String, u64, u64);

pub fn seen(file: &str, kind: &str, first: u64, next: u64) -> Seen {
    (file.into(), kind.into(), first, next)
}

fn name(base: u64, ending: &str) -> String {
    format!("{base:020}{ending}")
}

pub async fn health(daemon: &Daemon) -> (u16, Value) {
    let (code, body) = daemon.get("/health/ready").await;
    (code, serde_json::from_str(&body).unwrap())
}

fn damage_of(health: &Value) -> Vec<Seen> {
    let of = |one: &Value| {
        let offset = |key: &str| one[key].as_u64().unwrap();
        let (file, kind) = (one["file"].as_str().unwrap(), one["kind"].as_str().unwrap());
        seen(file, kind, offset("first_offset"), offset("next_offset"))
    };
    health["damage"].as_array().unwrap().iter().map(of).collect()
}

/// Holds a daemon to its work: it takes a record at `offset`, finds it, and
/// every offset up to it is accounted for, `lost` of them as lost.
async fn works(daemon: &Daemon, offset: u64, lost: u64) {
    put(daemon, offset..offset + 1).await;
    let status = daemon.derived(offset + 1).await;
    assert_eq!(status["derived"]["lost"], lost, "{status}");
    assert_eq!(daemon.find(&format!("record{offset}")).await.first(), Some(&offset));
}

/// Holds a damaged site to everything that is promised, through two starts and
/// a repair. Returns what the repair reported.
async fn survives(site: &Site, damage: &[Seen], lost: u64) -> Value {
    for (start, offset) in [(1, 30), (2, 31)] {
        let daemon = site.start();
        works(&daemon, offset, lost).await;
        eventually("the damage is reported", async || damage_of(&health(&daemon).await.1) == damage).await;
        let (code, health) = health(&daemon).await;
        assert_eq!((code, &health["status"]), (200, &json!("degraded")), "start {start}: {health}");
        let (_, metrics) = daemon.get("/metrics").await;
        let open = format!("damage_open {}\n", damage.len());
        assert!(metrics.contains(&open), "start {start}: no {open} in {metrics}");
        assert!(start > 1 || metrics.contains("damage_found_total{kind="), "{metrics}");
        daemon.stop_drained();
    }
    let doctor = thalweg(&["doctor", "-p", &pipeline(site)]);
    let told = crate::cli::text(&doctor);
    assert_eq!(doctor.status.code(), Some(3), "{told}");
    for (file, ..) in damage {
        assert!(told.contains(file) && told.contains("thalweg segments repair"), "{told}");
    }
    let report = repaired(site);
    let daemon = site.start();
    works(&daemon, 32, lost).await;
    let (code, health) = health(&daemon).await;
    assert_eq!((code, &health), (200, &json!({"status": "ready", "reasons": [], "damage": []})), "{report}");
    daemon.stop_drained();
    let doctor = thalweg(&["doctor", "-p", &pipeline(site)]);
    assert!(!crate::cli::text(&doctor).contains("PROBLEM  log"), "{}", crate::cli::text(&doctor));
    report
}

/// Repairs a site, checks that a second repair finds nothing to do, and
/// returns what the first one reported.
pub fn repaired(site: &Site) -> Value {
    let run = || {
        let output = thalweg(&["segments", "repair", "--json", "-p", &pipeline(site)]);
        let told = crate::cli::text(&output);
        assert!(matches!(output.status.code(), Some(0 | 3)), "{told}");
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let (code, report) = run();
    let gone = |key: &str| !report[key].as_array().unwrap().is_empty();
    assert_eq!(code == Some(3), gone("lost") || gone("undecided") || unproven(&report) > 0, "{report}");
    let (code, again) = run();
    assert_eq!((code, &again["changed"]), (Some(0), &json!(false)), "{again}");
    report
}

fn unproven(report: &Value) -> u64 {
    report["files"].as_array().unwrap().iter().map(|file| file["unproven"].as_u64().unwrap()).sum()
}

/// What the repair says is lost.
pub fn lost(report: &Value) -> Vec<(u64, u64)> {
    let offset = |one: &Value, key: &str| one[key].as_u64().unwrap();
    let lost = report["lost"].as_array().unwrap();
    lost.iter().map(|one| (offset(one, "first_offset"), offset(one, "next_offset"))).collect()
}

#[tokio::test]
async fn an_active_segment_damaged_in_its_middle() {
    let site = thirty_records().await;
    ruin_batch(&raw(&site, 20), 4);
    let report = survives(&site, &[seen(&name(20, ".log"), "batches", 24, 25)], 0).await;
    assert_eq!(lost(&report), [(24, 25)]);
}

#[tokio::test]
async fn damage_that_was_not_derived_before_is_counted_as_lost() {
    let site = thirty_records().await;
    ruin_batch(&raw(&site, 20), 4);
    ruin_batch(&raw(&site, 20), 5);
    forget_store(&site);
    let report = survives(&site, &[seen(&name(20, ".log"), "batches", 24, 26)], 2).await;
    assert_eq!(lost(&report), [(24, 26)]);
}

#[tokio::test]
async fn a_damaged_segment_is_sealed_without_what_is_gone_and_its_file_is_kept() {
    let site = thirty_records().await;
    ruin_batch(&raw(&site, 20), 0);
    ruin_batch(&raw(&site, 20), 4);
    let original = fs::read(raw(&site, 20)).unwrap();
    site.configure(&sections("100ms"));
    let daemon = site.start();
    put(&daemon, 30..31).await;
    eventually("the rest is sealed", async || sealed(&site, 21).exists()).await;
    eventually("its file is set aside", async || !raw(&site, 20).exists()).await;
    let (code, told) = health(&daemon).await;
    assert_eq!((code, damage_of(&told).len()), (200, 2), "{told}");
    daemon.stop_drained();
    let kept = site.log_folder().join("quarantine").join(name(20, ".log"));
    let written = original.iter().rposition(|byte| *byte != 0).unwrap();
    assert!(fs::read(kept).unwrap()[..written] == original[..written], "the damaged file is kept as it was");
    let segment = Reader::open(&sealed(&site, 21)).unwrap();
    assert_eq!((segment.info().base_offset, segment.gaps()), (21, vec![24..25]));

    site.configure(&sections("10m"));
    let files = |kind| [seen(&name(20, ".log"), kind, 20, 21), seen(&name(20, ".log"), kind, 24, 25)];
    let daemon = site.start();
    assert_eq!(damage_of(&health(&daemon).await.1), files("batches"));
    daemon.stop_drained();
    assert_eq!(lost(&repaired(&site)), [(20, 21), (24, 25)]);
    let daemon = site.start();
    assert_eq!(health(&daemon).await.1["status"], "ready");
    daemon.stop_drained();
}

#[tokio::test]
async fn a_segment_of_which_nothing_is_left_holds_up_no_sealing() {
    let site = thirty_records().await;
    for batch in 0..10 {
        ruin_batch(&raw(&site, 20), batch);
    }
    site.configure(&sections("100ms"));
    let daemon = site.start();
    put(&daemon, 30..31).await;
    eventually("what comes after is sealed", async || sealed(&site, 30).exists()).await;
    let (code, told) = health(&daemon).await;
    assert_eq!((code, damage_of(&told)), (200, vec![seen(&name(20, ".log"), "missing", 20, 30)]), "{told}");
    eventually("its file is set aside", async || !raw(&site, 20).exists()).await;
    daemon.stop_drained();
    assert!(site.log_folder().join("quarantine").join(name(20, ".log")).exists());
    site.configure(&sections("10m"));
    assert_eq!(lost(&repaired(&site)), [(20, 30)]);
    let daemon = site.start();
    assert_eq!(health(&daemon).await.1["status"], "ready");
    daemon.stop_drained();
}

#[tokio::test]
async fn a_segment_without_its_header_is_set_aside_and_salvaged() {
    let site = thirty_records().await;
    overwrite(&raw(&site, 20), 0, &[0; 512]);
    let file = format!("quarantine/{}", name(20, ".log"));
    let report = survives(&site, &[seen(&file, "header", 20, 30)], 0).await;
    assert_eq!(lost(&report), [], "its batches prove each other");
    assert_eq!(report["files"][0]["salvaged"], json!([[20, 30]]), "{report}");
}

/// A sealed segment ruined in a way that leaves no index, with its object
/// still there: nothing is lost in the end.
async fn index_is_gone(ruin: impl Fn(&Path)) {
    let site = thirty_records().await;
    ruin(&sealed(&site, 10));
    let file = format!("quarantine/{}", name(10, ".seg.zst"));
    let report = survives(&site, &[seen(&file, "index", 10, 20)], 0).await;
    assert_eq!(lost(&report), []);
    assert_eq!(report["restored"][0]["records"], 10, "{report}");
    assert_eq!(Reader::open(&sealed(&site, 10)).unwrap().info().records, 10);
}

#[tokio::test]
async fn a_sealed_segment_with_a_damaged_index() {
    index_is_gone(ruin_index).await;
}

#[tokio::test]
async fn a_sealed_segment_cut_short() {
    index_is_gone(|path| OpenOptions::new().write(true).open(path).unwrap().set_len(900).unwrap()).await;
}

#[tokio::test]
async fn a_sealed_segment_of_no_bytes() {
    index_is_gone(|path| fs::write(path, b"").unwrap()).await;
}

#[tokio::test]
async fn a_sealed_segment_that_is_garbage() {
    index_is_gone(|path| fs::write(path, [0x5a; 3_000]).unwrap()).await;
}

#[tokio::test]
async fn a_damaged_block_is_found_when_it_is_derived() {
    let site = thirty_records().await;
    let (first, next) = ruin_block(&sealed(&site, 10), 1);
    forget_store(&site);
    let damage = [seen(&name(10, ".seg.zst"), "block", first, next)];
    let report = survives(&site, &damage, next - first).await;
    // Its object is intact.
    assert_eq!(lost(&report), []);
}

#[tokio::test]
async fn a_segment_that_is_gone_from_the_middle() {
    let site = thirty_records().await;
    fs::remove_file(sealed(&site, 10)).unwrap();
    let report = survives(&site, &[seen(&name(10, ".seg.zst"), "missing", 10, 20)], 0).await;
    assert_eq!(lost(&report), [], "its object brings it back");
}

#[tokio::test]
async fn a_segment_that_is_gone_and_that_nothing_remembers() {
    let site = thirty_records().await;
    fs::remove_file(sealed(&site, 10)).unwrap();
    fs::remove_dir_all(site.artifacts().join("segment")).unwrap();
    forget_store(&site);
    let report = survives(&site, &[seen(&name(10, ".log"), "missing", 10, 20)], 10).await;
    assert_eq!(lost(&report), [(10, 20)]);
}

#[tokio::test]
async fn files_that_the_system_does_not_read() {
    let site = thirty_records().await;
    // Even root cannot read a folder as a file.
    for path in [sealed(&site, 0), raw(&site, 20)] {
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    let daemon = site.start();
    let offset = daemon.status().await["end_offset"].as_u64().unwrap();
    assert!(offset >= 30, "offsets are never given again");
    works(&daemon, offset, offset - 30).await;
    let (code, told) = health(&daemon).await;
    let damage = damage_of(&told);
    assert_eq!((code, &told["status"]), (200, &json!("degraded")), "{told}");
    assert_eq!(damage[0], seen(&name(0, ".seg.zst"), "unreadable", 0, 10), "{told}");
    assert_eq!((damage[1].2, damage[1].3), (20, offset), "{told}");
    daemon.stop_drained();
    let report = repaired(&site);
    assert_eq!(lost(&report), [(20, offset)], "{report}");
    let daemon = site.start();
    assert_eq!(health(&daemon).await.1["status"], "ready");
    daemon.stop_drained();
}

#[tokio::test]
async fn leftovers_and_strangers_do_no_harm() {
    let site = thirty_records().await;
    let folder = site.log_folder();
    let leftover = folder.join(format!("{}.7-0.tmp", name(30, ".seg.zst")));
    fs::write(&leftover, b"half a segment").unwrap();
    for stranger in ["spare.tmp", "7.log", "notes.txt", "x.seg.zst"] {
        fs::write(folder.join(stranger), b"not a segment").unwrap();
    }
    let daemon = site.start();
    works(&daemon, 30, 0).await;
    assert_eq!(health(&daemon).await, (200, json!({"status": "ready", "reasons": [], "damage": []})));
    daemon.stop_drained();
    assert!(!leftover.exists());
    assert!(folder.join("7.log").exists());
    let doctor = thalweg(&["doctor", "--json", "-p", &pipeline(&site)]);
    let checks: Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let log = checks.as_array().unwrap().iter().find(|check| check["name"] == "log").unwrap();
    assert_eq!(log["verdict"], "warning", "{checks}");
    assert_eq!(repaired(&site)["changed"], false);
}

#[tokio::test]
async fn a_log_that_lost_its_end_goes_on_after_it() {
    let site = thirty_records().await;
    fs::remove_file(raw(&site, 20)).unwrap();
    let report = survives(&site, &[seen(&name(10, ".seg.zst"), "missing", 20, 30)], 0).await;
    assert_eq!(lost(&report), [(20, 30)]);
}

#[tokio::test]
async fn a_log_that_is_gone_altogether_goes_on_after_it() {
    let site = thirty_records().await;
    fs::remove_dir_all(site.log_folder()).unwrap();
    let daemon = site.start();
    works(&daemon, 30, 0).await;
    let (code, told) = health(&daemon).await;
    assert_eq!((code, &told["status"]), (200, &json!("degraded")), "{told}");
    daemon.stop_drained();
    let report = repaired(&site);
    assert_eq!(lost(&report), [(20, 30)], "the objects bring back what was sealed: {report}");
    let daemon = site.start();
    assert_eq!(health(&daemon).await.1["status"], "ready");
    daemon.stop_drained();
}

#[tokio::test]
async fn a_checkpoint_below_the_first_segment_counts_what_is_gone_as_lost() {
    let site = thirty_records().await;
    forget_store(&site);
    fs::remove_file(sealed(&site, 0)).unwrap();
    fs::remove_dir_all(site.artifacts().join("segment")).unwrap();
    let store = site.store().await;
    store.acquire("it", "main", 0, 1).await.unwrap();
    store.close().await;
    let report = survives(&site, &[seen(&name(0, ".log"), "missing", 0, 10)], 10).await;
    assert_eq!(lost(&report), [(0, 10)]);
}

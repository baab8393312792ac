//! `thalweg segments repair`, as people use it.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Executor, sqlite::SqliteConnectOptions};
use thalweg::segment::Reader;

use crate::{
    cli::{json_of, pipeline, text, thalweg},
    daemon::Site,
    damage::{
        forget_store, health, lost, overwrite, raw, repaired, ruin_batch, ruin_block, ruin_index, sealed,
        thirty_records,
    },
};

/// Every file below `folder` with its bytes.
fn snapshot(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(snapshot(&path));
        } else {
            files.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    files
}

async fn sql(site: &Site, statement: &'static str) {
    let options = SqliteConnectOptions::new().filename(site.database());
    options.connect().await.unwrap().execute(statement).await.unwrap();
}

async fn rows(site: &Site) -> Vec<thalweg::store::SegmentRow> {
    let store = site.store().await;
    let rows = store.segments("main").await.unwrap();
    store.close().await;
    rows
}

/// Whether `thalweg segments verify` finds nothing damaged.
fn intact(site: &Site) -> bool {
    thalweg(&["segments", "verify", "-p", &pipeline(site)]).status.success()
}

#[tokio::test]
async fn an_intact_object_takes_the_place_of_a_damaged_segment() {
    let site = thirty_records().await;
    let whole = fs::read(sealed(&site, 0)).unwrap();
    ruin_block(&sealed(&site, 0), 1);
    let damaged = fs::read(sealed(&site, 0)).unwrap();
    let report = repaired(&site);
    assert_eq!(lost(&report), []);
    assert!(fs::read(sealed(&site, 0)).unwrap() == whole);
    let aside = site.log_folder().join(report["files"][0]["now"].as_str().unwrap());
    assert!(fs::read(aside).unwrap() == damaged, "the damaged original is kept");
    assert!(intact(&site));
}

#[tokio::test]
async fn without_an_object_all_but_the_damaged_block_is_saved() {
    let site = thirty_records().await;
    let (first, next) = ruin_block(&sealed(&site, 0), 1);
    fs::remove_dir_all(site.artifacts().join("segment")).unwrap();
    let report = repaired(&site);
    assert_eq!(lost(&report), [(first, next)]);
    let file = &report["files"][0];
    assert_eq!(file["salvaged"], json!([[0, first], [next, 10]]), "{report}");
    assert_eq!(Reader::open(&sealed(&site, 0)).unwrap().gaps(), [first..next]);
    assert!(intact(&site));
    // The objects are there again, and the catalog agrees.
    let list = json_of(0, &["segments", "list", "-p", &pipeline(&site)]);
    let states: Vec<_> = list.as_array().unwrap().iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["sealed", "lost", "sealed", "active"], "{list}");
    assert_eq!(list[0]["records"], json!(10 - (next - first)));
    assert!(list[0]["artifact"].is_string(), "{list}");
    assert_eq!((&list[1]["base_offset"], &list[1]["end_offset"]), (&json!(first), &json!(next)));
}

#[tokio::test]
async fn a_lost_index_costs_nothing_where_the_catalog_knows_the_digest() {
    let site = thirty_records().await;
    ruin_index(&sealed(&site, 0));
    fs::remove_dir_all(site.artifacts().join("segment")).unwrap();
    let before = rows(&site).await;
    let report = repaired(&site);
    assert_eq!((lost(&report), &report["files"][0]["salvaged"]), (vec![], &json!([[0, 10]])), "{report}");
    assert_eq!(rows(&site).await[0].content_digest, before[0].content_digest);
}

#[tokio::test]
async fn index_and_block_lost_together_cost_the_block() {
    let site = thirty_records().await;
    let (first, next) = ruin_block(&sealed(&site, 0), 1);
    ruin_index(&sealed(&site, 0));
    fs::remove_dir_all(site.artifacts().join("segment")).unwrap();
    let report = repaired(&site);
    assert_eq!(lost(&report), [(first, next)]);
    assert_eq!(report["files"][0]["salvaged"], json!([[0, first], [next, 10]]), "{report}");
}

#[tokio::test]
async fn frames_whose_offsets_nothing_proves_stay_in_quarantine() {
    let site = thirty_records().await;
    ruin_block(&sealed(&site, 10), 1);
    ruin_index(&sealed(&site, 10));
    fs::remove_dir_all(site.artifacts().join("segment")).unwrap();
    forget_store(&site);
    let report = repaired(&site);
    assert_eq!(lost(&report), [(10, 20)], "within the bounds of the neighbours: {report}");
    assert!(report["files"][0]["unproven"].as_u64().unwrap() > 0, "{report}");
}

#[tokio::test]
async fn what_was_salvaged_is_searchable_again_after_a_replay() {
    let site = thirty_records().await;
    overwrite(&raw(&site, 20), 0, &[0xee; 512]);
    ruin_batch(&raw(&site, 20), 3);
    forget_store(&site);
    let daemon = site.start();
    let status = daemon.derived(30).await;
    assert_eq!(status["derived"]["lost"], 10, "{status}");
    daemon.stop_drained();
    let report = repaired(&site);
    assert_eq!(lost(&report), [(23, 24)], "{report}");
    assert_eq!(report["files"][0]["salvaged"], json!([[20, 23], [24, 30]]));
    let replayed = json_of(3, &["replay", "--restore", "-p", &pipeline(&site)]);
    assert_eq!(replayed["report"]["records_restored"], 9, "{replayed}");
    let daemon = site.start();
    assert_eq!(daemon.find("record25").await.first(), Some(&25));
    let status = daemon.derived(30).await;
    assert_eq!((&status["derived"]["lost"], &status["derived"]["indexed"]), (&json!(1), &json!(29)));
    assert_eq!(health(&daemon).await.1["status"], "ready");
    daemon.stop_drained();
}

#[tokio::test]
async fn the_catalog_is_made_again_from_the_files() {
    let site = thirty_records().await;
    let right = rows(&site).await;
    sql(&site, "DELETE FROM segments WHERE base_offset = 0").await;
    sql(&site, "UPDATE segments SET end_offset = 17, object_digest = 'x' WHERE base_offset = 10").await;
    sql(&site, "DELETE FROM artifacts WHERE kind = 'segment'").await;
    let report = repaired(&site);
    assert_eq!(report["rows"], json!({"added": [0], "corrected": [10], "removed": []}), "{report}");
    assert_eq!(rows(&site).await, right);
    forget_store(&site);
    let report = repaired(&site);
    assert_eq!(report["rows"]["added"], json!([0, 10]), "{report}");
    assert_eq!(rows(&site).await, right);
}

#[tokio::test]
async fn segments_without_file_or_row_come_back_from_their_objects() {
    let site = thirty_records().await;
    let right = rows(&site).await;
    let whole = fs::read(sealed(&site, 10)).unwrap();
    fs::remove_file(sealed(&site, 0)).unwrap();
    fs::remove_file(sealed(&site, 10)).unwrap();
    forget_store(&site);
    // An object that is not what its name says is not taken.
    let object = |n: usize| {
        site.artifacts().join(format!(
            "segment/sha256/{}/{}.seg.zst",
            &right[n].object_digest[..2],
            right[n].object_digest
        ))
    };
    overwrite(&object(0), 30, &[0xee; 4]);
    let output = thalweg(&["segments", "repair", "--json", "-p", &pipeline(&site)]);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["objects_altered"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!((lost(&report), &report["rows"]["added"]), (vec![], &json!([10])), "{report}");
    assert!(fs::read(sealed(&site, 10)).unwrap() == whole);
}

#[tokio::test]
async fn an_altered_object_is_replaced_by_the_intact_file() {
    let site = thirty_records().await;
    let row = rows(&site).await.remove(0);
    let object = site.artifacts().join(format!(
        "segment/sha256/{}/{}.seg.zst",
        &row.object_digest[..2],
        row.object_digest
    ));
    overwrite(&object, 30, &[0xee; 4]);
    let report = repaired(&site);
    assert_eq!(report["objects_restored"].as_array().unwrap().len(), 1, "{report}");
    assert!(fs::read(object).unwrap() == fs::read(sealed(&site, 0)).unwrap());
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_says_what_would_be_done() {
    let site = thirty_records().await;
    ruin_block(&sealed(&site, 0), 1);
    ruin_batch(&raw(&site, 20), 4);
    fs::remove_file(sealed(&site, 10)).unwrap();
    let folder = site.log_folder();
    let before = snapshot(&folder);
    let told = json_of(3, &["segments", "repair", "--dry-run", "-p", &pipeline(&site)]);
    assert!(snapshot(&folder) == before);
    assert_eq!((&told["dry_run"], &told["changed"]), (&json!(true), &json!(true)));
    let report = repaired(&site);
    assert_eq!(told["lost"].as_array().unwrap().len(), 1, "{told}");
    assert_eq!(lost(&told), lost(&report));
    assert_eq!(told["restored"], report["restored"]);
    let same = |report: &Value| (report["files"][0]["now"].clone(), report["files"][1]["salvaged"].clone());
    assert_eq!(same(&told), same(&report));
    let spoken = text(&thalweg(&["segments", "repair", "-p", &pipeline(&site)]));
    assert!(
        spoken.contains("nothing to repair") && spoken.contains("1 offsets were lost earlier"),
        "{spoken}"
    );
}

#[tokio::test]
async fn a_repair_needs_the_stream_for_itself() {
    let site = thirty_records().await;
    let daemon = site.start();
    let output = thalweg(&["segments", "repair", "-p", &pipeline(&site)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("stop the daemon first"), "{}", text(&output));
    daemon.stop_drained();
}

//! What operators see: health, metrics, logs, and what is wrong at a start.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
};

use serde_json::{Value, json};

use crate::{
    daemon::{HTTP, Site, TCP},
    producer::{Producer, text_frame},
};

#[tokio::test]
async fn health_says_live_and_ready() {
    let site = Site::new(TCP);
    let daemon = site.start();
    for (path, status) in [("/health/live", "live"), ("/health/ready", "ready"), ("/health", "ready")] {
        let (code, body) = daemon.get(path).await;
        let body: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((code, &body["status"]), (200, &json!(status)), "{path}");
    }
    daemon.stop_drained();
}

/// The value of a metric, labels and all.
fn metric(page: &str, name: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let site = Site::new(&format!("{TCP}{HTTP}"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.send(&[text_frame("counted"), text_frame("and again"), vec![0; 4]].concat()).await;
    producer.finish().await;
    daemon.derived(2).await;
    daemon.find("counted").await;
    let (code, page) = daemon.get("/metrics").await;
    assert_eq!(code, 200);
    for (name, value) in [
        ("ingest_processed_total", 2.0),
        ("ingest_rejected_total{code=\"empty\"}", 1.0),
        ("fallback_fraction", 0.0),
        ("derive_lag_records", 0.0),
        ("derive_records_total{outcome=\"indexed\"}", 2.0),
        ("search_seconds_count", 1.0),
        ("searchable_seconds_count", 2.0),
        ("embed_texts_total", 2.0),
    ] {
        assert_eq!(metric(&page, name), Some(value), "{name} in\n{page}");
    }
    let index = metric(&page, "index_bytes").unwrap();
    assert!(index >= 16_384.0, "{index}");
    for name in ["log_fsync_seconds_count", "store_commit_seconds_count", "log_groups_total"] {
        assert!(metric(&page, name).is_some_and(|value| value >= 1.0), "{name} in\n{page}");
    }
    let described = page.lines().filter(|line| line.starts_with("# HELP ")).count();
    let typed = page.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(described, typed, "a metric without a description");
    daemon.stop_drained();
}

#[tokio::test]
async fn the_log_is_json_that_names_batch_and_stream() {
    let age = "[log]\nsegment_age = \"200ms\"\n";
    let site = Site::new(&format!("{TCP}{age}"));
    let daemon = site.start();
    Producer::tcp(daemon.tcp()).await.put(&json!({"text": "seal me"})).await;
    crate::daemon::eventually("a segment is sealed", async || {
        daemon.status().await["segments"]["sealed"] == 1
    })
    .await;
    let exit = daemon.stop();
    let lines: Vec<Value> = exit
        .log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("not JSON ({e}): {line}")))
        .collect();
    for message in ["log recovered", "ready", "segment sealed", "stopping"] {
        let line = lines.iter().find(|line| line["message"] == message);
        let line = line.unwrap_or_else(|| panic!("no line says `{message}` in\n{}", exit.log));
        let span = &line["span"];
        assert_eq!((&span["batch_tag"], &span["stream"]), (&json!("batch-7"), &json!("main")), "{line}");
        assert!(line["timestamp"].is_string() && line["level"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn a_second_daemon_on_the_same_data_is_refused() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let exit = site.run(&[], b"");
    assert_eq!(exit.code, Some(1));
    assert!(exit.log.contains("in use by another process"), "{}", exit.log);
    // The first has lost nothing by it.
    Producer::tcp(daemon.tcp()).await.put(&json!({"text": "still mine"})).await;
    daemon.derived(1).await;
    daemon.stop_drained();
}

#[tokio::test]
async fn a_pipeline_file_that_is_wrong_is_refused_with_its_own_exit_code() {
    let site = Site::new(&format!("{TCP}[log]\nsegment_byte = \"2MiB\"\n"));
    let exit = site.run(&[], b"");
    assert_eq!(exit.code, Some(2));
    assert!(exit.log.contains("segment_bytes"), "the nearest key is not named: {}", exit.log);
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

/// File positions of the batches of a raw segment.
fn batches(path: &Path) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    bytes.windows(4).enumerate().filter(|(_, window)| window == b"TwB1").map(|(at, _)| at as u64).collect()
}

/// Damages the active segment of a daemon that had indexed ten records, of
/// which `damage` is told the file, and gives what the next daemon logged.
async fn start_after(damage: impl Fn(&Path), derived: bool) -> String {
    let site = Site::new(TCP);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    for n in 0..10 {
        producer.put(&json!({"text": format!("heron number {n}")})).await;
    }
    daemon.derived(10).await;
    daemon.kill();
    if !derived {
        // As if the index had been lost with the segment's health.
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(site.database().with_extension(format!("sqlite{suffix}")));
        }
    }
    damage(&site.log_files(".log")[0]);

    let daemon = site.start();
    let status = daemon.derived(10).await;
    assert_eq!(status["end_offset"], 10, "offsets are never given again");
    assert_eq!(Producer::tcp(daemon.tcp()).await.put(&json!({"text": "a new heron"})).await, 10);
    daemon.derived(11).await;
    let found = daemon.find("heron").await.len() as u64;
    let lost = status["derived"]["lost"].as_u64().unwrap();
    assert_eq!(found + lost, 11, "{status}");
    assert_eq!(lost > 0, !derived);
    let log = daemon.log();
    daemon.stop_drained();
    log
}

#[tokio::test]
async fn a_segment_damaged_in_its_middle_is_reported_and_the_daemon_starts() {
    let damage = |file: &Path| overwrite(file, batches(file)[4] + 20, &[0xee; 8]);
    for derived in [true, false] {
        let log = start_after(damage, derived).await;
        assert!(log.contains("the log is damaged") && log.contains("\"first_offset\":4"), "{log}");
    }
}

#[tokio::test]
async fn a_segment_without_its_header_is_put_aside_and_the_daemon_starts() {
    let log = start_after(|file| overwrite(file, 0, &[0; 512]), true).await;
    assert!(log.contains("put aside") && log.contains("\"next_offset\":10"), "{log}");
}

#[tokio::test]
async fn a_segment_that_lost_its_end_is_reported_where_the_index_knows_better() {
    let damage = |file: &Path| overwrite(file, *batches(file).last().unwrap() + 20, &[0xee; 8]);
    let log = start_after(damage, true).await;
    assert!(log.contains("the log is damaged") && log.contains("\"first_offset\":9"), "{log}");
}

//! A full disk: refusals instead of acks, nothing lost, and on again as soon
//! as there is room.

use std::{path::PathBuf, process::Command, time::Duration};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use thalweg::artifact::hex;

use crate::{
    daemon::{Daemon, HTTP, Site, TCP, eventually},
    ledger::{Ledger, ids_in_index, nothing_acked_is_lost},
};

/// A small file system in memory; unmounted when dropped.
pub struct Disk {
    /// Where it is mounted.
    pub at: PathBuf,
    _folder: tempfile::TempDir,
}

impl Disk {
    /// Of `size`. `None`, said loudly, where mounting is not permitted.
    pub fn mount(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Self { at: folder.path().to_owned(), _folder: folder };
        let size = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&disk.at).output();
        match mounted {
            Ok(done) if done.status.success() => Some(disk),
            refused => {
                eprintln!("SKIPPED: a tmpfs cannot be mounted here, so nothing was tested: {refused:?}");
                None
            }
        }
    }

    /// Gives it another size.
    pub fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let done = Command::new("mount").args(["-o", &options]).arg(&self.at).status().unwrap();
        assert!(done.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

/// A log that is full soon.
pub const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n";

/// Produces until the log says that it is full, and stays so.
async fn fill(daemon: &Daemon, ledger: &mut Ledger) {
    let mut refused = 0;
    for _ in 0..200 {
        if let Some(error) = ledger.produce(daemon.tcp(), 2_000).await.error {
            assert_eq!((error.code.as_str(), error.fatal), ("log_full", true), "{error:?}");
            assert!(error.message.contains("free disk space"), "{error:?}");
            refused += 1;
            if refused == 3 {
                return;
            }
        }
    }
    panic!("the disk did not become full");
}

async fn ready(daemon: &Daemon) -> (u16, Value) {
    let (code, body) = daemon.get("/health/ready").await;
    (code, serde_json::from_str(&body).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_what_it_cannot_keep_and_goes_on_once_there_is_room() {
    let Some(disk) = Disk::mount("12m") else { return };
    let site = Site::with_data(&format!("{TCP}{HTTP}{SMALL}"), disk.at.join("data"));
    let mut daemon = site.start();
    let mut ledgers = [Ledger::new(0)];
    fill(&daemon, &mut ledgers[0]).await;

    let body = json!({"text": "x".repeat(12 << 10)});
    // What is left of the active segment may still take a few.
    let mut answer = (200, Value::Null);
    for n in 0..200 {
        let record = json!({"id": format!("http-{n}"), "text": body["text"]});
        answer = daemon.post("/api/v1/ingest", "application/json", record.to_string()).await;
        if answer.0 != 200 {
            break;
        }
    }
    assert_eq!((answer.0, &answer.1["errors"][0]["code"]), (507, &json!("log_full")), "{}", answer.1);
    assert_eq!((&answer.1["received"], &answer.1["acknowledged"]), (&json!(1), &json!(0)));
    let (code, why) = ready(&daemon).await;
    assert_eq!(code, 503);
    assert!(why["reasons"].to_string().contains("free disk space"), "{why}");
    assert_eq!(daemon.get("/health/live").await.0, 200);
    assert!(daemon.is_alive());

    disk.resize("400m");
    eventually("ready again", async || ready(&daemon).await.0 == 200).await;
    assert_eq!(ledgers[0].produce(daemon.tcp(), 1_000).await.error, None);
    assert!(ledgers[0].unanswered.is_empty());
    let end = daemon.status().await["end_offset"].as_u64().unwrap();
    daemon.derived(end).await;
    assert_eq!(ready(&daemon).await, (200, json!({"status": "ready", "reasons": [], "damage": []})));
    daemon.stop_drained();
    nothing_acked_is_lost(&site, &ledgers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_on_a_full_disk_loses_nothing_that_was_acknowledged() {
    let Some(disk) = Disk::mount("12m") else { return };
    let site = Site::with_data(&format!("{TCP}{SMALL}"), disk.at.join("data"));
    let daemon = site.start();
    let mut ledgers = [Ledger::new(0)];
    fill(&daemon, &mut ledgers[0]).await;
    daemon.kill();
    disk.resize("400m");
    let daemon = site.start();
    assert_eq!(ledgers[0].produce(daemon.tcp(), 0).await.error, None);
    let end = daemon.status().await["end_offset"].as_u64().unwrap();
    daemon.derived(end).await;
    daemon.stop_drained();
    nothing_acked_is_lost(&site, &ledgers).await;
    assert_eq!(ids_in_index(&site).await.len(), ledgers[0].acked.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_is_read_on_once_there_is_room() {
    let Some(disk) = Disk::mount("12m") else { return };
    let folder = tempfile::tempdir().unwrap();
    // Digests, so that sealing does not make room.
    let text = |n: u32| -> String {
        (0..10).map(|part| hex(&Sha256::digest([n.to_be_bytes(), [part; 4]].concat())) + " ").collect()
    };
    let lines: String = (0..20_000).map(|n| format!("{}\n", json!({"id": n, "text": text(n)}))).collect();
    std::fs::write(folder.path().join("in.jsonl"), lines).unwrap();
    let source = format!("[[source]]\ntype = \"file\"\npath = {:?}\nwatch = true\n", folder.path());
    let site = Site::with_data(&format!("{source}{SMALL}"), disk.at.join("data"));
    let mut daemon = site.start();
    eventually("the disk is full", async || {
        ready(&daemon).await.1["reasons"].to_string().contains("free disk space")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(daemon.is_alive());
    disk.resize("400m");
    let status = daemon.derived(20_000).await;
    assert_eq!((&status["end_offset"], &status["derived"]["indexed"]), (&json!(20_000), &json!(20_000)));
    daemon.stop_drained();
}

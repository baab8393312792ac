//! Sealed segments, as the daemon makes them.

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::json;
use sha2::{Digest, Sha256};

use crate::{
    daemon::{Daemon, Site, TCP, eventually},
    producer::{Producer, text_frame},
};

/// Segments of about a megabyte, the smallest there are.
const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n";

/// Texts of 2 KB that no two records share.
fn frames(from: u64, to: u64) -> Vec<Vec<u8>> {
    let text = |n: u64| (0..130).map(|word| format!("w{n}x{} ", n * 7_919 + word)).collect::<String>();
    (from..to).map(|n| text_frame(&text(n))).collect()
}

async fn sealed(daemon: &Daemon, segments: u64) {
    eventually("segments are sealed", async || {
        daemon.status().await["segments"]["sealed"].as_u64().unwrap() >= segments
    })
    .await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn sealed_segments_decompress_to_the_bytes_that_were_sent() {
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let daemon = site.start();
    let sent = frames(0, 2_000);
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.put_all(&sent).await;
    sealed(&daemon, 2).await;
    daemon.derived(2_000).await;
    daemon.stop_drained();

    let store = site.store().await;
    let rows = store.segments("main").await.unwrap();
    let files = site.log_files(".seg.zst");
    assert_eq!(rows.len(), files.len());
    let mut end = 0;
    for (row, file) in rows.iter().zip(&files) {
        let plain = Command::new("zstd").arg("-dc").arg(file).stderr(Stdio::inherit()).output().unwrap();
        assert!(plain.status.success());
        let sent = sent[row.base_offset as usize..row.end_offset as usize].concat();
        assert!(plain.stdout == sent, "segment {} is not what was sent", row.base_offset);
        assert_eq!((row.base_offset, row.records), (end, row.end_offset - row.base_offset));
        assert_eq!(row.content_digest, hex(&Sha256::digest(&sent)));
        end = row.end_offset;
        let artifact = store.artifacts().await.unwrap();
        let artifact = artifact.iter().find(|a| Some(&a.digest) == row.artifact.as_ref()).unwrap();
        let object = fs::read(site.artifacts().join(&artifact.location)).unwrap();
        assert_eq!(hex(&Sha256::digest(&object)), artifact.digest);
        assert!(object == fs::read(file).unwrap());
    }
    assert!(end < 2_000, "the active segment is not sealed by a stop");
}

#[tokio::test]
async fn a_hit_names_its_segment_once_that_is_sealed() {
    let site = Site::new(&format!("{TCP}[log]\nsegment_age = \"1500ms\"\n"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.put(&json!({"text": "lineage of a heron"})).await;
    daemon.derived(1).await;
    let digest = async || {
        let hits = daemon.search(json!({"tenant": "default", "query": "heron"})).await;
        hits[0]["lineage"]["segment_digest"].clone()
    };
    assert!(digest().await.is_null());
    sealed(&daemon, 1).await;
    let wanted = hex(&Sha256::digest(text_frame("lineage of a heron")));
    assert_eq!(digest().await, wanted);
    daemon.stop_drained();
}

#[tokio::test]
async fn offsets_go_on_after_a_restart_and_rows_keep_their_objects() {
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let daemon = site.start();
    Producer::tcp(daemon.tcp()).await.put_all(&frames(0, 1_000)).await;
    sealed(&daemon, 1).await;
    daemon.stop_drained();
    let daemon = site.start();
    let offsets = Producer::tcp(daemon.tcp()).await.put_all(&frames(1_000, 2_000)).await;
    assert_eq!(offsets, (1_000..2_000).collect::<Vec<_>>());
    sealed(&daemon, 2).await;
    assert_eq!(daemon.derived(2_000).await["derived"]["indexed"], 2_000);
    daemon.kill();
    let daemon = site.start();
    assert_eq!(Producer::tcp(daemon.tcp()).await.put(&json!({"text": "one more"})).await, 2_000);
    daemon.stop_drained();
    let store = site.store().await;
    let artifacts = store.artifacts().await.unwrap();
    assert!(artifacts.iter().any(|a| a.kind == "model"));
    for artifact in artifacts {
        let object = site.artifacts().join(&artifact.location);
        assert_eq!(fs::metadata(&object).unwrap().len(), artifact.bytes, "{}", object.display());
    }
}

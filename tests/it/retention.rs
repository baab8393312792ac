//! What is older than it is to be kept goes, and what is pinned stays.

use std::{fs, process::Command};

use serde_json::{Value, json};

use crate::{
    daemon::{Daemon, SOON, Site, TCP, eventually},
    erase::text,
    producer::{Producer, frame},
};

const SMALL: &str = "[log]\nmax_frame_bytes = \"16KiB\"\nsegment_bytes = \"1100KiB\"\n";
const DAY: i64 = 24 * 3_600 * 1_000;

fn thalweg(site: &Site, args: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    let output = command.args(args).args(["--json", "-p"]).arg(site.pipeline()).output().unwrap();
    let shown = serde_json::from_slice(&output.stdout);
    (output.status.code(), shown.unwrap_or_else(|_| String::from_utf8_lossy(&output.stderr).into()))
}

fn fine(site: &Site, args: &[&str]) -> Value {
    match thalweg(site, args) {
        (Some(0), shown) => shown,
        other => panic!("{args:?}: {other:?}"),
    }
}

/// Records of 2 KB, `days` old, of a tenant.
fn aged(from: u64, to: u64, days: i64, tenant: &str) -> Vec<Vec<u8>> {
    let now = jiff::Timestamp::now().as_millisecond();
    let one = |n: u64| {
        let text = format!("{n} {}", text(n, "otter"));
        frame(&json!({"id": format!("id-{n}"), "ts": now - days * DAY, "tenant": tenant, "text": text}))
    };
    (from..to).map(one).collect()
}

async fn sealed(site: &Site, daemon: &Daemon, segments: u64) {
    eventually("segments are sealed", async || {
        let sealed = daemon.status().await["segments"]["sealed"].as_u64().unwrap();
        sealed >= segments && site.log_files(".log").len() == 1
    })
    .await;
}

fn objects(site: &Site) -> usize {
    fn below(folder: &std::path::Path) -> usize {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| if path.is_dir() { below(&path) } else { 1 }).sum()
    }
    below(&site.artifacts().join("segment"))
}

#[tokio::test]
async fn what_is_old_goes_with_files_and_objects_and_what_is_pinned_stays() {
    let site = Site::new(&format!("{TCP}{SMALL}"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    // About 600 fill a segment: the first is of both tenants, the second of
    // one, the third of today.
    for (records, tenant, days) in [(0..300, "held", 90), (300..700, "free", 90), (700..1_400, "free", 60)] {
        producer.put_all(&aged(records.start, records.end, days, tenant)).await;
    }
    producer.put_all(&aged(1_400, 2_600, 0, "free")).await;
    sealed(&site, &daemon, 3).await;
    let refused = frame(&json!({"tenant": "free", "note": "no text"}));
    producer.send(&refused).await;
    producer.replies.expect().await;
    daemon.derived(2_600).await;
    daemon.stop_drained();
    let segments = objects(&site);
    assert_eq!(site.log_files(".seg.zst").len(), segments);

    let kept = format!("{TCP}{SMALL}[retention]\nrecords = \"80d\"\nsegments = \"30d\"\n");
    site.configure(&kept.replace("80d", "30d"));
    let plan = fine(&site, &["retention", "--dry-run"]);
    assert_eq!(plan["records"], 1_400, "{plan}");
    let all_old = plan["segments"].as_array().unwrap().len();
    assert!(all_old >= 2 && all_old < segments, "{plan}");

    site.configure(&format!("{kept}pins = {{ tenants = [\"held\"] }}\n"));
    let plan = fine(&site, &["retention", "--dry-run"]);
    assert_eq!(plan["records"], 400, "{plan}");
    assert_eq!(plan["segments"].as_array().unwrap().len(), all_old - 1, "{plan}");
    assert_eq!(objects(&site), segments, "a dry run changes nothing");
    let done = fine(&site, &["retention"]);
    assert_eq!((&done["records"], &done["segments"]), (&plan["records"], &plan["segments"]));
    assert_eq!(
        (objects(&site), site.log_files(".seg.zst").len()),
        (segments - all_old + 1, segments - all_old + 1)
    );
    assert!(fine(&site, &["retention"])["segments"].as_array().unwrap().is_empty(), "nothing is left to do");

    // Nobody takes it for damage, and what is left agrees.
    let daemon = site.start();
    let status = daemon.derived(2_600).await;
    assert_eq!(status["derived"]["rejected"], 400, "{status}");
    assert_eq!(daemon.get("/health/ready").await.0, 200);
    let hits = async |tenant| daemon.search(json!({"tenant": tenant, "query": "otter"})).await.len();
    assert!(hits("held").await > 0 && hits("free").await > 0);
    daemon.stop_drained();
    let expired = fine(&site, &["segments", "list"]);
    let expired = expired.as_array().unwrap().iter().filter(|row| row["state"] == "expired").count();
    assert_eq!(expired, all_old - 1);
    for check in [
        &["audit"][..],
        &["replay"],
        &["segments", "verify"],
        &["artifacts", "verify"],
        &["segments", "repair"],
    ] {
        fine(&site, check);
    }
}

#[tokio::test]
async fn a_daemon_takes_away_what_has_grown_old_beside_its_streams() {
    let site = Site::new(&format!(
        "{TCP}[retention]\nrecords = \"30d\"\ndead_letters = \"1m\"\n\
         [[schedule]]\njob = \"retention\"\ncron = \"* * * * * *\"\n"
    ));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    producer.put_all(&[aged(0, 20, 31, "t"), aged(20, 30, 0, "t")].concat()).await;
    let started = std::time::Instant::now();
    while daemon.derived(30).await["derived"]["rejected"] != 20 {
        assert!(started.elapsed() < SOON);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let hits = daemon.search(json!({"tenant": "t", "query": "otter", "limit": 100})).await;
    assert_eq!(hits.len(), 10);
    daemon.stop_drained();
    fine(&site, &["audit"]);
    site.configure(TCP);
    let (code, said) = thalweg(&site, &["retention"]);
    assert!(code == Some(1) && said.as_str().unwrap().contains("sets no age"), "{said}");
}

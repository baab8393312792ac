//! `thalweg top`, and the stages of the status.

use serde_json::{Value, json};

use crate::{
    backfill::{Service, ingest},
    cli::{fails, json_of, text, thalweg},
    daemon::eventually,
};

fn stage<'a>(status: &'a Value, name: &str) -> &'a Value {
    status["stages"].as_array().unwrap().iter().find(|stage| stage["name"] == name).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_holds_up_the_records_is_named() {
    let service = Service::start().await;
    let site = service.site("", "[log]\nsegment_age = \"1s\"\n");
    // It is not given up within this test.
    let file = std::fs::read_to_string(site.pipeline()).unwrap();
    std::fs::write(site.pipeline(), file.replace("patience = \"1s\"", "patience = \"5m\"")).unwrap();
    let daemon = site.start();
    ingest(&daemon, 0..10).await;
    let idle = daemon.derived(10).await;
    for (name, waits_for) in
        [("log", "the sources"), ("judge", "log"), ("embed", "judge"), ("commit", "embed")]
    {
        let stage = stage(&idle, name);
        assert_eq!((&stage["waits_for"], &stage["done"]), (&json!(waits_for), &json!(10)), "{idle}");
    }
    service.answer_with(500);
    ingest(&daemon, 10..30).await;
    eventually("the embedder is missed", async || {
        let status = daemon.status().await;
        let embed = stage(&status, "embed");
        embed["waits_for"] == "the embedder"
            && embed["trouble"].is_string()
            && embed["oldest_ms"].as_u64() > Some(0)
    })
    .await;
    let shown = tokio::task::block_in_place(|| json_of(0, &["top", "--once", "--url", &daemon.http]));
    assert_eq!((&shown["in_flight"], &stage(&shown, "embed")["queued"]), (&json!(20), &json!(20)), "{shown}");
    assert_eq!(stage(&shown, "judge")["in_per_s"], json!(0.0), "{shown}");
    let shown = text(&tokio::task::block_in_place(|| thalweg(&["top", "--once", "--url", &daemon.http])));
    let embed = shown.lines().find(|line| line.starts_with("embed")).unwrap();
    assert!(embed.ends_with("the embedder") && shown.contains("NOT WELL  embed: "), "{shown}");
    service.answer_with(200);
    let done = daemon.derived(30).await;
    assert_eq!(stage(&done, "commit")["done"], 30, "{done}");
    eventually("what is closed is sealed", async || {
        let status = daemon.status().await;
        let archive = stage(&status, "archive");
        archive["done"] == 30 && archive["queued"] == 0
    })
    .await;
    daemon.stop_drained();
    tokio::task::block_in_place(|| fails(1, &["top", "--url", "http://127.0.0.1:1"], "no daemon answers"));
}

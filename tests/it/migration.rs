//! From one model to another while a daemon runs: built beside, compared,
//! switched, rolled back, retired.

use std::fs;

use serde_json::{Value, json};

use crate::{
    backfill::{Service, counts, ingest},
    cli::{fails, json_of},
    daemon::{Daemon, HTTP, Site, eventually},
};

/// Models of the hits of a search by vectors.
async fn models_of(daemon: &Daemon) -> Vec<Value> {
    let hits = daemon.search(json!({"tenant": "default", "query": "water", "mode": "vector"})).await;
    assert_eq!(hits.len(), 10);
    let mut models: Vec<Value> = hits.iter().map(|hit| hit["lineage"]["model"].clone()).collect();
    models.dedup();
    models
}

fn spaces(file: &str) -> Vec<Value> {
    json_of(0, &["models", "list", "-p", file])["spaces"].as_array().unwrap().clone()
}

fn states(file: &str) -> Vec<(Value, Value)> {
    spaces(file).iter().map(|space| (space["state"].clone(), space["vectors"].clone())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_model_is_built_in_shadow_switched_to_rolled_back_and_the_old_one_retired() {
    let site = Site::new(HTTP);
    let file = site.pipeline().to_str().unwrap().to_owned();
    let before = fs::read_to_string(&file).unwrap();
    let daemon = site.start();
    ingest(&daemon, 0..40).await;
    daemon.derived(40).await;
    daemon.stop_drained();

    fs::write(&file, format!("{before}\n[migrate]\nprovider = \"hashing\"\n")).unwrap();
    fails(
        1,
        &["search", "-p", &file, "--tenant", "default", "water"],
        "the embedding space that [embed] has",
    );
    let service = Service::start().await;
    fs::write(&file, format!("{before}\n[migrate]\n{}", service.endpoint("migrate"))).unwrap();
    let daemon = site.start();
    ingest(&daemon, 40..60).await;
    daemon.derived(60).await;
    assert_eq!(models_of(&daemon).await, ["hashing-test-only-v1"]);
    let is = |state: &str, vectors: u64| (json!(state), json!(vectors));
    eventually("it is complete", async || states(&file) == [is("live", 60), is("shadow", 60)]).await;
    assert_eq!(service.paid().len(), 60);
    let compared = json_of(0, &["models", "compare", "-p", &file, "--sample", "20"]);
    assert_eq!((&compared["behind"], &compared["missing_chunks"]), (&json!(0), &json!(0)), "{compared}");
    assert_eq!(compared["spaces"][0]["sampled_recall_at_10"], 1.0, "{compared}");
    assert_eq!(compared["spaces"][1]["model"], "m", "{compared}");
    // Three records answer the two questions, and one of them is not there.
    let gold = site.path("gold.jsonl");
    let question = |ids: Value| json!({"tenant": "default", "query": "record 7 is about water", "ids": ids});
    fs::write(&gold, format!("{}\n\n{}\n", question(json!(["7"])), question(json!(["7", "nobody"]))))
        .unwrap();
    let asked = ["models", "compare", "-p", &file, "--sample", "1", "--gold", gold.to_str().unwrap()];
    let compared = json_of(0, &asked);
    assert_eq!((&compared["sampled"], &compared["gold"]), (&json!(1), &json!(2)), "{compared}");
    for space in compared["spaces"].as_array().unwrap() {
        let recall = space["gold_recall_at_10"].as_f64().unwrap();
        assert!((recall - 2.0 / 3.0).abs() < 1e-9, "{compared}");
    }
    fs::write(&gold, "{\"tenant\": \"default\"}\n").unwrap();
    fails(1, &asked, "line 1 of");

    let ids: Vec<String> =
        spaces(&file).iter().map(|space| space["id"].as_str().unwrap().to_owned()).collect();
    json_of(0, &["models", "switch", &ids[1], "-p", &file]);
    assert_eq!(models_of(&daemon).await, ["m"]);
    ingest(&daemon, 60..70).await;
    daemon.derived(70).await;
    assert_eq!(counts(&daemon).await, (70, 0));
    eventually("the former one follows", async || states(&file) == [is("shadow", 70), is("live", 70)]).await;
    json_of(0, &["models", "switch", &ids[0], "-p", &file]);
    assert_eq!(models_of(&daemon).await, ["hashing-test-only-v1"]);
    ingest(&daemon, 70..75).await;
    daemon.derived(75).await;
    fails(1, &["models", "retire", &ids[0], "-p", &file], "live");
    eventually("the new one follows", async || states(&file) == [is("live", 75), is("shadow", 75)]).await;
    json_of(0, &["models", "switch", &ids[1][..6], "-p", &file]);
    daemon.stop_drained();

    // Nobody has an embedder for what is live.
    fs::write(&file, &before).unwrap();
    fails(1, &["search", "-p", &file, "--tenant", "default", "water"], "the live embedding space");
    let embed = service.endpoint("embed");
    fs::write(&file, before.replace("provider = \"hashing\"", &embed)).unwrap();
    json_of(0, &["models", "retire", &ids[0], "-p", &file]);
    assert_eq!(states(&file), [is("retired", 0), is("live", 75)]);
    let daemon = site.start();
    assert_eq!(models_of(&daemon).await, ["m"]);
    ingest(&daemon, 75..80).await;
    daemon.derived(80).await;
    daemon.stop_drained();
    // The last text that was sampled may be the one that the two questions ask for.
    let queries = service.paid().len() - 80;
    assert!((21..=22).contains(&queries), "each text once, and the comparisons' queries: {queries}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_space_that_lacks_vectors_does_not_go_live() {
    let site = Site::new(HTTP);
    let file = site.pipeline().to_str().unwrap().to_owned();
    let daemon = site.start();
    ingest(&daemon, 0..20).await;
    daemon.derived(20).await;
    daemon.stop_drained();
    let service = Service::start().await;
    service.answer_with(401);
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, format!("{before}\n[migrate]\n{}", service.endpoint("migrate"))).unwrap();
    let daemon = site.start();
    let id = spaces(&file)[1]["id"].as_str().unwrap().to_owned();
    fails(1, &["models", "switch", &id, "-p", &file], "lacks 20 vectors");
    eventually("it is said", async || daemon.get("/health/ready").await.1.contains("migration: ")).await;
    ingest(&daemon, 20..30).await;
    daemon.derived(30).await;
    assert_eq!(counts(&daemon).await, (30, 0), "live work goes on");
    assert_eq!(models_of(&daemon).await, ["hashing-test-only-v1"]);
    daemon.stop_drained();
    // What it would cost is said: two of the currency for a million tokens.
    service.answer_with(200);
    let compared = json_of(0, &["models", "compare", "-p", &file, "--sample", "5"]);
    assert_eq!((&compared["behind"], &compared["missing_chunks"]), (&json!(30), &json!(30)), "{compared}");
    assert_eq!(compared["spaces"][1]["sampled_recall_at_10"], 0.0, "{compared}");
    let (tokens, cost) =
        (compared["missing_tokens"].as_f64().unwrap(), compared["missing_cost"].as_f64().unwrap());
    assert!(tokens >= 30.0 * 5.0 && (cost - 2e-6 * tokens).abs() < 1e-12, "{compared}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_changed_under_its_name_is_halted() {
    let service = Service::start().await;
    let site = Site::new(HTTP);
    let file = site.pipeline().to_str().unwrap().to_owned();
    let before = fs::read_to_string(&file).unwrap();
    fs::write(&file, before.replace("provider = \"hashing\"", &service.endpoint("embed"))).unwrap();
    let daemon = site.start();
    ingest(&daemon, 0..10).await;
    daemon.derived(10).await;
    daemon.stop_drained();
    service.change();
    let daemon = site.start();
    eventually("it is said", async || daemon.get("/health/ready").await.1.contains("other vectors than"))
        .await;
    let (code, reply) = daemon
        .post(
            "/api/v1/search",
            "application/json",
            json!({"tenant": "default", "query": "water"}).to_string(),
        )
        .await;
    assert_eq!((code, &reply["mode"]), (200, &json!("keyword")), "{reply}");
    daemon.kill();
}

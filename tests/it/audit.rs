//! `thalweg audit`: everything adds up, and what does not is named.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, sqlite::SqliteConnectOptions};

use crate::{
    cli::{fails, json_of, pipeline},
    daemon::{Site, TCP},
    damage::{forget_store, repaired, ruin_block, sealed, thirty_records},
    producer::Producer,
};

fn audit(site: &Site, code: i32) -> Value {
    json_of(code, &["audit", "-p", &pipeline(site)])
}

/// The laws that do not hold, each with what should be and what was found.
fn wrong(audit: &Value) -> Vec<(&str, u64, u64)> {
    let laws = audit["laws"].as_array().unwrap().iter().filter(|law| law["ok"] == false);
    laws.map(|law| {
        (law["law"].as_str().unwrap(), law["should"].as_u64().unwrap(), law["found"].as_u64().unwrap())
    })
    .collect()
}

async fn change(site: &Site, statement: &str) {
    let options = SqliteConnectOptions::new().filename(site.database());
    options.connect().await.unwrap().execute(AssertSqlSafe(statement)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beside_a_daemon_under_load_everything_adds_up_at_every_moment() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let address = daemon.tcp().to_owned();
    let producing = tokio::spawn(async move {
        let mut producer = Producer::tcp(&address).await;
        for n in 0..300 {
            producer.put(&json!({"text": format!("record {n}")})).await;
        }
    });
    let mut seen = 0;
    while seen < 300 {
        let audit = tokio::task::block_in_place(|| audit(&site, 0));
        seen = audit["next_offset"].as_u64().unwrap();
        assert_eq!(audit["in_flight"], audit["log"]["end"].as_u64().unwrap() - seen);
    }
    producing.await.unwrap();
    daemon.stop_drained();
}

#[tokio::test]
async fn a_row_that_somebody_deleted_is_named() {
    let site = thirty_records().await;
    let before = audit(&site, 0);
    assert_eq!((&before["wrong"], &before["in_flight"]), (&json!(0), &json!(0)), "{before}");

    change(&site, "DELETE FROM records WHERE \"offset\" = 17").await;
    assert_eq!(wrong(&audit(&site, 3)), [("indexed", 30, 29), ("chunks without record", 0, 1)]);
    fails(3, &["audit", "-p", &pipeline(&site)], "thalweg replay");
    change(&site, "DELETE FROM vectors WHERE chunk_key = 3; DELETE FROM segments WHERE base_offset = 0")
        .await;
    let found = audit(&site, 3);
    assert!(wrong(&found).contains(&("indexed records without all vectors", 0, 1)), "{found}");
    assert!(wrong(&found).contains(&("segment artifacts not in the catalog", 0, 1)), "{found}");
}

#[tokio::test]
async fn what_damage_cost_is_no_contradiction_once_it_is_repaired() {
    let site = thirty_records().await;
    let (first, next) = ruin_block(&sealed(&site, 0), 1);
    std::fs::remove_dir_all(site.artifacts().join("segment")).unwrap();
    forget_store(&site);
    repaired(&site);
    site.start().stop_drained();
    let audited = audit(&site, 0);
    let lost = audited["laws"].as_array().unwrap().iter().find(|law| law["law"] == "lost").unwrap();
    assert_eq!(lost["found"], next - first, "{audited}");
}

#[tokio::test]
async fn a_pipeline_that_never_ran_has_nothing_to_audit() {
    let site = Site::new(TCP);
    fails(1, &["audit", "-p", &pipeline(&site)], "never ran");
}

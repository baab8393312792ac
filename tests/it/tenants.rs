//! Nothing of one tenant is ever shown to another.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::json;

use crate::{
    daemon::{Daemon, Site, TCP},
    postgres::{self, Database},
    producer::{Producer, frame},
};

const TENANTS: u64 = 50;
/// Records of each tenant in a round.
const EACH: u64 = 20;
const SEARCHERS: u64 = 4;

/// Results that have to be looked at; `THALWEG_TEST_RESULTS=100000` makes a
/// soak of it.
fn wanted() -> u64 {
    std::env::var("THALWEG_TEST_RESULTS").map_or(2_000, |n| n.parse().unwrap())
}

/// The same ids, texts and sessions for everybody.
fn round(number: u64) -> Vec<Vec<u8>> {
    let all = (number * EACH..(number + 1) * EACH).flat_map(|n| (0..TENANTS).map(move |tenant| (n, tenant)));
    all.map(|(n, tenant)| {
        let tenant = format!("tenant-{tenant}");
        frame(&json!({"id": format!("id-{n}"), "ts": n, "session": format!("s-{}", n % 3), "tenant": tenant,
                    "text": format!("the same words for everybody {n}"), "owner": tenant}))
    })
    .collect()
}

/// Looks at the results of searches until there were enough of them.
async fn look(daemon: &Daemon, searcher: u64, looked_at: &AtomicU64) {
    for asked in 0.. {
        if looked_at.load(Ordering::Relaxed) >= wanted() {
            return;
        }
        let tenant = format!("tenant-{}", (searcher + 7 * asked) % TENANTS);
        let mode = ["union", "vector", "keyword"][asked as usize % 3];
        let session = (asked % 2 == 0).then(|| format!("s-{}", asked % 3));
        let request = json!({"tenant": tenant, "query": "the same words for everybody", "limit": 100,
                             "mode": mode, "session": session});
        let hits = daemon.search(request.clone()).await;
        for hit in &hits {
            let owners = (&hit["tenant"], &hit["attrs"]["owner"]);
            assert_eq!(owners, (&json!(tenant), &json!(tenant)), "{request}");
            assert!(session.as_ref().is_none_or(|session| hit["session"] == *session), "{request}");
        }
        looked_at.fetch_add(hits.len() as u64, Ordering::Relaxed);
    }
}

async fn stay_apart(site: &Site) {
    let daemon = site.start();
    let looked_at = AtomicU64::new(0);
    let producing = async {
        let (mut producer, mut rounds) = (Producer::tcp(daemon.tcp()).await, 0);
        while looked_at.load(Ordering::Relaxed) < wanted() {
            for part in round(rounds).chunks(100) {
                producer.put_all(part).await;
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            rounds += 1;
            // So that the index keeps up, and what is searched is what arrives.
            daemon.derived(rounds * TENANTS * EACH).await;
        }
        rounds
    };
    let searching = (0..SEARCHERS).map(|searcher| look(&daemon, searcher, &looked_at));
    let (rounds, _) = tokio::join!(producing, futures::future::join_all(searching));
    println!("{} results over {TENANTS} tenants, none of another's", looked_at.into_inner());

    let all = (rounds * EACH).min(100) as usize;
    for tenant in 0..TENANTS {
        for mode in ["union", "vector", "keyword"] {
            let request = json!({"tenant": format!("tenant-{tenant}"), "query": "same words", "limit": 1000, "mode": mode});
            assert!(daemon.search(request.clone()).await.len() >= all, "{request}");
        }
    }
    let stranger = json!({"tenant": "nobody", "query": "the same words for everybody"});
    assert_eq!(daemon.search(stranger).await.len(), 0);
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_texts_ids_and_sessions_of_fifty_tenants_stay_apart_while_they_arrive() {
    stay_apart(&Site::new(TCP)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_tenants_stay_apart_in_postgresql_while_they_arrive() {
    let Some(server) = postgres::server() else { return };
    let database = Database::new(&server).await;
    stay_apart(&Site::new(&format!("{TCP}{}", database.settings()))).await;
    database.remove().await;
}

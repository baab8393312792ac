//! Nothing of one tenant is ever shown to another.

use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::{
    daemon::{Site, TCP},
    producer::{Producer, frame},
};

const TENANTS: usize = 50;
const EACH: usize = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_texts_ids_and_sessions_of_fifty_tenants_stay_apart_while_they_arrive() {
    let site = Site::new(TCP);
    let daemon = site.start();
    let arriving = AtomicBool::new(true);
    let frames: Vec<Vec<u8>> = (0..EACH)
        .flat_map(|n| (0..TENANTS).map(move |tenant| (n, format!("tenant-{tenant}"))))
        .map(|(n, tenant)| {
            frame(
                &json!({"id": format!("id-{n}"), "ts": n, "session": format!("s-{}", n % 3), "tenant": tenant,
                          "text": format!("the same words for everybody {n}"), "owner": tenant}),
            )
        })
        .collect();
    let producing = async {
        let mut producer = Producer::tcp(daemon.tcp()).await;
        for part in frames.chunks(100) {
            producer.put_all(part).await;
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        daemon.derived((TENANTS * EACH) as u64).await;
        arriving.store(false, Ordering::Relaxed);
    };
    let searching = (0..4).map(async |searcher| {
        let (mut asked, mut found) = (0, 0);
        while arriving.load(Ordering::Relaxed) {
            let tenant = format!("tenant-{}", (searcher + 7 * asked) % TENANTS);
            let mode = ["union", "vector", "keyword"][asked % 3];
            let session = (asked % 2 == 0).then(|| format!("s-{}", asked % 3));
            let request = json!({"tenant": tenant, "query": "the same words for everybody", "limit": 1000,
                                 "mode": mode, "session": session});
            for hit in daemon.search(request.clone()).await {
                let owners = (&hit["tenant"], &hit["attrs"]["owner"]);
                assert_eq!(owners, (&json!(tenant), &json!(tenant)), "{request}");
                assert!(session.as_ref().is_none_or(|session| hit["session"] == *session), "{request}");
                found += 1;
            }
            asked += 1;
        }
        found
    });
    let ((), found) = tokio::join!(producing, futures::future::join_all(searching));
    assert!(found.iter().sum::<usize>() > 0, "nothing was searched while records arrived");

    for tenant in 0..TENANTS {
        for mode in ["union", "vector", "keyword"] {
            let request = json!({"tenant": format!("tenant-{tenant}"), "query": "same words", "limit": 1000, "mode": mode});
            assert_eq!(daemon.search(request.clone()).await.len(), EACH, "{request}");
        }
    }
    let stranger = json!({"tenant": "nobody", "query": "the same words for everybody"});
    assert_eq!(daemon.search(stranger).await.len(), 0);
    daemon.stop_drained();
}

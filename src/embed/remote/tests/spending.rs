//! Quotas: the service's, and the pipeline's own.

use serde_json::json;

use super::*;

const DAY_MS: i64 = 86_400_000;

#[tokio::test]
async fn a_spent_account_is_told_at_once_and_not_asked_again() {
    let server = Server::start(|_| {
        let error =
            json!({"error": {"message": "You exceeded your current quota", "type": "insufficient_quota"}});
        Reply::json(429, &error)
    })
    .await;
    let remote = remote(&endpoint("a", &server, ""));
    for _ in 0..3 {
        let partial = each(&remote, &texts(3)).await;
        assert_eq!(failed(&partial), "quota");
    }
    assert_eq!(server.requests(), 1);
    assert_eq!(class(&remote.embed_query("how".into()).await.unwrap_err()), "quota");
}

#[tokio::test]
async fn the_days_quota_stops_everything_until_midnight_and_keeps_what_was_done() {
    let server = Server::good().await;
    let clock = Arc::new(AtomicI64::new(NOON));
    // A text of the tests has 7 or 8 tokens by our estimate, 5 by the server's count.
    let settings =
        format!("{}[quota]\ndaily_tokens = 100", endpoint("a", &server, "max_inputs = 4\nconcurrency = 1"));
    let (remote, texts) = (remote_at(&settings, &clock), texts(100));
    let partial = each(&remote, &texts).await;
    let midnight = NOON + DAY_MS / 2;
    match &partial.failed {
        Some(EmbedError::Quota { reset_at, .. }) => assert_eq!(*reset_at, Some(midnight)),
        other => panic!("{other:?}"),
    }
    let done = good(&partial, &texts);
    assert_eq!(done, 19, "5 tokens are left, 7 are wanted");
    let state = remote.budget().unwrap().state();
    assert_eq!((state.daily_quota, state.current_count), (Some(100), done as u64 * 5));
    assert!(state.exceeded && state.reset_at == midnight);
    let requests = server.requests();
    assert_eq!(failed(&each(&remote, &texts[20..]).await), "quota");
    assert_eq!(server.requests(), requests, "nothing more is sent");
    clock.store(midnight, Ordering::Relaxed);
    assert!(!remote.budget().unwrap().state().exceeded);
    assert!(good(&each(&remote, &texts[90..]).await, &texts[90..]) == 10);
    paid_once(&server);
}

#[tokio::test]
async fn backfill_leaves_queries_their_share() {
    let server = Server::good().await;
    let remote = remote(&format!(
        "{}[quota]\ndaily_requests = 10\nlive_share = 0.5",
        endpoint("a", &server, "max_inputs = 1")
    ));
    let partial = remote.embed_each(texts(20), Work::Backfill).await;
    assert_eq!(failed(&partial), "quota");
    assert_eq!(good(&partial, &texts(20)), 5);
    for _ in 0..5 {
        remote.embed_query("how".into()).await.unwrap();
    }
    assert_eq!(class(&remote.embed_query("how".into()).await.unwrap_err()), "quota");
    assert_eq!(server.requests(), 10);
}

#[tokio::test]
async fn a_budget_in_money_leaves_endpoints_that_cost_nothing() {
    let (dear, free) = (Server::good().await, Server::good().await);
    let remote = remote(&format!(
        "{}{}[quota]\ndaily_budget = 0.0001",
        endpoint("dear", &dear, "price_per_million_tokens = 1.0"),
        endpoint("free", &free, "")
    ));
    for _ in 0..10 {
        complete(&each(&remote, &texts(10)).await, &texts(10));
    }
    // 100 millionths: one text of 5 tokens costs 5.
    let paid: usize = dear.served().values().sum();
    assert!((10..=20).contains(&paid), "{paid}");
    assert_eq!(paid + free.served().values().sum::<usize>(), 100);
}

#[tokio::test]
async fn requests_that_were_refused_cost_no_tokens() {
    let server = Server::start(|seen| match seen.number {
        0 => Reply::json(429, &json!(null)).header("retry-after-ms", "1"),
        1 => Reply::json(500, &json!(null)),
        _ => Reply::good(seen),
    })
    .await;
    let remote = remote(&endpoint("a", &server, ""));
    complete(&each(&remote, &texts(2)).await, &texts(2));
    let states = remote.budget().unwrap().states();
    assert_eq!(states[0].1.current_count, 10, "tokens");
    assert_eq!(states[1].1.current_count, 3, "requests");
}

#[tokio::test]
async fn what_was_spent_is_carried_over_a_restart() {
    let server = Server::good().await;
    let settings = format!("{}[quota]\ndaily_requests = 3", endpoint("a", &server, ""));
    let before = remote(&settings);
    before.embed_query("how".into()).await.unwrap();
    before.embed_query("how".into()).await.unwrap();
    let spent = before.budget().unwrap().unwritten();
    let after = remote(&settings);
    let nothing = after.budget().unwrap().unwritten();
    after.budget().unwrap().written(&nothing, &spent);
    after.embed_query("how".into()).await.unwrap();
    assert_eq!(class(&after.embed_query("how".into()).await.unwrap_err()), "quota");
}

//! Several endpoints of one space.

use std::time::Instant;

use serde_json::json;

use super::*;

fn pair(first: &Server, second: &Server, more: &str) -> Remote {
    remote(&format!("{}{}", endpoint("first", first, more), endpoint("second", second, more)))
}

#[tokio::test]
async fn the_second_is_asked_where_the_first_fails_and_at_once() {
    for (status, body) in [
        (500, json!(null)),
        (401, json!(null)),
        (429, json!({"error": {"type": "insufficient_quota"}})),
        (429, json!(null)),
    ] {
        let first = Server::start(move |_| Reply::json(status, &body).header("retry-after", "30")).await;
        let second = Server::good().await;
        let (remote, texts, started) = (pair(&first, &second, ""), texts(20), Instant::now());
        complete(&each(&remote, &texts).await, &texts);
        assert!(started.elapsed() < Duration::from_millis(500), "{status}: {:?}", started.elapsed());
        assert_eq!((first.requests(), second.requests()), (1, 1));
    }
}

#[tokio::test]
async fn while_the_first_works_the_second_is_left_alone() {
    let (first, second) = (Server::good().await, Server::good().await);
    let remote = pair(&first, &second, "");
    for _ in 0..5 {
        complete(&each(&remote, &texts(20)).await, &texts(20));
    }
    assert_eq!((first.requests(), second.requests()), (5, 0));
}

#[tokio::test]
async fn a_dead_endpoint_is_not_asked_again_and_again() {
    let (first, second) = (Server::good().await, Server::good().await);
    let remote = pair(&first, &second, "");
    drop(first);
    let started = Instant::now();
    for _ in 0..20 {
        complete(&each(&remote, &texts(3)).await, &texts(3));
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(second.requests(), 20);
}

/// One endpoint takes 30 seconds for everything, the other answers at once.
#[tokio::test]
async fn an_endpoint_at_30_seconds_stalls_no_call_but_the_one_it_has() {
    let slow = Server::start(|seen| Reply::Later(Duration::from_secs(30), Box::new(Reply::good(seen)))).await;
    let fast = Server::good().await;
    let remote = Arc::new(pair(&slow, &fast, "concurrency = 8\ntimeout = '60s'"));
    let stuck = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move { each(&remote, &texts(1)).await }
    });
    tokio::time::sleep(POLICY.grace + Duration::from_millis(100)).await;
    let started = Instant::now();
    for _ in 0..20 {
        complete(&each(&remote, &texts(10)).await, &texts(10));
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!((slow.requests(), fast.requests()), (1, 20));
    assert!(!stuck.is_finished());
    stuck.abort();
}

#[tokio::test]
async fn a_query_does_not_wait_for_the_slow_one_even_if_it_went_there() {
    let slow = Server::start(|_| Reply::Hang).await;
    let fast = Server::good().await;
    let (remote, started) = (pair(&slow, &fast, "concurrency = 1\ntimeout = '60s'"), Instant::now());
    assert_eq!(remote.embed_query("how".into()).await.unwrap(), stored("how"));
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!((slow.requests(), fast.requests()), (1, 1));
}

#[tokio::test]
async fn an_endpoint_that_never_answers_is_soon_asked_last() {
    let silent = Server::start(|_| Reply::Hang).await;
    let good = Server::good().await;
    let remote = pair(&silent, &good, "timeout = '60s'");
    for _ in 0..10 {
        assert_eq!(remote.embed_query("how".into()).await.unwrap(), stored("how"));
    }
    let asked = silent.requests();
    assert!((1..=3).contains(&asked), "{asked}");
    complete(&each(&remote, &texts(3)).await, &texts(3));
    assert_eq!(silent.requests(), asked, "records go to the other one, too");
}

#[tokio::test]
async fn beside_a_slow_endpoint_the_next_is_tried_once_and_no_more_if_it_is_no_faster() {
    let later = |seen: &Seen| Reply::Later(Duration::from_millis(450), Box::new(Reply::good(seen)));
    let (first, second) = (Server::start(later).await, Server::start(later).await);
    let remote = pair(&first, &second, "");
    for _ in 0..4 {
        complete(&each(&remote, &texts(1)).await, &texts(1));
    }
    // Slower than POLICY.grace: the second is tried, once.
    assert_eq!((first.requests(), second.requests()), (3, 1));
}

#[tokio::test]
async fn a_query_that_one_endpoint_refuses_is_answered_by_the_other() {
    let refusing = Server::start(|seen| match seen.texts[0].as_str() {
        "how" => Reply::Later(Duration::from_millis(150), Box::new(Reply::json(400, &json!(null)))),
        _ => Reply::good(seen),
    })
    .await;
    let slow =
        Server::start(|seen| Reply::Later(Duration::from_millis(300), Box::new(Reply::good(seen)))).await;
    let remote = pair(&refusing, &slow, "");
    assert_eq!(remote.embed_query("how".into()).await.unwrap(), stored("how"));
    assert_eq!((refusing.requests(), slow.requests()), (2, 1), "the text, and one that must do");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_side_by_side_keep_to_the_places_together() {
    let server =
        Server::start(|seen| Reply::Later(Duration::from_millis(5), Box::new(Reply::good(seen)))).await;
    let remote = Arc::new(remote(&endpoint("a", &server, "concurrency = 3")));
    let calls = (0..50).map(|_| {
        let remote = Arc::clone(&remote);
        tokio::spawn(async move { complete(&each(&remote, &texts(2)).await, &texts(2)) })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert_eq!(server.requests(), 50);
    assert!(server.connections() <= 3, "{} connections", server.connections());
}

#[tokio::test]
async fn a_query_without_an_answer_ends_in_time() {
    let server = Server::start(|_| Reply::Hang).await;
    let (remote, started) = (remote(&endpoint("a", &server, "timeout = '60s'")), Instant::now());
    assert_eq!(class(&remote.embed_query("how".into()).await.unwrap_err()), "transient");
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_query_goes_beside_the_records_that_take_every_other_place() {
    let server = Server::start(|seen| {
        if seen.texts == ["how"] {
            return Reply::good(seen);
        }
        Reply::Later(Duration::from_millis(700), Box::new(Reply::good(seen)))
    })
    .await;
    let remote = Arc::new(remote(&endpoint("a", &server, "concurrency = 2\nmax_inputs = 1")));
    let records = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move { each(&remote, &texts(2)).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    remote.embed_query("how".into()).await.unwrap();
    assert!(started.elapsed() < Duration::from_millis(400), "{:?}", started.elapsed());
    complete(&records.await.unwrap(), &texts(2));
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_set_and_connections_are_kept() {
    let server =
        Server::start(|seen| Reply::Later(Duration::from_millis(20), Box::new(Reply::good(seen)))).await;
    let remote = remote(&endpoint("a", &server, "concurrency = 3\nmax_inputs = 2"));
    let texts = texts(40);
    complete(&each(&remote, &texts).await, &texts);
    complete(&each(&remote, &texts).await, &texts);
    assert_eq!(server.requests(), 40);
    assert!(server.connections() <= 3, "{} connections", server.connections());
}

#[tokio::test]
async fn what_was_done_before_a_failure_is_kept() {
    let server = Server::start(|seen| match seen.number {
        0..4 => Reply::good(seen),
        _ => Reply::json(401, &json!(null)),
    })
    .await;
    let remote = remote(&endpoint("a", &server, "max_inputs = 10\nconcurrency = 1"));
    let texts = texts(100);
    let partial = each(&remote, &texts).await;
    assert_eq!(failed(&partial), "configuration");
    assert_eq!(good(&partial, &texts), 40);
    assert_eq!(server.requests(), 5);
}

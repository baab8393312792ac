//! Each kind of failure, by what is done about it.

use std::{sync::atomic::AtomicBool, time::Instant};

use serde_json::{Value, json};

use super::{super::Circuit, server::answer, *};

/// Answers the first requests with what `bad` gives, the others well.
async fn at_first(count: usize, bad: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |seen| if seen.number < count { bad(seen) } else { Reply::good(seen) }).await
}

fn too_many() -> Reply {
    Reply::json(429, &json!({"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}))
}

#[tokio::test]
async fn a_429_is_waited_out_for_as_long_as_it_says_and_charges_no_attempt() {
    let server = at_first(8, |_| too_many().header("retry-after", "0.05")).await;
    let (remote, texts, started) = (remote(&endpoint("a", &server, "")), texts(3), Instant::now());
    complete(&each(&remote, &texts).await, &texts);
    assert!(started.elapsed() >= Duration::from_millis(8 * 50));
    assert_eq!(server.requests(), 9, "more than POLICY.attempts");
}

#[tokio::test]
async fn a_query_waits_too_where_there_is_no_second_endpoint() {
    let server = at_first(1, |_| too_many().header("retry-after", "0.3")).await;
    let remote = remote(&endpoint("a", &server, ""));
    let vector = remote.embed_query("a question".into()).await.unwrap();
    assert_eq!((vector, server.requests()), (stored("a question"), 2), "longer than POLICY.second_opinion");
}

#[tokio::test]
async fn a_429_may_say_it_as_a_date() {
    let server = at_first(1, |_| too_many().header("retry-after", "Mon, 01 Jan 2024 12:00:00 GMT")).await;
    let clock = Arc::new(AtomicI64::new(NOON - 150));
    let (remote, texts, started) = (remote_at(&endpoint("a", &server, ""), &clock), texts(1), Instant::now());
    complete(&each(&remote, &texts).await, &texts);
    let waited = started.elapsed().as_millis();
    assert!((150..480).contains(&waited), "{waited} ms");
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn a_429_without_a_word_is_waited_out_too() {
    let server = at_first(1, |_| too_many()).await;
    let (remote, texts, started) = (remote(&endpoint("a", &server, "")), texts(1), Instant::now());
    complete(&each(&remote, &texts).await, &texts);
    assert!(started.elapsed() >= Duration::from_millis(500));
    assert_eq!(server.requests(), 2);
}

#[tokio::test]
async fn an_endless_429_that_asks_for_no_wait_ends_with_patience() {
    let server = Server::start(|_| too_many().header("retry-after", "0")).await;
    let (remote, started) = (remote(&endpoint("a", &server, "")), Instant::now());
    assert_eq!(failed(&each(&remote, &texts(1)).await), "rate");
    assert!(started.elapsed() < Duration::from_secs(2));
    assert!((4..=12).contains(&server.requests()), "{}", server.requests());
}

#[tokio::test]
async fn a_429_longer_than_patience_is_told_with_its_time() {
    let server = at_first(1, |_| too_many().header("retry-after", "60")).await;
    let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(1));
    for _ in 0..2 {
        match each(&remote, &texts).await.failed {
            Some(EmbedError::Rate { retry_after: Some(wait), .. }) => {
                assert!((Duration::from_secs(58)..=Duration::from_secs(60)).contains(&wait), "{wait:?}");
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(server.requests(), 1, "nobody asks before the time");
}

#[tokio::test]
async fn the_rate_headers_hold_the_next_request_back() {
    let server = Server::start(|seen| {
        let reply = Reply::good(seen).header("x-ratelimit-limit-requests", "6000");
        reply.header("x-ratelimit-remaining-requests", "0").header("x-ratelimit-reset-requests", "250ms")
    })
    .await;
    let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(1));
    complete(&each(&remote, &texts).await, &texts);
    let started = Instant::now();
    complete(&each(&remote, &texts).await, &texts);
    assert!(started.elapsed() >= Duration::from_millis(240));
}

#[tokio::test]
async fn a_500_is_tried_again() {
    let server = at_first(2, |_| Reply::json(500, &json!({"error": "oops"}))).await;
    let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(3));
    complete(&each(&remote, &texts).await, &texts);
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn endless_500s_open_the_circuit_and_a_probe_closes_it() {
    let server = at_first(4, |_| Reply::json(500, &json!({"error": "oops"}))).await;
    let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(3));
    let partial = each(&remote, &texts).await;
    assert_eq!(failed(&partial), "transient");
    assert!(partial.failed.unwrap().to_string().contains("HTTP 500: oops"));
    assert_eq!(server.requests(), 4);
    assert_eq!(server.seen()[3].texts, [CANARY], "it is no text's fault");
    let started = Instant::now();
    assert_eq!(failed(&each(&remote, &texts).await), "transient");
    assert!(started.elapsed() < Duration::from_millis(200), "an open circuit costs no time");
    assert_eq!(server.requests(), 4, "and no request");
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    complete(&each(&remote, &texts).await, &texts);
}

#[tokio::test]
async fn attempts_are_bounded_where_the_circuit_stays_closed() {
    let server = Server::start(|seen| match seen.texts.first().map(String::as_str) {
        Some("how") => Reply::good(seen),
        _ => Reply::Later(Duration::from_millis(40), Box::new(Reply::json(503, &Value::Null))),
    })
    .await;
    let remote = Arc::new(remote(&endpoint("a", &server, "concurrency = 2")));
    // Answered well all the time, so that failures are never in a row.
    let queries = tokio::spawn({
        let remote = Arc::clone(&remote);
        async move {
            loop {
                remote.embed_query("how".into()).await.unwrap();
            }
        }
    });
    assert_eq!(failed(&each(&remote, &texts(1)).await), "transient");
    queries.abort();
    let asked = server.seen().iter().filter(|seen| seen.texts != ["how"] && seen.texts != [CANARY]).count();
    assert_eq!(asked, POLICY.attempts as usize);
}

#[tokio::test]
async fn a_server_that_hangs_is_given_up_in_time() {
    let server = at_first(1, |_| Reply::Hang).await;
    let remote = remote(&endpoint("a", &server, "timeout = '100ms'"));
    let (texts, started) = (texts(3), Instant::now());
    complete(&each(&remote, &texts).await, &texts);
    assert!((100..1_000).contains(&started.elapsed().as_millis()));
}

#[tokio::test]
async fn an_answer_that_trickles_is_given_up_in_time() {
    let server = at_first(1, |_| Reply::Later(Duration::from_millis(900), Box::new(Reply::Hang))).await;
    let remote = remote(&endpoint("a", &server, "timeout = '100ms'"));
    let (texts, started) = (texts(3), Instant::now());
    complete(&each(&remote, &texts).await, &texts);
    assert!(started.elapsed() < Duration::from_millis(800));
}

#[tokio::test]
async fn a_connection_reset_in_mid_body_is_tried_again() {
    let server = at_first(2, |seen| {
        let body = answer(&seen.texts).to_string().into_bytes();
        let half = body.len() / 2;
        Reply::Reset(body, half)
    })
    .await;
    let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(3));
    complete(&each(&remote, &texts).await, &texts);
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn nobody_at_the_address_is_transient() {
    let server = Server::good().await;
    let remote = remote(&endpoint("a", &server, ""));
    drop(server);
    tokio::time::sleep(Duration::from_millis(10)).await;
    let partial = each(&remote, &texts(1)).await;
    assert_eq!(failed(&partial), "transient");
    assert!(!partial.failed.unwrap().to_string().contains("127.0.0.1/"), "no address with its path");
    assert_eq!(remote.budget().unwrap().state().current_count, 0, "nobody can charge for it");
}

#[tokio::test]
async fn truncated_json_is_tried_again() {
    let server = at_first(2, |seen| {
        let body = answer(&seen.texts).to_string().into_bytes();
        Reply::With(200, Vec::new(), body[..body.len() - 20].to_vec())
    })
    .await;
    let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(3));
    complete(&each(&remote, &texts).await, &texts);
    assert_eq!(server.requests(), 3);
}

#[tokio::test]
async fn a_wrong_key_stops_the_endpoint_without_another_try() {
    for status in [401, 403, 404, 307] {
        let server = Server::start(move |_| {
            let reply = Reply::json(status, &json!({"error": {"message": "no: sk-very-secret"}}));
            reply.header("location", "http://127.0.0.1:1/elsewhere")
        })
        .await;
        let remote = remote(&endpoint("a", &server, "key = 'sk-very-secret'"));
        for _ in 0..2 {
            let partial = each(&remote, &texts(3)).await;
            assert_eq!(failed(&partial), "configuration");
            let error = partial.failed.unwrap();
            assert!(!format!("{error} {error:?}").contains("very-secret"), "{error}");
        }
        assert_eq!(server.requests(), 1, "{status}");
    }
}

#[tokio::test]
async fn wrong_dimensions_stop_the_endpoint_and_nothing_is_kept() {
    let server = Server::start(|seen| {
        let mut answer = answer(&seen.texts);
        answer["data"][1]["embedding"] = json!([1, 2, 3]);
        Reply::json(200, &answer)
    })
    .await;
    let remote = remote(&endpoint("a", &server, ""));
    let partial = each(&remote, &texts(3)).await;
    assert_eq!(failed(&partial), "configuration");
    assert!(partial.failed.as_ref().unwrap().to_string().contains("3 numbers, embed.dimensions is 4"));
    assert_eq!(good(&partial, &texts(3)), 0);
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn an_answer_of_another_api_stops_the_endpoint() {
    let server = Server::start(|_| Reply::json(200, &json!([[1, 2, 3, 4]]))).await;
    assert_eq!(failed(&each(&remote(&endpoint("a", &server, "")), &texts(1)).await), "configuration");
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn vectors_out_of_order_are_put_in_order() {
    let server = Server::start(|seen| {
        let mut answer = answer(&seen.texts);
        answer["data"].as_array_mut().unwrap().reverse();
        Reply::json(200, &answer)
    })
    .await;
    let texts = texts(50);
    complete(&each(&remote(&endpoint("a", &server, "")), &texts).await, &texts);
    assert_eq!(server.requests(), 1);
}

#[tokio::test]
async fn an_answer_with_an_index_twice_or_out_of_range_is_not_believed() {
    for bad in [json!(1), json!(7)] {
        let server = at_first(1, move |seen| {
            let mut answer = answer(&seen.texts);
            answer["data"][0]["index"] = bad.clone();
            Reply::json(200, &answer)
        })
        .await;
        let texts = texts(3);
        complete(&each(&remote(&endpoint("a", &server, "")), &texts).await, &texts);
        assert_eq!(server.requests(), 2);
    }
}

/// Gemini leaves the index out where it is 0, others everywhere.
#[tokio::test]
async fn an_answer_without_indexes_is_taken_as_it_stands_and_paid_for_once() {
    for all in [false, true] {
        let server = Server::start(move |seen| {
            let mut answer = answer(&seen.texts);
            for item in answer["data"].as_array_mut().unwrap() {
                if all || item["index"] == 0 {
                    item.as_object_mut().unwrap().remove("index");
                }
            }
            Reply::json(200, &answer)
        })
        .await;
        let texts = texts(50);
        complete(&each(&remote(&endpoint("a", &server, "")), &texts).await, &texts);
        assert_eq!(server.requests(), 1);
    }
}

/// One vector for a whole request, whatever it holds, until it is put right.
#[tokio::test]
async fn answers_that_never_belong_are_paid_for_twice_and_then_tried_with_plain_words() {
    let broken = Arc::new(AtomicBool::new(true));
    let server = Server::start({
        let broken = Arc::clone(&broken);
        move |seen| {
            let answered = if broken.load(Ordering::Relaxed) { &seen.texts[..1] } else { &seen.texts };
            Reply::json(200, &answer(answered))
        }
    })
    .await;
    let policy = Policy { misconfigured: Duration::from_millis(100), ..POLICY };
    let remote = remote_with(&endpoint("a", &server, ""), &Arc::new(AtomicI64::new(NOON)), policy);
    let texts = texts(10);
    for _ in 0..2 {
        let partial = each(&remote, &texts).await;
        assert_eq!(failed(&partial), "configuration");
        assert!(partial.failed.unwrap().to_string().contains("1 vectors for 10 texts"));
        assert_eq!(server.requests(), 2);
    }
    tokio::time::sleep(Duration::from_millis(110)).await;
    assert_eq!(failed(&each(&remote, &texts).await), "configuration");
    assert_eq!(server.requests(), 3);
    assert_eq!(server.seen()[2].texts, [CANARY, CANARY], "nothing that costs something");
    broken.store(false, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(210)).await;
    complete(&each(&remote, &texts).await, &texts);
    assert_eq!(server.requests(), 5);
}

#[tokio::test]
async fn an_endpoints_state_can_be_seen_without_its_key() {
    let server =
        at_first(1, |_| Reply::json(403, &json!({"error": {"message": "no: sk-very-secret"}}))).await;
    let remote = remote(&endpoint("a", &server, "key = 'sk-very-secret'"));
    let embedder: &dyn Embedder = &remote;
    assert_eq!(embedder.endpoints()[0].circuit, Circuit::Closed);
    each(&remote, &texts(1)).await;
    let state = embedder.endpoints().remove(0);
    assert_eq!((state.name.as_str(), state.circuit), ("a", Circuit::Open));
    let retry_in = state.retry_at.unwrap() - NOON;
    assert!((59_000..=60_000).contains(&retry_in), "{retry_in} ms");
    let failure = state.last_failure.unwrap();
    assert_eq!((&*failure.class, failure.reason.as_str()), ("configuration", "HTTP 403: no: (secret)"));
}

#[tokio::test]
async fn an_answer_without_end_is_not_read_to_its_end() {
    // It would be a good one, if it ended.
    let long = |seen: &Seen, length| {
        let mut body = answer(&seen.texts).to_string().into_bytes();
        body.resize(length, b' ');
        body
    };
    let server = at_first(1, move |seen| Reply::With(200, Vec::new(), long(seen, 4 << 20))).await;
    let bomb = at_first(1, move |seen| {
        let body = server::gzip(&long(seen, 4 << 20));
        Reply::With(200, Vec::new(), body).header("content-encoding", "gzip")
    })
    .await;
    for server in [&server, &bomb] {
        let texts = texts(1);
        complete(&each(&remote(&endpoint("a", server, "")), &texts).await, &texts);
        assert_eq!(server.requests(), 2);
    }
}

#[tokio::test]
async fn a_call_given_up_gives_its_place_back() {
    let server = at_first(1, |_| Reply::Hang).await;
    let remote = remote(&endpoint("a", &server, "concurrency = 1"));
    let texts = texts(1);
    assert!(tokio::time::timeout(Duration::from_millis(50), each(&remote, &texts)).await.is_err());
    complete(&each(&remote, &texts).await, &texts);
}

//! Bad texts among good ones, and texts out of the ordinary.

use std::sync::atomic::AtomicUsize;

use serde_json::{Value, json};

use super::{
    super::{super::Refused, Circuit},
    server::answer,
    *,
};

const POISON: &str = "text number 617";

fn refused(status: u16) -> Reply {
    Reply::json(
        status,
        &json!({"error": {"message": "input is not acceptable", "type": "invalid_request_error"}}),
    )
}

#[tokio::test]
async fn one_poison_input_in_a_thousand_is_found_and_the_others_are_paid_for_once() {
    for status in [400, 422] {
        let server = Server::start(move |seen| {
            if seen.texts.iter().any(|text| text == POISON) { refused(status) } else { Reply::good(seen) }
        })
        .await;
        let (remote, texts) = (remote(&endpoint("a", &server, "max_inputs = 250")), texts(1_000));
        let partial = each(&remote, &texts).await;
        assert!(partial.failed.is_none(), "{:?}", partial.failed);
        assert_eq!(good(&partial, &texts), 999);
        let reason = format!("HTTP {status}: input is not acceptable");
        assert_eq!(partial.refused, [Refused { index: 617, reason }]);
        paid_once(&server);
        // Three other quarters, and two halves of each step from 250 to 1.
        assert!(server.requests() <= 3 + 1 + 2 * 8 + 1 + 1, "{}", server.requests());
    }
}

/// Not by the service's word, but by what happens.
#[tokio::test]
async fn one_input_in_a_thousand_that_a_service_always_fails_at_is_found_and_holds_nothing_up() {
    for status in [500, 424] {
        let server = Server::start(move |seen| {
            let poisoned = seen.texts.iter().any(|text| text == POISON);
            if poisoned { Reply::json(status, &json!({"error": "oops"})) } else { Reply::good(seen) }
        })
        .await;
        let (remote, texts) = (remote(&endpoint("a", &server, "max_inputs = 250")), texts(1_000));
        let partial = each(&remote, &texts).await;
        assert!(partial.failed.is_none(), "{:?}", partial.failed);
        assert_eq!(good(&partial, &texts), 999);
        assert_eq!(partial.refused.len(), 1);
        assert_eq!(partial.refused[0].index, 617);
        let reason = &partial.refused[0].reason;
        assert!(reason.starts_with(&format!("HTTP {status}: oops (5 times")), "{reason}");
        paid_once(&server);
        let failures = server.seen().iter().filter(|seen| seen.texts.iter().any(|t| t == POISON)).count();
        // The quarter three times, two at each of 7 sizes below it, one text four times.
        assert!(failures <= 3 + 2 * 7 + 4, "{failures}");
        let plain = server.served().get(CANARY).copied().unwrap_or(0);
        assert!(plain <= 1 + 7 + 4, "{plain}");
        assert_eq!(remote.endpoints()[0].circuit, Circuit::Closed);
    }
}

#[tokio::test]
async fn several_inputs_that_a_service_always_fails_at_do_not_close_the_endpoint() {
    let server = Server::start(|seen| {
        let poisoned = seen.texts.iter().any(|text| text.ends_with('7'));
        if poisoned { Reply::json(500, &json!(null)) } else { Reply::good(seen) }
    })
    .await;
    // Every request but every tenth text fails.
    let (remote, texts) = (
        remote(&endpoint(
            "a",
            &server,
            "max_inputs = 10
concurrency = 8",
        )),
        texts(100),
    );
    let partial = each(&remote, &texts).await;
    assert!(partial.failed.is_none(), "{:?}", partial.failed);
    assert_eq!((good(&partial, &texts), partial.refused.len()), (90, 10));
    paid_once(&server);
}

#[tokio::test]
async fn an_endpoint_that_fails_at_everything_refuses_no_text() {
    let server = Server::start(|_| Reply::json(500, &json!(null))).await;
    for count in [1, 100] {
        let partial = each(&remote(&endpoint("a", &server, "")), &texts(count)).await;
        assert_eq!(failed(&partial), "transient");
        assert_eq!(partial.refused, []);
    }
    assert!(server.requests() <= 2 * 4, "{}", server.requests());
}

#[tokio::test]
async fn a_text_that_one_endpoint_fails_at_is_embedded_by_the_other() {
    for status in [400, 500] {
        let failing = Server::start(move |seen| {
            if seen.texts.iter().any(|text| text == POISON) { refused(status) } else { Reply::good(seen) }
        })
        .await;
        let other = Server::good().await;
        let settings = format!("{}{}", endpoint("a", &failing, ""), endpoint("b", &other, ""));
        let texts = texts(700);
        complete(&each(&remote(&settings), &texts).await, &texts);
        assert!(other.served().contains_key(POISON));
    }
}

#[tokio::test]
async fn a_text_that_one_replica_refuses_is_put_to_the_next() {
    let refusals = AtomicUsize::new(0);
    let server = Server::start(move |seen| {
        let replica = seen.texts == [POISON] && refusals.fetch_add(1, Ordering::Relaxed) == 0;
        if replica { refused(400) } else { Reply::good(seen) }
    })
    .await;
    let texts = [POISON.to_owned()];
    complete(&each(&remote(&endpoint("a", &server, "")), &texts).await, &texts);
    assert_eq!(server.requests(), 1 + 1 + 1, "refused, asked whether it works, taken");
}

#[tokio::test]
async fn a_text_that_is_longer_than_we_counted_is_cut_until_it_fits() {
    let server = Server::start(|seen| {
        if seen.texts.iter().all(|text| text.len() <= 100) {
            return Reply::good(seen);
        }
        let message = "This model's maximum context length is 20 tokens, however you requested 40 tokens";
        Reply::json(400, &json!({"error": {"message": message, "type": "invalid_request_error"}}))
    })
    .await;
    let remote = remote(&endpoint("a", &server, ""));
    let mut texts = texts(20);
    texts[7] = "word ".repeat(40);
    let partial = each(&remote, &texts).await;
    assert!(partial.failed.is_none() && partial.refused.is_empty(), "{:?}", partial.refused);
    let cut = server.served().into_keys().find(|text| text.starts_with("word")).unwrap();
    assert!((75..=100).contains(&cut.len()), "{} bytes", cut.len());
    assert_eq!(partial.vectors[7], Some(stored(&cut)));
    paid_once(&server);
}

/// With 413 and without a word, as a proxy before the service does.
#[tokio::test]
async fn a_single_text_that_is_refused_as_too_large_makes_no_later_request_small() {
    let server = Server::start(move |seen| {
        let poisoned = seen.texts.iter().any(|text| text == "text number 3");
        if poisoned { Reply::json(413, &json!(null)) } else { Reply::good(seen) }
    })
    .await;
    let (remote, texts) = (remote(&endpoint("a", &server, "concurrency = 1")), texts(1_000));
    let partial = each(&remote, &texts).await;
    assert_eq!((good(&partial, &texts), partial.refused.len()), (999, 1));
    let before = server.requests();
    complete(&each(&remote, &texts[400..]).await, &texts[400..]);
    assert!(server.requests() - before <= 2, "{}", server.requests() - before);
}

#[tokio::test]
async fn several_poison_inputs_are_found() {
    let server = Server::start(|seen| {
        if seen.texts.iter().any(|text| text.ends_with('7')) { refused(400) } else { Reply::good(seen) }
    })
    .await;
    let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(100));
    let partial = each(&remote, &texts).await;
    assert!(partial.failed.is_none());
    assert_eq!(good(&partial, &texts), 90);
    let mut found: Vec<usize> = partial.refused.iter().map(|refused| refused.index).collect();
    found.sort_unstable();
    assert_eq!(found, (7..100).step_by(10).collect::<Vec<_>>());
    paid_once(&server);
}

#[tokio::test]
async fn an_endpoint_that_refuses_everything_refuses_no_text() {
    for status in [400, 413, 422] {
        let server = Server::start(move |_| refused(status)).await;
        for count in [1, 1_000] {
            let partial = each(&remote(&endpoint("a", &server, "")), &texts(count)).await;
            assert_eq!(failed(&partial), "configuration", "{status}");
            assert_eq!(partial.refused, []);
        }
        // Two for the text alone; one of the thousand in each of 11 sizes, beside
        // what the other two places took meanwhile, and once the plain words.
        assert!(server.requests() <= 2 + 3 * 11 + 1, "{}", server.requests());
    }
}

#[tokio::test]
async fn a_text_is_refused_by_the_word_of_an_endpoint_that_works() {
    let server =
        Server::start(|seen| if seen.texts == [POISON] { refused(400) } else { Reply::good(seen) }).await;
    let partial = each(&remote(&endpoint("a", &server, "")), &[POISON.to_owned()]).await;
    assert_eq!(partial.refused.len(), 1);
    assert_eq!(server.served(), [(CANARY.to_owned(), 1)].into());
}

#[tokio::test]
async fn a_batch_over_the_limit_is_split_and_never_sent_again_unchanged() {
    let server = Server::start(|seen| match seen.texts.len() {
        33.. => {
            let message = format!("batch size {} > maximum allowed batch size 32", seen.texts.len());
            Reply::json(413, &json!({"error": message, "error_type": "Validation"}))
        }
        _ => Reply::good(seen),
    })
    .await;
    let remote = remote(&endpoint("a", &server, "max_inputs = 100\nconcurrency = 1"));
    let texts = texts(300);
    complete(&each(&remote, &texts).await, &texts);
    let mut batches: Vec<Vec<String>> = server.seen().into_iter().map(|seen| seen.texts).collect();
    let count = batches.len();
    batches.sort();
    batches.dedup();
    assert_eq!(batches.len(), count, "a batch was sent twice");
    assert!(batches.iter().filter(|batch| batch.len() > 32).count() <= 3, "the limit is learned");
    paid_once(&server);
}

#[tokio::test]
async fn a_request_of_too_many_tokens_is_split() {
    let server = Server::start(|seen| {
        let tokens: usize = seen.texts.iter().map(|text| text.len()).sum();
        if tokens <= 500 {
            return Reply::good(seen);
        }
        let message = format!("Requested {tokens} tokens, max 500 tokens per request");
        Reply::json(400, &json!({"error": {"message": message, "type": "max_tokens_per_request", "code": "max_tokens_per_request"}}))
    })
    .await;
    let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(200));
    complete(&each(&remote, &texts).await, &texts);
    paid_once(&server);
}

/// The first text's vector, as JSON that perhaps is none.
async fn spoiling(bad: &'static str) -> Server {
    Server::start(move |seen| {
        let mut answer = answer(&seen.texts);
        for (item, text) in answer["data"].as_array_mut().unwrap().iter_mut().zip(&seen.texts) {
            if text == POISON {
                item["embedding"] = json!("BAD");
            }
        }
        Reply::With(200, Vec::new(), answer.to_string().replace("\"BAD\"", bad).into_bytes())
    })
    .await
}

#[tokio::test]
async fn a_text_whose_vector_is_bad_twice_is_refused_and_the_others_are_kept() {
    for (bad, reason) in [
        ("[NaN, 1, 2, 3]", "not finite"),
        ("[null, 1, 2, 3]", "not finite"),
        ("[1e999, 1, 2, 3]", ""),
        ("[0, 0, 0, 0]", "zero"),
        ("[]", "missing"),
    ] {
        let server = spoiling(bad).await;
        let (remote, texts) = (remote(&endpoint("a", &server, "")), texts(700));
        let partial = each(&remote, &texts).await;
        if reason.is_empty() {
            // No JSON number at all: nothing of the answer can be read.
            assert_eq!(failed(&partial), "transient");
            continue;
        }
        assert!(partial.failed.is_none(), "{bad}: {:?}", partial.failed);
        assert_eq!(good(&partial, &texts), 699);
        assert_eq!(partial.refused.len(), 1);
        assert!(partial.refused[0].reason.contains(reason), "{:?}", partial.refused);
        let served = server.served();
        assert!(served.iter().all(|(text, times)| *times == 1 + usize::from(text == POISON)));
    }
}

#[tokio::test]
async fn an_endpoint_whose_vectors_are_all_bad_refuses_no_text() {
    for bad in [json!([0, 0, 0, 0]), json!([Value::Null, 1, 1, 1]), json!([])] {
        let server = Server::start(move |seen| {
            let mut answer = answer(&seen.texts);
            answer["data"]
                .as_array_mut()
                .unwrap()
                .iter_mut()
                .for_each(|item| item["embedding"] = bad.clone());
            Reply::json(200, &answer)
        })
        .await;
        for count in [1, 30] {
            let partial = each(&remote(&endpoint("a", &server, "")), &texts(count)).await;
            assert_eq!(failed(&partial), "transient");
            assert_eq!(partial.refused, []);
        }
    }
}

#[tokio::test]
async fn texts_out_of_the_ordinary_are_cut_sent_or_refused() {
    let server = Server::good().await;
    let remote = remote(&endpoint("a", &server, ""));
    let million = "word ".repeat(1_000_000);
    let texts: Vec<String> = ["", " \n\t ", "\0\0\0", "🙂🙃", "a\0b", &million].map(str::to_owned).into();
    let partial = each(&remote, &texts).await;
    assert!(partial.failed.is_none());
    let mut refused: Vec<usize> = partial.refused.iter().map(|refused| refused.index).collect();
    refused.sort_unstable();
    assert_eq!(refused, [0, 1, 2]);
    let sent = server.seen()[0].texts.clone();
    assert_eq!(sent[..2], ["🙂🙃", "a\0b"]);
    assert!(sent[2].len() < 64 * 5 && million.starts_with(&sent[2]), "{} bytes", sent[2].len());
    for (index, text) in [(3, &sent[0]), (4, &sent[1]), (5, &sent[2])] {
        assert_eq!(partial.vectors[index].as_ref(), Some(&stored(text)));
    }
    assert_eq!(class(&remote.embed_query("\0".into()).await.unwrap_err()), "input");
    assert_eq!(class(&remote.embed(vec!["a".into(), String::new()]).await.unwrap_err()), "input");
}

#[tokio::test]
async fn nothing_at_all_asks_nobody() {
    let server = Server::good().await;
    let remote = remote(&endpoint("a", &server, ""));
    assert_eq!(remote.embed(Vec::new()).await.unwrap(), Vec::<Vec<f32>>::new());
    assert_eq!(server.requests(), 0);
}

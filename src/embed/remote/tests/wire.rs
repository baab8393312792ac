//! What goes over the wire.

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use super::{
    server::{gzip, vector},
    *,
};

fn of_api(api: &str, server: &Server, more: &str) -> String {
    endpoint("a", server, more).replace("'openai'", &format!("'{api}'"))
}

#[tokio::test]
async fn openai_gets_its_model_its_key_and_its_path() {
    let server = Server::good().await;
    let base = server.url.clone();
    let more = "key = 'sk-1'\nmodel = 'text-embedding-3-small'\nsend_dimensions = true";
    let settings = endpoint("a", &server, more).replace(&base, &format!("{base}/v1/"));
    remote(&settings).embed_query("how".into()).await.unwrap();
    let seen = &server.seen()[0];
    assert_eq!(seen.path, "/v1/embeddings");
    assert_eq!(seen.headers["authorization"], "Bearer sk-1");
    assert_eq!(seen.headers["content-type"], "application/json");
    assert_eq!(seen.headers["accept-encoding"], "gzip");
    assert_eq!(seen.body, json!({"model": "text-embedding-3-small", "input": ["how"], "dimensions": 4}));
}

#[tokio::test]
async fn voyage_is_told_queries_from_documents() {
    let server = Server::good().await;
    let remote = remote(&of_api("voyage", &server, ""));
    remote.embed_query("how".into()).await.unwrap();
    remote.embed(vec!["so".into()]).await.unwrap();
    let bodies: Vec<Value> = server.seen().into_iter().map(|seen| seen.body).collect();
    assert_eq!(bodies[0]["input_type"], "query");
    assert_eq!(
        bodies[1],
        json!({"model": "m", "input": ["so"], "input_type": "document", "truncation": true})
    );
}

#[tokio::test]
async fn text_embeddings_inference_answers_with_bare_vectors() {
    let server = Server::start(|seen| {
        let vectors: Vec<_> = seen.texts.iter().map(|text| vector(text)).collect();
        Reply::json(200, &json!(vectors)).header("x-compute-tokens", "100")
    })
    .await;
    let (remote, texts) = (remote(&of_api("tei", &server, "")), texts(60));
    complete(&each(&remote, &texts).await, &texts);
    let seen = server.seen();
    assert_eq!((seen.len(), seen[0].path.as_str()), (3, "/embed"));
    assert_eq!(seen[0].body["truncate"], true);
    assert!(!seen[0].headers.contains_key("authorization"));
    assert_eq!(remote.budget().unwrap().state().current_count, 300, "as the headers say");
}

#[tokio::test]
async fn prefixes_are_put_before_texts_and_queries() {
    let server = Server::good().await;
    let remote =
        remote(&format!("prefix = 'passage: '\nquery_prefix = 'query: '\n{}", endpoint("a", &server, "")));
    remote.embed_query("how".into()).await.unwrap();
    remote.embed(vec!["so".into()]).await.unwrap();
    let sent: Vec<String> = server.seen().into_iter().flat_map(|seen| seen.texts).collect();
    assert_eq!(sent, ["query: how", "passage: so"]);
    assert_eq!(remote.space().prefix, "passage: ");
}

#[tokio::test]
async fn answers_and_requests_may_be_compressed() {
    let server = Server::start(|seen| {
        match Reply::good(seen) {
            Reply::With(status, headers, body) => Reply::With(status, headers, gzip(&body)),
            other => other,
        }
        .header("content-encoding", "gzip")
    })
    .await;
    let (remote, texts) = (remote(&endpoint("a", &server, "gzip_requests = true")), texts(100));
    complete(&each(&remote, &texts).await, &texts);
    let seen = &server.seen()[0];
    assert_eq!(seen.headers["content-encoding"], "gzip");
    assert!(seen.raw.len() * 3 < seen.body.to_string().len());
}

#[tokio::test]
async fn vectors_may_come_in_base64() {
    let server = Server::start(|seen| {
        assert_eq!(seen.body["encoding_format"], "base64");
        let mut answer = server::answer(&seen.texts);
        for (item, text) in answer["data"].as_array_mut().unwrap().iter_mut().zip(&seen.texts) {
            let bytes: Vec<u8> = vector(text).iter().flat_map(|x| x.to_le_bytes()).collect();
            item["embedding"] = json!(BASE64_STANDARD.encode(bytes));
        }
        Reply::json(200, &answer)
    })
    .await;
    let (remote, texts) = (remote(&endpoint("a", &server, "base64 = true")), texts(5));
    complete(&each(&remote, &texts).await, &texts);
}

#[tokio::test]
async fn requests_keep_to_the_limits_that_are_set() {
    let server = Server::good().await;
    let remote = remote(&endpoint("a", &server, "max_inputs = 7\nmax_request_tokens = 64"));
    let long = vec!["many words in one text ".repeat(4); 5];
    complete(&each(&remote, &texts(20)).await, &texts(20));
    let short = server.seen().iter().map(|seen| seen.texts.len()).max();
    assert_eq!(short, Some(7));
    let before = server.requests();
    assert!(each(&remote, &long).await.failed.is_none());
    assert_eq!(server.requests() - before, 5);
}

#[tokio::test]
async fn the_space_says_what_is_known_and_no_secret() {
    let server = Server::good().await;
    let remote = remote(&endpoint("a", &server, "key = 'sk-very-secret'"));
    let space = remote.space();
    assert_eq!(
        (space.provider.as_str(), space.model.as_str(), space.dimensions),
        ("remote", "m", DIMENSIONS)
    );
    assert!(space.normalised);
    assert!(!serde_json::to_string(space).unwrap().contains("secret"));
}

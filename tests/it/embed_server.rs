//! The embedding service, asked as its clients ask.

#[cfg(feature = "cuda")]
mod cuda;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use futures::future::join_all;
use serde_json::{Value, json};
use thalweg::{
    embed::{Element, Embedder, LocalModel, Settings},
    http_client,
};
use tokio::io::AsyncWriteExt;

use crate::{
    daemon::{HTTP, SOON, Site, eventually},
    tools,
};

const MODEL: &str = "all-MiniLM-L6-v2";
const KEY: &str = "tw-0123456789abcdef";

/// A service under test: the real binary with the real model. Killed when
/// dropped.
struct Server {
    child: Child,
    http: String,
    log: PathBuf,
    _folder: tempfile::TempDir,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.arg("embed-server").args(arguments);
    if !arguments.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command.env_remove("THALWEG_LOG").env_remove("THALWEG_EMBED_API_KEY").env("THALWEG_MODELS", models());
    command
}

fn models() -> PathBuf {
    let given = std::env::var_os("THALWEG_MODELS").map(PathBuf::from);
    Path::new(env!("CARGO_MANIFEST_DIR")).join(given.unwrap_or_else(|| "models".into()))
}

/// Runs one that is expected not to start.
fn refused(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = command(arguments);
    let log = tempfile::NamedTempFile::new().unwrap();
    command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(log.reopen().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let child = command.spawn().unwrap();
    let mut server = Server { child, http: String::new(), log: log.path().to_owned(), _folder: folder };
    (server.wait(), fs::read_to_string(log.path()).unwrap())
}

impl Server {
    fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = command(arguments);
        command
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("no ready line ({e}): {}", fs::read_to_string(&log).unwrap()));
        let http = format!("http://{}", ready["http"].as_str().unwrap());
        Self { child, http, log, _folder: folder }
    }

    fn url(&self) -> String {
        format!("{}/v1", self.http)
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = client().get(format!("{}{path}", self.http)).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn post(&self, body: &Value) -> Answer {
        self.send(client().post(format!("{}/embeddings", self.url())).body(body.to_string())).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answer {
        let started = Instant::now();
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let header =
            |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
        let (retry_after, packed) = (header("retry-after"), header("content-encoding"));
        let bytes = response.bytes().await.unwrap();
        let body = match packed.as_deref() {
            Some("gzip") => gunzip(&bytes),
            other => {
                assert_eq!(other, None);
                bytes.to_vec()
            }
        };
        Answer {
            status,
            retry_after: retry_after.map(|seconds| seconds.parse().unwrap()),
            packed: packed.is_some(),
            body: serde_json::from_slice(&body).unwrap(),
            took: started.elapsed(),
        }
    }

    async fn metric(&self, name: &str) -> Option<f64> {
        let (status, text) = self.get("/metrics").await;
        assert_eq!(status, 200);
        let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name));
        line.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap())
    }

    fn stop(&mut self) {
        // SAFETY: `kill` touches no memory; the process is a child not yet
        // waited for, so its number is its own.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), libc::SIGTERM) }, 0);
    }

    fn wait(&mut self) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(started.elapsed() < SOON, "{}", fs::read_to_string(&self.log).unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Answer {
    status: u16,
    retry_after: Option<u64>,
    packed: bool,
    body: Value,
    took: Duration,
}

impl Answer {
    fn vectors(&self) -> Vec<Vec<f32>> {
        assert_eq!(self.status, 200, "{}", self.body);
        let data = self.body["data"].as_array().unwrap();
        assert!(
            data.iter().enumerate().all(|(n, datum)| datum["index"] == n && datum["object"] == "embedding")
        );
        data.iter().map(|datum| vector(&datum["embedding"])).collect()
    }

    /// Status, code and key of an error in OpenAI's shape.
    fn refusal(&self) -> (u16, &str, Option<&str>) {
        let error = &self.body["error"];
        assert!(!error["message"].as_str().unwrap().is_empty() && error["type"].is_string(), "{error}");
        (self.status, error["code"].as_str().unwrap(), error["param"].as_str())
    }
}

fn vector(embedding: &Value) -> Vec<f32> {
    match embedding {
        Value::String(text) => {
            let bytes = STANDARD.decode(text).unwrap();
            bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        }
        list => serde_json::from_value(list.clone()).unwrap(),
    }
}

fn client() -> reqwest::Client {
    http_client::local().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
    plain
}

fn asked(texts: &[String]) -> Value {
    json!({"model": MODEL, "input": texts})
}

/// Texts that take a while.
fn long_texts(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("text {n} {}", "of a list that takes a while ".repeat(10))).collect()
}

/// What the engine itself computes, and the tokens that it reads.
async fn of_the_engine(texts: &[String]) -> (Vec<Vec<f32>>, usize) {
    let settings = Settings { threads: 1, ..Settings::default() };
    let model = LocalModel::load(&models().join(MODEL), &settings, Element::Fp32).unwrap();
    let vectors = model.embed(texts.to_vec()).await.unwrap();
    let tokens = model.tokens();
    // And two special ones each; no text here is cut.
    (vectors, texts.iter().map(|text| tokens.spans(text).len() + 2).sum())
}

fn assert_same(ours: &[Vec<f32>], expected: &[Vec<f32>]) {
    assert_eq!(ours.len(), expected.len());
    for (n, (a, b)) in ours.iter().zip(expected).enumerate() {
        assert_eq!((a.len(), b.len()), (384, 384));
        let most = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(most < 1e-5, "text {n} differs by {most}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_those_of_the_engine_however_they_are_asked_for() {
    let server = Server::start(&["--element", "fp32", "--threads", "1"]);
    let texts: Vec<String> =
        (0..20).map(|n| format!("text {n} about {}", "the river and the sea ".repeat(n % 7))).collect();
    let (expected, tokens) = of_the_engine(&texts).await;

    let list = server.post(&asked(&texts)).await;
    assert_same(&list.vectors(), &expected);
    assert!(!list.packed);
    assert_eq!((&list.body["model"], &list.body["object"]), (&json!(MODEL), &json!("list")));
    assert_eq!(list.body["usage"], json!({"prompt_tokens": tokens, "total_tokens": tokens}));

    let mut base64 = asked(&texts);
    base64["encoding_format"] = json!("base64");
    assert_same(&server.post(&base64).await.vectors(), &expected);

    let request = client().post(format!("{}/embeddings", server.url()));
    let packed = request.body(gzip(base64.to_string().as_bytes())).header("content-encoding", "gzip");
    let packed = server.send(packed.header("accept-encoding", "br, gzip")).await;
    assert!(packed.packed);
    assert_same(&packed.vectors(), &expected);

    // Alone, a text goes another way than in a list.
    let one = server.post(&json!({"model": MODEL, "input": texts[3], "dimensions": 384, "user": "u"})).await;
    assert_same(&one.vectors(), &expected[3..4]);
    let alone = async |text: &String| {
        server.post(&json!({"model": MODEL, "input": [text]})).await.vectors().remove(0)
    };
    assert_same(&join_all(texts.iter().map(alone)).await, &expected);

    let (status, models) = server.get("/v1/models").await;
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!(
        (status, &models["data"][0]["id"], &models["data"][0]["dimensions"]),
        (200, &json!(MODEL), &json!(384))
    );
    assert_eq!(server.get(&format!("/v1/models/{MODEL}")).await.0, 200);
    assert_eq!(server.get("/v1/models/another").await.0, 404);
    assert_eq!(server.metric("embed_texts_total").await, Some(81.0));
    assert!(server.metric("embed_server_tokens_total").await.unwrap() > 3.0 * tokens as f64);
    assert_eq!(server.metric("embed_server_queue_texts").await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_of_openai_and_langchain_work_as_they_are() {
    let server = Server::start_with(&["--element", "fp32"], &[("THALWEG_EMBED_API_KEY", KEY)]);
    let texts = ["deep water", "Ünïcode 日本 😀", "a third text"].map(str::to_owned);
    let (expected, tokens) = of_the_engine(&texts).await;
    let mut client = Command::new(tools::python_of_openai());
    client.arg(tools::client("openai_embeddings.py")).args([&server.url(), MODEL, KEY]).args(&texts);
    let done = tokio::task::spawn_blocking(move || client.output().unwrap()).await.unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let got: Value = serde_json::from_slice(&done.stdout).unwrap();
    let vectors = |name: &str| -> Vec<Vec<f32>> { serde_json::from_value(got[name].clone()).unwrap() };
    for name in ["default", "floats", "chain"] {
        assert_same(&vectors(name), &expected);
    }
    assert_same(&[vector(&got["chain query"])], &expected[..1]);
    assert_eq!((&got["indices"], &got["tokens"]), (&json!([0, 1, 2]), &json!(tokens)));
    assert_eq!((&got["models"], &got["model"]), (&json!([MODEL]), &json!(MODEL)));
    let refused = json!({
        "model": [404, "model_not_found"], "token ids": [400, "token_ids_not_supported"], "key": [401, "invalid_api_key"],
    });
    assert_eq!(got["refused"], refused);
    assert!(!fs::read_to_string(&server.log).unwrap().contains(KEY));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_is_said_in_openais_shape() {
    let server = Server::start(&[
        "--threads",
        "1",
        "--max-inputs",
        "4",
        "--max-body",
        "4KiB",
        "--max-queue-bytes",
        "64KiB",
    ]);
    let with = |key: &str, value: Value| {
        let mut body = json!({"model": MODEL, "input": "a"});
        body[key] = value;
        body
    };
    for (body, expected) in [
        (with("model", json!("gpt")), (404, "model_not_found", Some("model"))),
        (with("input", json!([1, 2, 3])), (400, "token_ids_not_supported", Some("input"))),
        (with("input", json!([])), (400, "invalid_value", Some("input"))),
        (with("input", json!(vec!["a"; 5])), (400, "invalid_value", Some("input"))),
        (with("dimensions", json!(64)), (400, "invalid_value", Some("dimensions"))),
        (with("encoding_format", json!("int8")), (400, "invalid_value", Some("encoding_format"))),
        (with("input_type", json!("query")), (400, "invalid_request", None)),
        (with("input", json!("x".repeat(5_000))), (413, "body_too_large", None)),
    ] {
        assert_eq!(server.post(&body).await.refusal(), expected);
    }
    let raw = |body: Vec<u8>, encoding: &str| {
        let request = client().post(format!("{}/embeddings", server.url()));
        server.send(request.body(body).header("content-encoding", encoding.to_owned()))
    };
    assert_eq!(raw(b"{\"model\": ".to_vec(), "identity").await.refusal().1, "invalid_request");
    assert_eq!(raw(b"not packed".to_vec(), "gzip").await.refusal().1, "bad_request");
    assert_eq!(raw(Vec::new(), "br").await.refusal().0, 415);
    // Two kilobytes that would be a hundred.
    let bomb = gzip(with("input", json!("x".repeat(100 << 10))).to_string().as_bytes());
    assert!(bomb.len() < 4_096, "{}", bomb.len());
    assert_eq!(raw(bomb, "gzip").await.refusal().0, 413);
    for (path, status) in [("/v1/nothing", 404), ("/v1/embeddings", 405)] {
        let (found, body) = server.get(path).await;
        assert_eq!(found, status);
        assert!(serde_json::from_str::<Value>(&body).unwrap()["error"]["code"].is_string(), "{body}");
    }
    assert_same(&server.post(&with("input", json!("still there"))).await.vectors(), &{
        server.post(&with("input", json!(["still there"]))).await.vectors()
    });
    assert_eq!(server.metric("embed_server_queue_bytes").await, Some(0.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_the_queue_holds_is_told_to_come_again_and_costs_nobody_else_anything() {
    let server = Server::start(&["--threads", "1", "--max-inputs", "10", "--max-queue-texts", "48"]);
    // Too many for a small request; four lists fill the queue.
    let texts = long_texts(10);
    let request = asked(&texts);
    let small = async {
        // Once the queue is full, a query still finds room, and goes first.
        eventually("the queue is full", async || {
            server.metric("embed_server_queue_texts").await == Some(40.0)
        })
        .await;
        server.post(&asked(&texts[..1])).await
    };
    let (lists, query) = tokio::join!(join_all((0..7).map(|_| server.post(&request))), small);
    let (answered, refused): (Vec<_>, Vec<_>) = lists.iter().partition(|answer| answer.status == 200);
    assert!(answered.len() >= 4 && !refused.is_empty(), "{} answered", answered.len());
    for refused in &refused {
        assert_eq!(refused.refusal(), (429, "rate_limit_exceeded", None));
        assert!(matches!(refused.retry_after, Some(1..=30)));
    }
    let first = answered[0].vectors();
    assert_eq!(first.len(), 10);
    assert!(answered.iter().all(|answer| answer.vectors() == first));
    assert_same(&query.vectors(), &first[..1]);
    let slowest = answered.iter().map(|answer| answer.took).max().unwrap();
    assert!(query.took < slowest / 2, "the query took {:?}, a list {slowest:?}", query.took);
    assert_eq!(server.metric("embed_server_refused_total").await, Some(refused.len() as f64));
    // Whoever comes again is served.
    assert_eq!(server.post(&request).await.vectors(), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_whose_client_went_away_is_not_computed_to_its_end() {
    let server = Server::start(&["--threads", "1"]);
    let of_16 = server.post(&asked(&long_texts(10))).await;
    of_16.vectors();
    let body = asked(&long_texts(1_024)).to_string();
    let mut connection =
        tokio::net::TcpStream::connect(server.http.trim_start_matches("http://")).await.unwrap();
    let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    connection.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await.unwrap();
    eventually("it is begun", async || server.metric("embed_server_queue_texts").await == Some(1_024.0))
        .await;
    drop(connection);
    eventually("it is forgotten", async || server.metric("embed_server_requests").await == Some(0.0)).await;
    // The batches of the list would take a hundred times as long.
    let again = server.post(&asked(&long_texts(10))).await;
    again.vectors();
    assert!(again.took < 16 * of_16.took, "{:?}, and {:?} before", again.took, of_16.took);
    assert_eq!(server.metric("embed_texts_total").await, Some(20.0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_answers_what_was_taken_and_takes_no_more() {
    let mut server = Server::start(&["--threads", "1"]);
    assert_eq!((server.get("/health/live").await.0, server.get("/health/ready").await.0), (200, 200));
    let request = asked(&long_texts(40));
    let url = format!("{}/embeddings", server.url());
    let list = tokio::spawn(client().post(url).body(request.to_string()).send());
    eventually("it is taken", async || server.metric("embed_server_queue_texts").await == Some(40.0)).await;
    server.stop();
    eventually("it is not ready", async || server.get("/health/ready").await.0 == 503).await;
    assert_eq!(server.get("/health/live").await.0, 200);
    let refused = server.post(&asked(&["too late".to_owned()])).await;
    assert_eq!((refused.refusal(), refused.retry_after), ((503, "shutting_down", None), Some(1)));
    let answer: Value = serde_json::from_str(&list.await.unwrap().unwrap().text().await.unwrap()).unwrap();
    assert_eq!(answer["data"].as_array().unwrap().len(), 40);
    assert_eq!(server.wait(), Some(0), "{}", fs::read_to_string(&server.log).unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_at_the_deadline_says_what_is_left() {
    let mut server = Server::start(&["--threads", "1", "--drain", "100ms"]);
    let url = format!("{}/embeddings", server.url());
    let list = tokio::spawn(client().post(url).body(asked(&long_texts(1_024)).to_string()).send());
    eventually("it is taken", async || server.metric("embed_server_queue_texts").await == Some(1_024.0))
        .await;
    server.stop();
    assert_eq!(server.wait(), Some(3));
    assert!(list.await.unwrap().is_err());
    let log = fs::read_to_string(&server.log).unwrap();
    assert!(log.contains("without an answer") && log.contains("\"requests\":1"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_opens_everything_and_without_it_only_health_answers() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    fs::write(&file, format!("{KEY}\n")).unwrap();
    let server = Server::start(&["--threads", "1", "--api-key-file", file.to_str().unwrap()]);
    for (path, status) in
        [("/health/live", 200), ("/health/ready", 200), ("/v1/models", 401), ("/metrics", 401)]
    {
        assert_eq!(server.get(path).await.0, status, "{path}");
    }
    let body = asked(&["a".to_owned()]);
    assert_eq!(server.post(&body).await.refusal(), (401, "invalid_api_key", None));
    let with = |key: &str| {
        let request = client().post(format!("{}/embeddings", server.url())).bearer_auth(key);
        server.send(request.body(body.to_string()))
    };
    assert_eq!(with("tw-0123456789abcdeg").await.status, 401);
    assert_eq!(with(KEY).await.vectors().len(), 1);
}

#[test]
fn what_could_be_used_by_anyone_or_never_work_does_not_start() {
    let (code, said) = refused(&["--listen", "0.0.0.0:0"], &[]);
    assert!(code == Some(1) && said.contains("listens on loopback only"), "{said}");
    let (code, said) = refused(&[], &[("THALWEG_EMBED_API_KEY", "short")]);
    assert!(
        code == Some(2) && said.contains("at least 16 random ones") && !said.contains("short\""),
        "{said}"
    );
    let (code, said) = refused(&["--api-key-file", "/nowhere"], &[]);
    assert!(code == Some(2) && said.contains("cannot read /nowhere"), "{said}");
    let (code, said) = refused(&["--api-key-file", "/nowhere"], &[("THALWEG_EMBED_API_KEY", KEY)]);
    assert!(code == Some(2) && said.contains("two keys"), "{said}");
    let (code, said) = refused(&["--max-inputs", "2048", "--max-queue-texts", "2048"], &[]);
    assert!(code == Some(2) && said.contains("too little for --max-inputs"), "{said}");
    let (code, said) = refused(&["--model", "gpt"], &[]);
    assert!(code == Some(2) && said.contains("not a known model"), "{said}");
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_how_to_get_one_that_has() {
    let (code, said) = refused(&["--device", "cuda"], &[]);
    assert!(code == Some(2) && said.contains("cargo build --release --features cuda"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipeline_can_have_its_vectors_from_it() {
    let server = Server::start_with(&["--element", "fp32"], &[("THALWEG_EMBED_API_KEY", KEY)]);
    let mut site = Site::new(HTTP);
    let text = fs::read_to_string(site.pipeline()).unwrap();
    let remote = format!(
        "provider = \"remote\"\nmodel = \"{MODEL}\"\ndimensions = 384\nmax_tokens = 256\n\
         [[embed.endpoint]]\nname = \"own\"\napi = \"openai\"\nurl = {:?}\nkey = \"${{IT_KEY}}\"",
        server.url()
    );
    fs::write(site.pipeline(), text.replace("provider = \"hashing\"", &remote)).unwrap();
    site.set("IT_KEY", KEY);
    let daemon = site.start();
    let line = |n: usize, what: &str| {
        format!("{}\n", json!({"id": n.to_string(), "tenant": "default", "text": format!("Today {what}.")}))
    };
    let lines = line(0, "the heron stood in the shallow water") + &line(1, "the share price fell by a tenth");
    let (status, reply) = daemon.post("/api/v1/ingest", "application/x-ndjson", lines).await;
    assert_eq!(status, 200, "{reply}");
    daemon.derived(2).await;
    let hits =
        daemon.search(json!({"tenant": "default", "query": "a bird at the river", "mode": "vector"})).await;
    assert!(hits[0]["text"].as_str().unwrap().contains("heron"), "{hits:?}");
    daemon.stop_drained();
}

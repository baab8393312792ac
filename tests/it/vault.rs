//! Secrets of a pipeline file that are in Vault.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use thalweg::{
    config::{self, Pipeline, Problem},
    http_server::{Routes, Server},
    tls::{self, Tls},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{cli::pipeline, daemon::Site, tools};

/// What a server does beside answering as it should.
#[derive(Clone, Debug, Default)]
pub enum Mood {
    #[default]
    Fine,
    Sealed,
    /// Has no `sys/internal/ui/mounts`, as older servers, and keeps version 1.
    Old,
    /// Never answers.
    Slow,
    /// Answers a megabyte.
    Huge,
    /// Sends on to another address, as a standby does.
    Redirect(String),
    /// Answers something else.
    Nonsense,
    /// Fails, and repeats the token in its error.
    Echo,
}

/// A fake of Vault's HTTP API: what the documentation says of reading from
/// key-value stores of version 1 (the mount `one`) and 2 (the mount `two`).
///
/// It is a fake because neither Vault nor OpenBao can be had as a package of
/// a distribution or a registry that this project builds from; where a real
/// one runs, `the_documented_answers_are_those_of_a_real_server` asks it.
pub struct FakeVault {
    pub url: String,
    pub token: String,
    state: Arc<Mutex<State>>,
    _serving: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct State {
    mood: Mood,
    token: String,
    /// By path; `None` was deleted.
    held: BTreeMap<String, Option<Value>>,
    asked: Vec<String>,
    namespaces: Vec<String>,
}

impl FakeVault {
    pub async fn start() -> Self {
        Self::start_with(None).await
    }

    async fn start_with(tls: Option<Tls>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let token = format!("hvs.{:032x}", rand::random::<u128>());
        let state = Arc::new(Mutex::new(State { token: token.clone(), ..State::default() }));
        let answering = state.clone();
        let router = Router::new().fallback(async move |uri: Uri, headers: HeaderMap| {
            answer(&answering, uri.path(), &headers).await
        });
        let serving = async move {
            Server::new(Arc::new(listener), tls, 100)
                .serve(Routes::new(router), CancellationToken::new())
                .await
                .unwrap();
        };
        let _serving = AbortOnDropHandle::new(tokio::spawn(serving));
        Self { url, token, state, _serving }
    }

    pub fn put(&self, path: &str, value: Value) {
        self.state.lock().unwrap().held.insert(path.to_owned(), Some(value));
    }

    fn delete(&self, path: &str) {
        self.state.lock().unwrap().held.insert(path.to_owned(), None);
    }

    fn be(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// The paths that were asked for, sorted.
    fn asked(&self) -> Vec<String> {
        let mut asked = self.state.lock().unwrap().asked.clone();
        asked.sort();
        asked
    }

    fn env(&self) -> Variables {
        vec![("VAULT_ADDR", self.url.clone()), ("VAULT_TOKEN", self.token.clone())]
    }
}

type Variables = Vec<(&'static str, String)>;

async fn answer(state: &Mutex<State>, path: &str, headers: &HeaderMap) -> Response {
    let header = |name: &str| Some(headers.get(name)?.to_str().ok()?.to_owned());
    let mood = {
        let mut state = state.lock().unwrap();
        state.asked.push(path.to_owned());
        state.namespaces.extend(header("x-vault-namespace"));
        state.mood.clone()
    };
    let refuse = |code: u16, errors: &[&str]| json_answer(code, &json!({"errors": errors}));
    match mood {
        Mood::Sealed => return refuse(503, &["Vault is sealed"]),
        Mood::Slow => std::future::pending().await,
        Mood::Huge => return Body::from("x".repeat(1 << 20)).into_response(),
        Mood::Redirect(to) => return (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response(),
        Mood::Nonsense => return "<html>welcome</html>".into_response(),
        Mood::Echo => return refuse(500, &[&format!("bad: {:?}", header("x-vault-token"))]),
        Mood::Fine | Mood::Old => {}
    }
    let state = state.lock().unwrap();
    if header("x-vault-token").as_ref() != Some(&state.token) || header("x-vault-request").is_none() {
        return refuse(403, &["permission denied"]);
    }
    let old = matches!(state.mood, Mood::Old);
    if let Some(asked) = path.strip_prefix("/v1/sys/internal/ui/mounts/") {
        return match asked.split('/').next() {
            _ if old => refuse(404, &[]),
            Some(mount @ ("one" | "two")) => {
                let options = json!({"version": if mount == "two" { "2" } else { "1" }});
                let data = json!({"path": format!("{mount}/"), "type": "kv", "options": options});
                json_answer(200, &json!({"request_id": "x", "data": data}))
            }
            Some("pki") => {
                json_answer(200, &json!({"data": {"path": "pki/", "type": "pki", "options": null}}))
            }
            _ => refuse(403, &["preflight capability check returned 403"]),
        };
    }
    let path = path.strip_prefix("/v1/").unwrap_or_default();
    if let Some(below) = path.strip_prefix("two/data/") {
        let data = match state.held.get(&format!("two/{below}")) {
            None => return refuse(404, &[]),
            Some(data) => data,
        };
        let metadata = json!({"version": 4, "destroyed": false, "deletion_time": ""});
        let code = if data.is_some() { 200 } else { 404 };
        return json_answer(code, &json!({"data": {"data": data, "metadata": metadata}}));
    }
    match state.held.get(path) {
        Some(Some(data)) if path.starts_with("one/") => json_answer(200, &json!({"data": data})),
        _ => refuse(404, &[]),
    }
}

fn json_answer(code: u16, body: &Value) -> Response {
    let headers = [("content-type", "application/json")];
    (StatusCode::from_u16(code).unwrap(), headers, body.to_string()).into_response()
}

const BEFORE: &str = "name = \"x\"\n[[source]]\ntype = \"tcp\"\n[redis]\n";

/// What a pipeline file with `redis` as its section of that name is.
fn parse(redis: &str, env: &Variables) -> Result<Pipeline, Vec<Problem>> {
    let env = |name: &str| env.iter().find(|(set, _)| *set == name).map(|(_, value)| value.clone());
    config::parse(&format!("{BEFORE}{redis}"), "x.toml", &env).map_err(|error| error.problems().to_vec())
}

fn password(read: Result<Pipeline, Vec<Problem>>) -> String {
    read.unwrap().redis.unwrap().password.unwrap().reveal().to_owned()
}

const ONE_FIELD: &str = "url = \"redis://h\"\npassword = \"x${vault:two/app#password}\"\n";

/// Why [`ONE_FIELD`] is refused: it is always told where, and never with what
/// nobody should read.
fn why(vault: &FakeVault) -> String {
    let problems = parse(ONE_FIELD, &vault.env()).unwrap_err();
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert_eq!((problem.line, problem.column, problem.key.as_str()), (6, 14, "redis.password"));
    assert!(!format!("{problem:?}").contains(&vault.token), "{problem:?}");
    problem.message.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_versions_are_read_and_each_path_once() {
    let vault = FakeVault::start().await;
    vault.put("two/team/app", json!({"host": "redis.example", "password": "open sesame"}));
    vault.put("one/app", json!({"prefix": "p:"}));
    let written = "url = \"rediss://${vault:two/team/app#host}\"\n\
                   password = \"${vault:two/team/app#password}\"\nprefix = \"${vault:one/app#prefix}\"\n";
    let mut env = vault.env();
    env.push(("VAULT_NAMESPACE", "team-a".into()));
    let redis = parse(written, &env).unwrap().redis.unwrap();
    assert_eq!(redis.url.reveal(), "rediss://redis.example");
    assert_eq!(redis.password.unwrap().reveal(), "open sesame");
    assert_eq!(redis.prefix, "p:");
    let mounts = "/v1/sys/internal/ui/mounts";
    let asked = [
        "/v1/one/app".to_owned(),
        format!("{mounts}/one/app"),
        format!("{mounts}/two/team/app"),
        "/v1/two/data/team/app".to_owned(),
    ];
    assert_eq!(vault.asked(), asked);
    assert_eq!(vault.state.lock().unwrap().namespaces, ["team-a"; 4]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_tell_the_version_has_the_first() {
    let vault = FakeVault::start().await;
    vault.be(Mood::Old);
    vault.put("one/app", json!({"password": "open sesame"}));
    let written = "url = \"redis://h\"\npassword = \"${vault:one/app#password}\"\n";
    assert_eq!(password(parse(written, &vault.env())), "open sesame");
    assert!(why(&vault).contains("version 1 of the key-value store, because the server does not tell"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_failure_says_what_to_do_and_where() {
    let vault = FakeVault::start().await;
    assert!(why(&vault).contains("nothing at `two/app`, read as version 2"), "{}", why(&vault));
    vault.delete("two/app");
    assert!(why(&vault).contains("vault kv undelete"), "{}", why(&vault));
    vault.put("two/app", json!({"user": "me", "pasword": "open sesame"}));
    let no_field = why(&vault);
    assert!(no_field.contains("`pasword`, `user`") && !no_field.contains("sesame"), "{no_field}");
    vault.put("two/app", json!({"password": {"old": "open sesame"}}));
    assert!(why(&vault).contains("no text"), "{}", why(&vault));
    for (mood, said) in [
        (Mood::Sealed, "(503: Vault is sealed); unseal it"),
        (Mood::Huge, "more than 64 KiB for `two/app`"),
        (Mood::Nonsense, "is no Vault"),
        (Mood::Echo, "answered 500: bad: Some(\"(secret)\")"),
    ] {
        vault.be(mood.clone());
        let why = why(&vault);
        assert!(why.contains(said) && why.contains(&vault.url), "{mood:?}: {why}");
    }
    vault.be(Mood::Fine);
    vault.state.lock().unwrap().token = "another".into();
    assert!(why(&vault).contains("denies `two/app` to this token (403: permission denied)"));
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let problems =
        parse(ONE_FIELD, &vec![("VAULT_ADDR", format!("http://{gone}")), ("VAULT_TOKEN", "t".into())]);
    let message = &problems.unwrap_err()[0].message;
    assert!(
        message.contains("cannot be reached at http://127.0.0.1:") && message.contains("refused"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_engines_and_mounts_are_refused() {
    let vault = FakeVault::start().await;
    let refused = |path: &str| {
        let written = format!("url = \"${{vault:{path}#x}}\"\n");
        parse(&written, &vault.env()).unwrap_err()[0].message.clone()
    };
    assert!(refused("pki/issue").contains("of type `pki`"), "{}", refused("pki/issue"));
    assert!(refused("none/app").contains("the mount exists"), "{}", refused("none/app"));
    assert!(refused("none").contains("MOUNT/PATH#FIELD"), "{}", refused("none"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_not_sent_on() {
    let (vault, other) = (FakeVault::start().await, FakeVault::start().await);
    vault.be(Mood::Redirect(format!("{}/v1/two/data/app?token=x", other.url)));
    let why = why(&vault);
    assert!(why.contains(&format!("sends on to {}, which", other.url)), "{why}");
    assert_eq!(other.asked(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_costs_ten_seconds_at_most() {
    let vault = FakeVault::start().await;
    vault.be(Mood::Slow);
    let began = Instant::now();
    assert!(why(&vault).contains("did not answer in time"));
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    let many: String = (0..20).map(|n| format!("${{vault:two/app{n}#x}}")).collect();
    let began = Instant::now();
    assert!(parse(&format!("url = \"{many}\"\n"), &vault.env()).is_err());
    assert!(began.elapsed() < Duration::from_secs(13), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_whom_vault_cacert_names_is_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let Some((authority, cert, key)) = tools::issued_certificate(folder.path()) else { return };
    let vault = FakeVault::start_with(Some(Tls::open(&tls::Settings { cert, key }).unwrap())).await;
    vault.put("two/app", json!({"password": "open sesame"}));
    let mut env = vault.env();
    env.push(("VAULT_CACERT", authority.display().to_string()));
    assert_eq!(password(parse(ONE_FIELD, &env)), "xopen sesame");
    let (other, _) = tools::certificate(
        &fs::create_dir(folder.path().join("other")).map(|()| folder.path().join("other")).unwrap(),
    )
    .unwrap();
    env.pop();
    env.push(("VAULT_CACERT", other.display().to_string()));
    let message = parse(ONE_FIELD, &env).unwrap_err()[0].message.clone();
    assert!(message.contains("invalid peer certificate"), "{message}");
    env.pop();
    env.push(("VAULT_CACERT", folder.path().join("issued.key").display().to_string()));
    assert!(parse(ONE_FIELD, &env).unwrap_err()[0].message.contains("PEM"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_in_the_wrong_place_is_not_shown() {
    let vault = FakeVault::start().await;
    vault.put("two/app", json!({"password": "open-sesame"}));
    for setting in ["timeout", "cache_ttl", "prefix"] {
        let written = format!("url = \"redis://h\"\n{setting} = \" ${{vault:two/app#password}}\"\n");
        let problems = parse(&written, &vault.env()).unwrap_err();
        assert!(!format!("{problems:?}").contains("sesame"), "{problems:?}");
    }
    let threads = format!("{BEFORE}url = \"redis://h\"\n[embed]\nthreads = \"${{file:/x}}\"\n");
    let file: PathBuf = tempfile::NamedTempFile::new().unwrap().into_temp_path().keep().unwrap();
    fs::write(&file, "open-sesame").unwrap();
    let written = threads.replace("/x", file.to_str().unwrap());
    let problems = config::parse(&written, "x.toml", &|_| None).unwrap_err();
    fs::remove_file(file).unwrap();
    assert!(problems.to_string().contains("`(secret)` is not a whole number"), "{problems}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_takes_them_from_its_environment() {
    let vault = FakeVault::start().await;
    vault.put("two/app", json!({"url": "redis://h"}));
    let site = Site::new("[[source]]\ntype = \"tcp\"\n[redis]\nurl = \"${vault:two/app#url}\"\n");
    let token = site.path("token");
    fs::write(&token, format!("{}\n", vault.token)).unwrap();
    let check = |url: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        command.args(["check", "--json", &pipeline(&site)]).env_remove("VAULT_TOKEN");
        command.env("VAULT_ADDR", url).env("VAULT_TOKEN_FILE", &token);
        // Nothing is listening there, and it would read the token.
        command.env("http_proxy", "http://127.0.0.1:1");
        let done = tokio::task::block_in_place(|| command.output().unwrap());
        (done.status.code(), serde_json::from_slice::<Value>(&done.stdout).unwrap())
    };
    let (code, said) = check(&vault.url);
    assert_eq!((code, &said["ok"]), (Some(0), &json!(true)), "{said}");
    let (code, said) = check("http://vault.example");
    assert_eq!(code, Some(2), "{said}");
    assert!(said["errors"][0]["message"].as_str().unwrap().contains("in the clear"), "{said}");
}

/// Needs a server in development mode: `vault server -dev`, with its address
/// and root token in `THALWEG_TEST_VAULT_URL` and `THALWEG_TEST_VAULT_TOKEN`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_answers_are_those_of_a_real_server() {
    let variable = |name: &str| std::env::var(format!("THALWEG_TEST_VAULT_{name}")).ok();
    let (Some(url), Some(token)) = (variable("URL"), variable("TOKEN")) else {
        eprintln!("SKIPPED: THALWEG_TEST_VAULT_URL and _TOKEN name no Vault, so only a fake of it was asked");
        return;
    };
    let name = format!("thalweg-test-{:016x}", rand::random::<u64>());
    let http = thalweg::http_client::local().unwrap();
    let ask = async |method: reqwest::Method, path: &str, body: Value| {
        let request = http.request(method, format!("{url}/v1/{path}")).header("x-vault-token", &token);
        let answer = request.json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {answer:?}");
    };
    let (post, delete) = (reqwest::Method::POST, reqwest::Method::DELETE);
    for version in ["1", "2"] {
        let mount = format!("{name}-{version}");
        let kind = json!({"type": "kv", "options": {"version": version}});
        ask(post.clone(), &format!("sys/mounts/{mount}"), kind).await;
        let (held, place) = (json!({"password": "open sesame", "port": 1}), ["", "data/"]);
        let (held, place) = match version {
            "1" => (held, place[0]),
            _ => (json!({"data": held}), place[1]),
        };
        // A version 2 store is upgraded for a moment after it was made.
        tokio::time::sleep(Duration::from_secs(2)).await;
        ask(post.clone(), &format!("{mount}/{place}team/app"), held).await;
        let env = vec![("VAULT_ADDR", url.clone()), ("VAULT_TOKEN", token.clone())];
        let written =
            |reference: &str| format!("url = \"redis://h\"\npassword = \"${{vault:{mount}/{reference}}}\"\n");
        assert_eq!(password(parse(&written("team/app#password"), &env)), "open sesame");
        assert_eq!(password(parse(&written("team/app#port"), &env)), "1");
        let why = |reference: &str, env: &Variables| {
            parse(&written(reference), env).unwrap_err()[0].message.clone()
        };
        assert!(why("team/app#x", &env).contains("its fields are `password`, `port`"));
        assert!(why("team/none#x", &env).contains(&format!("read as version {version}")));
        let stranger = vec![env[0].clone(), ("VAULT_TOKEN", "hvs.none".into())];
        assert!(why("team/app#port", &stranger).contains("403"));
        if version == "2" {
            ask(delete.clone(), &format!("{mount}/data/team/app"), json!({})).await;
            assert!(why("team/app#port", &env).contains("deleted"));
        }
        ask(delete.clone(), &format!("sys/mounts/{mount}"), json!({})).await;
    }
}

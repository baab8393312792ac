//! Secrets are planted wherever one can be, everything is made to fail, and
//! then whatever was written anywhere is searched for them.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
    thread,
};

use axum::{Router, body::Bytes, extract::Request, http::StatusCode};
use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    daemon::{Daemon, Site, eventually},
    objects, postgres,
    producer::{Producer, frame},
    redis, tools,
    vault::FakeVault,
};

/// Everything that is logged, also by libraries.
const ALL: [&str; 2] = ["--log", "trace,object_store=trace"];

/// What was planted: where, and the text.
struct Planted {
    markers: BTreeMap<&'static str, String>,
    /// Outside of every folder that is searched.
    folder: tempfile::TempDir,
    vault: FakeVault,
    /// Where one was found.
    leaks: Mutex<Vec<String>>,
}

impl Planted {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { markers: BTreeMap::new(), folder, vault: FakeVault::start().await, leaks: Mutex::default() }
    }

    /// A new secret; letters and digits, so that it stands in a URL as it is.
    fn plant(&mut self, place: &'static str) -> String {
        self.remember(place, format!("{:032x}{:016x}", rand::random::<u128>(), rand::random::<u64>()))
    }

    fn remember(&mut self, place: &'static str, secret: String) -> String {
        self.markers.insert(place, secret.clone());
        secret
    }

    /// A new secret in a file, as a pipeline file refers to it.
    fn in_file(&mut self, place: &'static str) -> String {
        let path = self.file(place);
        format!("${{file:{}}}", path.display())
    }

    fn file(&mut self, place: &'static str) -> PathBuf {
        let path = self.folder.path().join(self.markers.len().to_string());
        fs::write(&path, format!("{}\n", self.plant(place))).unwrap();
        path
    }

    /// A new secret in Vault, as a pipeline file refers to it.
    fn in_vault(&mut self, place: &'static str) -> String {
        let path = format!("two/{}", self.markers.len());
        let secret = self.plant(place);
        self.vault.put(&path, json!({"field": secret}));
        format!("${{vault:{path}#field}}")
    }

    /// A new secret in a variable of `environment`.
    fn in_variable(&mut self, name: &'static str, environment: &mut Environment) -> String {
        environment.push((name, self.plant(name)));
        format!("${{{name}}}")
    }

    /// The secret at `place`.
    fn at(&self, place: &str) -> &str {
        &self.markers[place]
    }

    fn environment(&mut self) -> Environment {
        let token = self.vault.token.clone();
        self.remember("VAULT_TOKEN", token.clone());
        vec![("VAULT_ADDR", self.vault.url.clone()), ("VAULT_TOKEN", token)]
    }

    /// Whichever of them is in `bytes`, in whatever form.
    fn found_in(&self, bytes: &[u8]) -> Option<(&'static str, String)> {
        self.markers.iter().find_map(|(place, secret)| {
            let shown = forms(secret).into_iter().find_map(|form| around(bytes, &form))?;
            Some((*place, shown))
        })
    }

    /// Notes whether any of them is in `bytes`, which are what `source` says.
    fn must_not_be_in(&self, source: &str, bytes: impl AsRef<[u8]>) {
        if let Some((place, shown)) = self.found_in(bytes.as_ref()) {
            self.leaks.lock().unwrap().push(format!("{source} shows the secret of {place}: {shown}"));
        }
    }

    /// Fails if any was seen anywhere.
    fn none_was_seen(&self) {
        let leaks = self.leaks.lock().unwrap();
        assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n\n"));
    }

    /// Looks into every file below `folder`; how many there are.
    fn must_not_be_below(&self, folder: &Path) -> usize {
        let mut files = 0;
        let mut left = vec![folder.to_owned()];
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                match path.metadata() {
                    Ok(meta) if meta.is_dir() => left.push(path),
                    Ok(meta) if meta.is_file() => {
                        self.must_not_be_in(&path.display().to_string(), fs::read(&path).unwrap());
                        files += 1;
                    }
                    _ => {}
                }
            }
        }
        files
    }
}

type Environment = Vec<(&'static str, String)>;

/// A secret as it may be written: plain (which is how it stands in a URL), as
/// digits, and in base64 after any other text.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut forms = vec![secret.as_bytes().to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes()];
    for before in 0..3 {
        let text = [&b"xx"[..before], secret.as_bytes()].concat();
        // Letters that are made of the secret's bits alone.
        let own = (before * 8).div_ceil(6)..text.len() * 8 / 6;
        for encoded in [BASE64_STANDARD.encode(&text), BASE64_URL_SAFE.encode(&text)] {
            forms.push(encoded.as_bytes()[own.clone()].to_vec());
        }
    }
    forms
}

/// Where `form` is in `bytes`, with what surrounds it.
fn around(bytes: &[u8], form: &[u8]) -> Option<String> {
    let at = memchr::memmem::find(bytes, form)?;
    let shown = &bytes[at.saturating_sub(200)..(at + form.len() + 80).min(bytes.len())];
    Some(String::from_utf8_lossy(shown).into_owned())
}

#[tokio::test]
async fn the_search_finds_every_form() {
    let mut planted = Planted::new().await;
    let secret = planted.plant("here");
    let basic = |user: &str| BASE64_STANDARD.encode(format!("{user}:{secret}"));
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    for text in [format!("a {secret}b"), basic("a"), basic("ab"), basic("abc"), format!("\\x{hex}")] {
        assert_eq!(planted.found_in(text.as_bytes()).unwrap().0, "here", "{text}");
    }
    assert_eq!(planted.found_in(&secret.as_bytes()[1..]), None);
}

/// A service that fails at whatever it is asked, and repeats all of it.
struct Echo {
    url: String,
    _serving: AbortOnDropHandle<()>,
}

impl Echo {
    async fn start() -> Self {
        let echo = async |request: Request| {
            let (head, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap_or_else(|_| Bytes::new());
            let said = format!("{} {:?} {}", head.uri, head.headers, String::from_utf8_lossy(&body));
            let headers: Vec<String> =
                head.headers.values().map(|value| String::from_utf8_lossy(value.as_bytes()).into()).collect();
            let answer = json!({"error": {"message": said, "type": "broken", "headers": headers}});
            (StatusCode::INTERNAL_SERVER_ERROR, [("x-echo", headers.join(" "))], answer.to_string())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = async move { axum::serve(listener, Router::new().fallback(echo)).await.unwrap() };
        Self { url, _serving: AbortOnDropHandle::new(tokio::spawn(serving)) }
    }
}

/// Nobody listens there.
async fn nowhere() -> String {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

/// Every section that can hold a secret, but for the store, the object store
/// and Redis; everything that it names fails.
fn sections(
    planted: &mut Planted,
    environment: &mut Environment,
    echo: &Echo,
    cert: Option<&(PathBuf, PathBuf)>,
) -> String {
    let endpoints: String = ["embed", "migrate"]
        .into_iter()
        .map(|section| {
            let (first, second) = match section {
                "embed" => (planted.in_file("embed key 1"), planted.in_vault("embed key 2")),
                _ => (planted.in_variable("MIGRATE_KEY", environment), planted.in_vault("migrate key 2")),
            };
            format!(
                "[{section}]\nprovider = \"remote\"\nmodel = \"m-{section}\"\ndimensions = 4\n\
                 [[{section}.endpoint]]\nname = \"one\"\napi = \"openai\"\nurl = \"{0}/v1\"\nkey = \"{first}\"\n\
                 [[{section}.endpoint]]\nname = \"two\"\napi = \"voyage\"\nurl = \"{0}/v1\"\nkey = \"{second}\"\n",
                echo.url
            )
        })
        .collect();
    let hooks = format!(
        "[[webhook]]\nname = \"one\"\nurl = \"{0}/{1}\"\nevents = [\"job.done\", \"job.failed\"]\nsecret = \"{2}\"\n\
         [[webhook]]\nname = \"two\"\nurl = \"{0}/x?token={3}\"\nevents = [\"health.degraded\"]\nsecrets = [\"{4}\", \"{5}\"]\n",
        echo.url,
        planted.in_variable("HOOK_PATH", environment),
        planted.in_file("webhook secret"),
        planted.in_vault("webhook query"),
        planted.in_vault("webhook secret, new"),
        planted.in_variable("HOOK_SECRET", environment),
    );
    let forward = cert.map_or_else(String::new, |(cert, key)| {
        format!(
            "[[source]]\ntype = \"forward\"\nlisten = \"127.0.0.1:0\"\ntenant = \"acme\"\nshared_key = \"{}\"\n\
             tls = {{ cert = {cert:?}, key = {key:?} }}\n",
            planted.in_vault("forward shared key"),
        )
    });
    format!(
        "name = \"it\"\nstream = \"main\"\n[http]\nlisten = \"127.0.0.1:0\"\n[[source]]\ntype = \"tcp\"\nlisten = \"127.0.0.1:0\"\n\
         [[source]]\ntype = \"http\"\n{forward}[auth]\nkeys = true\n[auth.jwt]\nissuer = \"{}\"\naudience = \"me\"\n{endpoints}{hooks}",
        echo.url
    )
}

fn site(environment: &Environment, sections: &str) -> Site {
    let mut site = Site::new("");
    for (name, value) in environment {
        site.set(name, value.clone());
    }
    let data = site.path("data");
    fs::write(site.pipeline(), format!("data_dir = {data:?}\n{sections}")).unwrap();
    site
}

/// Runs `thalweg` with `environment` and the pipeline file in its own; both
/// of what it wrote.
fn thalweg(site: &Site, environment: &Environment, args: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    command.args(args).env_remove("THALWEG_LOG").env("THALWEG_PIPELINE", site.pipeline());
    command.envs(environment.iter().map(|(name, value)| (name, value))).stdin(Stdio::null());
    let done = tokio::task::block_in_place(|| command.output().unwrap());
    let both = [done.stdout, done.stderr].concat();
    format!("{args:?} {:?}: {}", done.status.code(), String::from_utf8_lossy(&both))
}

/// Makes an API key; it is shown this once.
fn make_key(planted: &mut Planted, site: &Site, environment: &Environment) -> String {
    let made = thalweg(site, environment, &["keys", "create", "--name", "test", "--role", "admin", "--json"]);
    let json = made.find('{').map(|at| &made[at..]).unwrap_or_else(|| panic!("{made}"));
    let made: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {made}"));
    planted.remember("an API key", made["key"].as_str().unwrap().to_owned())
}

/// What the daemon answers to `GET path`, headers and all.
async fn get(daemon: &Daemon, key: &str, path: &str) -> (u16, String) {
    let request = thalweg::http_client::local().unwrap().get(format!("{}{path}", daemon.http));
    let answer = request.bearer_auth(key).send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), format!("{:?}", answer.headers()));
    (status, headers + &answer.text().await.unwrap())
}

async fn post(daemon: &Daemon, key: &str, path: &str, body: Value) -> (u16, String) {
    let request = thalweg::http_client::local().unwrap().post(format!("{}{path}", daemon.http));
    let answer = request.bearer_auth(key).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Asks everything that there is to ask over HTTP, with the right key, wrong
/// ones, and none.
async fn ask_everything(planted: &mut Planted, daemon: &Daemon, good: &str) {
    let wrong_key = planted.plant("a key that nobody has");
    let token = planted.plant("a token of nobody");
    let known = format!("{}{}", &good[..good.len() / 2], planted.plant("a key with a wrong end"));
    let unsigned =
        format!("{}.{}.{token}", BASE64_URL_SAFE.encode("{\"alg\":\"none\"}"), BASE64_URL_SAFE.encode("{}"));
    let rs = BASE64_URL_SAFE.encode("{\"alg\":\"RS256\",\"kid\":\"x\"}").replace('=', "");
    let signed = format!("{rs}.{}.{token}", BASE64_URL_SAFE.encode("{\"iss\":\"x\"}").replace('=', ""));
    let (_, document) = daemon.get("/api/v1/openapi.json").await;
    let document: Value = serde_json::from_str(&document).unwrap();
    let paths = document["paths"].as_object().unwrap();
    for (path, methods) in paths {
        let path = path.replace("{digest}", &"a".repeat(64)).replace("{id}", "1").replace("{offset}", "0");
        let with = [good, &wrong_key, &token, &known, &unsigned, &signed, &format!("{good} x")];
        for key in with {
            if methods.get("get").is_some() {
                let (status, said) = get(daemon, key, &path).await;
                planted.must_not_be_in(&format!("GET {path} ({status})"), said);
            }
            if methods.get("post").is_some() {
                for body in
                    [json!({}), json!({"text": "a record", "tenant": 5, "limit": "x"}), json!([key.len()])]
                {
                    let (status, said) = post(daemon, key, &path, body).await;
                    planted.must_not_be_in(&format!("POST {path} ({status})"), said);
                }
            }
        }
    }
}

/// Shows keys where keys are shown, and where they are not.
async fn send_keys(planted: &mut Planted, daemon: &Daemon, good: &str) {
    let wrong = planted.plant("a key of a hello that nobody has");
    let text = frame(&json!({"text": "Nine herons stood along the lower bank."}));
    let hellos = [
        vec![frame(&json!({"thalweg": 1, "key": wrong})), text.clone()],
        vec![frame(&json!({"thalweg": 2, "key": wrong}))],
        vec![frame(&json!({"thalweg": 1, "key": [wrong]}))],
        vec![frame(&json!({"thalweg": 1, "key": wrong, "producer": 5}))],
        vec![frame(&json!({"key": wrong}))],
        vec![frame(&json!({"thalweg": 1, "key": wrong, "text": "not a hello"}))],
        vec![frame(&json!({"thalweg": 1, "key": good})), text.clone()],
        // A client that says hello again, or late, or to the wrong version.
        vec![
            frame(&json!({"thalweg": 1, "key": good})),
            frame(&json!({"thalweg": 1, "key": good})),
            text.clone(),
        ],
        vec![
            frame(&json!({"thalweg": 1, "key": good})),
            text.clone(),
            frame(&json!({"thalweg": 2, "key": good})),
        ],
        vec![
            frame(&json!({"thalweg": 1, "key": good})),
            frame(&json!({"key": good, "thalweg": {"deep": [1]}})),
        ],
    ];
    for (n, hello) in hellos.into_iter().enumerate() {
        let mut producer = Producer::tcp(daemon.tcp()).await;
        producer.send(&hello.concat()).await;
        planted
            .must_not_be_in(&format!("the answers to hello {n}"), format!("{:?}", producer.finish().await));
    }
    // Over HTTP a hello is a record without a text.
    let bodies = [json!({"thalweg": 1, "key": good}), json!({"thalweg": 1, "key": wrong, "tenant": 5})];
    for body in bodies {
        let (_, said) = post(daemon, good, "/api/v1/ingest", body).await;
        planted.must_not_be_in("the answer to a hello over HTTP", said);
    }
    if let Some(forward) = daemon.sources.get("forward") {
        // What is no TLS.
        let mut socket = TcpStream::connect(forward).await.unwrap();
        socket.write_all(format!("\u{85}PING {wrong}").as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
        planted.must_not_be_in("what the forward source says", rest);
    }
}

/// Every command that shows something.
fn run_commands(planted: &Planted, site: &Site, environment: &Environment, daemon: Option<(&Daemon, &str)>) {
    let mut environment = environment.clone();
    if let Some((daemon, key)) = daemon {
        environment.extend([("THALWEG_URL", daemon.http.clone()), ("THALWEG_KEY", key.to_owned())]);
    }
    environment.extend(std::env::var("THALWEG_TEST_PG_BIN").ok().map(|bin| ("THALWEG_PG_BIN", bin)));
    let copy = site.path(if daemon.is_some() { "copy" } else { "copy-offline" }).display().to_string();
    let file = site.pipeline().display().to_string();
    let commands: [&[&str]; 23] = [
        &["check", &file],
        &["check", &file, "--json"],
        &["doctor"],
        &["doctor", "--connect"],
        &["doctor", "--connect", "--json"],
        &["status"],
        &["status", "--json"],
        &["why", "0"],
        &["why", "0", "--json"],
        &["keys", "list"],
        &["keys", "list", "--json"],
        &["keys", "trail", "--json"],
        &["webhooks", "list", "--json"],
        &["webhooks", "deliveries", "--json"],
        &["webhooks", "test", "one"],
        &["dead-letters", "list", "--json"],
        &["jobs", "list", "--json"],
        &["artifacts", "list", "--json"],
        &["segments", "list", "--json"],
        &["audit", "--json"],
        &["search", "herons", "--tenant", "acme", "--json"],
        &["models", "compare", "--json"],
        &["backup", "--to", &copy],
    ];
    for args in commands {
        let said = thalweg(site, &environment, args);
        assert!(!said.contains("Usage:"), "{said}");
        planted.must_not_be_in(&format!("{args:?}"), &said);
    }
    assert!(fs::exists(copy).unwrap(), "the copy was made");
}

/// What went wrong with everything, told by the daemon.
async fn has_failed(daemon: &Daemon, good: &str) {
    eventually("the vectors are missed", async || {
        let (_, said) = get(daemon, good, "/api/v1/status").await;
        said.contains("backfill") || said.contains("\"embed\"")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_at_everything_shows_no_secret() {
    let mut planted = Planted::new().await;
    let mut environment = planted.environment();
    let (echo, nowhere) = (Echo::start().await, nowhere().await);
    let certificate = tools::certificate(planted.folder.path());
    let common = sections(&mut planted, &mut environment, &echo, certificate.as_ref());
    environment.push(("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE".into()));
    planted.in_variable("AWS_SECRET_ACCESS_KEY", &mut environment);
    planted.in_variable("AWS_SESSION_TOKEN", &mut environment);
    let services = format!(
        "[artifacts]\nurl = \"s3://bucket/x\"\nendpoint = \"{}\"\n[redis]\nurl = \"redis://me:{}@{nowhere}\"\n",
        echo.url,
        planted.in_vault("redis url"),
    );
    let site = site(&environment, &format!("{common}{services}"));
    // The command line makes the key, which is shown this once.
    let good = make_key(&mut planted, &site, &environment);

    let daemon = site.start_with(&ALL);
    send_keys(&mut planted, &daemon, &good).await;
    has_failed(&daemon, &good).await;
    let (status, said) = post(&daemon, &good, "/api/v1/jobs", json!({"kind": "audit"})).await;
    assert_eq!(status, 202, "{said}");
    run_commands(&planted, &site, &environment, Some((&daemon, &good)));
    ask_everything(&mut planted, &daemon, &good).await;
    let delivered = || thalweg(&site, &environment, &["webhooks", "deliveries", "--json"]);
    eventually("a webhook has failed", async || delivered().contains("answered 500")).await;
    planted.must_not_be_in("deliveries", delivered());
    planted.must_not_be_in("the metrics", get(&daemon, &good, "/metrics").await.1);
    let log = daemon.stop().log;
    assert!(log.contains("\"level\":\"TRACE\""), "the log is complete");
    planted.must_not_be_in("the log", &log);
    run_commands(&planted, &site, &environment, None);
    let files = planted.must_not_be_below(site.pipeline().parent().unwrap());
    assert!(files > 5, "{files} files were searched");
    planted.none_was_seen();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_work_are_told_no_more_than_they_need() {
    let (Some(server), Some(s3)) = (postgres::server(), objects::s3()) else { return };
    let mut planted = Planted::new().await;
    let password = planted.plant("REDIS_PASSWORD");
    let Some(redis) = redis::Server::start(&["--requirepass", &password]).await else { return };
    let mut environment = planted.environment();
    environment.push(("REDIS_PASSWORD", password.clone()));
    let echo = Echo::start().await;
    let certificate = tools::certificate(planted.folder.path());
    let common = sections(&mut planted, &mut environment, &echo, certificate.as_ref());
    planted.remember("the key of S3", s3.secret().to_owned());
    let database = postgres::Database::new(&server).await;
    let mut url: reqwest::Url = database.url.parse().unwrap();
    url.set_password(Some("PASSWORD")).unwrap();
    let url = url.as_str().replace(":PASSWORD@", &format!(":{}@", planted.in_vault("store url")));
    let services = format!(
        "[store]\nurl = \"{url}\"\n{}[redis]\nurl = \"redis://127.0.0.1:{}\"\npassword = \"${{REDIS_PASSWORD}}\"\n",
        s3.section(&s3.endpoint),
        redis.port(),
    );
    let site = site(&environment, &format!("{common}{services}"));
    let good = make_key(&mut planted, &site, &environment);

    let daemon = site.start_with(&ALL);
    send_keys(&mut planted, &daemon, &good).await;
    has_failed(&daemon, &good).await;
    run_commands(&planted, &site, &environment, Some((&daemon, &good)));
    ask_everything(&mut planted, &daemon, &good).await;
    planted.must_not_be_in("the metrics", get(&daemon, &good, "/metrics").await.1);
    planted.must_not_be_in("the log", daemon.stop().log);
    planted.must_not_be_below(site.pipeline().parent().unwrap());
    // What others can read.
    let mut connection = database.connect().await;
    let tables = "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname = 'thalweg'";
    let tables: Vec<String> = sqlx::query_scalar(tables).fetch_all(&mut connection).await.unwrap();
    assert!(tables.len() > 10, "{tables:?}");
    for table in tables {
        let rows = sqlx::query(AssertSqlSafe(format!("SELECT t::text FROM {table} t")));
        for row in rows.fetch_all(&mut connection).await.unwrap() {
            planted.must_not_be_in(&table, row.get::<Option<String>, _>(0).unwrap_or_default());
        }
    }
    drop(connection);
    planted.must_not_be_in("Redis", redis.everything(&password));
    database.remove().await;
    planted.none_was_seen();
}

/// Pipeline files that cannot work: what is told of each, by a daemon and by
/// who looks for mistakes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_cannot_work_are_told_without_the_secret() {
    let mut planted = Planted::new().await;
    let mut environment = planted.environment();
    let (echo, nowhere) = (Echo::start().await, nowhere().await);
    let variable = planted.in_variable("PLANTED", &mut environment);
    let vault = planted.in_vault("in vault");
    let file = planted.in_file("in a file");
    let password_file = planted.file("password file");
    let credentials = planted.folder.path().join("credentials");
    let line = |line: &str| format!("[default]\naws_access_key_id = x\n{line}\n");
    fs::write(&credentials, line(planted.at("PLANTED"))).unwrap();
    let mut cases = vec![
        // The password is right there, and the rest is wrong.
        format!("[store]\nurl = \"postgres://me:{variable}@{nowhere}/x\""),
        format!("[store]\nurl = \"postgres://me:{variable}@127.0.0.1:port/x\""),
        format!("[store]\nurl = \"postgres://me@{nowhere}/x?pasword={vault}\""),
        format!("[store]\nurl = \"postgres://me@{nowhere}/x?sslmode={vault}\""),
        format!("[store]\nurl = \"postgres://me@{nowhere}/x?password={vault}\""),
        format!("[store]\nurl = \"postgres://me@{nowhere}/x?statement-cache-capacity={file}\""),
        format!("[store]\nurl = \"mysql://me:{variable}@{nowhere}/x\""),
        format!("[redis]\nurl = \"redis://me:{variable}@{nowhere}:port\""),
        format!("[redis]\nurl = \"redis://me:{variable}@{nowhere}/nodb\""),
        format!(
            "[redis]\nurl = \"redis://{nowhere}\"\npassword = \"{vault}\"\npassword_file = {password_file:?}"
        ),
        format!(
            "[redis]\nurl = \"redis://{nowhere}\"\npassword_file = {password_file:?}\n[artifacts]\nurl = \"s3://b/x\"\nendpoint = \"{}\"\ncredentials_file = {credentials:?}",
            echo.url
        ),
        format!("[artifacts]\nurl = \"s3://b/x\"\nendpoint = \"http://me:{variable}@{nowhere}\""),
        format!(
            "[[webhook]]\nname = \"a\"\nurl = \"http://elsewhere.example/{variable}\"\nevents = [\"health.degraded\"]\nsecret = \"{vault}\""
        ),
        format!(
            "[[webhook]]\nname = \"a\"\nurl = \"https://me:{variable}@elsewhere.example/\"\nevents = [\"health.degraded\"]\nsecret = \"{vault}\""
        ),
        format!(
            "[[webhook]]\nname = \"a\"\nurl = \"{variable}\"\nevents = [\"health.degraded\"]\nsecret = [\"{vault}\"]"
        ),
        format!(
            "[embed]\nprovider = \"remote\"\nmodel = \"m\"\ndimensions = 4\n[[embed.endpoint]]\nname = \"a\"\napi = \"openai\"\nurl = \"http://me:{variable}@{nowhere}\"\nkey = \"{vault}\""
        ),
        format!(
            "[embed]\nprovider = \"remote\"\nmodel = \"m\"\ndimensions = 4\n[[embed.endpoint]]\nname = \"a\"\napi = \"openai\"\nurl = \"http://{nowhere}\"\nkey = \"{vault} \\u0000\""
        ),
        format!("[auth.jwt]\nissuer = \"https://me:{variable}@{nowhere}\"\naudience = \"x\""),
        format!(
            "[auth.jwt]\nissuer = \"https://{nowhere}\"\naudience = \"x\"\njwks_url = \"https://{nowhere}@{vault}\""
        ),
        format!("[artifacts]\nurl = \"s3://me:{variable}@bucket/x\""),
        format!("[artifacts]\nurl = \"https://me:{variable}@bucket/x\""),
        format!("[artifacts]\nurl = \"s3://b/x\"\nendpoint = \"http://me:{variable}@{nowhere}:port/x\""),
        // A secret where none belongs.
        format!("[log]\nsegment_bytes = \"{vault}\""),
        format!("[embed]\nprovider = \"{file}\""),
        format!("[embed]\nthreads = \"{vault}\""),
        format!("[http]\nworkers = \"{file}\"\nlisten = \"{vault}\""),
        format!("[search]\ndepth = \"{vault}\"\n[retention]\nmax_age = \"{file}\""),
    ];
    // Servers that work, and refuse.
    if let Some(server) = postgres::server() {
        let mut url: reqwest::Url = server.parse().unwrap();
        url.set_username("nobody").unwrap();
        url.set_password(Some("PASSWORD")).unwrap();
        let url = url.as_str().replace(":PASSWORD@", &format!(":{vault}@"));
        cases.push(format!("[store]\nurl = \"{url}\""));
    }
    if let Some(s3) = objects::s3() {
        let section = s3.section(&s3.endpoint);
        let (before, _) = section.split_once("credentials_file").unwrap();
        let credentials = planted.folder.path().join("wrong");
        let secret = planted.plant("the wrong key for S3");
        fs::write(&credentials, line(&format!("aws_secret_access_key = {secret}"))).unwrap();
        cases.push(format!("{before}credentials_file = {credentials:?}"));
    }
    let redis = redis::Server::start(&["--requirepass", &planted.plant("Redis has it")]).await;
    if let Some(redis) = &redis {
        let url = format!("redis://127.0.0.1:{}", redis.port());
        cases.push(format!("[redis]\nurl = \"{url}\"\npassword = \"{vault}\""));
        cases.push(format!("[redis]\nurl = \"{}\"", url.replace("//", &format!("//me:{variable}@"))));
    }
    let left = Mutex::new(cases);
    // Most of the time they wait for somebody who does not answer.
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                while let Some(case) = { left.lock().unwrap().pop() } {
                    cannot_work(&planted, &environment, &case);
                }
            });
        }
    });
    planted.none_was_seen();
}

/// A daemon with these sections, and the commands that look for mistakes.
fn cannot_work(planted: &Planted, environment: &Environment, case: &str) {
    let name = "name = \"it\"\n[[source]]\ntype = \"tcp\"\nlisten = \"127.0.0.1:0\"\n";
    let hashing = if case.contains("[embed]") { "" } else { "[embed]\nprovider = \"hashing\"\n" };
    let site = site(environment, &format!("{name}{case}\n{hashing}"));
    let exit = tokio::task::block_in_place(|| site.run(&[&ALL[..], &["--once"]].concat(), b""));
    planted.must_not_be_in(&format!("the daemon with {case}"), &exit.log);
    let file = site.pipeline().display().to_string();
    for args in [
        &["check", &file][..],
        &["check", &file, "--json"],
        &["doctor", "--connect", "--json"],
        &["keys", "list"],
    ] {
        planted.must_not_be_in(&format!("{args:?} with {case}"), thalweg(&site, environment, args));
    }
    planted.must_not_be_below(site.pipeline().parent().unwrap());
}

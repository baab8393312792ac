//! Webhooks, as receivers see them.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    process::{Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

use crate::{
    cli::{fails, json_of, pipeline, text, thalweg},
    daemon::{Daemon, Site, TCP, eventually},
    postgres, tools,
};

const OLD: &str = "old-0123456789abcdef";
const NEW: &str = "new-fedcba9876543210";

/// A delivery as it arrived.
#[derive(Clone, Debug)]
struct Arrived {
    headers: HeaderMap,
    body: Bytes,
}

impl Arrived {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn header(&self, name: &str) -> String {
        self.headers[name].to_str().unwrap().to_owned()
    }
}

/// Who is told. `refusals` says how many more deliveries are answered with 500.
struct Receiver {
    address: String,
    arrived: Arc<Mutex<Vec<Arrived>>>,
    refusals: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

impl Receiver {
    async fn new(refusals: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let arrived: Arc<Mutex<Vec<Arrived>>> = Arc::default();
        let refusals = Arc::new(AtomicUsize::new(refusals));
        let (kept, left) = (arrived.clone(), refusals.clone());
        let answer = async move |headers: HeaderMap, body: Bytes| {
            kept.lock().unwrap().push(Arrived { headers, body });
            let refuse = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
            if refuse { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::NO_CONTENT }
        };
        let router = Router::new().route("/T0K3N", post(answer));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, arrived, refusals, serving }
    }

    fn arrived(&self) -> Vec<Arrived> {
        self.arrived.lock().unwrap().clone()
    }

    async fn until(&self, count: usize) -> Vec<Arrived> {
        eventually("it is told", async || self.arrived().len() >= count).await;
        self.arrived()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn hook(name: &str, address: &str, rest: &str) -> String {
    format!("[[webhook]]\nname = \"{name}\"\nurl = \"http://{address}/T0K3N\"\n{rest}\n")
}

fn of_jobs(name: &str, address: &str) -> String {
    hook(name, address, &format!("events = [\"job.done\", \"job.failed\"]\nsecret = \"{OLD}\""))
}

fn ask(site: &Site, code: i32, args: &[&str]) -> Value {
    tokio::task::block_in_place(|| json_of(code, &[args, &["-p", &pipeline(site)]].concat()))
}

fn audit(site: &Site) -> Value {
    ask(site, 0, &["jobs", "run", "audit", "--wait"])
}

fn deliveries(site: &Site, more: &[&str]) -> Vec<Value> {
    let page = ask(site, 0, &[&["webhooks", "deliveries"], more].concat());
    page["deliveries"].as_array().unwrap().clone()
}

/// The clients of the documentation that are there: their commands.
fn verifiers(site: &Site) -> Vec<Vec<String>> {
    let python = tools::client("verify_webhook.py").display().to_string();
    let mut found = vec![vec!["python3".to_owned(), python]];
    if Command::new("node").arg("--version").output().is_ok_and(|done| done.status.success()) {
        // A node that knows no types runs it as the JavaScript that it is too.
        let script = site.path("verify_webhook.mjs");
        fs::copy(tools::client("verify_webhook.ts"), &script).unwrap();
        found.push(vec!["node".to_owned(), script.display().to_string()]);
    } else {
        eprintln!("SKIPPED: node is missing, so only Python verified (Debian: apt-get install nodejs)");
    }
    found
}

/// What a client prints, if it takes the delivery for genuine.
fn verified(client: &[String], (signature, now): (&str, i64), secret: &str, body: &[u8]) -> Option<String> {
    let mut child = Command::new(&client[0])
        .args(&client[1..])
        .args([signature, &now.to_string(), "another secret", secret])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{client:?} does not run: {error}"));
    child.stdin.take().unwrap().write_all(body).unwrap();
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).trim().to_owned();
    match done.status.success() {
        true => Some(said),
        false => {
            let why = String::from_utf8_lossy(&done.stderr);
            assert!(why.contains("the signature is"), "{client:?} broke: {why}");
            None
        }
    }
}

fn assert_no_secrets(of: &str, shown: &str) {
    for secret in [OLD, NEW, "T0K3N"] {
        assert!(!shown.contains(secret), "{of} shows {secret}:\n{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_with_either_secret_verify_what_they_are_told_and_nobody_else_sees_one() {
    let receiver = Receiver::new(0).await;
    let events = "events = [\"job.done\", \"job.failed\"]";
    let both = format!("{events}\nsecrets = [\"{NEW}\", \"{OLD}\"]");
    let site = Site::new(&format!("{TCP}{}", hook("ops", &receiver.address, &both)));
    let daemon = site.start();
    let job = audit(&site);
    ask(&site, 1, &["jobs", "run", "re_embed", "--wait"]);
    let arrived = receiver.until(2).await;

    let (body, failed) = (arrived[0].json(), arrived[1].json());
    assert_eq!((&body["event"], &body["data"]["job"]), (&json!("job.done"), &job["id"]), "{body}");
    assert_eq!((&body["pipeline"], &body["data"]["kind"]), (&json!("it"), &json!("audit")), "{body}");
    assert_eq!(failed["event"], "job.failed", "{failed}");
    assert!(failed["data"]["error"].as_str().unwrap().contains("[migrate]"), "{failed}");
    let first = &arrived[0];
    assert_eq!(json!(first.header("thalweg-delivery")), body["id"]);
    assert_eq!(first.header("thalweg-event"), "job.done");
    let signature = first.header("thalweg-signature");
    let now: i64 = signature[2..].split(',').next().unwrap().parse().unwrap();
    let mut changed = first.body.to_vec();
    *changed.last_mut().unwrap() = b' ';
    for client in tokio::task::block_in_place(|| verifiers(&site)) {
        for secret in [OLD, NEW] {
            assert_eq!(verified(&client, (&signature, now), secret, &first.body), Some("job.done".into()));
        }
        assert_eq!(verified(&client, (&signature, now), "a third", &first.body), None);
        assert_eq!(verified(&client, (&signature, now), OLD, &changed), None);
        assert_eq!(verified(&client, (&signature, now + 301), OLD, &first.body), None, "it is replayed");
    }

    let file = pipeline(&site);
    for args in
        [&["webhooks", "list"][..], &["webhooks", "deliveries"], &["webhooks", "test", "ops", "--dry-run"]]
    {
        for more in [&["-p", &file][..], &["-p", &file, "--json"]] {
            let shown = text(&tokio::task::block_in_place(|| thalweg(&[args, more].concat())));
            assert_no_secrets(&format!("{args:?}"), &shown);
            assert!(shown.contains("ops") || shown.contains("thalweg-signature: t="), "{shown}");
        }
    }
    assert_eq!(receiver.arrived().len(), 2, "a dry run sends nothing");
    ask(&site, 0, &["webhooks", "test", "ops"]);
    assert_eq!(receiver.until(3).await[2].json()["event"], "webhook.test");
    fails(1, &["webhooks", "test", "nobody", "-p", &file], "no webhook `nobody`");
    fails(1, &["webhooks", "redeliver", "x", "-p", &file], "no delivery `x`");
    assert_no_secrets("the status", &daemon.status().await.to_string());
    assert_no_secrets("the metrics", &daemon.get("/metrics").await.1);
    assert_no_secrets("the log", &daemon.stop().log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_fails_is_told_again_and_one_that_hangs_holds_up_no_other() {
    let receiver = Receiver::new(2).await;
    // The system takes the connection, and nobody ever answers.
    let hanging = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = hanging.local_addr().unwrap().to_string();
    let site =
        Site::new(&format!("{TCP}{}{}", of_jobs("hangs", &address), of_jobs("ops", &receiver.address)));
    let daemon = site.start();
    audit(&site);
    let arrived = receiver.until(3).await;
    let ids: BTreeSet<String> = arrived.iter().map(|one| one.header("thalweg-delivery")).collect();
    assert_eq!(ids.len(), 1, "it is the same delivery");
    let delivered = || deliveries(&site, &["--webhook", "ops", "--state", "delivered"]);
    eventually("it is noted", async || delivered().len() == 1).await;
    let noted = delivered().remove(0);
    assert_eq!(
        (&noted["attempts"], &noted["status"], &noted["error"]),
        (&json!(3), &json!(204), &Value::Null)
    );
    let hangs = deliveries(&site, &["--webhook", "hangs"]).remove(0);
    assert_eq!((&hangs["state"], &hangs["attempts"]), (&json!("waiting"), &json!(0)), "{hangs}");
    let exit = daemon.stop();
    assert_eq!(exit.code, Some(0), "{}", exit.log);
    assert!(exit.took < Duration::from_secs(8), "it is not waited for: {:?}", exit.took);
    assert_no_secrets("the log", &exit.log);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_daemon_did_not_tell_is_told_by_the_next() {
    let receiver = Receiver::new(usize::MAX).await;
    let site = Site::new(&format!("{TCP}{}", of_jobs("ops", &receiver.address)));
    let daemon = site.start();
    audit(&site);
    let before = receiver.until(1).await[0].json();
    daemon.kill();
    receiver.refusals.store(0, Ordering::SeqCst);
    let (daemon, told) = (site.start(), receiver.arrived().len());
    assert_eq!(receiver.until(told + 1).await[told].json(), before, "the same, under the same id");
    let delivered = || deliveries(&site, &["--state", "delivered"]);
    eventually("it is noted", async || delivered().len() == 1).await;

    let id = before["id"].as_str().unwrap();
    ask(&site, 0, &["webhooks", "redeliver", id]);
    let again = receiver.until(told + 2).await;
    assert_eq!(again.last().unwrap().header("thalweg-delivery"), id);
    daemon.stop_drained();
}

/// One that keeps a schedule every second.
fn ticking(store: &str, receiver: &Receiver) -> Site {
    let schedule = "[[schedule]]\njob = \"orphan_check\"\ncron = \"* * * * * *\"\n";
    Site::new(&format!("{TCP}{schedule}{store}{}", of_jobs("ops", &receiver.address)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_daemons_on_one_store_one_tells() {
    let Some(server) = postgres::server() else { return };
    let database = postgres::Database::new(&server).await;
    let receiver = Receiver::new(0).await;
    let [one, other] = [0, 1].map(|_| ticking(&database.settings(), &receiver));
    let file = fs::read_to_string(other.pipeline()).unwrap();
    fs::write(other.pipeline(), file.replace("stream = \"main\"", "stream = \"second\"")).unwrap();
    let daemons = [one.start(), other.start()];
    receiver.until(5).await;
    daemons.into_iter().for_each(Daemon::stop_drained);
    let arrived = receiver.arrived();
    let jobs: BTreeSet<String> = arrived.iter().map(|one| one.json()["data"]["job"].to_string()).collect();
    assert_eq!(jobs.len(), arrived.len(), "one was told twice: {arrived:?}");
    database.remove().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_is_told_once_it_is_in_the_catalog() {
    let receiver = Receiver::new(0).await;
    let rest = format!("events = [\"segment.sealed\"]\nsecret = \"{OLD}\"");
    let site = Site::new(&format!("{TCP}{}", hook("catalog", &receiver.address, &rest)));
    let daemon = site.start();
    let frame =
        crate::producer::frame(&json!({"id": "a", "text": "Nine herons stood along the lower bank."}));
    crate::producer::Producer::tcp(daemon.tcp()).await.put_all(&[frame]).await;
    daemon.derived(1).await;
    daemon.stop_drained();
    ask(&site, 0, &["segments", "seal"]);
    let segment = ask(&site, 0, &["segments", "list"])[0].clone();
    // What was sealed without a daemon is told by the next one.
    let daemon = site.start();
    let data = receiver.until(1).await[0].json()["data"].clone();
    assert_eq!((&data["stream"], &data["records"]), (&json!("main"), &json!(1)), "{data}");
    assert_eq!(data["content_digest"], segment["content_digest"], "{data}");
    daemon.stop_drained();
}

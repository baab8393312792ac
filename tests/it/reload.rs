//! A running daemon takes its pipeline file anew: whole or not at all, and
//! without a frame lost.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    backfill::Service,
    cli::json_of,
    daemon::{Daemon, HTTP, Site, TCP, eventually},
    identity::{KEYS, key},
    objects::s3,
    producer::{Producer, frame, text_frame},
};

const OTHER: &str = "[[source]]\ntype = \"tcp\"\nname = \"other\"\nlisten = \"127.0.0.1:0\"\n";

async fn reload(daemon: &Daemon) -> Value {
    let (status, body) = daemon.post("/api/v1/reload", "application/json", "{}").await;
    assert_eq!(status, 200, "{body}");
    body
}

/// The code and the detail of the refusal.
async fn refused(daemon: &Daemon) -> (String, String) {
    let (status, body) = daemon.post("/api/v1/reload", "application/json", "{}").await;
    assert_eq!(status, 409, "{body}");
    (body["code"].as_str().unwrap().to_owned(), body["detail"].as_str().unwrap().to_owned())
}

async fn schedules(daemon: &Daemon) -> Vec<String> {
    let (_, body) = daemon.get("/api/v1/schedules").await;
    let body: Value = serde_json::from_str(&body).unwrap();
    body["schedules"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
}

fn schedule(name: &str) -> String {
    format!("[[schedule]]\nname = \"{name}\"\njob = \"audit\"\ncron = \"0 3 * * *\"\n")
}

/// Sends numbered frames on one connection until `stop`, each after the
/// answer to the one before; gives how many were acknowledged.
async fn stream(address: String, who: usize, stop: Arc<AtomicBool>) -> u64 {
    let mut producer = Producer::tcp(&address).await;
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        producer.put(&json!({"text": format!("sender {who} says number {sent}")})).await;
        sent += 1;
    }
    producer.finish().await;
    sent
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_frame_is_lost_and_no_connection_of_an_untouched_source_ends() {
    let base = format!("{TCP}{HTTP}{OTHER}");
    let site = Site::new(&base);
    let daemon = site.start();
    let stop = Arc::new(AtomicBool::new(false));
    let senders: Vec<_> =
        (0..4).map(|who| tokio::spawn(stream(daemon.tcp().to_owned(), who, stop.clone()))).collect();
    let service = Service::start().await;
    for round in 0..10 {
        // By turns: what only answers requests, what derives, what is done
        // beside, another model, and another source.
        let sections = match round % 5 {
            0 => format!("{base}[search]\ndepth = {}\n", 50 + round),
            1 => format!("{base}[derive.chunk]\nmax_tokens = {}\n", 100 + round),
            2 => format!("{base}{}", schedule(&format!("round-{round}"))),
            3 => format!("{base}[migrate]\n{}", service.endpoint("migrate")),
            _ => format!("{TCP}{HTTP}"),
        };
        site.configure(&sections);
        let done = reload(&daemon).await;
        assert_eq!(done["applied"], true, "{done}");
        assert_ne!(done["addresses"]["other"], json!(daemon.tcp()), "two sources at one address");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let mut sent = 0;
    for sender in senders {
        // Each fails where its connection ends or an answer is missing.
        sent += sender.await.unwrap();
    }
    assert!(sent > 100, "{sent}");
    let status = daemon.derived(sent).await;
    assert_eq!((&status["end_offset"], &status["derived"]["indexed"]), (&json!(sent), &json!(sent)));
    assert_eq!(status["derived"]["trouble"], json!({}));
    daemon.stop_drained();
    json_of(0, &["audit", "-p", site.pipeline().to_str().unwrap()]);
}

#[tokio::test]
async fn a_source_that_changes_is_served_at_its_new_place_and_its_connections_are_told() {
    let site = Site::new(&format!("{TCP}{HTTP}{OTHER}"));
    let daemon = site.start();
    let (tcp, other) = (daemon.tcp().to_owned(), daemon.sources["other"].clone());
    let mut kept = Producer::tcp(&tcp).await;
    let mut ended = Producer::tcp(&other).await;
    kept.put(&json!({"text": "before, kept"})).await;
    ended.put(&json!({"text": "before, ended"})).await;
    let folder = site.path("in.sock");
    site.configure(&format!("{TCP}{HTTP}[[source]]\ntype = \"unix\"\nname = \"other\"\npath = {folder:?}\n"));
    let done = reload(&daemon).await;
    assert_eq!((&done["changed"], &done["sources_changed"]), (&json!(["source"]), &json!(["other"])));
    assert_eq!(done["addresses"]["tcp"], json!(tcp));
    let told = ended.replies.rest().await;
    assert_eq!(told.iter().map(|reply| reply.kind.as_str()).collect::<Vec<_>>(), ["closing"]);
    assert!(TcpStream::connect(&other).await.is_err(), "the old address is served still");
    let mut unix = Producer::unix(folder.to_str().unwrap()).await;
    assert_eq!(unix.put(&json!({"text": "after, other"})).await, 2);
    assert_eq!(kept.put(&json!({"text": "after, kept"})).await, 3);
    // The same place, other terms: whoever connects in between is served.
    site.configure(&format!("{TCP}{HTTP}[sessions]\nmax_active = 3\n"));
    let done = reload(&daemon).await;
    assert_eq!((&done["sources_closed"], &done["sources_changed"]), (&json!(["other"]), &json!(["tcp"])));
    assert_eq!(done["addresses"], json!({"tcp": tcp}));
    assert!(!folder.exists(), "the socket of a source that is closed");
    let mut again = Producer::tcp(&tcp).await;
    assert_eq!(again.put(&json!({"text": "again"})).await, 4);
    daemon.derived(5).await;
    daemon.stop_drained();
}

#[tokio::test]
async fn a_file_that_is_wrong_or_asks_for_too_much_changes_nothing() {
    let base = format!("{TCP}{HTTP}");
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let site = Site::new(&base);
    let daemon = site.start();
    // Everything else in these files would be fine.
    let fine = format!("{base}{}", schedule("new"));
    site.configure(&format!("{fine}[search]\ndeph = 7\n"));
    let (code, detail) = refused(&daemon).await;
    assert_eq!(code, "invalid_pipeline");
    assert!(detail.contains("`depth`") && detail.contains("pipeline.toml:"), "{detail}");
    site.configure(&format!("{fine}[log]\nsegment_bytes = \"32MiB\"\n"));
    let (code, detail) = refused(&daemon).await;
    assert_eq!(
        (code.as_str(), detail.contains("`log` can change only at a restart")),
        ("needs_restart", true)
    );
    site.configure(&format!("{fine}[[source]]\ntype = \"file\"\npath = \"/nowhere/at/all\"\n"));
    let (code, detail) = refused(&daemon).await;
    assert_eq!(code, "not_up");
    assert!(detail.contains("source `file` cannot read: /nowhere/at/all"), "{detail}");
    let address = held.local_addr().unwrap();
    let busy = format!("[[source]]\ntype = \"tcp\"\nname = \"busy\"\nlisten = \"{address}\"\n");
    site.configure(&format!("{fine}{busy}"));
    let (code, detail) = refused(&daemon).await;
    assert_eq!(code, "not_up");
    assert!(detail.contains("source `busy` cannot listen"), "{detail}");
    assert!(!schedules(&daemon).await.contains(&"new".to_owned()), "a part of it was taken");
    drop(held);
    let done = reload(&daemon).await;
    assert_eq!(
        (&done["changed"], &done["sources_opened"]),
        (&json!(["source", "schedule"]), &json!(["busy"]))
    );
    assert!(schedules(&daemon).await.contains(&"new".to_owned()));
    assert_eq!(reload(&daemon).await["applied"], false, "nothing is different now");
    let (_, metrics) = daemon.get("/metrics").await;
    for (outcome, times) in [("done", 2), ("invalid_pipeline", 1), ("needs_restart", 1), ("not_up", 2)] {
        let line = format!("reloads_total{{outcome=\"{outcome}\"}} {times}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    daemon.stop_drained();
}

/// The object store is asked for the first time when the tasks behind the log
/// start, so this fails after those before have ended.
#[tokio::test]
async fn what_does_not_start_is_rolled_back() {
    let Some(s3) = s3() else { return };
    let site = Site::new(&format!("{TCP}{HTTP}"));
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let service = Service::start().await;
    let wrong = site.path("credentials");
    fs::write(&wrong, "[default]\naws_access_key_id = nobody\naws_secret_access_key = nothing\n").unwrap();
    let section = s3.section(&s3.endpoint);
    let file = section.lines().find(|line| line.starts_with("credentials_file")).unwrap();
    let section = section.replace(file, &format!("credentials_file = {wrong:?}"));
    // Nothing is embedded yet, so that the new model's space would take the
    // place of the old one's.
    site.configure(&format!("{TCP}{HTTP}{}{section}", schedule("new")));
    let text = fs::read_to_string(site.pipeline()).unwrap();
    let other =
        text.replace("[embed]\nprovider = \"hashing\"\n", &format!("[embed]\n{}", service.endpoint("embed")));
    assert_ne!(text, other);
    fs::write(site.pipeline(), other).unwrap();
    let (code, detail) = refused(&daemon).await;
    assert_eq!(code, "not_up", "{detail}");
    assert!(detail.contains("nothing was changed"), "{detail}");
    assert_eq!(producer.put(&json!({"text": "after"})).await, 0);
    let status = daemon.derived(1).await;
    assert_eq!((&status["derived"]["indexed"], &status["derived"]["trouble"]), (&json!(1), &json!({})));
    assert!(status["space"].as_str().unwrap().contains("hashing"), "{status}");
    assert_eq!(service.paid().len(), 0, "the new model was asked for records");
    assert!(!schedules(&daemon).await.contains(&"new".to_owned()));
    daemon.stop_drained();
}

#[tokio::test]
async fn keys_that_are_asked_for_from_now_on_end_what_came_in_without_one() {
    let base = format!("{TCP}{HTTP}");
    let site = Site::new(&base);
    let (_, admin) = key(&site, &["--role", "admin"]);
    let daemon = site.start();
    let mut stranger = Producer::tcp(daemon.tcp()).await;
    stranger.put(&json!({"text": "while everybody may"})).await;
    site.configure(&format!("{base}{KEYS}"));
    daemon.signal(libc::SIGHUP);
    eventually("nobody gets in without a key", async || daemon.get("/api/v1/status").await.0 == 401).await;
    // A connection is looked at again with what comes later than 10 seconds.
    tokio::time::sleep(Duration::from_secs(11)).await;
    stranger.send(&text_frame("after")).await;
    let told = stranger.replies.rest().await;
    assert_eq!(told.iter().map(|reply| reply.code.as_str()).collect::<Vec<_>>(), ["missing_credentials"]);
    site.configure(&base);
    let client = thalweg::http_client::local().unwrap();
    let url = format!("{}/api/v1/reload", daemon.http);
    let asked = client.post(&url).json(&json!({"dry_run": true})).send().await.unwrap();
    assert_eq!(asked.status(), 401);
    let asked = client.post(&url).bearer_auth(&admin).json(&json!({"dry_run": true})).send().await.unwrap();
    let would: Value = asked.json().await.unwrap();
    assert_eq!((&would["applied"], &would["changed"]), (&json!(false), &json!(["auth"])));
    assert_eq!(daemon.get("/api/v1/status").await.0, 401, "that was not to be done");
    let asked = client.post(&url).bearer_auth(&admin).json(&json!({})).send().await.unwrap();
    assert_eq!(asked.status(), 200);
    assert_eq!(daemon.get("/api/v1/status").await.0, 200);
    daemon.stop_drained();
}

#[tokio::test]
async fn an_object_store_that_takes_nothing_holds_up_no_other_change() {
    let base = format!("{TCP}{HTTP}");
    let site = Site::new(&base);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    fs::rename(site.artifacts(), site.path("elsewhere")).unwrap();
    fs::write(site.artifacts(), "no folder").unwrap();
    site.configure(&format!("{base}{}", schedule("new")));
    assert_eq!(reload(&daemon).await["applied"], true);
    producer.put(&json!({"text": "goes on"})).await;
    daemon.derived(1).await;
    assert!(schedules(&daemon).await.contains(&"new".to_owned()));
    fs::remove_file(site.artifacts()).unwrap();
    fs::rename(site.path("elsewhere"), site.artifacts()).unwrap();
    daemon.stop_drained();
}

#[tokio::test]
async fn the_http_server_moves_and_comes_back() {
    let base = format!("{TCP}{HTTP}");
    let site = Site::new(&base);
    let mut daemon = site.start();
    let text = fs::read_to_string(site.pipeline()).unwrap();
    let first = daemon.http.strip_prefix("http://").unwrap().to_owned();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = held.local_addr().unwrap().to_string();
    drop(held);
    for (from, to) in [(&first, &second), (&second, &first)] {
        // One that has not said what it wants holds up nothing.
        let _silent = TcpStream::connect(from).await.unwrap();
        let moved = text.replace("[http]\nlisten = \"127.0.0.1:0\"", &format!("[http]\nlisten = {to:?}"));
        assert_ne!(moved, text);
        fs::write(site.pipeline(), moved).unwrap();
        let done = reload(&daemon).await;
        assert_eq!((&done["applied"], &done["changed"]), (&json!(true), &json!(["http.listen"])));
        daemon.http = format!("http://{to}");
        assert_eq!(daemon.get("/health/ready").await.0, 200);
        eventually("the old address is closed", async || TcpStream::connect(from).await.is_err()).await;
    }
    daemon.stop_drained();
}

#[tokio::test]
async fn whose_frames_they_are_does_not_change_while_a_connection_is_open() {
    let base = format!("{TCP}{HTTP}");
    let site = Site::new(&base);
    let (_, acme) = key(&site, &["--role", "ingester", "--tenant", "acme"]);
    let daemon = site.start();
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let hello = json!({"thalweg": 1, "key": acme});
    producer.send(&frame(&hello)).await;
    assert_eq!(producer.replies.expect().await.kind, "welcome");
    producer.put(&json!({"text": "anybody's, as nobody is asked", "tenant": "other"})).await;
    site.configure(&format!("{base}{KEYS}"));
    daemon.signal(libc::SIGHUP);
    eventually("nobody gets in without a key", async || daemon.get("/api/v1/status").await.0 == 401).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    producer.send(&frame(&json!({"text": "not anybody's any more", "tenant": "other"}))).await;
    let told = producer.replies.rest().await;
    assert_eq!(told.iter().map(|reply| reply.kind.as_str()).collect::<Vec<_>>(), ["closing"]);
    daemon.stop_drained();
}

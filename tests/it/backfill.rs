//! A daemon whose embedding service comes and goes: records are stored, found
//! by keyword, and get their vectors later, each paid for once.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    daemon::{Daemon, HTTP, Site, eventually},
    ledger::ids_in_index,
};

/// A service that gives vectors while its status is 200, and else an error.
pub struct Service {
    url: String,
    state: Arc<Answers>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Default)]
struct Answers {
    status: AtomicU16,
    /// Other vectors than before.
    changed: AtomicBool,
    /// Texts that were answered with vectors, in order.
    served: Mutex<Vec<String>>,
    /// Requests of any kind.
    requests: AtomicUsize,
}

impl Service {
    pub async fn start() -> Self {
        let state = Arc::new(Answers::default());
        state.status.store(200, Ordering::SeqCst);
        let router = Router::new().route("/v1/embeddings", post(answer)).with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, state, _task: AbortOnDropHandle::new(task) }
    }

    pub fn answer_with(&self, status: u16) {
        self.state.status.store(status, Ordering::SeqCst);
    }

    /// From here on it gives other vectors.
    pub fn change(&self) {
        self.state.changed.store(true, Ordering::SeqCst);
    }

    /// The records' texts that were paid for.
    pub fn paid(&self) -> Vec<String> {
        let mut served = self.state.served.lock().unwrap().clone();
        served.retain(|text| text.starts_with("record"));
        served
    }

    /// Requests that came, whatever was asked and answered.
    fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// The keys of an embedder that asks here.
    pub fn endpoint(&self, section: &str) -> String {
        format!(
            "provider = \"remote\"\nmodel = \"m\"\ndimensions = 4\n[[{section}.endpoint]]\nname = \"only\"\n\
             api = \"openai\"\nurl = {:?}\nprice_per_million_tokens = 2.0\n",
            self.url
        )
    }

    /// A site whose vectors come from here; `embed` are more keys of its
    /// section, `tables` more tables.
    pub fn site(&self, embed: &str, tables: &str) -> Site {
        let site = Site::new(HTTP);
        let text = fs::read_to_string(site.pipeline()).unwrap();
        let remote = format!(
            "provider = \"remote\"\nmodel = \"m\"\ndimensions = 4\npatience = \"1s\"\n{embed}\n\
             [[embed.endpoint]]\nname = \"only\"\napi = \"openai\"\nurl = {:?}\nmax_inputs = 64\n{tables}",
            self.url
        );
        fs::write(site.pipeline(), text.replace("provider = \"hashing\"", &remote)).unwrap();
        site
    }
}

async fn answer(State(state): State<Arc<Answers>>, Json(request): Json<Value>) -> impl IntoResponse {
    state.requests.fetch_add(1, Ordering::SeqCst);
    let status = state.status.load(Ordering::SeqCst);
    if status != 200 {
        let (code, after) = if status == 429 { ("insufficient_quota", "1") } else { ("broken", "0") };
        let error = json!({"error": {"message": "no", "type": code, "code": code}});
        let headers = [("retry-after", after)];
        return (StatusCode::from_u16(status).unwrap(), headers, Json(error)).into_response();
    }
    let texts: Vec<String> = serde_json::from_value(request["input"].clone()).unwrap();
    if texts.iter().any(|text| text.contains("stuck")) {
        std::future::pending::<()>().await;
    }
    if texts.iter().any(|text| text.contains("poison")) {
        let error = json!({"error": {"message": "unacceptable", "type": "invalid_request_error"}});
        return (StatusCode::BAD_REQUEST, Json(error)).into_response();
    }
    // As long as a real one takes, so that a kill finds it at work.
    tokio::time::sleep(Duration::from_millis(20)).await;
    state.served.lock().unwrap().extend(texts.iter().cloned());
    let first = if state.changed.load(Ordering::SeqCst) { 9 } else { 1 };
    let vector = |text: &String| [first, text.len() % 7, text.len() % 5, 3];
    let data: Vec<Value> =
        (0..).zip(&texts).map(|(n, text): (u64, _)| json!({"index": n, "embedding": vector(text)})).collect();
    Json(json!({"data": data, "usage": {"total_tokens": 10 * texts.len()}})).into_response()
}

pub async fn ingest(daemon: &Daemon, offsets: std::ops::Range<usize>) {
    let line = |n| {
        format!(
            "{}\n",
            json!({"id": format!("{n}"), "tenant": "default", "text": format!("record {n} is about water")})
        )
    };
    let (status, reply) =
        daemon.post("/api/v1/ingest", "application/x-ndjson", offsets.map(line).collect::<String>()).await;
    assert_eq!(status, 200, "{reply}");
}

async fn get(daemon: &Daemon, path: &str) -> Value {
    let (status, body) = daemon.get(path).await;
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

pub async fn counts(daemon: &Daemon) -> (u64, u64) {
    let status = daemon.status().await;
    let count = |kind: &str| status["derived"][kind].as_u64().unwrap();
    (count("indexed"), count("deferred"))
}

fn distinct(mut texts: Vec<String>) -> usize {
    texts.sort();
    texts.dedup();
    texts.len()
}

fn assert_each_once(paid: Vec<String>, records: usize) {
    assert_eq!((paid.len(), distinct(paid)), (records, records), "each is paid for once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_a_provider_s_quota_is_spent_records_are_found_by_keyword_and_get_vectors_after_it() {
    let service = Service::start().await;
    service.answer_with(429);
    let site = service.site("", "");
    // A spent quota is not waited for as what may come back soon is.
    let text = fs::read_to_string(site.pipeline()).unwrap();
    fs::write(site.pipeline(), text.replace("patience = \"1s\"", "patience = \"60s\"")).unwrap();
    let daemon = site.start();
    let started = Instant::now();
    ingest(&daemon, 0..60).await;
    daemon.derived(60).await;
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(counts(&daemon).await, (0, 60));
    let (code, reply) = daemon
        .post(
            "/api/v1/search",
            "application/json",
            json!({"tenant": "default", "query": "water"}).to_string(),
        )
        .await;
    assert_eq!((code, &reply["mode"]), (200, &json!("keyword")), "{reply}");
    assert_eq!(reply["hits"].as_array().unwrap().len(), 10);
    assert!(reply["without_vectors"].as_str().unwrap().contains("quota"), "{reply}");
    let estimate = async |plan: Value| {
        let (status, estimate) = daemon.post("/api/v1/simulate", "application/json", plan.to_string()).await;
        assert_eq!(status, 200, "{estimate}");
        let of = |what: &str| estimate[what].as_u64().unwrap();
        (of("records"), of("chunks"), of("tokens"))
    };
    let (_, chunks, tokens) = estimate(json!({"work": "replay"})).await;
    assert_eq!(chunks, 60);
    assert_eq!(
        estimate(json!({"work": "replay", "from": 45})).await,
        (15, 15, tokens.div_ceil(4)),
        "a part of it"
    );
    assert_eq!(estimate(json!({"work": "replay", "from": 60})).await, (0, 0, 0));
    let health = get(&daemon, "/health/ready").await;
    assert_eq!(health["status"], "degraded", "{health}");
    let providers = get(&daemon, "/health/providers").await;
    assert_eq!((&providers["status"], &providers["deferred"]), (&json!("down"), &json!(60)), "{providers}");
    assert_eq!(providers["providers"][0]["last_failure"]["class"], "quota", "{providers}");
    let (_, metrics) = daemon.get("/metrics").await;
    assert!(metrics.contains("fallback_fraction 1"), "{metrics}");
    service.answer_with(200);
    eventually("all have vectors", async || counts(&daemon).await == (60, 0)).await;
    let hits = daemon.search(json!({"tenant": "default", "query": "water", "mode": "vector"})).await;
    assert_eq!(hits.len(), 10);
    let in_order: Vec<String> = (0..60).map(|n| format!("record {n} is about water")).collect();
    assert_eq!(service.paid(), in_order, "the oldest first, and each once");
    let health = get(&daemon, "/health/ready").await;
    assert_eq!(health["status"], "ready", "{health}");
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_wait_for_a_broken_provider_only_as_long_as_patience_lasts_also_over_a_kill() {
    let service = Service::start().await;
    service.answer_with(401);
    let site = service.site("", "");
    let daemon = site.start();
    ingest(&daemon, 0..30).await;
    daemon.derived(30).await;
    assert_eq!(counts(&daemon).await, (0, 30));
    daemon.kill();
    service.answer_with(200);
    let daemon = site.start();
    eventually("all have vectors", async || counts(&daemon).await == (30, 0)).await;
    assert_each_once(service.paid(), 30);
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pipeline_s_own_quota_stops_at_its_limit_and_outlives_a_restart() {
    let service = Service::start().await;
    let site = service.site("", "[embed.quota]\ndaily_requests = 5");
    let daemon = site.start();
    // One request for the canaries, and few records in each of the others.
    for n in 0..10 {
        ingest(&daemon, 10 * n..10 * (n + 1)).await;
        daemon.derived(10 * (n as u64 + 1)).await;
    }
    let (indexed, deferred) = counts(&daemon).await;
    assert!(indexed + deferred == 100 && deferred >= 40, "{indexed} {deferred}");
    let quota = get(&daemon, "/api/v1/embedding/quota").await;
    assert_eq!((&quota["daily_quota"], &quota["remaining"]), (&json!(5), &json!(0)), "{quota}");
    assert_eq!((&quota["current_count"], &quota["exceeded"]), (&json!(5), &json!(true)), "{quota}");
    assert!(quota["reset_at"].as_str().unwrap().ends_with("T00:00:00Z"), "{quota}");
    let log = daemon.log();
    for line in ["80 % of the daily embedding quota are spent", "the daily embedding quota is spent"] {
        assert!(log.contains(line), "{log}");
    }
    let (_, metrics) = daemon.get("/metrics").await;
    assert!(metrics.contains("embed_quota_used{kind=\"requests\"} 1\n"), "{metrics}");
    daemon.stop_drained();
    let paid = service.paid().len();
    let daemon = site.start();
    ingest(&daemon, 100..110).await;
    daemon.derived(110).await;
    assert_eq!(get(&daemon, "/api/v1/embedding/quota").await["current_count"], 5);
    assert_eq!(service.paid().len(), paid);
    daemon.stop_drained();
    // A larger quota is as good as a new day.
    let text = fs::read_to_string(site.pipeline()).unwrap();
    fs::write(site.pipeline(), text.replace("daily_requests = 5", "daily_requests = 500")).unwrap();
    let daemon = site.start();
    eventually("all have vectors", async || counts(&daemon).await == (110, 0)).await;
    assert_each_once(service.paid(), 110);
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_in_mid_batch_lose_nothing_and_pay_again_only_for_what_was_not_stored() {
    let service = Service::start().await;
    let site = service.site("", "");
    let kills = 4;
    let mut in_flight = 0;
    for n in 0..kills {
        let daemon = site.start();
        ingest(&daemon, 200 * n..200 * (n + 1)).await;
        let before = service.paid().len();
        eventually("it is at work", async || service.paid().len() > before + 20).await;
        daemon.kill();
        let store = site.store().await;
        let stored = store.counts("it", "main").await.unwrap().unwrap().indexed;
        store.close().await;
        in_flight += distinct(service.paid()) - usize::try_from(stored).unwrap();
    }
    let daemon = site.start();
    let status = daemon.derived(200 * kills as u64).await;
    assert_eq!(status["derived"]["indexed"], 200 * kills, "{status}");
    assert_eq!(distinct(service.paid()), 200 * kills);
    let again = service.paid().len() - 200 * kills;
    assert!(again > 0 && again <= in_flight, "{again} were paid for again, {in_flight} were in flight");
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_costs_the_batches_in_flight_however_much_is_waiting() {
    let records = 10_000;
    // A batch takes an eighth of what is waiting, and two are on their way.
    let under_way = 2 * records / 8;
    let service = Service::start().await;
    let site = service.site("", "");
    let daemon = site.start();
    for first in (0..records).step_by(1_000) {
        ingest(&daemon, first..first + 1_000).await;
    }
    eventually("most are paid for", async || service.paid().len() > 7_000).await;
    daemon.kill();
    let (paid, store) = (service.paid(), site.store().await);
    let stored = store.counts("it", "main").await.unwrap().unwrap().indexed;
    store.close().await;
    let lost = paid.len() - usize::try_from(stored).unwrap();
    assert!(paid.len() < records && lost <= under_way, "{lost} of {} were not stored", paid.len());
    let daemon = site.start();
    let status = daemon.derived(records as u64).await;
    assert_eq!(status["derived"]["indexed"], records, "{status}");
    assert_eq!(distinct(service.paid()), records);
    let again = service.paid().len() - records;
    assert!(again <= lost, "{again} were paid for again, {lost} were lost");
    daemon.stop_drained();
    let index = ids_in_index(&site).await;
    assert!(index.len() == records && index.values().all(|count| *count == 1), "{} are stored", index.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stored_is_never_paid_for_again() {
    let service = Service::start().await;
    let site = service.site("cache_memory = \"0\"", "");
    let daemon = site.start();
    ingest(&daemon, 0..20).await;
    daemon.derived(20).await;
    daemon.stop_drained();
    assert_each_once(service.paid(), 20);
    let requests = service.requests();
    let file = site.pipeline().to_str().unwrap().to_owned();
    for arguments in [&["replay"][..], &["replay", "--restore"]] {
        let report = crate::cli::json_of(0, &[arguments, &["-p", &file]].concat());
        assert_eq!((&report["report"]["frames"], &report["agrees"]), (&json!(20), &json!(true)), "{report}");
    }
    assert_eq!(service.requests(), requests, "nobody is asked for anything");
    // The same text of somebody else.
    let daemon = site.start();
    let other = json!({"id": "a", "tenant": "other", "text": "record 3 is about water"});
    daemon.post("/api/v1/ingest", "application/x-ndjson", format!("{other}\n")).await;
    daemon.derived(21).await;
    assert_eq!(counts(&daemon).await, (21, 0));
    assert_each_once(service.paid(), 20);
    let (_, metrics) = daemon.get("/metrics").await;
    assert!(metrics.contains("embed_cache_hits_total{tier=\"store\"} 1"), "{metrics}");
    daemon.stop_drained();
    let report = crate::cli::json_of(0, &["replay", "--recompute", "-p", &file]);
    assert_eq!(report["report"]["vectors"], 21, "{report}");
    assert_eq!(service.paid().len(), 41, "this is what it is for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_that_hangs_the_service_holds_up_neither_the_others_nor_a_stop() {
    let service = Service::start().await;
    let site = service.site("", "");
    let text = fs::read_to_string(site.pipeline()).unwrap();
    fs::write(site.pipeline(), text.replace("max_inputs = 64", "max_inputs = 64\ntimeout = \"1s\"")).unwrap();
    service.answer_with(401);
    let daemon = site.start();
    let stuck = json!({"id": "stuck", "tenant": "default", "text": "everybody is stuck at this one"});
    daemon.post("/api/v1/ingest", "application/x-ndjson", format!("{stuck}\n")).await;
    ingest(&daemon, 0..10).await;
    daemon.derived(11).await;
    assert_eq!(counts(&daemon).await, (0, 11));
    daemon.kill();
    service.answer_with(200);
    let daemon = site.start();
    for _ in 0..6 {
        if counts(&daemon).await == (10, 1) {
            break;
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert_eq!(counts(&daemon).await, (10, 1));
    assert_each_once(service.paid(), 10);
    let exit = daemon.stop();
    assert!(exit.took < Duration::from_secs(8), "{:?}", exit.took);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_replay_spends_counts_also_if_it_fails() {
    let service = Service::start().await;
    let site = service.site("cache_memory = \"0\"", "[embed.quota]\ndaily_requests = 3\nlive_share = 0.0");
    let daemon = site.start();
    ingest(&daemon, 0..10).await;
    daemon.derived(10).await;
    daemon.stop_drained();
    let file = site.pipeline().to_str().unwrap().to_owned();
    // Canaries, records, canaries: nothing is left.
    crate::cli::fails(1, &["replay", "--recompute", "-p", &file], "quota");
    let daemon = site.start();
    let quota = get(&daemon, "/api/v1/embedding/quota").await;
    assert_eq!((&quota["current_count"], &quota["exceeded"]), (&json!(3), &json!(true)), "{quota}");
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_record_is_a_dead_letter_and_found_by_keyword_whether_live_or_later() {
    let service = Service::start().await;
    let site = service.site("", "");
    let daemon = site.start();
    let bad = |id: &str| {
        let text = format!("{} poison {id}", "a long text about rivers and their beds. ".repeat(40));
        format!("{}\n", json!({"id": id, "tenant": "default", "text": text}))
    };
    daemon.post("/api/v1/ingest", "application/x-ndjson", bad("live")).await;
    ingest(&daemon, 0..5).await;
    daemon.derived(6).await;
    service.answer_with(429);
    daemon.post("/api/v1/ingest", "application/x-ndjson", bad("later")).await;
    daemon.derived(7).await;
    service.answer_with(200);
    eventually("none waits", async || counts(&daemon).await == (5, 0)).await;
    let status = daemon.status().await;
    assert_eq!(status["derived"]["dead_lettered"], 2, "{status}");
    for id in ["live", "later"] {
        let hits = daemon
            .search(json!({"tenant": "default", "query": format!("poison {id}"), "mode": "keyword"}))
            .await;
        assert!(hits.iter().any(|hit| hit["id"] == id), "{hits:?}");
    }
    daemon.stop_drained();
    let letters = site.store().await.dead_letters(None, 0, 10).await.unwrap();
    assert_eq!(letters.len(), 2, "{letters:?}");
    let file = site.pipeline().to_str().unwrap().to_owned();
    crate::cli::json_of(0, &["replay", "-p", &file]);
}

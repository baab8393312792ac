//! Jobs, as people ask for them and daemons do them.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, sqlite::SqliteConnectOptions};

use crate::{
    cli::{fails, json_of, pipeline, thalweg},
    daemon::{Daemon, Site, TCP, eventually},
    postgres,
    producer::{Producer, frame},
};

const DAY: i64 = 24 * 3_600 * 1_000;

fn document(n: u64) -> Vec<u8> {
    let text =
        format!("On day {n} of the survey we counted {} herons along the lower river bank.", n * 7 + 3);
    frame(&json!({"id": format!("d{n}"), "tier": "doc", "tenant": "default", "text": text}))
}

async fn filled(site: &Site, records: u64) -> Daemon {
    let daemon = site.start();
    let frames: Vec<Vec<u8>> = (0..records).map(document).collect();
    Producer::tcp(daemon.tcp()).await.put_all(&frames).await;
    daemon.derived(records).await;
    daemon
}

fn jobs(site: &Site, code: i32, args: &[&str]) -> Value {
    tokio::task::block_in_place(|| json_of(code, &[&["jobs"], args, &["-p", &pipeline(site)]].concat()))
}

/// Runs a job to its end, which is a good one.
fn result(site: &Site, args: &[&str]) -> Value {
    let job = jobs(site, 0, &[&["run"], args, &["--wait"]].concat());
    assert_eq!((&job["state"], &job["attempts"]), (&json!("done"), &json!(1)), "{job}");
    job["result"].clone()
}

fn queued(site: &Site, args: &[&str]) -> String {
    jobs(site, 0, &[&["run"], args].concat())["id"].to_string()
}

fn show(site: &Site, id: &str) -> Value {
    jobs(site, 0, &["show", id])
}

async fn until(site: &Site, id: &str, what: &str, holds: impl Fn(&Value) -> bool) {
    eventually(what, async || holds(&show(site, id))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_job_is_done_by_the_daemon_and_says_what_came_of_it() {
    let site = Site::new(&format!("{TCP}[retention]\ndead_letters = \"30d\"\n"));
    let daemon = filled(&site, 60).await;
    let audited = result(&site, &["audit"]);
    assert_eq!((&audited["wrong"], &audited["next_offset"]), (&json!(0), &json!(60)), "{audited}");
    let replayed = result(&site, &["replay", "from=10", "to=50"]);
    assert_eq!(
        (&replayed["report"]["frames"], &replayed["agrees"]),
        (&json!(40), &json!(true)),
        "{replayed}"
    );
    let packed = result(&site, &["pack"]);
    assert_eq!(packed["pack"]["meta"]["documents"], 60, "{packed}");
    assert_eq!(result(&site, &["pack"])["pack"], Value::Null, "the next goes on where it ended");
    assert_eq!(result(&site, &["orphan_check"])["missing"]["count"], 0);
    assert_eq!(result(&site, &["retention", "dry_run=true"])["records"], 0);
    let skipped = result(&site, &["train_dictionary", "if_new_segments=8"]);
    assert!(skipped["skipped"].as_str().unwrap().contains("fewer than 8 segments"), "{skipped}");
    assert!(result(&site, &["maintain", "vacuum=true"])["bytes"].as_u64().unwrap() > 0);
    let copied = result(&site, &["backup"]);
    assert!(fs::exists(site.path(copied["to"].as_str().unwrap()).join("MANIFEST.json")).unwrap(), "{copied}");

    let failed = jobs(&site, 1, &["run", "re_embed", "--wait"]);
    assert_eq!((&failed["state"], &failed["attempts"]), (&json!("failed"), &json!(1)), "{failed}");
    assert!(failed["error"].as_str().unwrap().contains("[migrate]"), "{failed}");
    let file = pipeline(&site);
    fails(1, &["jobs", "run", "pack", "colour=blue", "-p", &file], "unknown field `colour`");
    fails(1, &["jobs", "show", "999", "-p", &file], "no job 999");
    fails(1, &["jobs", "cancel", &failed["id"].to_string(), "-p", &file], "is failed already");

    let page = jobs(&site, 0, &["list", "--limit", "2"]);
    assert_eq!((page.as_array().unwrap().len(), &page[0]["kind"]), (2, &json!("re_embed")), "{page}");
    let text = thalweg(&["jobs", "list", "--limit", "2", "-p", &file]).stdout;
    assert!(String::from_utf8(text).unwrap().contains(&format!("--before {}", page[1]["id"])));
    let metrics = daemon.get("/metrics").await.1;
    assert!(metrics.contains("jobs_ended_total{kind=\"audit\",state=\"done\"} 1"), "{metrics}");
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_rewrites_waits_its_turn_and_a_cancelled_job_stops_within_a_step() {
    let site = Site::new(&format!("{TCP}[jobs]\nrate = 100\n[retention]\nrecords = \"3650d\"\n"));
    let daemon = filled(&site, 1_300).await;
    let restore = queued(&site, &["replay", "mode=restore"]);
    until(&site, &restore, "it is begun", |job| job["progress"]["done"] == 1_024).await;
    let running = show(&site, &restore);
    assert!(running["progress"]["left_ms"].as_i64().is_some_and(|left| left > 0), "{running}");
    let retention = queued(&site, &["retention"]);
    result(&site, &["audit"]);
    assert_eq!(show(&site, &retention)["state"], "queued");
    assert_eq!(show(&site, &restore)["state"], "running");

    let asked = Instant::now();
    jobs(&site, 0, &["cancel", &restore]);
    until(&site, &restore, "it is cancelled", |job| job["state"] == "cancelled").await;
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    until(&site, &retention, "its turn came", |job| job["state"] == "done").await;
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_a_replay_and_a_pack_a_daemon_does_each_once() {
    let site = Site::new(&format!("{TCP}[jobs]\nrate = 600\n"));
    let daemon = filled(&site, 3_500).await;
    let ids = [queued(&site, &["replay"]), queued(&site, &["pack"])];
    for id in &ids {
        until(&site, id, "it is under way", |job| job["progress"]["done"].as_u64() >= Some(2_048)).await;
    }
    daemon.kill();
    for id in &ids {
        let left = show(&site, id);
        assert_eq!((&left["state"], &left["result"]), (&json!("running"), &Value::Null), "{left}");
    }

    let daemon = site.start();
    let goes_on = |job: &Value| {
        assert!(job["progress"]["done"].as_u64() >= Some(2_048), "it began anew: {job}");
        job["state"] == "done"
    };
    until(&site, &ids[0], "it is done", goes_on).await;
    for id in &ids {
        until(&site, id, "it is done", |job| job["state"] == "done").await;
        let done = show(&site, id);
        assert_eq!((&done["attempts"], &done["progress"]["done"]), (&json!(2), &json!(3_500)), "{done}");
    }
    let [replayed, packed] = ids.map(|id| show(&site, &id)["result"].clone());
    let report = &replayed["report"];
    assert_eq!((&report["frames"], &report["records_agree"]), (&json!(3_500), &json!(3_500)), "{replayed}");
    assert_eq!(replayed["agrees"], true);
    assert_eq!(packed["pack"]["meta"]["documents"], 3_500, "{packed}");
    daemon.stop_drained();
    let artifacts =
        tokio::task::block_in_place(|| json_of(0, &["artifacts", "list", "-p", &pipeline(&site)]));
    let packs = artifacts.as_array().unwrap().iter().filter(|row| row["kind"] == "pack").count();
    assert_eq!(packs, 1, "{artifacts}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_gives_a_job_back_unharmed() {
    let site = Site::new(&format!("{TCP}[jobs]\nrate = 100\n"));
    let daemon = filled(&site, 1_300).await;
    let id = queued(&site, &["replay"]);
    until(&site, &id, "it is under way", |job| job["progress"]["done"] == 1_024).await;
    daemon.stop_drained();
    let back = show(&site, &id);
    assert_eq!((&back["state"], &back["attempts"]), (&json!("queued"), &json!(0)), "{back}");
    site.configure(&format!("{TCP}[jobs]\nrate = 0\n"));
    let daemon = site.start();
    until(&site, &id, "it is done", |job| job["state"] == "done").await;
    assert_eq!(show(&site, &id)["result"]["report"]["frames"], 1_300);
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_that_was_missed_is_made_up_for_once() {
    let yearly = "[[schedule]]\njob = \"audit\"\ncron = \"0 0 1 1 *\"\n";
    let passing = "[[schedule]]\njob = \"pack\"\ncron = \"0 0 1 1 *\"\ncatch_up = false\n";
    let site = Site::new(&format!("{TCP}{yearly}{passing}"));
    let audits = || jobs(&site, 0, &["list", "--kind", "audit"]).as_array().unwrap().clone();
    let daemon = filled(&site, 5).await;
    let planned = jobs(&site, 0, &["schedules"]);
    let names: Vec<_> = planned.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["audit", "pack", "orphan_check"]);
    let next = planned[0]["next_ms"].as_i64().unwrap();
    assert!(planned[0]["then_ms"][0].as_i64().unwrap() - next >= 365 * DAY, "{planned}");
    assert!(audits().is_empty(), "what was due before anybody heard of it is not missed");
    daemon.stop_drained();

    let long_ago = format!("UPDATE schedules SET settled_ms = settled_ms - {}", 3 * 365 * DAY);
    let options = SqliteConnectOptions::new().filename(site.database());
    options.connect().await.unwrap().execute(AssertSqlSafe(long_ago)).await.unwrap();
    for start in 0..2 {
        let daemon = site.start();
        eventually("it is made up for", async || audits().iter().all(|job| job["state"] == "done")).await;
        // Long enough for another, if there were one.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        daemon.stop_drained();
        let audits = audits();
        assert_eq!(audits.len(), 1, "start {start}: {audits:?}");
        assert!(audits[0]["due_ms"].as_i64().unwrap() > next - 367 * DAY, "the last of them: {audits:?}");
    }
    let packs = jobs(&site, 0, &["list", "--kind", "pack"]);
    assert_eq!(packs, json!([]), "it was passed over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_daemons_on_one_store_keep_each_due_time_once() {
    let Some(server) = postgres::server() else { return };
    let database = postgres::Database::new(&server).await;
    let every = |job: &str| format!("[[schedule]]\njob = \"{job}\"\ncron = \"* * * * * *\"\n");
    let settings = format!("{TCP}{}{}{}", database.settings(), every("orphan_check"), every("audit"));
    let (one, other) = (Site::new(&settings), Site::new(&settings));
    let file = fs::read_to_string(other.pipeline()).unwrap();
    fs::write(other.pipeline(), file.replace("stream = \"main\"", "stream = \"second\"")).unwrap();
    let daemons = [one.start(), other.start()];
    for daemon in &daemons {
        Producer::tcp(daemon.tcp()).await.put_all(&[document(1)]).await;
        daemon.derived(1).await;
    }
    let done = |kind: &str| {
        let page = jobs(&one, 0, &["list", "--limit", "500", "--kind", kind, "--state", "done"]);
        page.as_array().unwrap().clone()
    };
    eventually("some are done", async || done("orphan_check").len() >= 4 && done("audit").len() >= 6).await;
    for daemon in daemons {
        daemon.stop_drained();
    }
    for kind in ["orphan_check", "audit"] {
        let done = done(kind);
        let mut kept: Vec<(&Value, &Value)> =
            done.iter().map(|job| (&job["stream"], &job["due_ms"])).collect();
        let count = kept.len();
        kept.sort_unstable_by_key(|(stream, due)| (stream.to_string(), due.as_i64()));
        kept.dedup();
        assert_eq!(kept.len(), count, "{kind}: a due time was kept twice: {done:?}");
        assert!(done.iter().all(|job| job["attempts"] == 1), "{done:?}");
    }
    let streams: Vec<Value> = done("audit").iter().map(|job| job["stream"].clone()).collect();
    assert!(
        streams.contains(&json!("main")) && streams.contains(&json!("second")),
        "each stream has its own"
    );
    assert!(done("orphan_check").iter().all(|job| job["stream"] == Value::Null), "and the store one for all");
    database.remove().await;
}

/// The acknowledgement that 19 of 20 are faster than.
async fn p95(producer: &mut Producer, from: u64) -> Duration {
    let mut took = Vec::new();
    for n in from..from + 100 {
        let sent = Instant::now();
        producer.put_all(&[document(n)]).await;
        took.push(sent.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    took.sort_unstable();
    took[94]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_are_not_kept_waiting_by_jobs() {
    let site = Site::new(&format!("{TCP}[jobs]\nrate = 0\n"));
    let daemon = filled(&site, 3_000).await;
    let mut producer = Producer::tcp(daemon.tcp()).await;
    let alone = p95(&mut producer, 3_000).await;
    // One after the other, so that one is under way all the time.
    let ids: Vec<String> = (0..6).map(|_| queued(&site, &["replay", "mode=recompute"])).collect();
    until(&site, &ids[0], "they are begun", |job| job["state"] != "queued").await;
    let beside = p95(&mut producer, 3_100).await;
    let last = show(&site, &ids[5])["state"].clone();
    println!(
        "p95 of acknowledgements: {alone:?} alone, {beside:?} beside replays, of which the last is {last}"
    );
    // Coarse: other tests share the machine.
    assert!(beside < 4 * alone + Duration::from_millis(150), "{alone:?} alone, {beside:?} beside jobs");
    for id in &ids {
        until(&site, id, "it is done all the same", |job| job["state"] == "done").await;
    }
    daemon.stop_drained();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_that_fails_and_an_audit_that_finds_something_are_shown_and_frames_still_taken() {
    let site = Site::new(&format!("{TCP}[[schedule]]\njob = \"re_embed\"\ncron = \"* * * * * *\"\n"));
    let daemon = filled(&site, 20).await;
    let degraded = async |what: &str| {
        let (code, body) = daemon.get("/health/ready").await;
        code == 200 && body.contains("degraded") && body.contains(what)
    };
    eventually("it is shown", async || degraded("scheduled jobs: `re_embed` failed (job ").await).await;
    let options = SqliteConnectOptions::new().filename(site.database());
    let delete = "DELETE FROM records WHERE \"offset\" = 7";
    options.connect().await.unwrap().execute(delete).await.unwrap();
    assert_eq!(result(&site, &["audit"])["wrong"], 2);
    assert!(degraded("audit: 2 counts do not add up").await);
    Producer::tcp(daemon.tcp()).await.put_all(&[document(20)]).await;
    daemon.stop_drained();
}

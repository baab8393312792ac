//! The command line, as people and programs use it.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use serde_json::{Value, json};
use sqlx::{ConnectOptions, Executor, sqlite::SqliteConnectOptions};

use crate::{
    daemon::{HTTP, Site, TCP},
    producer::frame,
};

/// Runs `thalweg` with `input` on its standard input.
fn thalweg_with(input: &[u8], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
    for name in ["THALWEG_PIPELINE", "THALWEG_TO", "THALWEG_URL", "THALWEG_LOG"] {
        command.env_remove(name);
    }
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A command that refuses its arguments reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

pub fn thalweg(args: &[&str]) -> Output {
    thalweg_with(b"", args)
}

/// Runs a command that must end with `code`, and reads its JSON.
pub fn json_of(code: i32, args: &[&str]) -> Value {
    let output = thalweg(&[args, &["--json"]].concat());
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}: {text}"))
}

/// Runs a command that must end with `code` and say `why`.
pub fn fails(code: i32, args: &[&str], why: &str) {
    let output = thalweg(args);
    let text = text(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(text.contains(why), "{args:?}: {text}");
}

pub fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// A runtime for the parts of the harness that need one.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

const BIRDS: [&str; 5] = ["heron", "kingfisher", "dipper", "cormorant", "grebe"];

/// Sentences that no filter takes for noise or for each other.
fn sentence(n: usize) -> String {
    let bird = BIRDS[n % BIRDS.len()];
    format!(
        "On day {n} of the survey we counted {} birds of the kind {bird} along the lower river bank.",
        n * 7 + 3
    )
}

fn frames(count: usize) -> Vec<u8> {
    (0..count).flat_map(|n| frame(&json!({"id": format!("r{n}"), "text": sentence(n), "day": n}))).collect()
}

/// A site whose daemon took `count` records, derived and sealed them, and is
/// gone.
fn sealed_site(count: usize) -> (Site, Vec<u8>) {
    let site = Site::new(&format!("{TCP}{HTTP}"));
    let daemon = site.start();
    let sent = frames(count);
    let file = site.path("in.frames");
    fs::write(&file, &sent).unwrap();
    let report = json_of(0, &["send", "--to", daemon.tcp(), file.to_str().unwrap()]);
    assert_eq!((&report["acknowledged"], &report["offsets"]), (&json!(count), &json!([0, count])));
    let expect = count.to_string();
    let status = json_of(
        0,
        &["status", "--url", &daemon.http, "--until-drained", "--expect", &expect, "--timeout", "60s"],
    );
    assert_eq!(status["derived"]["indexed"], json!(count), "{status}");
    daemon.stop_drained();
    let sealed = json_of(0, &["segments", "seal", "-p", pipeline(&site).as_str()]);
    assert_eq!((&sealed[0]["base_offset"], &sealed[0]["records"]), (&json!(0), &json!(count)), "{sealed}");
    (site, sent)
}

pub fn pipeline(site: &Site) -> String {
    site.pipeline().display().to_string()
}

fn flip_a_bit_in_the_middle(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 4;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_was_sent_is_found_sealed_printed_and_derived_alike_again() {
    let (site, sent) = sealed_site(300);
    let file = pipeline(&site);
    let found = json_of(0, &["search", "-p", &file, "--tenant", "default", "kingfisher", "--limit", "3"]);
    let hit = &found["hits"][0];
    assert!(hit["text"].as_str().unwrap().contains("kingfisher"), "{found}");
    assert!(hit["lineage"]["segment_digest"].is_string(), "{found}");
    let shown = text(&thalweg(&["search", "-p", &file, "--tenant", "default", "kingfisher"]));
    assert!(shown.contains("from main@") && shown.contains("10 hits"), "{shown}");

    let list = json_of(0, &["segments", "list", "-p", &file]);
    assert_eq!((&list[0]["state"], list[0]["artifact"].is_string()), (&json!("sealed"), true), "{list}");
    let inspected = json_of(0, &["segments", "inspect", "17", "-p", &file]);
    assert_eq!(inspected["content_digest"], list[0]["content_digest"]);
    let blocks: u64 =
        inspected["blocks"].as_array().unwrap().iter().map(|b| b["records"].as_u64().unwrap()).sum();
    assert_eq!(blocks, 300);

    let cat = thalweg(&["segments", "cat", "0", "-p", &file]);
    assert!(cat.stdout == sent, "frames are not as they were sent");
    let lines = thalweg(&["segments", "cat", "0", "--jsonl", "-p", &file]).stdout;
    let lines: Vec<Value> =
        String::from_utf8(lines).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!((lines.len(), &lines[7]), (300, &json!({"id": "r7", "text": sentence(7), "day": 7})));

    let plan = json_of(0, &["replay", "-p", &file, "--plan", "--from", "100"]);
    assert_eq!((&plan["plan"]["frames"], &plan["plan"]["records"]), (&json!(200), &json!(200)), "{plan}");
    let replayed = json_of(0, &["replay", "-p", &file, "--segment", "0", "--recompute"]);
    assert_eq!(replayed["report"]["records_agree"], 300, "{replayed}");
    assert_eq!(replayed["report"]["vectors_identical"], 300, "{replayed}");
}

#[test]
fn a_flipped_bit_is_found_and_named_and_its_artifact_still_has_the_bytes() {
    let (site, sent) = sealed_site(300);
    let file = pipeline(&site);
    let intact = json_of(0, &["segments", "verify", "-p", &file]);
    assert_eq!((&intact[0]["intact"], &intact[0]["in_catalog"]), (&json!(true), &json!(true)), "{intact}");
    let sealed = site.log_files(".seg.zst").remove(0);
    flip_a_bit_in_the_middle(&sealed);
    let found = json_of(3, &["segments", "verify", "-p", &file]);
    let damaged = &found[0];
    assert_eq!(damaged["file"], json!(sealed), "{found}");
    let what: Vec<_> =
        damaged["damage"].as_array().unwrap().iter().map(|d| d["what"].as_str().unwrap()).collect();
    assert_eq!(what, ["block", "object"], "{found}");
    assert_eq!(damaged["damage"][0]["offsets"][0], 0, "{found}");
    // By its name alone there is no catalog to say what it should be.
    let alone = json_of(3, &["segments", "verify", sealed.to_str().unwrap(), "-p", &file]);
    assert_eq!(alone[0]["in_catalog"], false);

    let doubt = thalweg(&["segments", "cat", "0", "-p", &file]);
    assert_eq!(doubt.status.code(), Some(3), "{}", text(&doubt));
    let artifacts = json_of(0, &["artifacts", "list", "-p", &file]);
    let segment = artifacts.as_array().unwrap().iter().find(|a| a["kind"] == "segment").unwrap();
    let digest = segment["digest"].as_str().unwrap();
    fs::remove_file(&sealed).unwrap();
    json_of(0, &["artifacts", "fetch", &digest[..16], sealed.to_str().unwrap(), "-p", &file]);
    assert!(thalweg(&["segments", "cat", "0", "-p", &file]).stdout == sent);
    json_of(0, &["segments", "verify", "-p", &file]);
}

#[test]
fn artifacts_are_checked_both_ways() {
    let (site, _) = sealed_site(40);
    let file = pipeline(&site);
    let fine = json_of(0, &["artifacts", "verify", "-p", &file]);
    assert!(fine["artifacts"].as_array().unwrap().len() >= 2 && fine["orphans"] == json!([]), "{fine}");
    let stray = site.artifacts().join("segment/sha256/00/stray");
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, b"nobody's").unwrap();
    let found = json_of(3, &["artifacts", "verify", "-p", &file]);
    assert_eq!(found["orphans"], json!(["segment/sha256/00/stray"]));
    fs::remove_file(&stray).unwrap();
    json_of(0, &["doctor", "-p", &file]);
    let location = fine["artifacts"][0]["location"].as_str().unwrap();
    fs::remove_file(site.artifacts().join(location)).unwrap();
    let found = json_of(3, &["artifacts", "verify", "-p", &file]);
    assert_eq!(found["artifacts"][0]["state"], "missing", "{found}");
    let doctor = json_of(3, &["doctor", "-p", &file]);
    let of = |name: &str| doctor.as_array().unwrap().iter().find(|c| c["name"] == name).unwrap().clone();
    assert_eq!(
        (&of("artifacts")["verdict"], &of("conservation")["verdict"]),
        (&json!("problem"), &json!("ok"))
    );
    assert!(of("artifacts")["found"].as_str().unwrap().contains(location), "{doctor}");
}

#[test]
fn replay_finds_what_was_changed_and_puts_back_what_is_gone() {
    let (site, _) = sealed_site(60);
    let file = pipeline(&site);
    let change = |sql: &'static str| {
        block_on(async {
            let options = SqliteConnectOptions::new().filename(site.database());
            let mut connection = options.connect().await.unwrap();
            connection.execute(sql).await.unwrap().rows_affected()
        })
    };
    assert_eq!(
        change(
            "UPDATE chunks SET text = 'other' WHERE record_key = (SELECT record_key FROM records WHERE \"offset\" = 5)"
        ),
        1
    );
    let found = json_of(3, &["replay", "-p", &file]);
    assert_eq!(
        (&found["report"]["mismatched"], &found["report"]["mismatches"][0]["offset"]),
        (&json!(1), &json!(5))
    );
    json_of(0, &["replay", "-p", &file, "--from", "6"]);
    assert_eq!(change("DELETE FROM vectors"), 60);
    json_of(3, &["replay", "-p", &file, "--from", "6"]);
    let restored = json_of(0, &["replay", "-p", &file, "--restore"]);
    assert_eq!(restored["report"]["vectors_restored"], 60, "{restored}");
    json_of(0, &["replay", "-p", &file, "--from", "6"]);
}

#[test]
fn refused_records_are_named_kept_mended_and_sent_again() {
    let site = Site::new(&format!("{TCP}{HTTP}"));
    let daemon = site.start();
    let lines = format!(
        "{}\n\nnot json\n{}\n{}\n",
        json!({"text": sentence(1)}),
        json!({"text": sentence(2), "tier": "docs"}),
        json!({"text": sentence(3)})
    );
    let sent = thalweg_with(lines.as_bytes(), &["send", "--to", daemon.tcp(), "-", "--json"]);
    assert_eq!(sent.status.code(), Some(1), "{}", text(&sent));
    let report: Value = serde_json::from_slice(&sent.stdout).unwrap();
    assert_eq!((&report["acknowledged"], &report["unreadable"]), (&json!(2), &json!(1)), "{report}");
    assert_eq!(report["refused"], json!({"unknown_tier": 1}));
    assert_eq!(report["problems"][0]["place"], "record 3 of standard input", "{report}");
    assert_eq!(report["problems"][1]["place"], "record 2 of standard input", "{report}");

    let file = pipeline(&site);
    let letters = json_of(0, &["dead-letters", "list", "--code", "unknown_tier", "-p", &file]);
    let id = letters[0]["id"].to_string();
    assert_eq!(letters.as_array().unwrap().len(), 1, "{letters}");
    let shown = json_of(0, &["dead-letters", "show", &id, "-p", &file]);
    assert!(shown["payload"].is_string(), "{shown}");
    let kept = json_of(1, &["dead-letters", "redrive", "--all-open", "--to", daemon.tcp(), "-p", &file]);
    assert_eq!(kept[0]["outcome"], "kept", "{kept}");
    let mended =
        json_of(0, &["dead-letters", "redrive", &id, "--set", "tier=doc", "--to", daemon.tcp(), "-p", &file]);
    assert_eq!(mended[0]["outcome"], "redriven", "{mended}");
    assert_eq!(json_of(0, &["dead-letters", "list", "-p", &file]), json!([]));
    let all = json_of(0, &["dead-letters", "list", "--all", "-p", &file]);
    assert_eq!(all[0]["state"], "redriven", "{all}");
    let status = json_of(0, &["status", "--url", &daemon.http, "--until-drained", "--expect", "3"]);
    assert_eq!(status["derived"]["refused"]["unknown_tier"], 1, "{status}");
    let found =
        json_of(0, &["search", "--url", &daemon.http, "--tenant", "default", "--tier", "doc", "dipper"]);
    assert_eq!(found["hits"][0]["text"], json!(sentence(2)), "{found}");
    daemon.stop_drained();
}

#[test]
fn skip_limit_and_set_choose_and_mend_what_is_sent() {
    let site = Site::new(&format!("{TCP}{HTTP}"));
    let daemon = site.start();
    let file = site.path("in.frames");
    fs::write(&file, frames(50)).unwrap();
    let name = file.to_str().unwrap();
    let args = ["send", "--to", daemon.tcp(), "--skip", "10", "--limit", "5", "--set", "tenant=survey", name];
    assert_eq!(json_of(0, &args)["acknowledged"], 5);
    block_on(daemon.derived(5));
    let found =
        json_of(0, &["search", "--url", &daemon.http, "--tenant", "survey", "survey", "--limit", "50"]);
    let mut ids: Vec<_> =
        found["hits"].as_array().unwrap().iter().map(|hit| hit["id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["r10", "r11", "r12", "r13", "r14"]);
    daemon.stop_drained();
}

#[test]
fn a_sender_outlives_a_restart_of_the_daemon() {
    let socket = "[[source]]\ntype = \"unix\"\npath = \"SOCKET\"\n";
    let site = Site::new(TCP);
    let path = site.path("in.sock").display().to_string();
    site.configure(&socket.replace("SOCKET", &path));
    let daemon = site.start();
    let file = site.path("in.frames");
    fs::write(&file, frames(600)).unwrap();
    let (to, name) = (format!("unix://{path}"), file.to_str().unwrap().to_owned());
    let sender = std::thread::spawn(move || {
        json_of(0, &["send", "--to", &to, "--rate", "300/s", "--retries", "40", &name])
    });
    // In the middle of the two seconds that the sending takes.
    while block_on(daemon.status())["end_offset"].as_u64().unwrap() < 100 {
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon.stop();
    let daemon = site.start();
    let report = sender.join().unwrap();
    assert_eq!((&report["acknowledged"], &report["unanswered"]), (&json!(600), &json!(0)), "{report}");
    assert!(report["reconnects"].as_u64().unwrap() >= 1, "{report}");
    let status = block_on(daemon.derived(600));
    let twice = status["end_offset"].as_u64().unwrap() - 600;
    assert_eq!(status["derived"]["indexed"], 600, "{status}");
    assert_eq!(status["derived"]["deduplicated"], twice, "{status}");
    daemon.stop_drained();
}

#[test]
fn what_cannot_be_done_is_said_with_its_reason_and_exit_code() {
    let site = Site::new(&format!("{TCP}{HTTP}"));
    let file = pipeline(&site);
    fails(1, &["segments", "list", "-p", &file], "never ran");
    fails(1, &["artifacts", "list", "-p", &file], "never ran");
    assert!(!site.database().exists(), "looking must not make a store");
    fails(
        1,
        &["send", "--to", "unix:///nowhere.sock", "--retries", "0", &file, "--format", "jsonl"],
        "nowhere.sock",
    );
    fails(1, &["status", "--url", "http://127.0.0.1:9"], "no daemon answers");
    fails(2, &["send", "--to", "nowhere", "-"], "no address");
    let daemon = site.start();
    fails(1, &["segments", "seal", "-p", &file], "in use by another process");
    fails(1, &["segments", "inspect", "7", "-p", &file], "segments list");
    fails(1, &["artifacts", "fetch", "zz", "out", "-p", &file], "artifacts list");
    fails(1, &["dead-letters", "show", "9", "-p", &file], "no dead letter 9");
    daemon.stop_drained();
    let bad = site.path("bad.toml");
    fs::write(&bad, "name = \"x\"\nstrem = \"y\"\n[[source]]\ntype = \"tcp\"\n").unwrap();
    fails(2, &["check", bad.to_str().unwrap()], "bad.toml:2:1");
    fails(2, &["replay", "-p", bad.to_str().unwrap()], "bad.toml:2:1");
    fails(3, &["doctor", "-p", bad.to_str().unwrap()], "PROBLEM  pipeline file");
}

#[test]
fn a_status_that_is_never_drained_ends_at_its_timeout() {
    let site = Site::new(&format!("{TCP}{HTTP}"));
    let daemon = site.start();
    let started = std::time::Instant::now();
    let args = ["status", "--url", &daemon.http, "--until-drained", "--expect", "5", "--timeout", "500ms"];
    let output = thalweg(&args);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("not drained in time"), "{}", text(&output));
    assert!(started.elapsed() >= Duration::from_millis(500));
    daemon.stop_drained();
}

#[test]
fn models_say_where_they_are_looked_for() {
    let site = Site::new(TCP);
    let folder = site.path("models");
    let list = |code, what| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        command.env("THALWEG_MODELS", &folder).args(["models", what, "--json", "-p", &pipeline(&site)]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{}", text(&output));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["models"][0].clone()
    };
    assert_eq!(list(0, "list")["state"], "absent");
    fs::create_dir_all(folder.join("all-MiniLM-L6-v2")).unwrap();
    let wrong = list(3, "verify");
    assert_eq!(wrong["state"], "wrong");
    assert!(wrong["problem"].as_str().unwrap().contains("is missing"), "{wrong}");
}

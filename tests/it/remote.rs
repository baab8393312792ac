//! What a daemon can be asked over HTTP, the command line asks, with the same
//! answer as on the daemon's machine.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    net::TcpListener,
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    cli::{fails, json_of, pipeline, text, thalweg},
    daemon::{Daemon, HTTP, Site, TCP},
    identity::{KEYS, key},
};

/// A daemon that asks for keys, with a sealed segment and two dead letters.
struct Served {
    site: Site,
    daemon: Daemon,
    admin: String,
}

/// Records with which the segment and the dead letters are made.
const RECORDS: usize = 30;

fn served() -> Served {
    let site = Site::new(&format!("{TCP}{HTTP}{KEYS}[jobs]\nat_once = 1\nrate = 2\n"));
    let (_, admin) = key(&site, &["--role", "admin", "--tier", "unlimited"]);
    let daemon = site.start();
    let line = |n: usize| match n {
        // What is wrong with two of them is no fault of the others.
        7 | 11 => json!({"text": format!("report {n} of a tier that is none"), "tier": "docs"}),
        _ => {
            json!({"text": format!("On day {n} we counted {} herons by the river.", n * 7), "id": format!("r{n}")})
        }
    };
    let lines: String = (0..RECORDS).map(|n| format!("{}\n", line(n))).collect();
    let file = site.path("in.jsonl");
    fs::write(&file, lines).unwrap();
    let sent = json_of(1, &["send", "--to", daemon.tcp(), "--key", &admin, file.to_str().unwrap()]);
    assert_eq!(sent["refused"], json!({"unknown_tier": 2}), "{sent}");
    let served = Served { site, daemon, admin };
    let expected = (RECORDS - 2).to_string();
    served.there(0, &["status", "--until-drained", "--expect", &expected]);
    let Served { site, daemon, admin } = served;
    daemon.stop_drained();
    json_of(0, &["segments", "seal", "-p", &pipeline(&site)]);
    let daemon = site.start();
    Served { site, daemon, admin }
}

impl Served {
    fn here(&self, code: i32, args: &[&str]) -> Value {
        json_of(code, &[args, &["-p", &pipeline(&self.site)]].concat())
    }

    fn there(&self, code: i32, args: &[&str]) -> Value {
        json_of(code, &[args, &["--url", &self.daemon.http, "--key", &self.admin]].concat())
    }

    fn refused(&self, code: i32, key: &str, args: &[&str], why: &str) {
        fails(code, &[args, &["--url", &self.daemon.http, "--key", key]].concat(), why);
    }

    /// How often `route` was asked for with success.
    fn asked(&self, route: &str) -> u64 {
        let metrics = tokio::runtime::Runtime::new().unwrap().block_on(async {
            let request = thalweg::http_client::local().unwrap().get(format!("{}/metrics", self.daemon.http));
            request.bearer_auth(&self.admin).send().await.unwrap().text().await.unwrap()
        });
        let of_route = format!("http_requests_total{{route=\"{route}\",status=\"2");
        let counts = metrics.lines().filter(|line| line.starts_with(&of_route));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }
}

#[test]
fn the_answer_is_the_same_from_the_store_and_from_the_daemon() {
    let served = served();
    let job = served.there(0, &["jobs", "run", "audit", "--wait"]);
    assert_eq!(job["state"], "done", "{job}");
    served.there(0, &["jobs", "run", "orphan_check", "--wait"]);
    let (job, audits) = (job["id"].to_string(), ["jobs", "list", "--kind", "audit", "--limit", "1"]);
    let letter = served.here(0, &["dead-letters", "list"])[0]["id"].to_string();
    let digest = served.here(0, &["artifacts", "list"])[0]["digest"].as_str().unwrap().to_owned();
    let commands: [&[&str]; 12] = [
        &["jobs", "list"],
        &audits,
        &["jobs", "list", "--state", "done", "--before", &job],
        &["jobs", "show", &job],
        &["jobs", "schedules"],
        &["dead-letters", "list"],
        &["dead-letters", "list", "--all", "--code", "unknown_tier"],
        &["dead-letters", "show", &letter],
        &["artifacts", "list"],
        &["artifacts", "show", &digest],
        &["keys", "trail"],
        &["keys", "trail", "--limit", "2"],
    ];
    for command in commands {
        let (here, there) = (served.here(0, command), served.there(0, command));
        assert_eq!(here, there, "{command:?}");
        let empty = there.as_array().is_some_and(Vec::is_empty);
        assert_eq!(empty, command.contains(&"--before"), "{command:?}: {there}");
    }
    // Some say more where the data is: what is not sealed, block by block,
    // and the models of that machine.
    let mut segments = served.here(0, &["segments", "list"]);
    segments.as_array_mut().unwrap().retain(|segment| segment["state"] == "sealed");
    assert_eq!(segments, served.there(0, &["segments", "list"]));
    assert_eq!(segments[0]["records"], RECORDS - 2);
    let inspected = served.there(0, &["segments", "inspect", "5"]);
    let here = served.here(0, &["segments", "inspect", "5"]);
    for (name, value) in inspected.as_object().unwrap() {
        let known = if matches!(name.as_str(), "object_digest" | "artifact") { &segments[0] } else { &here };
        assert_eq!(&known[name], value, "{name}");
    }
    let models = served.there(0, &["models", "list"]);
    assert_eq!(models["spaces"], served.here(0, &["models", "list"])["spaces"]);
    assert_eq!((models["spaces"][0]["state"].as_str(), &models["models"]), (Some("live"), &Value::Null));
    // Pages are joined.
    let whole = served.here(0, &["keys", "trail", "--limit", "10000"]);
    assert_eq!(served.there(0, &["keys", "trail", "--limit", "10000"]), whole);
    served.daemon.stop_drained();
}

#[test]
fn lists_go_on_over_the_pages_of_the_daemon_up_to_the_limit() {
    let site = Site::new(&format!("{TCP}{HTTP}[jobs]\nat_once = 1\n"));
    let daemon = site.start();
    let store = || async { site.store().await };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = store().await;
        for n in 0..1_203 {
            let letter = thalweg::store::NewDeadLetter {
                at_ms: n,
                pipeline: "it".into(),
                source: "tcp".into(),
                code: "unknown_tier".into(),
                message: format!("number {n}"),
                ..Default::default()
            };
            store.add_dead_letter(&letter).await.unwrap();
        }
        store.close().await;
    });
    let there = json_of(0, &["dead-letters", "list", "--url", &daemon.http]);
    assert_eq!(there.as_array().unwrap().len(), 1_203);
    assert_eq!(there, json_of(0, &["dead-letters", "list", "-p", &pipeline(&site)]));
    // More than a daemon sends again at once: each is answered for.
    let kept = json_of(1, &["dead-letters", "redrive", "--all-open", "--url", &daemon.http]);
    let kept = kept.as_array().unwrap();
    assert_eq!(kept.len(), 1_203);
    assert!(kept.iter().all(|one| one["outcome"] == "kept"), "{kept:?}");
    daemon.stop_drained();
}

#[test]
fn a_missing_right_a_missing_daemon_and_two_places_are_told_apart() {
    let served = served();
    let (_, viewer) = key(&served.site, &["--role", "viewer", "--tier", "unlimited"]);
    let (_, operator) = key(&served.site, &["--role", "operator", "--tier", "unlimited"]);
    let (_, ingester) = key(&served.site, &["--role", "ingester", "--tier", "unlimited"]);
    let letter = served.here(0, &["dead-letters", "list"])[0]["id"].to_string();
    for (key, command, right) in [
        (&viewer, &["jobs", "list"][..], "operate"),
        (&viewer, &["jobs", "run", "audit"], "operate"),
        (&viewer, &["jobs", "cancel", "1"], "operate"),
        (&viewer, &["jobs", "schedules"], "operate"),
        (&viewer, &["dead-letters", "list"], "operate"),
        (&operator, &["dead-letters", "redrive", &letter, "--set", "tier=doc"], "ingest"),
        (&operator, &["keys", "trail"], "administer"),
        (&operator, &["reload", "--dry-run"], "administer"),
        (&ingester, &["segments", "list"], "observe"),
        (&ingester, &["artifacts", "list"], "observe"),
        (&ingester, &["models", "list"], "observe"),
        (&ingester, &["quota"], "observe"),
        (&ingester, &["quota", "--providers"], "observe"),
        (&ingester, &["simulate", "ingest", "10"], "observe"),
        (&ingester, &["capabilities"], "search"),
        (&ingester, &["why", "1"], "observe"),
    ] {
        served.refused(1, key, command, &format!("the right to {right}"));
    }
    served.refused(1, "tw_x", &["jobs", "list"], "malformed_credentials");
    served.refused(1, &served.admin, &["jobs", "show", "999"], "no job 999");
    served.refused(1, &served.admin, &["artifacts", "show", "3f2a"], "all 64 digits");
    for command in [
        &["segments", "cat", "0"][..],
        &["segments", "verify"],
        &["segments", "seal"],
        &["segments", "repair"],
        &["artifacts", "verify"],
        &["artifacts", "check"],
        &["artifacts", "fetch", "3f2a", "out"],
        &["models", "verify"],
        &["models", "retire", "x"],
        &["keys", "list"],
        &["keys", "create", "--name", "x", "--role", "viewer"],
    ] {
        let named = format!("thalweg {} {}` works only where the data is", command[0], command[1]);
        served.refused(2, &served.admin, command, &named);
        served.refused(2, &served.admin, &[command, &["-p", "x.toml"]].concat(), "give one of them");
    }
    let lists = [["jobs", "list"], ["dead-letters", "list"], ["segments", "list"], ["artifacts", "list"]];
    for command in lists.into_iter().chain([["models", "list"], ["keys", "trail"]]) {
        let nobody = [&command[..], &["--url", "http://127.0.0.1:9"]].concat();
        fails(1, &nobody, "no daemon answers at http://127.0.0.1:9/api/v1/");
        fails(2, &[&nobody[..], &["-p", &pipeline(&served.site)]].concat(), "give one of them");
    }
    // What the environment says decides neither.
    let set = |name: &str, value: &str, args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_thalweg"));
        let output = command.args(args).env(name, value).env_remove("THALWEG_LOG").output().unwrap();
        assert!(output.status.success(), "{name} {args:?}: {}", text(&output));
    };
    set("THALWEG_URL", "http://127.0.0.1:9", &["jobs", "list", "-p", &pipeline(&served.site)]);
    let there = ["jobs", "list", "--url", &served.daemon.http, "--key", &operator];
    set("THALWEG_PIPELINE", "nowhere.toml", &there);
    for command in ["health", "capabilities", "quota"] {
        fails(1, &[command, "--url", "http://127.0.0.1:9"], "no daemon answers");
    }
    served.daemon.stop_drained();
}

#[test]
fn a_key_goes_nowhere_but_to_the_daemon_that_was_named() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    let elsewhere = url.clone();
    let seen = std::thread::spawn(move || {
        let mut requests = Vec::new();
        for socket in server.incoming().take(2) {
            let mut socket = socket.unwrap();
            let mut bytes = [0; 4_096];
            let length = socket.read(&mut bytes).unwrap();
            requests.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nlocation: {elsewhere}/x\r\ncontent-length: 0\r\n\r\n"
            );
            socket.write_all(answer.as_bytes()).unwrap();
        }
        requests
    });
    for command in [["jobs", "list"], ["artifacts", "list"]] {
        fails(1, &[&command[..], &["--url", &url, "--key", "tw_secret"]].concat(), "is not followed");
    }
    let requests = seen.join().unwrap();
    assert!(requests[0].starts_with("GET /api/v1/jobs?limit=20 "), "{requests:?}");
    assert!(
        requests[1].starts_with("GET /api/v1/artifacts?limit=1000 "),
        "the redirect was followed: {requests:?}"
    );
    fails(1, &["jobs", "list", "--url", "http://memory.example.org", "--key", "tw_secret"], "in the clear");
}

/// Routes that no command asks for, and what is there instead.
const OTHERWISE: [(&str, &str); 4] = [
    ("GET /metrics", "Prometheus reads it"),
    ("GET /health", "`thalweg health` asks /health/ready, which is the same"),
    ("POST /api/v1/ingest", "`thalweg send` brings records, over a TCP or Unix socket"),
    ("POST /api/v1/replays", "`thalweg jobs run replay` asks /api/v1/jobs, which is the same"),
];

#[test]
fn every_route_of_the_interface_is_served_by_a_command() {
    let served = served();
    let letter = served.here(0, &["dead-letters", "list"])[0]["id"].to_string();
    let digest = served.here(0, &["artifacts", "list"])[0]["digest"].as_str().unwrap().to_owned();
    // One at a time, and slowly: the second is there to be cancelled.
    served.there(0, &["jobs", "run", "replay"]);
    let job = served.there(0, &["jobs", "run", "replay", "from=1"])["id"].to_string();
    let commands: [(&str, &[&str]); 26] = [
        ("GET /health/live", &["health", "--live"]),
        ("GET /health/ready", &["health"]),
        ("GET /health/providers", &["quota", "--providers"]),
        ("GET /api/v1/openapi.json", &["capabilities", "--openapi"]),
        ("GET /api/v1/capabilities", &["capabilities"]),
        ("GET /api/v1/status", &["status"]),
        ("POST /api/v1/search", &["search", "--tenant", "default", "herons"]),
        ("POST /api/v1/query", &["why", "3"]),
        ("POST /api/v1/simulate", &["simulate", "ingest", "1000"]),
        ("POST /api/v1/simulate", &["simulate", "replay", "--from", "3"]),
        ("POST /api/v1/simulate", &["simulate", "re_embed"]),
        ("GET /api/v1/embedding/quota", &["quota"]),
        ("GET /api/v1/segments", &["segments", "list"]),
        ("GET /api/v1/segments/{offset}", &["segments", "inspect", "3"]),
        ("GET /api/v1/artifacts", &["artifacts", "list"]),
        ("GET /api/v1/artifacts/{digest}", &["artifacts", "show", &digest]),
        ("GET /api/v1/models", &["models", "list"]),
        ("GET /api/v1/jobs", &["jobs", "list"]),
        ("GET /api/v1/jobs/{id}", &["jobs", "show", &job]),
        ("DELETE /api/v1/jobs/{id}", &["jobs", "cancel", &job]),
        ("POST /api/v1/jobs", &["jobs", "run", "orphan_check"]),
        ("GET /api/v1/schedules", &["jobs", "schedules"]),
        ("GET /api/v1/dead-letters", &["dead-letters", "list"]),
        ("GET /api/v1/dead-letters/{id}", &["dead-letters", "show", &letter]),
        ("POST /api/v1/dead-letters/redrive", &["dead-letters", "redrive", &letter, "--set", "tier=doc"]),
        ("GET /api/v1/trail", &["keys", "trail"]),
    ];
    let reload: (&str, &[&str]) = ("POST /api/v1/reload", &["reload", "--dry-run"]);
    let mut served_by = BTreeSet::new();
    for (operation, command) in commands.into_iter().chain([reload]) {
        let route = operation.split_once(' ').unwrap().1;
        let before = served.asked(route);
        served.there(0, command);
        assert!(served.asked(route) > before, "{command:?} does not ask {operation}");
        served_by.insert(operation.to_owned());
        // Text for people is no less than the JSON.
        if command[0] != "jobs" && command[0] != "dead-letters" {
            let args = [command, &["--url", &served.daemon.http, "--key", &served.admin]].concat();
            let shown = thalweg(&args);
            assert!(shown.status.success() && !shown.stdout.is_empty(), "{command:?}: {}", text(&shown));
        }
    }
    served_by.extend(OTHERWISE.iter().map(|(operation, _)| (*operation).to_owned()));
    let document = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json")).unwrap();
    let document: Value = serde_json::from_str(&document).unwrap();
    let offered: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().keys().map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    let missing: Vec<_> = offered.difference(&served_by).collect();
    assert!(missing.is_empty(), "no command asks for {missing:?}");
    let gone: Vec<_> = served_by.difference(&offered).collect();
    assert!(gone.is_empty(), "the interface has no {gone:?} any more");
    served.daemon.stop_drained();
}
